"""A tick over many running sessions, beside a request for each of them, one after the other.

The manager is a fake over real sockets in this process, which keeps 1,000 sessions of four drops and takes 2 ms for
each request, as a real one does that has its node on the same machine. The baseline only asks, and writes nothing;
the tick also writes to the ledger that everybody was looked at. On both databases, where PostgreSQL is there.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from beampipe_dagster.backends.daliuge.manager import IslandManager
from beampipe_dagster.backends.daliuge.states import count_drops
from beampipe_dagster.backends.provider import BackendProvider
from beampipe_dagster.clock import ManualClock
from beampipe_dagster.config.profile import load_profile
from beampipe_dagster.ids import SequenceIds
from beampipe_dagster.ledger import executions
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.migrate import migrate
from beampipe_dagster.ledger.states import ControlPhase, DaliugeState, Status, SubmissionState
from beampipe_dagster.ledger.tables import batch_execution_record as record
from beampipe_dagster.poll.service import COUNTED, PollService
from beampipe_dagster_tests.bench.measure import Figures, goal
from beampipe_dagster_tests.support.fake_daliuge import RUNNING, FakeDaliuge, FakeSession
from beampipe_dagster_tests.support.ledgers import START, add_survey, new_execution
from beampipe_dagster_tests.support.postgres import running_server, unavailable

DROPS: Final = 4
TIMES: Final = 3
LATENCY_SECONDS: Final = 0.002


class _DistantDaliuge(FakeDaliuge):
    """Each request takes its time, several at the same time."""

    def delay(self) -> None:
        time.sleep(LATENCY_SECONDS)


def run(*, sources: int = 1000) -> Figures:
    """All figures; times are wall times of the quickest of three, since a tick is there to be over soon."""
    figures: Figures = {"sessions": sources}
    with _DistantDaliuge() as fake:
        for number in range(sources):
            drops = {f"{number}-{drop}": {"categoryType": "Application"} for drop in range(DROPS)}
            fake.sessions[session(number)] = FakeSession(state=RUNNING, drops=drops)
        baseline = min(_alone(fake, sources) for _ in range(TIMES))
        figures |= {
            "baseline": "a status request for each session, one after the other",
            "requests_baseline": sources,
            "baseline_seconds": round(baseline, 3),
        }
        goals: Figures = {}
        for dialect, ledger in ledgers():
            figures |= {f"{dialect}_{name}": value for name, value in _ticks(ledger, fake, sources).items()}
            ratio = round(figures[f"{dialect}_seconds"] / baseline, 3)
            figures[f"{dialect}_ratio"] = ratio
            goals[f"{dialect}_ratio"] = goal(ratio, 0.5)
            goals[f"{dialect}_requests"] = goal(figures[f"{dialect}_requests"], COUNTED + 2)
    return {**figures, "goals": goals}


def session(number: int) -> str:
    """The name of a session."""
    return f"BeampipeExecution-bench-{number}"


def _alone(fake: FakeDaliuge, sessions: int) -> float:
    manager = IslandManager(url=fake.manager_url)
    begin = time.perf_counter()
    for number in range(sessions):
        manager.status(session(number))
    return time.perf_counter() - begin


def _ticks(ledger: Ledger, fake: FakeDaliuge, sessions: int) -> dict[str, Any]:
    clock = ManualClock(START + timedelta(hours=1))
    _submit(ledger, fake, sessions)
    poll = PollService(
        ledger=ledger,
        clock=clock,
        ids=SequenceIds(),
        backends=BackendProvider(clock=clock),
        interval_seconds=5.0,
    )

    def timed() -> float:
        fake.calls.clear()
        clock.advance(120)
        begin = time.perf_counter()
        report = poll.tick()
        took = time.perf_counter() - begin
        if (report.looked_at, report.unreachable, report.waiting_for) != (sessions, [], []):
            raise AssertionError(f"a tick that looks at everything, not one that {report.summary()}")
        return took

    first = timed()  # everything is new, so that every execution is written on its own
    with ledger.begin() as conn:
        counted = count_drops(IslandManager(url=fake.manager_url).graph_status(session(0))).as_dict()
        conn.execute(sa.update(record).values(drop_counts=counted, counted_at=START))
    seconds = min(timed() for _ in range(TIMES))
    return {
        "first_seconds": round(first, 3),
        "seconds": round(seconds, 3),
        "requests": len(fake.calls),
    }


def _submit(ledger: Ledger, fake: FakeDaliuge, sessions: int) -> None:
    """So many executions whose sessions run."""
    profile = load_profile(
        {
            "name": "bench",
            "translation": {"algo": "metis", "num_par": 1, "num_islands": 1, "tm_url": "http://tm"},
            "deployment": {
                "kind": "rest_remote",
                "deploy_host": "127.0.0.1",
                "deploy_port": fake.manager.port,
            },
        }
    )
    ids = SequenceIds()
    manifest = {"sources": [{"sbid": str(number), "datasets": ["x" * 200] * 36} for number in range(4)]}
    with ledger.begin() as conn:
        revision = add_survey(conn, ids=ids)
        made = [
            executions.create(
                conn,
                new_execution(
                    revision, [f"S{number}"], ids=ids, deployment_profile_snapshot=profile.as_json()
                ),
                now=START,
            ).id
            for number in range(sessions)
        ]
        conn.execute(
            sa.update(record)
            .where(record.c.id == sa.bindparam("execution"))
            .values(
                daliuge_session_id=sa.bindparam("session"),
                daliuge_manager_url=fake.manager_url,
                status=Status.RUNNING.value,
                control_phase=ControlPhase.SUBMITTED.value,
                submission_state=SubmissionState.SUBMITTED.value,
                daliuge_state=DaliugeState.RUNNING.value,
                workflow_manifest=manifest,
                started_at=START,
            ),
            [{"execution": one, "session": session(number)} for number, one in enumerate(made)],
        )


def ledgers() -> Iterator[tuple[str, Ledger]]:
    """A migrated ledger on each database that is there."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        yield "sqlite", stack.enter_context(_opened(f"sqlite:///{directory / 'ledger.db'}"))
        if unavailable() is None:
            server = stack.enter_context(running_server())
            url = stack.enter_context(server.database())
            yield "postgresql", stack.enter_context(_opened(url))


@contextmanager
def _opened(url: str) -> Iterator[Ledger]:
    ledger = Ledger(url)
    migrate(ledger)
    try:
        yield ledger
    finally:
        ledger.dispose()
