"""The Prometheus exporter: ``beampipe_*``, read from the ledger when they are scraped.

It is a process of its own, because the platform is many processes that come and go: counters come from
append-only tables and survive all of them, and no two processes export the same number. A scrape costs a few
bounded queries, and their answers are kept for some seconds.

Run it with ``python -m beampipe_dagster.observe.metrics --host 127.0.0.1 --port 9090``.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy.engine import Connection

from beampipe_dagster.clock import Clock, SystemClock
from beampipe_dagster.config.settings import Settings
from beampipe_dagster.discovery.health import dependencies_up
from beampipe_dagster.errors import BeampipeError
from beampipe_dagster.ledger import gates, outbox
from beampipe_dagster.ledger.circuits import CircuitState
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.migrate import migrate
from beampipe_dagster.ledger.states import ACTIVE, TERMINAL, Status, SubmissionState
from beampipe_dagster.ledger.tables import batch_execution_record as record
from beampipe_dagster.ledger.tables import provenance_events as told
from beampipe_dagster.ledger.tables import source_registry as registry

CACHE_SECONDS: Final = 5.0
DURATION_BUCKETS: Final = (30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 43200.0, 86400.0)
"""Bounds of an execution's whole time, in seconds: half a minute to a day."""

_DISCOVERY_OUTCOMES: Final = {
    "discovery.changed": "changed",
    "discovery.unchanged": "unchanged",
    "discovery.no_datasets": "no_datasets",
    "discovery.vanishing": "vanishing",
    "discovery.error": "error",
    "discovery.timeout": "timeout",
}


