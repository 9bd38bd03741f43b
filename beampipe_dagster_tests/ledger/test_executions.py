from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from beampipe_dagster.errors import ConflictError, NotFoundError
from beampipe_dagster.ids import SequenceIds, UuidIds
from beampipe_dagster.ledger import executions, fsm, observations
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.observations import Observation
from beampipe_dagster.ledger.states import ControlPhase, DaliugeState, Status, SubmissionState
from beampipe_dagster.ledger.tables import batch_execution_record as record
from beampipe_dagster.ledger.tables import execution_artifacts, execution_sources
from beampipe_dagster_tests.support.ledgers import (
    START,
    SURVEY,
    add_execution,
    add_survey,
    at_once,
    new_execution,
)

LATER = START + timedelta(seconds=10)


def move(ledger: Ledger, execution: Execution, status: Status | None = None, **values: Any) -> Execution:
    with ledger.begin() as conn:
        patch = fsm.StatusPatch(status=status)
        return executions.move(conn, execution, now=LATER, patch=patch, values=values)


def code_of(outcome: object) -> str:
    return outcome.code if isinstance(outcome, ConflictError) else type(outcome).__name__


def test_a_new_execution_is_pending_admitted_and_due(ledger: Ledger) -> None:
    made = add_execution(ledger, ["B", "A"])
    assert (made.status, made.control_phase, made.submission_state) == (
        Status.PENDING,
        ControlPhase.ADMITTED,
        SubmissionState.NOT_STARTED,
    )
    assert made.source_identifiers == ["B", "A"]
    assert made.next_launch_at == made.created_at == START
    assert made.phase_timestamps == {"admitted": "2026-01-01T00:00:00.000Z"}


@pytest.mark.parametrize(
    "column",
    [
        "status",
        "execution_phase",
        "control_phase",
        "submission_state",
        "scheduler_state",
        "daliuge_state",
        "output_state",
        "terminal_outcome",
    ],
)
def test_the_database_refuses_unknown_words(ledger: Ledger, column: str) -> None:
    made = add_execution(ledger)
    with pytest.raises(IntegrityError), ledger.begin() as conn:
        conn.execute(sa.update(record).where(record.c.id == made.id).values({column: "fine"}))


def test_the_database_refuses_an_unknown_kind_of_artifact(ledger: Ledger) -> None:
    made = add_execution(ledger)
    row = {
        "id": "x",
        "execution_id": made.id,
        "kind": "poem",
        "storage_kind": "database",
        "media_type": "text/plain",
        "sha256": "0",
        "size_bytes": 0,
        "producer_phase": "admitted",
        "metadata": {},
        "created_at": START,
    }
    with pytest.raises(IntegrityError), ledger.begin() as conn:
        conn.execute(sa.insert(execution_artifacts).values(row))


def test_the_database_refuses_to_complete_what_must_be_verified_first(ledger: Ledger) -> None:
    made = move(ledger, add_execution(ledger, output_verification_required=True), Status.RUNNING)
    with pytest.raises(IntegrityError):
        move(ledger, made, Status.COMPLETED)
    assert move(ledger, made, Status.COMPLETED, output_state="verified").status is Status.COMPLETED


def test_a_session_belongs_to_one_execution(ledger: Ledger, ids: SequenceIds) -> None:
    first = add_execution(ledger, ["A"], ids=ids)
    with ledger.begin() as conn:
        other = new_execution(first.project_config_id, ["B"], ids=ids)
        second = executions.create(conn, other, now=START)
    move(ledger, first, daliuge_session_id="session")
    with pytest.raises(IntegrityError):
        move(ledger, second, daliuge_session_id="session")


def test_an_execution_of_no_revision_is_refused(ledger: Ledger, ids: SequenceIds) -> None:
    with pytest.raises(IntegrityError), ledger.begin() as conn:
        executions.create(conn, new_execution("nothing", ["A"], ids=ids), now=START)


def test_a_moved_execution_is_not_moved_again_by_what_was_read_before(ledger: Ledger) -> None:
    stale = add_execution(ledger)
    move(ledger, stale, Status.RUNNING)
    with pytest.raises(ConflictError) as caught:
        move(ledger, stale, Status.FAILED)
    assert caught.value.code == "execution_moved"
    with ledger.read() as conn:
        assert executions.get(conn, stale.id).status is Status.RUNNING


