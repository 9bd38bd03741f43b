from __future__ import annotations

from datetime import timedelta

from beampipe_dagster.ledger import leases
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster_tests.support.ledgers import START, at_once


def acquire(ledger: Ledger, token: str, *, after: float = 0, name: str = "tick") -> bool:
    with ledger.begin() as conn:
        return leases.acquire(conn, name, token, now=START + timedelta(seconds=after), seconds=60)


def test_a_lease_has_one_holder_who_may_renew_it(ledger: Ledger) -> None:
    assert acquire(ledger, "me")
    assert not acquire(ledger, "you", after=59)
    assert acquire(ledger, "me", after=59)
    assert not acquire(ledger, "you", after=118)
    assert acquire(ledger, "you", name="other")


def test_an_expired_lease_is_taken_over(ledger: Ledger) -> None:
    acquire(ledger, "me")
    assert acquire(ledger, "you", after=60)
    assert not acquire(ledger, "me", after=61)


def test_only_the_holder_gives_it_back(ledger: Ledger) -> None:
    acquire(ledger, "me")
    with ledger.begin() as conn:
        leases.release(conn, "tick", "you")
    assert not acquire(ledger, "you", after=1)
    with ledger.begin() as conn:
        leases.release(conn, "tick", "me")
    assert acquire(ledger, "you", after=1)


def test_of_many_at_once_one_gets_a_new_and_one_an_expired_lease(ledger: Ledger) -> None:
    for after in (0, 60):
        done = at_once(
            *(lambda token=f"t{after}-{n}", at=after: acquire(ledger, token, after=at) for n in range(5))
        )
        assert sorted(str(one) for one in done) == ["False"] * 4 + ["True"]