class LedgerCollector(Collector):
    """Collects metrics from a ledger.

    A ledger that cannot be read gives ``beampipe_up 0`` and nothing else: old numbers are never shown as new.
    """

    def __init__(self, *, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: list[Metric] = []
        self._kept_until = -1.0

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering the collector must not need the ledger."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metric families, at most :data:`CACHE_SECONDS` old."""
        with self._lock:
            if self._clock.monotonic() >= self._kept_until:
                self._kept = self._read()
                self._kept_until = self._clock.monotonic() + CACHE_SECONDS
            families = list(self._kept)
        yield from families

    def _read(self) -> list[Metric]:
        up = GaugeMetricFamily("beampipe_up", "Whether the exporter could read the ledger.")
        build = InfoMetricFamily("beampipe_build", "The version that exports.", value={"version": _version()})
        try:
            with self._ledger.read() as conn:
                families = [
                    *self._sources(conn),
                    *self._executions(conn),
                    *_terminal(conn),
                    _durations(conn),
                    _discovery(conn),
                    _dependencies(conn, self._clock),
                    *_archives(conn, self._clock),
                    *self._outbox(conn),
                ]
        except BeampipeError:
            up.add_metric([], 0.0)
            return [up, build]
        up.add_metric([], 1.0)
        return [up, build, *families]

    def _sources(self, conn: Connection) -> list[Metric]:
        registered = GaugeMetricFamily(
            "beampipe_sources_registered", "Sources in the registry.", labels=["project_module"]
        )
        held = GaugeMetricFamily(
            "beampipe_sources_held", "Sources that are held back.", labels=["project_module", "reason"]
        )
        quarantined = GaugeMetricFamily(
            "beampipe_sources_quarantined",
            "Sources that are not asked about until an operator asks.",
            labels=["project_module"],
        )
        pending = GaugeMetricFamily(
            "beampipe_workflow_pending_sources",
            "Sources that wait for an execution.",
            labels=["project_module"],
        )
        age = GaugeMetricFamily(
            "beampipe_workflow_pending_age_seconds",
            "How long the longest waiting source waits.",
            labels=["project_module"],
        )
        columns = registry.c
        now = self._clock.now()
        rows = conn.execute(
            sa.select(
                columns.project_module,
                sa.func.count(),
                sa.func.count(sa.case((columns.workflow_run_pending, 1))),
                sa.func.min(sa.case((columns.workflow_run_pending, columns.workflow_run_pending_at))),
                sa.func.count(columns.quarantined_at),
            ).group_by(columns.project_module)
        )
        for project, number, waiting, since, aside in rows:
            registered.add_metric([project], number)
            quarantined.add_metric([project], aside)
            pending.add_metric([project], waiting)
            age.add_metric([project], (now - since).total_seconds() if since else 0.0)
        reason = columns.hold["code"].as_string()
        for project, code, number in conn.execute(
            sa.select(columns.project_module, reason, sa.func.count())
            .where(columns.hold.is_not(None))
            .group_by(columns.project_module, reason)
        ):
            held.add_metric([project, code or "unknown"], number)
        return [registered, held, quarantined, pending, age]

    def _executions(self, conn: Connection) -> list[Metric]:
        active = GaugeMetricFamily(
            "beampipe_executions_active", "Executions that are not terminal.", labels=["status"]
        )
        oldest = GaugeMetricFamily(
            "beampipe_executions_oldest_active_age_seconds",
            "Age of the oldest execution of each status.",
            labels=["status"],
        )
        uncertain = GaugeMetricFamily(
            "beampipe_submissions_uncertain", "Submissions whose outcome is being looked for."
        )
        external = GaugeMetricFamily(
            "beampipe_executions_by_external_state",
            "Active executions by what each layer says.",
            labels=["axis", "state"],
        )
        now = self._clock.now()
        is_active = record.c.status.in_([status.value for status in ACTIVE])
        found = {
            row.status: (row.number, row.since)
            for row in conn.execute(
                sa.select(
                    record.c.status,
                    sa.func.count().label("number"),
                    sa.func.min(record.c.created_at).label("since"),
                )
                .where(is_active)
                .group_by(record.c.status)
            )
        }
        for status in sorted(ACTIVE):
            number, since = found.get(status.value, (0, None))
            active.add_metric([status.value], number)
            oldest.add_metric([status.value], (now - since).total_seconds() if since else 0.0)
        for axis in ("submission_state", "scheduler_state", "daliuge_state", "output_state"):
            column = record.c[axis]
            for state, number in conn.execute(
                sa.select(column, sa.func.count()).where(is_active).group_by(column)
            ):
                external.add_metric([axis.removesuffix("_state"), state], number)
        uncertain.add_metric(
            [],
            conn.execute(
                sa.select(sa.func.count()).where(
                    is_active, record.c.submission_state == SubmissionState.UNCERTAIN.value
                )
            ).scalar_one(),
        )
        return [active, oldest, uncertain, external]

    def _outbox(self, conn: Connection) -> list[Metric]:
        number, since = outbox.undelivered(conn)
        waiting = GaugeMetricFamily("beampipe_outbox_undelivered", "Events that Dagster was not told yet.")
        waiting.add_metric([], number)
        age = GaugeMetricFamily("beampipe_outbox_oldest_age_seconds", "Age of the oldest undelivered event.")
        age.add_metric([], (self._clock.now() - since).total_seconds() if since else 0.0)
        return [waiting, age]


def _terminal(conn: Connection) -> list[Metric]:
    ended = CounterMetricFamily(
        "beampipe_execute_terminal",
        "Executions that ended, by how.",
        labels=["project_module", "status"],
    )
    for project, status, number in conn.execute(
        sa.select(record.c.project_module, record.c.status, sa.func.count())
        .where(record.c.status.in_([status.value for status in TERMINAL]))
        .group_by(record.c.project_module, record.c.status)
    ):
        ended.add_metric([project, status], number)
    return [ended]


def _durations(conn: Connection) -> Metric:
    """Whole time of completed executions, from admission to end."""
    family = HistogramMetricFamily(
        "beampipe_execution_duration_seconds",
        "From admission to completion.",
        labels=["project_module"],
    )
    seconds = (
        sa.extract("epoch", record.c.completed_at) - sa.extract("epoch", record.c.created_at)
        if conn.dialect.name == "postgresql"
        else (sa.func.julianday(record.c.completed_at) - sa.func.julianday(record.c.created_at)) * 86400.0
    )
    counted = [
        sa.func.count(sa.case((seconds <= bound, 1))).label(f"le_{index}")
        for index, bound in enumerate(DURATION_BUCKETS)
    ]
    rows = conn.execute(
        sa.select(record.c.project_module, sa.func.count(), sa.func.sum(seconds), *counted)
        .where(record.c.status == Status.COMPLETED.value)
        .group_by(record.c.project_module)
    )
    for project, number, total, *below in rows:
        buckets = [(str(bound), count) for bound, count in zip(DURATION_BUCKETS, below, strict=True)]
        family.add_metric([project], [*buckets, ("+Inf", number)], float(total or 0.0))
    return family


def _discovery(conn: Connection) -> Metric:
    looks = CounterMetricFamily(
        "beampipe_discovery_sources",
        "Looks at sources, by how they ended.",
        labels=["project_module", "outcome"],
    )
    for project, kind, number in conn.execute(
        sa.select(told.c.project_module, told.c.event_type, sa.func.count())
        .where(told.c.event_type.in_(_DISCOVERY_OUTCOMES))
        .group_by(told.c.project_module, told.c.event_type)
    ):
        looks.add_metric([project, _DISCOVERY_OUTCOMES[kind]], number)
    return looks


def _dependencies(conn: Connection, clock: Clock) -> Metric:
    up = GaugeMetricFamily(
        "beampipe_dependency_up",
        "Whether an archive answered the looks of the last hour; absent when none says anything about it.",
        labels=["dependency"],
    )
    for name, is_up in dependencies_up(conn, now=clock.now()).items():
        up.add_metric([name], float(is_up))
    return up


def _archives(conn: Connection, clock: Clock) -> list[Metric]:
    """The archives' gates. Surveys may call two archives alike, so the key (host and path) is a label, too."""
    labels = ["archive", "key"]
    up = GaugeMetricFamily(
        "beampipe_archive_up", "Whether the archive answered its last request.", labels=labels
    )
    open_ = GaugeMetricFamily(
        "beampipe_archive_circuit_open",
        "Whether the archive is left alone, because it failed several times in a row or by hand.",
        labels=labels,
    )
    latency = GaugeMetricFamily(
        "beampipe_archive_latency_seconds",
        "How long the archive's answers take: a mean in which newer ones weigh more.",
        labels=labels,
    )
    in_use = GaugeMetricFamily(
        "beampipe_archive_permits_in_use", "Requests to the archive on their way.", labels=labels
    )
    permits = gates.permits_in_use(conn, now=clock.now())
    for row in gates.everything(conn):
        names = [row.name, row.key]
        is_open = row.circuit.state is not CircuitState.CLOSED
        if row.answers is not None:
            up.add_metric(names, float(row.answers))
        open_.add_metric(names, float(is_open))
        if row.latency_seconds is not None:
            latency.add_metric(names, row.latency_seconds)
        in_use.add_metric(names, permits.get(row.key, 0))
    return [up, open_, latency, in_use]


def _version() -> str:
    try:
        return version("beampipe-dagster")
    except PackageNotFoundError:
        return "unknown"


def serve(*, ledger: Ledger, host: str, port: int, stop: threading.Event) -> None:
    """Serve ``/metrics`` until ``stop`` is set.

    Raises
    ------
    OSError
        The port cannot be listened on.
    """
    registry_of_metrics = CollectorRegistry()
    registry_of_metrics.register(LedgerCollector(ledger=ledger, clock=SystemClock()))
    server, thread = start_http_server(port, addr=host, registry=registry_of_metrics)
    stop.wait()
    server.shutdown()
    thread.join(timeout=5)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the exporter until it is told to stop."""
    parser = argparse.ArgumentParser(prog="python -m beampipe_dagster.observe.metrics")
    parser.add_argument("--host", help="address to listen on; default from BEAMPIPE_METRICS_BIND_ADDR")
    parser.add_argument("--port", type=int, help="port to listen on; default from BEAMPIPE_METRICS_BIND_ADDR")
    options = parser.parse_args(argv)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        settings = Settings.from_env()
        host = options.host or settings.metrics_host
        port = settings.metrics_port if options.port is None else options.port
        ledger = Ledger(settings.database_url)
        migrate(ledger)
        print(f"beampipe metrics on http://{host}:{port}/metrics", flush=True)  # noqa: T201  # its one line
        serve(ledger=ledger, host=host, port=port, stop=stop)
    except BeampipeError as error:
        print(f"error{error}", file=sys.stderr)  # noqa: T201  # a process of its own
        return 1
    except OSError as error:
        print(  # noqa: T201  # a process of its own
            f"error[port_taken] {host}:{port} cannot be listened on: {error.strerror} (choose another port)",
            file=sys.stderr,
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