def test_of_two_movers_at_once_one_is_refused(ledger: Ledger) -> None:
    made = move(ledger, add_execution(ledger), Status.RUNNING)
    done = at_once(lambda: move(ledger, made, Status.COMPLETED), lambda: move(ledger, made, Status.CANCELLED))
    assert sorted(code_of(one) for one in done) == ["Execution", "execution_moved"]


def test_a_move_that_the_law_does_not_have_changes_nothing(ledger: Ledger) -> None:
    made = add_execution(ledger)
    with pytest.raises(ConflictError) as caught:
        move(ledger, made, Status.COMPLETED, drop_counts={"total": 1})
    assert caught.value.code == "invalid_transition"
    with ledger.read() as conn:
        assert executions.get(conn, made.id) == made


def test_words_come_back_as_words_and_phases_are_stamped(ledger: Ledger) -> None:
    made = move(
        ledger,
        add_execution(ledger),
        Status.RUNNING,
        control_phase=ControlPhase.TRANSLATED,
        daliuge_state=DaliugeState.RUNNING,
    )
    assert made.daliuge_state is DaliugeState.RUNNING
    assert made.phase_timestamps["translated"] == "2026-01-01T00:00:10.000Z"
    assert made.started_at == LATER


def test_a_source_is_in_one_active_execution_only(ledger: Ledger, ids: SequenceIds) -> None:
    first = add_execution(ledger, ["A", "B"], ids=ids)
    with pytest.raises(ConflictError) as caught, ledger.begin() as conn:
        executions.create(conn, new_execution(first.project_config_id, ["B", "C"], ids=ids), now=START)
    assert caught.value.code == "source_already_executing"
    with ledger.read() as conn:
        assert executions.active_sources(conn, SURVEY) == {"A", "B"}
        assert len(executions.select(conn)) == 1


def test_the_database_itself_refuses_a_second_active_holder(ledger: Ledger, ids: SequenceIds) -> None:
    first = add_execution(ledger, ["A"], ids=ids)
    with ledger.begin() as conn:
        other = new_execution(first.project_config_id, ["B"], ids=ids)
        second = executions.create(conn, other, now=START)
    row = {
        "execution_id": second.id,
        "source_identifier": "A",
        "project_module": SURVEY,
        "discovery_signature": "b" * 64,
    }
    with pytest.raises(IntegrityError), ledger.begin() as conn:
        conn.execute(sa.insert(execution_sources).values(active=True, **row))
    with ledger.begin() as conn:
        conn.execute(sa.insert(execution_sources).values(active=False, **row))


def test_of_two_executions_created_at_once_on_one_source_one_is_refused(ledger: Ledger) -> None:
    with ledger.begin() as conn:
        revision = add_survey(conn, ids=SequenceIds())

    class Unique(SequenceIds):
        def new(self) -> str:
            return UuidIds().new()

    def create(*names: str) -> Execution:
        with ledger.begin() as conn:
            return executions.create(conn, new_execution(revision, names, ids=Unique()), now=START)

    done = at_once(lambda: create("A", "B"), lambda: create("C", "B"), lambda: create("B"))
    codes = sorted(code_of(one) for one in done)
    assert codes == ["Execution", "source_already_executing", "source_already_executing"]


@pytest.mark.parametrize("end", [Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.NOT_SUBMITTED])
def test_an_end_frees_the_sources_and_everything_that_waits(
    ledger: Ledger, ids: SequenceIds, end: Status
) -> None:
    made = move(
        ledger,
        add_execution(ledger, ["A"], ids=ids),
        Status.RUNNING,
        lease_token="me",  # noqa: S106  # no secret
        lease_expires_at=LATER,
        next_poll_at=LATER,
    )
    done = move(ledger, made, end)
    assert done.terminal
    assert done.control_phase is ControlPhase.TERMINAL
    assert (done.lease_token, done.lease_expires_at, done.next_launch_at, done.next_poll_at) == (None,) * 4
    assert done.completed_at == LATER
    with ledger.begin() as conn:
        assert executions.active_sources(conn, SURVEY) == set()
        executions.create(conn, new_execution(made.project_config_id, ["A"], ids=ids), now=LATER)


