"""Which keys have had their time: on rows put there, on every database."""

from __future__ import annotations

from datetime import datetime, timedelta

import sqlalchemy as sa

from beampipe_dagster.ids import SequenceIds
from beampipe_dagster.ledger import archive, executions, partitions, registration, sources
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.states import Status
from beampipe_dagster.ledger.tables import batch_execution_record, execution_sources
from beampipe_dagster_tests.support.ledgers import START, SURVEY, add_survey, new_execution, register

DAY = timedelta(days=1)
A, B, C = "a" * 64, "b" * 64, "c" * 64


class History:
    """Sources, their signatures and their executions, told in days."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.ids = SequenceIds()
        with ledger.begin() as conn:
            self.revision = add_survey(conn, ids=self.ids)

    def register(self, *names: str) -> None:
        with self.ledger.begin() as conn:
            register(conn, names, ids=self.ids)

    def change(self, name: str, signature: str, day: int, *, pending: bool = False, datasets: int = 1) -> str:
        key = f"{name}@{signature[:12]}"
        with self.ledger.begin() as conn:
            source = sources.get(conn, SURVEY, name)
            archive.record_change(
                conn,
                archive.SignatureChange(
                    id=self.ids.new(),
                    project_module=SURVEY,
                    source_identifier=name,
                    signature=signature,
                    previous_signature=source.discovery_signature,
                    partition_key=key,
                    project_config_id=self.revision,
                    sbid_count=1,
                    dataset_count=datasets,
                    diff={},
                    evidence=[],
                    metadata_json={},
                    discovered_at=START + day * DAY,
                ),
            )
            values: dict[str, object] = {"discovery_signature": signature, "workflow_run_pending": pending}
            sources.update(conn, [source.id], values, now=START)
        return key

    def run(self, name: str, signature: str, *, ended: int | None, status: Status = Status.COMPLETED) -> str:
        """An execution of a source's signature, that ended on a day or goes on; its partition key."""
        return self.run_of([name], signature, ended=ended, status=status)

    def run_of(
        self,
        names: list[str],
        signature: str,
        *,
        ended: int | None,
        status: Status = Status.COMPLETED,
        key: str | None = None,
    ) -> str:
        key = key or f"{names[0]}@{signature[:12]}"
        with self.ledger.begin() as conn:
            new = new_execution(self.revision, names, ids=self.ids, signature=signature, partition_key=key)
            made = executions.create(conn, new, now=START)
            if ended is not None:
                record, locks = batch_execution_record, execution_sources
                conn.execute(
                    sa.update(record).where(record.c.id == made.id).values(status=Status.RUNNING.value)
                )
                conn.execute(
                    sa.update(record)
                    .where(record.c.id == made.id)
                    .values(
                        status=status.value,
                        control_phase="terminal",
                        terminal_outcome="succeeded" if status is Status.COMPLETED else "failed",
                        completed_at=START + ended * DAY,
                    )
                )
                conn.execute(sa.update(locks).where(locks.c.execution_id == made.id).values(active=False))
        return key

    def settled(self) -> dict[str, tuple[bool, int]]:
        """Superseded or not, and the day since which a key is settled."""
        with self.ledger.read() as conn:
            found = partitions.settled(conn, SURVEY)
        return {key.partition_key: (key.superseded, (key.settled_at - START).days) for key in found}

    def retire(self, *keys: str, now: datetime = START) -> int:
        with self.ledger.begin() as conn:
            chosen = [key.change_id for key in partitions.settled(conn, SURVEY) if key.partition_key in keys]
            return partitions.retire(conn, chosen, now=now)

    def live(self) -> int:
        with self.ledger.read() as conn:
            return partitions.live_count(conn, SURVEY)

    def removable(self, *keys: str, before: datetime = START) -> list[str]:
        with self.ledger.read() as conn:
            return sorted(partitions.removable(conn, SURVEY, keys, before=before))


def test_a_key_is_settled_when_its_successor_is_over(ledger: Ledger) -> None:
    story = History(ledger)
    story.register("S")
    old = story.change("S", A, 1)
    story.change("S", B, 5, pending=True)
    assert story.settled() == {}, "its successor waits for an execution"
    with ledger.begin() as conn:
        source = sources.get(conn, SURVEY, "S")
        sources.update(conn, [source.id], {"workflow_run_pending": False}, now=START)
    story.run("S", B, ended=9, status=Status.FAILED)
    assert story.settled() == {old: (True, 9)}


