"""Login nodes in the ledger: counted together, and left alone together."""

from __future__ import annotations

from datetime import timedelta

import pytest

from beampipe_dagster.clock import ManualClock
from beampipe_dagster.errors import NotFoundError
from beampipe_dagster.ids import SequenceIds
from beampipe_dagster.ledger import ssh_budget
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.ssh_budget import Refused
from beampipe_dagster.ledger.tables_slurm import SshState
from beampipe_dagster_tests.support.ledgers import at_once

KEY = "k" * 64
MINUTE = timedelta(minutes=1)


class Place:
    def __init__(self, ledger: Ledger, clock: ManualClock, ids: SequenceIds) -> None:
        self.ledger, self.clock, self.ids = ledger, clock, ids
        with ledger.begin() as conn:
            ssh_budget.ensure(conn, KEY, label="me@login", now=clock.now())
            ssh_budget.ensure(conn, KEY, label="me@login", now=clock.now())

    def take(self, token: str | None = None, *, most: int = 2, force: bool = False) -> Refused | None:
        with self.ledger.begin() as conn:
            return ssh_budget.take_connection(
                conn,
                KEY,
                token or self.ids.new(),
                holder="test",
                max_connections=most,
                attempt=MINUTE,
                ttl=MINUTE,
                now=self.clock.now(),
                force=force,
            )

    def fail(self, state: SshState = SshState.NEEDS_LOGIN) -> ssh_budget.SshTargetRow:
        with self.ledger.begin() as conn:
            return ssh_budget.failed(
                conn,
                KEY,
                state,
                first=MINUTE,
                longest=5 * MINUTE,
                error={"message": "no"},
                now=self.clock.now(),
            )


@pytest.fixture
def place(ledger: Ledger, clock: ManualClock, ids: SequenceIds) -> Place:
    return Place(ledger, clock, ids)


def test_connections_are_counted_over_all_who_ask_at_the_same_time(place: Place) -> None:
    tokens = [place.ids.new() for _ in range(6)]
    found = at_once(*[lambda token=token: place.take(token) for token in tokens])
    assert sum(one is None for one in found) == 2
    assert all(one is None or (isinstance(one, Refused) and not one.shut) for one in found)


def test_a_dead_process_permit_runs_out_and_one_that_is_renewed_does_not(place: Place) -> None:
    assert place.take("a", most=1) is None
    place.clock.advance(40)
    with place.ledger.begin() as conn:
        ssh_budget.renew(conn, ["a"], expires_at=place.clock.now() + MINUTE)
    place.clock.advance(40)
    assert place.take(most=1) is not None
    place.clock.advance(40)
    assert place.take(most=1) is None


def test_failures_wait_twice_as_long_each_time_up_to_a_bound(place: Place) -> None:
    waits = []
    for _ in range(5):
        row = place.fail()
        assert row.not_before is not None
        waits.append((row.not_before - place.clock.now()) / MINUTE)
        place.clock.advance(600)
    assert waits == [1, 2, 4, 5, 5]


def test_a_target_that_failed_is_tried_by_one_at_a_time_when_its_time_has_come(place: Place) -> None:
    place.fail()
    refused = place.take()
    assert refused is not None
    assert refused.shut
    assert refused.row.state is SshState.NEEDS_LOGIN
    place.clock.advance(61)
    assert place.take() is None
    assert place.take() is not None
    assert place.take(force=True) is None, "an operator may"


def test_a_login_that_works_clears_all(place: Place) -> None:
    place.fail()
    with place.ledger.begin() as conn:
        ssh_budget.connected(conn, KEY, now=place.clock.now())
        row = ssh_budget.get(conn, KEY)
    assert (row.state, row.failures, row.not_before) == (SshState.OK, 0, None)
    assert place.take() is None


def test_commands_may_burst_and_then_keep_their_spacing(place: Place) -> None:
    starts = []
    for _ in range(5):
        with place.ledger.begin() as conn:
            start = ssh_budget.take_command(
                conn, KEY, spacing=timedelta(seconds=2), burst=2, now=place.clock.now()
            )
        starts.append((start - place.clock.now()).total_seconds())
    assert starts == [0, 0, 2, 4, 6]


def test_a_target_that_was_never_asked_is_not_known(ledger: Ledger) -> None:
    with ledger.read() as conn, pytest.raises(NotFoundError):
        ssh_budget.get(conn, KEY)