def test_an_execution_that_goes_on_takes_its_sources_again(ledger: Ledger, ids: SequenceIds) -> None:
    failed = move(ledger, add_execution(ledger, ["A"], ids=ids), Status.FAILED)
    again = move(ledger, failed, Status.RETRYING)
    assert again.retry_count == 1
    with pytest.raises(ConflictError) as caught, ledger.begin() as conn:
        executions.create(conn, new_execution(failed.project_config_id, ["A"], ids=ids), now=LATER)
    assert caught.value.code == "source_already_executing"


def test_an_execution_does_not_go_on_when_another_has_its_sources(ledger: Ledger, ids: SequenceIds) -> None:
    failed = move(ledger, add_execution(ledger, ["A"], ids=ids), Status.FAILED)
    with ledger.begin() as conn:
        executions.create(conn, new_execution(failed.project_config_id, ["A"], ids=ids), now=LATER)
    with pytest.raises(ConflictError) as caught:
        move(ledger, failed, Status.RUNNING)
    assert caught.value.code == "source_already_executing"
    with ledger.read() as conn:
        assert executions.get(conn, failed.id).status is Status.FAILED


def test_a_lease_has_one_holder_until_it_expires(ledger: Ledger) -> None:
    made = add_execution(ledger)

    def acquire(token: str, seconds: float) -> bool:
        with ledger.begin() as conn:
            now = START + timedelta(seconds=seconds)
            return executions.acquire_lease(conn, made.id, token, now=now, seconds=60)

    assert acquire("me", 0)
    assert acquire("me", 30)
    assert not acquire("you", 89)
    assert acquire("you", 90)
    with ledger.begin() as conn:
        assert not executions.renew_lease(conn, made.id, "me", now=LATER, seconds=60)
        executions.release_lease(conn, made.id, "me")
        assert executions.get(conn, made.id).lease_token == "you"  # noqa: S105  # no secret
        executions.release_lease(conn, made.id, "you")
        assert executions.get(conn, made.id).lease_token is None


def test_of_many_that_want_the_lease_at_once_one_gets_it(ledger: Ledger) -> None:
    made = add_execution(ledger)

    def acquire(token: str) -> bool:
        with ledger.begin() as conn:
            return executions.acquire_lease(conn, made.id, token, now=START, seconds=60)

    done = at_once(*(lambda token=f"t{number}": acquire(token) for number in range(5)))
    assert done.count(True) == 1
    assert done.count(False) == 4


def test_active_executions_are_counted_by_project_and_profile(ledger: Ledger, ids: SequenceIds) -> None:
    first = add_execution(ledger, ["A"], ids=ids)
    with ledger.begin() as conn:
        for name, profile in (("B", "profile"), ("C", "other")):
            new = new_execution(first.project_config_id, [name], ids=ids, deployment_profile_id=profile)
            executions.create(conn, new, now=START)
    move(ledger, first, Status.CANCELLED)
    with ledger.read() as conn:
        assert executions.active_counts(conn) == (2, {SURVEY: 2}, {"profile": 1, "other": 1})


def test_the_newest_execution_of_a_partition_is_found(ledger: Ledger, ids: SequenceIds) -> None:
    first = move(ledger, add_execution(ledger, ["A"], ids=ids), Status.CANCELLED)
    with ledger.begin() as conn:
        newer = new_execution(first.project_config_id, ["A"], ids=ids)
        executions.create(conn, newer, now=LATER)
    with ledger.read() as conn:
        found = executions.by_partition(conn, SURVEY, first.partition_key)
        assert found is not None
        assert found.id == newer.id
        assert executions.by_partition(conn, SURVEY, "A@000000000000") is None
        assert executions.by_partition(conn, "other", first.partition_key) is None


def test_evidence_is_kept_in_its_order(ledger: Ledger, ids: SequenceIds) -> None:
    made = add_execution(ledger, ids=ids)
    with ledger.begin() as conn:
        for state in ("running", "finished"):
            seen = Observation(made.id, "daliuge_session", state, payload={"a": [1]})
            observations.record(conn, [seen], ids=ids, now=START)
        observations.record(conn, [], ids=ids, now=START)
        kept = observations.of(conn, made.id)
    assert [(one["normalized_state"], one["payload"]) for one in kept] == [
        ("running", {"a": [1]}),
        ("finished", {"a": [1]}),
    ]


def test_an_unknown_execution_is_said_so(ledger: Ledger) -> None:
    with ledger.read() as conn, pytest.raises(NotFoundError) as caught:
        executions.get(conn, "nothing")
    assert caught.value.code == "execution_not_found"
