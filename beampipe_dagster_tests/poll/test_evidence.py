from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.backends.base import SessionPresence
from beampipe_dagster.poll import evidence
from beampipe_dagster.poll.evidence import Look, disproved, fingerprint, looks, negatives

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
ABSENT, UNDEPLOYED = SessionPresence.ABSENT, SessionPresence.UNDEPLOYED
DEPLOYED, UNREACHABLE = SessionPresence.DEPLOYED, SessionPresence.UNREACHABLE

presences = st.lists(st.sampled_from(SessionPresence), max_size=8)


def at(seconds: float, presence: SessionPresence) -> Look:
    return Look(BEGIN + timedelta(seconds=seconds), presence)


def row(
    seconds: float, state: str, *, session: str = "s", url: str = "http://dim", **more: Any
) -> dict[str, Any]:
    return {
        "kind": evidence.KIND,
        "normalized_state": state,
        "observed_at": BEGIN + timedelta(seconds=seconds),
        "payload": evidence.payload(session, url),
        **more,
    }


def test_only_looks_for_this_session_at_this_manager_count() -> None:
    rows = [
        row(3, "absent"),
        row(1, "undeployed"),
        row(2, "absent", session="other"),
        row(2, "absent", url="http://elsewhere"),
        row(0, "intent_persisted"),
        row(4, "absent", kind="scheduler"),
        row(4, "absent", payload=None),
        row(4, "absent", payload={"session_id": "s"}),
    ]
    assert looks(rows, fingerprint("s", "http://dim")) == [at(1, UNDEPLOYED), at(3, ABSENT)]


def test_an_answer_that_says_nothing_neither_proves_nor_disproves() -> None:
    given_looks = [at(0, ABSENT), at(5, UNREACHABLE), at(9, ABSENT)]
    assert negatives(given_looks) == [at(0, ABSENT), at(9, ABSENT)]


def test_a_session_that_was_seen_to_run_begins_the_evidence_anew() -> None:
    assert negatives([at(0, ABSENT), at(1, DEPLOYED), at(2, UNDEPLOYED)]) == [at(2, UNDEPLOYED)]


def test_many_looks_in_one_moment_prove_nothing() -> None:
    at_once = [at(0.1 * number, ABSENT) for number in range(20)]
    assert not disproved(at_once, number=2, span=timedelta(seconds=5))
    assert disproved([*at_once, at(6, ABSENT)], number=2, span=timedelta(seconds=5))


@given(presences)
def test_nothing_is_disproved_without_enough_negative_looks_after_the_last_positive(
    given_presences: list[SessionPresence],
) -> None:
    seen = [at(10 * number, presence) for number, presence in enumerate(given_presences)]
    tail = given_presences
    if DEPLOYED in tail:
        tail = tail[len(tail) - tail[::-1].index(DEPLOYED) :]
    enough = sum(presence in {ABSENT, UNDEPLOYED} for presence in tail) >= 2
    assert disproved(seen, number=2, span=timedelta(seconds=10)) == enough
