from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from beampipe_dagster.errors import ConflictError
from beampipe_dagster.ledger import staging
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.staging import StagingJob
from beampipe_dagster.ledger.tables_staging import LIVE, StagingState
from beampipe_dagster_tests.support.ledgers import START, add_execution


@pytest.fixture
def execution(ledger: Ledger) -> Execution:
    return add_execution(ledger)


def job(execution: Execution, number: int = 1, **changes: Any) -> StagingJob:
    made = StagingJob(
        id=f"job-{number}",
        execution_id=execution.id,
        group_key="visibility/7",
        kind="visibility",
        sbids=["7"],
        items=["visibility/7/1"],
        attempt=number,
        state=StagingState.INTENDED,
        service_url="https://h/async",
        request_sha256="0" * 64,
        job_url=None,
        phase=None,
        error=None,
        intended_at=START + timedelta(seconds=number),
        run_at=None,
        looked_at=None,
        ended_at=None,
        expires_at=None,
    )
    return replace(made, **changes)


def test_a_job_is_read_as_it_was_written(ledger: Ledger, execution: Execution) -> None:
    with ledger.begin() as conn:
        staging.add(conn, job(execution))
        moved = staging.move(
            conn,
            job(execution),
            {"state": StagingState.COMPLETED, "job_url": "https://h/1", "expires_at": START},
        )
    with ledger.read() as conn:
        assert staging.of(conn, execution.id) == [moved]
    assert (moved.state, moved.job_url, moved.expires_at) == (StagingState.COMPLETED, "https://h/1", START)
    assert moved.as_dict()["state"] == "completed"


def test_two_live_jobs_for_the_same_files_are_refused(ledger: Ledger, execution: Execution) -> None:
    with ledger.begin() as conn:
        staging.add(conn, job(execution))
    with ledger.begin() as conn, pytest.raises(ConflictError) as caught:
        staging.add(conn, job(execution, 2))
    assert caught.value.code == "staging_job_exists"
    with ledger.begin() as conn:
        staging.move(conn, job(execution), {"state": StagingState.FAILED})
        staging.add(conn, job(execution, 2))
        assert [one.id for one in staging.of(conn, execution.id)] == ["job-1", "job-2"]
        assert [one.id for one in staging.of(conn, execution.id, live=True)] == ["job-2"]


@pytest.mark.parametrize("state", StagingState)
def test_every_state_can_be_kept_and_says_whether_it_is_live(
    ledger: Ledger, execution: Execution, state: StagingState
) -> None:
    with ledger.begin() as conn:
        staging.add(conn, job(execution, state=state))
        (found,) = staging.of(conn, execution.id)
        assert found.state is state
        assert bool(staging.of(conn, execution.id, live=True)) is (state in LIVE)


def test_a_job_that_somebody_else_moved_is_not_moved(ledger: Ledger, execution: Execution) -> None:
    with ledger.begin() as conn:
        staging.add(conn, job(execution))
        staging.move(conn, job(execution), {"state": StagingState.UNCERTAIN})
        with pytest.raises(ConflictError) as caught:
            staging.move(conn, job(execution), {"state": StagingState.CREATED})
    assert caught.value.code == "staging_job_moved"


def test_a_refused_login_is_remembered_until_its_time_or_a_success(ledger: Ledger) -> None:
    later = START + timedelta(minutes=15)
    with ledger.begin() as conn:
        assert staging.refused_until(conn, "https://h", now=START) is None
        for _ in range(2):
            staging.refuse_login(conn, "https://h", "no", now=START, not_before=later)
        assert staging.refused_until(conn, "https://h", now=START) == (later, "no")
        assert staging.refused_until(conn, "https://other", now=START) is None
        assert staging.refused_until(conn, "https://h", now=later) is None
        staging.forget_refusal(conn, "https://h")
        assert staging.refused_until(conn, "https://h", now=START) is None