def test_a_successor_that_runs_keeps_the_key(ledger: Ledger) -> None:
    story = History(ledger)
    story.register("S")
    story.change("S", A, 1)
    story.change("S", B, 5)
    story.run("S", B, ended=None)
    assert story.settled() == {}


def test_an_execution_that_still_runs_keeps_its_superseded_key(ledger: Ledger) -> None:
    story = History(ledger)
    story.register("S")
    story.change("S", A, 1)
    story.run("S", A, ended=None)
    story.change("S", B, 5)
    assert story.settled() == {}


def test_a_successor_that_never_had_an_execution_settles_the_key_when_it_came(ledger: Ledger) -> None:
    story = History(ledger)
    story.register("S")
    old = story.change("S", A, 1)
    story.change("S", B, 5, datasets=0)
    assert story.settled() == {old: (True, 5)}
    assert story.live() == 1, "a source without datasets has no key"


def test_a_key_between_two_others_is_settled_by_the_one_that_followed(ledger: Ledger) -> None:
    story = History(ledger)
    story.register("S")
    first = story.change("S", A, 1)
    middle = story.change("S", B, 5)
    story.change("S", C, 7, pending=True)
    assert story.settled() == {first: (True, 5)}
    with ledger.begin() as conn:
        source = sources.get(conn, SURVEY, "S")
        sources.update(conn, [source.id], {"workflow_run_pending": False}, now=START)
    story.run("S", C, ended=8)
    assert story.settled()[middle] == (True, 8)


def test_the_current_key_is_settled_by_a_completed_execution_only(ledger: Ledger) -> None:
    story = History(ledger)
    story.register("S", "T", "U")
    done = story.change("S", A, 1)
    story.run("S", A, ended=3)
    story.change("T", A, 1)
    story.run("T", A, ended=3, status=Status.FAILED)
    story.change("U", A, 1, pending=True)
    assert story.settled() == {done: (False, 3)}


def test_a_key_that_came_back_is_the_current_one(ledger: Ledger) -> None:
    story = History(ledger)
    story.register("S")
    story.change("S", A, 1)
    other = story.change("S", B, 5)
    story.change("S", A, 8)
    assert story.settled() == {other: (True, 8)}
    assert story.live() == 2


def test_a_retired_key_lives_again_when_its_signature_comes_back(ledger: Ledger) -> None:
    story = History(ledger)
    story.register("S")
    old = story.change("S", A, 1)
    story.change("S", B, 5)
    assert story.retire(old) == 1
    assert story.retire(old) == 0
    assert (story.live(), story.removable(old)) == (1, [old])
    story.change("S", A, 8)
    assert (story.live(), story.removable(old)) == (2, [])


def test_a_retired_key_stays_while_something_goes_on_about_it(ledger: Ledger) -> None:
    story = History(ledger)
    story.register("S")
    key = story.change("S", A, 1)
    story.run("S", A, ended=2)
    story.retire(key)
    assert story.removable(key) == [key]
    with ledger.begin() as conn:
        source = sources.get(conn, SURVEY, "S")
        sources.update(conn, [source.id], {"workflow_run_pending": True}, now=START)
    assert story.removable(key) == []
    with ledger.begin() as conn:
        sources.update(conn, [source.id], {"workflow_run_pending": False}, now=START)
    story.run("S", A, ended=None)
    assert story.removable(key) == []


def test_a_source_that_was_deleted_leaves_settled_keys(ledger: Ledger) -> None:
    story = History(ledger)
    story.register("S")
    key = story.change("S", A, 1)
    with ledger.begin() as conn:
        registration.delete(conn, [sources.get(conn, SURVEY, "S").id])
    assert story.settled() == {key: (True, 1)}


def test_keys_of_executions_over_several_sources_go_when_these_ended_long_ago(ledger: Ledger) -> None:
    story = History(ledger)
    story.register("S", "T")
    own = [story.change("S", A, 1), story.change("T", A, 1)]
    key = story.run_of(["S", "T"], A, ended=3, key="S+1@0123456789ab")
    assert story.removable(key, *own, before=START + 2 * DAY) == []
    assert story.removable(key, *own, before=START + 3 * DAY) == [key]
    assert story.settled() == {own[0]: (False, 3), own[1]: (False, 3)}


def test_a_key_that_nobody_knows_is_left_alone(ledger: Ledger) -> None:
    assert History(ledger).removable("typed@by-hand", before=START + 99 * DAY) == []
