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
_TRUE = frozenset({"true", "1", "yes", "y", "on"})
_FALSE = frozenset({"false", "0", "no", "n", "off"})
_DAY = 86_400
_PORT_MAX = 65_535
_MANY = 100_000


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
    discovery_max_in_flight
        Discovery batches at work at a time (``BEAMPIPE_SHAPING_DISCOVERY_MAX_IN_FLIGHT_BATCHES``).
    discovery_max_batches_per_tick
        Batches that one tick may claim (``BEAMPIPE_SHAPING_DISCOVERY_MAX_BATCHES_PER_TICK``).
    discovery_quarantine_after
        Failed looks in a row, each by the source's own fault, after which a source is no longer asked
        about by the clock (``BEAMPIPE_DISCOVERY_QUARANTINE_AFTER``).
    lease_seconds
        How long a lease in the ledger lasts without renewal (``BEAMPIPE_LEASE_SECONDS``).
    submission_timeout_seconds
        After how long a submission without a receipt counts as uncertain
        (``BEAMPIPE_WORKER_SUBMISSION_TIMEOUT_SECONDS``, 1 to 86400).
    poll_interval_seconds
        Between two looks at DALiuGE (``BEAMPIPE_DIM_POLL_INTERVAL_SECONDS``).
    tick_interval_seconds
        Between two ticks of a survey's sensors (``BEAMPIPE_SCHEDULER_INTERVAL_SECONDS``).
    delete_sessions
        Whether a finished DALiuGE session is removed (``BEAMPIPE_DIM_DESTROY_SESSION``).
    allow_private_graph_urls
        Whether a graph's URL may lead to a private address (``BEAMPIPE_ALLOW_PRIVATE_GRAPH_URLS``).
    log_json
        Whether logs are JSON lines (``BEAMPIPE_LOG_JSON``).
    """

    home: Path
    database_url: str = field(repr=False)
    archive_urls: dict[str, str] = field(default_factory=dict)
    tm_url: str | None = None
    dim_url: str | None = None
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 9090
    source_concurrency: int = 5
    discovery_batching: bool = True
    execution_max_in_flight: int = 2
    discovery_max_in_flight: int = 4
    discovery_max_batches_per_tick: int = 4
    discovery_quarantine_after: int = 8
    lease_seconds: float = 60.0
    submission_timeout_seconds: int = 1800
    poll_interval_seconds: float = 5.0
    tick_interval_seconds: int = 60
    delete_sessions: bool = False
    allow_private_graph_urls: bool = False
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
            tm_url=env.url("BEAMPIPE_TM_URL"),
            dim_url=env.url("BEAMPIPE_DIM_URL"),
            metrics_host=host,
            metrics_port=port,
            source_concurrency=env.integer("BEAMPIPE_DISCOVERY_SOURCE_CONCURRENCY", 5, high=1000),
            discovery_batching=env.flag("BEAMPIPE_DISCOVERY_BATCHING", default=True),
            execution_max_in_flight=env.integer(f"{shaping}_EXECUTION_MAX_IN_FLIGHT_RUNS", 2),
            discovery_max_in_flight=env.integer(f"{shaping}_DISCOVERY_MAX_IN_FLIGHT_BATCHES", 4),
            discovery_max_batches_per_tick=env.integer(f"{shaping}_DISCOVERY_MAX_BATCHES_PER_TICK", 4),
            discovery_quarantine_after=env.integer("BEAMPIPE_DISCOVERY_QUARANTINE_AFTER", 8),
            lease_seconds=env.seconds("BEAMPIPE_LEASE_SECONDS", 60.0),
            submission_timeout_seconds=env.integer(
                "BEAMPIPE_WORKER_SUBMISSION_TIMEOUT_SECONDS", 1800, high=_DAY
            ),
            poll_interval_seconds=env.seconds("BEAMPIPE_DIM_POLL_INTERVAL_SECONDS", 5.0),
            tick_interval_seconds=env.integer("BEAMPIPE_SCHEDULER_INTERVAL_SECONDS", 60, high=_DAY),
            delete_sessions=env.flag("BEAMPIPE_DIM_DESTROY_SESSION", default=False),
            allow_private_graph_urls=env.flag("BEAMPIPE_ALLOW_PRIVATE_GRAPH_URLS", default=False),
            log_json=env.flag("BEAMPIPE_LOG_JSON", default=False),
        )


class _Environment:
    """Variables, read by kind."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def text(self, name: str) -> str | None:
        return self._environ.get(name, "").strip() or None

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
