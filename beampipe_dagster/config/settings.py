"""What environment variables decide about a process: read once, checked, frozen.

A variable that is unset or blank has its default. Any other value must be usable: a typing error
in a unit file is an error that names the variable, never a default that nobody asked for.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from beampipe_dagster.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

_ARCHIVE_URL = re.compile(r"BEAMPIPE_([A-Z0-9_]+)_TAP_URL")
_ARCHIVE_LIMIT = re.compile(r"BEAMPIPE_([A-Z0-9_]+)_TAP_(?:MAX_CONCURRENCY|MIN_INTERVAL_MS)")
_TRUE = frozenset({"true", "1", "yes", "y", "on"})
_FALSE = frozenset({"false", "0", "no", "n", "off"})
_DAY = 86_400
CASDA_LOGIN_URL = "https://data.csiro.au/casda_vo_proxy/vo/tap/availability"
"""Where CASDA checks accounts by HTTP basic authentication, unless told otherwise."""
_HOUR_MS = 3_600_000
_PORT_MAX = 65_535
_MANY = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveLimits:
    """How fast an archive is asked, over all processes on the ledger.

    Parameters
    ----------
    max_concurrency
        Requests on their way at a time.
    min_interval_ms
        Milliseconds between the beginnings of two requests.
    """

    max_concurrency: int = 4
    min_interval_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of a process.

    Parameters
    ----------
    home
        Absolute directory of everything that is kept in files (``BEAMPIPE_HOME``).
    database_url
        SQLAlchemy URL of the ledger (``BEAMPIPE_DATABASE_URL``); it may hold a password and is
        therefore not in the ``repr``.
    archive_urls
        TAP base URLs by lower-case archive name, one for each ``BEAMPIPE_<NAME>_TAP_URL``.
    archive_limits
        How fast an archive is asked, unless it has limits of its own (``BEAMPIPE_ARCHIVE_MAX_CONCURRENCY``,
        ``BEAMPIPE_ARCHIVE_MIN_INTERVAL_MS``).
    limits_by_archive
        The limits of archives that have their own, by lower-case name
        (``BEAMPIPE_<NAME>_TAP_MAX_CONCURRENCY``, ``BEAMPIPE_<NAME>_TAP_MIN_INTERVAL_MS``).
    archive_gate_timeout_seconds
        How long a request waits for its turn (``BEAMPIPE_ARCHIVE_GATE_TIMEOUT_SECONDS``).
    archive_failures_to_open
        Failures in a row after which an archive is left alone (``BEAMPIPE_ARCHIVE_FAILURES_TO_OPEN``).
    archive_open_seconds, archive_longest_open_seconds
        For how long at first, and at most (``BEAMPIPE_ARCHIVE_OPEN_SECONDS``,
        ``BEAMPIPE_ARCHIVE_LONGEST_OPEN_SECONDS``).
    tm_url, dim_url
        DALiuGE's translator and island manager, where a profile names none (``BEAMPIPE_TM_URL``,
        ``BEAMPIPE_DIM_URL``).
    metrics_host, metrics_port
        Where the exporter listens (``BEAMPIPE_METRICS_BIND_ADDR``); port 0 takes a free one.
    source_concurrency
        Sources of a discovery batch at work at a time (``BEAMPIPE_DISCOVERY_SOURCE_CONCURRENCY``).
    discovery_batching
        Whether a discovery batch asks for its sources together (``BEAMPIPE_DISCOVERY_BATCHING``).
    execution_max_in_flight
        Executions on their way at a time, over all surveys
        (``BEAMPIPE_SHAPING_EXECUTION_MAX_IN_FLIGHT_RUNS``).
    execution_retry_max_attempts, execution_retry_first_delay_minutes, execution_retry_factor
        How often an execution that failed for a passing reason is tried again, after how long, and how much
        longer each further retry waits, unless a survey says otherwise
        (``BEAMPIPE_EXECUTION_RETRY_MAX_ATTEMPTS``, ``BEAMPIPE_EXECUTION_RETRY_FIRST_DELAY_MINUTES``,
        ``BEAMPIPE_EXECUTION_RETRY_FACTOR``).
    discovery_max_in_flight
        Discovery batches at work at a time (``BEAMPIPE_SHAPING_DISCOVERY_MAX_IN_FLIGHT_BATCHES``).
    discovery_max_batches_per_tick
        Batches that one tick may claim (``BEAMPIPE_SHAPING_DISCOVERY_MAX_BATCHES_PER_TICK``).
    discovery_quarantine_after
        Failed looks in a row, each by the source's own fault, after which a source is no longer asked
        about by the clock (``BEAMPIPE_DISCOVERY_QUARANTINE_AFTER``).
    discovery_vanish_recheck_minutes
        Minutes after which a second complete answer may confirm that datasets are gone
        (``BEAMPIPE_DISCOVERY_VANISH_RECHECK_MINUTES``).
    queue_max_depth
        Claims and executions that may wait for a process before a tick asks for no more, where a survey says
        nothing (``BEAMPIPE_SHAPING_QUEUE_MAX_DEPTH``).
    partition_retention_days
        Days after which a superseded signature's key is taken out of Dagster's partitions
        (``BEAMPIPE_PARTITION_RETENTION_DAYS``).
    partition_live_keys
        Keys of one survey that Dagster is to know at a time; above it, settled ones go before their time
        (``BEAMPIPE_PARTITION_LIVE_KEYS``).
    lease_seconds
        How long a lease in the ledger lasts without renewal (``BEAMPIPE_LEASE_SECONDS``).
    submission_timeout_seconds
        After how long a submission without a receipt counts as uncertain
        (``BEAMPIPE_WORKER_SUBMISSION_TIMEOUT_SECONDS``, 1 to 86400).
    poll_interval_seconds
        Between two looks at DALiuGE (``BEAMPIPE_DIM_POLL_INTERVAL_SECONDS``).
    poll_stuck_seconds
        For how long no drop of a running session changes before an operator is told
        (``BEAMPIPE_POLL_STUCK_SECONDS``).
    daliuge_auth_header
        A header line that lets in at translators and managers, such as ``Authorization: Bearer ...``
        (``BEAMPIPE_DALIUGE_AUTH_HEADER``, or a file's content: ``BEAMPIPE_DALIUGE_AUTH_HEADER_FILE``); a
        secret, and therefore not in the ``repr``.
    daliuge_ca_file
        Certificates that theirs are checked by (``BEAMPIPE_DALIUGE_CA_FILE``).
    tick_interval_seconds
        Between two ticks of a survey's sensors (``BEAMPIPE_SCHEDULER_INTERVAL_SECONDS``).
    delete_sessions
        Whether a finished DALiuGE session is removed (``BEAMPIPE_DIM_DESTROY_SESSION``).
    allow_private_graph_urls
        Whether a graph's URL may lead to a private address (``BEAMPIPE_ALLOW_PRIVATE_GRAPH_URLS``).
    casda_login_url
        Where CASDA checks the account that stages data (``CASDA_LOGIN_URL``); the account itself is in
        ``CASDA_USERNAME`` and ``CASDA_PASSWORD`` or ``CASDA_PASSWORD_FILE``, and is never kept.
    stage_by_sbid
        Whether each scheduling block's visibilities are a staging job of their own (``CASDA_STAGE_BY_SBID``).
    staging_poll_seconds
        Between two looks at a staging job (``BEAMPIPE_STAGING_POLL_INTERVAL_SECONDS``).
    staging_patience_seconds
        How long a run waits for the archive before it ends, to come back later
        (``BEAMPIPE_STAGING_PATIENCE_SECONDS``).
    staging_create_deadline_seconds
        How long a staging job whose creation is uncertain is looked for before another one takes its place
        (``BEAMPIPE_STAGING_CREATE_DEADLINE_SECONDS``).
    staging_min_validity_seconds
        How long the URLs of staged files must be good when they are submitted
        (``BEAMPIPE_STAGING_MIN_VALIDITY_SECONDS``).
    ssh_max_connections, ssh_commands_per_minute
        What all processes together take of a cluster's login nodes (``BEAMPIPE_SSH_MAX_CONNECTIONS``,
        ``BEAMPIPE_SSH_COMMANDS_PER_MINUTE``).
    ssh_idle_seconds
        After how long an SSH connection that nobody uses is closed (``BEAMPIPE_SLURM_SSH_IDLE_SECONDS``).
    log_json
        Whether logs are JSON lines (``BEAMPIPE_LOG_JSON``).
    """

    home: Path
    database_url: str = field(repr=False)
    archive_urls: dict[str, str] = field(default_factory=dict)
    archive_limits: ArchiveLimits = field(default_factory=ArchiveLimits)
    limits_by_archive: dict[str, ArchiveLimits] = field(default_factory=dict)
    archive_gate_timeout_seconds: float = 300.0
    archive_failures_to_open: int = 3
    archive_open_seconds: float = 30.0
    archive_longest_open_seconds: float = 900.0
    tm_url: str | None = None
    dim_url: str | None = None
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 9090
    source_concurrency: int = 5
    discovery_batching: bool = True
    execution_max_in_flight: int = 2
    execution_retry_max_attempts: int = 2
    execution_retry_first_delay_minutes: int = 15
    execution_retry_factor: int = 4
    discovery_max_in_flight: int = 4
    discovery_max_batches_per_tick: int = 4
    discovery_quarantine_after: int = 8
    discovery_vanish_recheck_minutes: int = 60
    queue_max_depth: int = 200
    partition_retention_days: int = 30
    partition_live_keys: int = 10_000
    lease_seconds: float = 60.0
    submission_timeout_seconds: int = 1800
    poll_interval_seconds: float = 5.0
    poll_stuck_seconds: float = 21_600.0
    daliuge_auth_header: str | None = field(default=None, repr=False)
    daliuge_ca_file: Path | None = None
    tick_interval_seconds: int = 60
    delete_sessions: bool = False
    allow_private_graph_urls: bool = False
    casda_login_url: str = CASDA_LOGIN_URL
    stage_by_sbid: bool = True
    staging_poll_seconds: float = 20.0
    staging_patience_seconds: float = 120.0
    staging_create_deadline_seconds: float = 900.0
    staging_min_validity_seconds: float = 3600.0
    ssh_max_connections: int = 4
    ssh_commands_per_minute: int = 120
    ssh_idle_seconds: float = 300.0
    log_json: bool = False

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the settings.

        Parameters
        ----------
        environ
            The variables; by default the process's own.

        Raises
        ------
        ConfigError
            ``invalid_setting``: names the variable, its value and what is allowed.
        """
        env = _Environment(os.environ if environ is None else environ)
        home = env.home("BEAMPIPE_HOME", "~/.beampipe")
        host, port = env.address("BEAMPIPE_METRICS_BIND_ADDR", "127.0.0.1:9090")
        shaping = "BEAMPIPE_SHAPING"
        return cls(
            home=home,
            database_url=env.database_url("BEAMPIPE_DATABASE_URL", home),
            archive_urls=env.archive_urls(),
            archive_limits=(limits := env.archive_limits("BEAMPIPE_ARCHIVE", ArchiveLimits())),
            limits_by_archive=env.limits_by_archive(limits),
            archive_gate_timeout_seconds=env.seconds("BEAMPIPE_ARCHIVE_GATE_TIMEOUT_SECONDS", 300.0),
            archive_failures_to_open=env.integer("BEAMPIPE_ARCHIVE_FAILURES_TO_OPEN", 3),
            archive_open_seconds=env.seconds("BEAMPIPE_ARCHIVE_OPEN_SECONDS", 30.0),
            archive_longest_open_seconds=env.seconds("BEAMPIPE_ARCHIVE_LONGEST_OPEN_SECONDS", 900.0),
            tm_url=env.url("BEAMPIPE_TM_URL"),
            dim_url=env.url("BEAMPIPE_DIM_URL"),
            metrics_host=host,
            metrics_port=port,
            source_concurrency=env.integer("BEAMPIPE_DISCOVERY_SOURCE_CONCURRENCY", 5, high=1000),
            discovery_batching=env.flag("BEAMPIPE_DISCOVERY_BATCHING", default=True),
            execution_max_in_flight=env.integer(f"{shaping}_EXECUTION_MAX_IN_FLIGHT_RUNS", 2),
            execution_retry_max_attempts=env.integer(
                "BEAMPIPE_EXECUTION_RETRY_MAX_ATTEMPTS", 2, low=0, high=100
            ),
            execution_retry_first_delay_minutes=env.integer(
                "BEAMPIPE_EXECUTION_RETRY_FIRST_DELAY_MINUTES", 15, low=0, high=10_080
            ),
            execution_retry_factor=env.integer("BEAMPIPE_EXECUTION_RETRY_FACTOR", 4, high=100),
            discovery_max_in_flight=env.integer(f"{shaping}_DISCOVERY_MAX_IN_FLIGHT_BATCHES", 4),
            discovery_max_batches_per_tick=env.integer(f"{shaping}_DISCOVERY_MAX_BATCHES_PER_TICK", 4),
            discovery_quarantine_after=env.integer("BEAMPIPE_DISCOVERY_QUARANTINE_AFTER", 8),
            discovery_vanish_recheck_minutes=env.integer("BEAMPIPE_DISCOVERY_VANISH_RECHECK_MINUTES", 60),
            queue_max_depth=env.integer(f"{shaping}_QUEUE_MAX_DEPTH", 200),
            partition_retention_days=env.integer("BEAMPIPE_PARTITION_RETENTION_DAYS", 30, low=0, high=3650),
            partition_live_keys=env.integer("BEAMPIPE_PARTITION_LIVE_KEYS", 10_000),
            lease_seconds=env.seconds("BEAMPIPE_LEASE_SECONDS", 60.0),
            submission_timeout_seconds=env.integer(
                "BEAMPIPE_WORKER_SUBMISSION_TIMEOUT_SECONDS", 1800, high=_DAY
            ),
            poll_interval_seconds=env.seconds("BEAMPIPE_DIM_POLL_INTERVAL_SECONDS", 5.0),
            poll_stuck_seconds=env.seconds("BEAMPIPE_POLL_STUCK_SECONDS", 21_600.0),
            daliuge_auth_header=env.secret("BEAMPIPE_DALIUGE_AUTH_HEADER"),
            daliuge_ca_file=env.file("BEAMPIPE_DALIUGE_CA_FILE"),
            tick_interval_seconds=env.integer("BEAMPIPE_SCHEDULER_INTERVAL_SECONDS", 60, high=_DAY),
            delete_sessions=env.flag("BEAMPIPE_DIM_DESTROY_SESSION", default=False),
            allow_private_graph_urls=env.flag("BEAMPIPE_ALLOW_PRIVATE_GRAPH_URLS", default=False),
            casda_login_url=env.url("CASDA_LOGIN_URL") or CASDA_LOGIN_URL,
            stage_by_sbid=env.flag("CASDA_STAGE_BY_SBID", default=True),
            staging_poll_seconds=env.seconds("BEAMPIPE_STAGING_POLL_INTERVAL_SECONDS", 20.0),
            staging_patience_seconds=env.seconds("BEAMPIPE_STAGING_PATIENCE_SECONDS", 120.0),
            staging_create_deadline_seconds=env.seconds("BEAMPIPE_STAGING_CREATE_DEADLINE_SECONDS", 900.0),
            staging_min_validity_seconds=env.seconds("BEAMPIPE_STAGING_MIN_VALIDITY_SECONDS", 3600.0),
            ssh_max_connections=env.integer("BEAMPIPE_SSH_MAX_CONNECTIONS", 4, high=100),
            ssh_commands_per_minute=env.integer("BEAMPIPE_SSH_COMMANDS_PER_MINUTE", 120, high=6000),
            ssh_idle_seconds=env.seconds("BEAMPIPE_SLURM_SSH_IDLE_SECONDS", 300.0),
            log_json=env.flag("BEAMPIPE_LOG_JSON", default=False),
        )


class _Environment:
    """Variables, read by kind."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def text(self, name: str) -> str | None:
        return self._environ.get(name, "").strip() or None

    def file(self, name: str) -> Path | None:
        text = self.text(name)
        if text is None:
            return None
        path = Path(text).absolute()
        if path.is_file():
            return path
        raise _refused(name, text, "the path of a file that is there")

    def secret(self, name: str) -> str | None:
        """The variable's value, or the content of the file that ``<name>_FILE`` names; never shown."""
        text, path = self.text(name), self.file(f"{name}_FILE")
        if path is None:
            return text
        if text is not None:
            raise _refused(f"{name}_FILE", str(path), f"to be set while {name} is set too")
        try:
            return path.read_text(encoding="utf-8").strip() or None
        except (OSError, UnicodeError) as error:
            raise _refused(f"{name}_FILE", str(path), "the path of a readable text file") from error

    def integer(self, name: str, default: int, *, low: int = 1, high: int = _MANY) -> int:
        text = self.text(name)
        if text is None:
            return default
        # A length bound before int(): a number of thousands of digits is refused like any other.
        if re.fullmatch(r"[0-9]{1,9}", text) and low <= int(text) <= high:
            return int(text)
        raise _refused(name, text, f"a whole number from {low} to {high}")

    def seconds(self, name: str, default: float) -> float:
        text = self.text(name)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if 0 < value <= _DAY:
            return value
        raise _refused(name, text, f"a number of seconds above 0 and up to {_DAY}")

    def flag(self, name: str, *, default: bool) -> bool:
        text = self.text(name)
        if text is None:
            return default
        word = text.lower()
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
        raise _refused(name, text, "true, 1, yes, y, on or false, 0, no, n, off")

    def url(self, name: str) -> str | None:
        text = self.text(name)
        if text is None:
            return None
        try:
            parts = urlsplit(text)
            usable = parts.scheme in {"http", "https"} and bool(parts.hostname)
            usable = usable and (parts.port is None or parts.port > 0)
        except ValueError:
            usable = False
        if usable and not re.search(r"\s", text):
            return text
        raise _refused(name, _without_password(text), "an http:// or https:// URL")

    def archive_urls(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for name in sorted(self._environ):
            match = _ARCHIVE_URL.fullmatch(name)
            url = self.url(name) if match else None
            if match and url:
                found[match.group(1).lower()] = url
        return found

    def archive_limits(self, prefix: str, default: ArchiveLimits) -> ArchiveLimits:
        interval = self.integer(f"{prefix}_MIN_INTERVAL_MS", default.min_interval_ms, low=0, high=_HOUR_MS)
        most = self.integer(f"{prefix}_MAX_CONCURRENCY", default.max_concurrency, high=1000)
        return ArchiveLimits(max_concurrency=most, min_interval_ms=interval)

    def limits_by_archive(self, default: ArchiveLimits) -> dict[str, ArchiveLimits]:
        matches = (_ARCHIVE_LIMIT.fullmatch(name) for name in sorted(self._environ))
        names = dict.fromkeys(match.group(1) for match in matches if match)
        return {name.lower(): self.archive_limits(f"BEAMPIPE_{name}_TAP", default) for name in names}

    def address(self, name: str, default: str) -> tuple[str, int]:
        text = self.text(name) or default
        match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\s:\[\]]+)):([0-9]{1,5})", text)
        if match and int(match.group(3)) <= _PORT_MAX:
            return match.group(1) or match.group(2), int(match.group(3))
        raise _refused(name, text, "host:port, or [address]:port for IPv6, with a port up to 65535")

    def home(self, name: str, default: str) -> Path:
        text = self.text(name) or default
        if text == "~" or text.startswith("~/"):
            user_home = self.text("HOME") or str(Path.home())
            text = user_home + text[1:]
        return Path(text).absolute()

    def database_url(self, name: str, home: Path) -> str:
        text = self.text(name)
        if text is None:
            return f"sqlite:///{home / 'ledger.db'}"
        scheme, separator, rest = text.partition("://")
        if separator and scheme in {"postgresql", "postgres"}:
            # SQLAlchemy is told the driver: its default has changed between versions.
            return f"postgresql+psycopg2://{rest}"
        if separator and scheme.partition("+")[0] in {"sqlite", "postgresql"}:
            return text
        raise _refused(name, _without_password(text), "sqlite:///PATH or postgresql://USER@HOST/DATABASE")


def _without_password(url: str) -> str:
    """The URL with its user part hidden: an error must never show a password."""
    return re.sub(r"//[^/]*@", "//***@", url)


def _refused(name: str, value: str, allowed: str) -> ConfigError:
    shown = value if len(value) <= 80 else f"{value[:77]}..."
    return ConfigError(
        f"the environment variable {name} is {shown!r}, which is not {allowed}",
        code="invalid_setting",
        hint=f"Set {name} to {allowed}, or unset it to have the default.",
        details={"variable": name, "value": shown, "allowed": allowed},
    )
