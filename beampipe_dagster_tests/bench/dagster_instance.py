"""A real Dagster instance (code server, daemon, run processes) over a no-op backend, and what it wrote and used."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from beampipe_dagster.assembly import Platform
from beampipe_dagster.clock import SystemClock
from beampipe_dagster.config.settings import Settings
from beampipe_dagster.ids import UuidIds
from beampipe_dagster.ledger import executions
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.migrate import migrate
from beampipe_dagster.sandbox.home import prepare_home
from beampipe_dagster.sandbox.ports import LOOPBACK
from beampipe_dagster.sandbox.supervisor import Supervisor
from beampipe_dagster.sandbox.up import UpOptions, UpPorts, environment, stages
from beampipe_dagster_tests.support.archives import FakeArchives
from beampipe_dagster_tests.support.dlg import free_ports
from beampipe_dagster_tests.support.fake_daliuge import FINISHED
from beampipe_dagster_tests.support.platforms import IngestingDaliuge, Stage

RUNS_AT_A_TIME: Final = 4
PATIENCE_SECONDS: Final = 900.0
_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
_PACE: Final = {
    "BEAMPIPE_SCHEDULER_INTERVAL_SECONDS": "2",
    "BEAMPIPE_DIM_POLL_INTERVAL_SECONDS": "1",
    "BEAMPIPE_SHAPING_EXECUTION_MAX_IN_FLIGHT_RUNS": "1000",
    "BEAMPIPE_DATABASE_URL": "",
}
_NO_DISCOVERY: Final = {"enabled": False}


class NoOpDaliuge(IngestingDaliuge):
    """A DALiuGE whose sessions are done as soon as they are deployed."""

    def deploy(self, session_id: str, body: bytes) -> object:
        """As DALiuGE's, and everything in it is finished at once."""
        answer = super().deploy(session_id, body)
        self.sessions[session_id].state = FINISHED
        return answer


def pending_stage(ledger: Ledger, home: Path, daliuge: NoOpDaliuge, number: int, **settings: Any) -> Stage:
    """A platform on real time with so many sources that wait for an execution, and nothing that looks for more."""
    clock = SystemClock()
    archives = FakeArchives(clock=clock)
    platform = Platform(
        settings=Settings(home=home, database_url=ledger.url, execution_max_in_flight=10_000, **settings),
        ledger=ledger,
        clock=clock,
        ids=UuidIds(),
        archives=archives,
    )
    stage = Stage(platform, clock, archives, daliuge, home)  # type: ignore[arg-type]  # a clock that nobody moves
    stage.add_profile()
    execution = {"tick_execution_source_limit": 10_000, "tick_execution_run_limit": 10_000}
    stage.add_survey(discovery={"batch_size": 1000}, execution=execution)
    names = [f"S{place:05}" for place in range(number)]
    for place, name in enumerate(names):
        archives.deposit(name, 1000 + place)
    stage.register(*names)
    while stage.discover():
        pass
    stage.add_survey(discovery={"batch_size": 1000, **_NO_DISCOVERY}, execution=execution)
    return stage


@dataclass(frozen=True)
class Instance:
    """A running Dagster.

    Attributes
    ----------
    home
        Its directory, with its databases.
    platform
        The services on the same ledger.
    """

    home: Path
    platform: Platform
    supervisor: Supervisor

    def completed(self) -> int:
        """Executions that are over."""
        with self.platform.ledger.read() as conn:
            return sum(one.terminal for one in executions.select(conn, limit=100_000, light=True))

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that happens by itself."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"not reached after {PATIENCE_SECONDS:g} s: see {self.home / 'logs'}")
            time.sleep(0.2)

    def events(self) -> Counter[str]:
        """Events in Dagster's log by their type; ``(log line)`` are those without one."""
        (path,) = self.home.rglob("index.db")
        with closing(sa.create_engine(f"sqlite:///{path}").connect()) as conn:
            rows = conn.execute(
                sa.text("SELECT dagster_event_type, count(*) FROM event_logs GROUP BY dagster_event_type")
            ).all()
        return Counter({kind or "(log line)": number for kind, number in rows})

    def run_events(self) -> Counter[str]:
        """Events in the logs of single runs by their type: Dagster's files have these a second time."""
        found: Counter[str] = Counter()
        for path in self.home.rglob("history/runs/*.db"):
            if path.name == "index.db":
                continue
            with closing(sa.create_engine(f"sqlite:///{path}").connect()) as conn:
                for kind, number in conn.execute(
                    sa.text("SELECT dagster_event_type, count(*) FROM event_logs GROUP BY dagster_event_type")
                ):
                    found[kind or "(log line)"] += number
        return found

    def runs(self) -> int:
        """Runs that Dagster knows."""
        (path,) = self.home.rglob("runs.db")
        with closing(sa.create_engine(f"sqlite:///{path}").connect()) as conn:
            return int(conn.execute(sa.text("SELECT count(*) FROM runs")).scalar_one())

    def bytes(self) -> int:
        """Size of Dagster's databases."""
        return sum(
            path.stat().st_size
            for path in self.home.rglob("*.db*")
            if path.is_file() and not path.name.startswith("ledger")
        )

    def cpu_seconds(self) -> float:
        """Processor time of everything below this process, children that ended included."""
        return _cpu_below(os.getpid())


@contextmanager
def running_instance(
    home: Path, number: int, *, env: dict[str, str] | None = None
) -> Iterator[tuple[Instance, float]]:
    """A code server and a daemon, with so many pending sources, and when the daemon began."""
    web, code_server, archive, metrics = free_ports(4)
    ports = UpPorts(web=web, code_server=code_server, archive=archive, metrics=metrics)
    options = UpOptions(home=home, ports=ports, sandbox=False)
    settings = {**environment(options), **_PACE, **(env or {})}
    prepare_home(home, code_server=(LOOPBACK, code_server), environment=settings)
    url = Settings.from_env({**os.environ, **settings}).database_url
    ledger = Ledger(url)
    migrate(ledger)
    wanted = [
        [
            replace(spec, env={**spec.env, **settings})
            for spec in stage
            if spec.name in {"code-server", "daemon"}
        ]
        for stage in stages(options)
    ]
    with NoOpDaliuge() as daliuge:
        stage = pending_stage(ledger, home, daliuge, number)
        supervisor = Supervisor(
            stages=wanted, log_dir=home / "logs", clock=SystemClock(), on_event=lambda _event: None
        )
        with supervisor:
            begin = time.monotonic()
            supervisor.start()
            try:
                yield Instance(home, stage.platform, supervisor), begin
            finally:
                supervisor.hurry()
                ledger.dispose()


def _cpu_below(root: int) -> float:
    """Sum of the processor time of all processes below one."""
    children: dict[int, list[int]] = {}
    used: dict[int, float] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        process = int(path.parent.name)
        children.setdefault(int(fields[1]), []).append(process)
        used[process] = sum(int(ticks) for ticks in fields[11:15]) / _TICKS_PER_SECOND
    total, waiting = 0.0, list(children.get(root, ()))
    while waiting:
        process = waiting.pop()
        total += used.get(process, 0.0)
        waiting += children.get(process, ())
    return total


def per(number: int, counted: Counter[str], names: Sequence[str] | None = None) -> dict[str, float]:
    """Counts for each execution, the commonest first."""
    return {
        kind: round(value / number, 2)
        for kind, value in counted.most_common()
        if names is None or kind in names
    }
