from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import DatabaseError, IntegrityError

from beampipe_dagster.ids import SequenceIds, UuidIds
from beampipe_dagster.ledger import chain, executions, fsm, provenance
from beampipe_dagster.ledger.audit import Audited, Fault, Finding, audit
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.provenance import Event
from beampipe_dagster.ledger.states import TERMINAL, Status
from beampipe_dagster.ledger.tables import batch_execution_record as record
from beampipe_dagster.ledger.tables import (
    execution_artifacts,
    execution_observations,
    execution_sources,
    provenance_events,
)
from beampipe_dagster.ledger.tables_chain import provenance_heads, provenance_purges
from beampipe_dagster_tests.support.ledgers import START, add_execution, at_once, unguarded


def _tell(ledger: Ledger, execution_id: str, *kinds: str, payload: dict[str, Any] | None = None) -> None:
    events = [
        Event(kind, "survey", "A", execution_id, payload or {"n": number})
        for number, kind in enumerate(kinds)
    ]
    with ledger.begin() as conn:
        provenance.record(conn, events, ids=UuidIds(), now=START)


def _audit(ledger: Ledger, **values: Any) -> list[Finding]:
    with ledger.read() as conn:
        return list(audit(conn, **values))


def test_events_of_an_execution_follow_each_other_and_others_stay_outside(ledger: Ledger) -> None:
    execution = add_execution(ledger)
    _tell(ledger, execution.id, "one", "two")
    _tell(ledger, execution.id, "three")
    with ledger.begin() as conn:
        provenance.record(conn, [Event("about.nobody", "survey")], ids=UuidIds(), now=START)
    with ledger.read() as conn:
        rows = conn.execute(
            sa.select(provenance_events).order_by(provenance_events.c.seq, provenance_events.c.id)
        ).all()
    told = [row for row in rows if row.execution_id]
    assert [(row.seq, row.event_type) for row in told] == [(1, "one"), (2, "two"), (3, "three")]
    assert [row.prev_sha256 for row in told] == [chain.GENESIS, told[0].sha256, told[1].sha256]
    assert [row.seq for row in rows if row.execution_id is None] == [None]
    assert _audit(ledger) == []


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (sa.update(provenance_events).where(provenance_events.c.seq == 2).values(actor="x"), Fault.CHANGED),
        (
            sa.update(provenance_events)
            .where(provenance_events.c.seq == 2)
            .values(occurred_at=START + timedelta(microseconds=1)),
            Fault.CHANGED,
        ),
        (
            sa.update(provenance_events).where(provenance_events.c.seq == 2).values(payload={"n": 7}),
            Fault.CHANGED,
        ),
        (sa.delete(provenance_events).where(provenance_events.c.seq == 2), Fault.MISSING),
        (sa.delete(provenance_events).where(provenance_events.c.seq == 1), Fault.MISSING),
        (sa.delete(provenance_events).where(provenance_events.c.seq == 3), Fault.TAIL),
        (sa.delete(provenance_events), Fault.TAIL),
        (
            sa.update(provenance_events).where(provenance_events.c.seq == 3).values(prev_sha256="f" * 64),
            Fault.FOREIGN,
        ),
    ],
    ids=["actor", "time", "payload", "middle-gone", "first-gone", "last-gone", "all-gone", "other-parent"],
)
def test_whatever_is_done_to_an_event_is_found(ledger: Ledger, change: sa.Executable, code: Fault) -> None:
    execution = add_execution(ledger)
    _tell(ledger, execution.id, "one", "two", "three")
    assert _audit(ledger) == []
    with unguarded(ledger) as conn:
        conn.execute(change)
    found = _audit(ledger)
    assert code in {finding.code for finding in found}
    assert {finding.execution_id for finding in found} == {execution.id}


@given(
    payload=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=5),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers(-(2**70), 2**70)
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")),
            lambda inner: st.lists(inner, max_size=3),
            max_leaves=5,
        ),
        max_size=4,
    )
)
def test_the_digest_is_the_same_for_what_a_database_gives_back(payload: dict[str, Any]) -> None:
    from decimal import Decimal  # noqa: PLC0415  # its one use

    def plain(value: Any) -> Any:  # any JSON
        """Numbers without exponents, as PostgreSQL writes them."""
        if isinstance(value, float):
            text = format(Decimal(repr(value)), "f")
            return float(text) if "." in text else int(text)
        if isinstance(value, list):
            return [plain(one) for one in value]
        return value

    event: dict[str, Any] = {
        **dict.fromkeys(chain.MEMBERS, "x"),
        "occurred_at": START,
        "payload": payload,
    }
    again = {**event, "payload": {key: plain(value) for key, value in payload.items()}}
    assert chain.digest(event, seq=1, before=chain.GENESIS) == chain.digest(
        again, seq=1, before=chain.GENESIS
    )


def test_numbers_of_any_size_are_read_back_to_the_same_digest(ledger: Ledger) -> None:
    execution = add_execution(ledger)
    numbers = [1e16, 1e22, 1e300, 1e-7, 5e-324, -0.0, 100000.0, 0.1, 2**64, -(2**63), 1.5]
    _tell(ledger, execution.id, "one", payload={"numbers": numbers})
    assert _audit(ledger) == []


def test_writers_at_the_same_moment_make_one_chain(ledger: Ledger) -> None:
    first, second = (add_execution(ledger, [name], ids=UuidIds()) for name in ("A", "B"))

    def write(order: list[str]) -> None:
        with ledger.begin() as conn:
            events = [Event("told", "survey", "A", execution) for execution in order]
            provenance.record(conn, events, ids=UuidIds(), now=START)

    both = [first.id, second.id]
    done = at_once(*[lambda order=order: write(order) for order in (both, both[::-1]) * 4])
    assert done == [None] * 8
    with ledger.read() as conn:
        ends = {row.execution_id: row.seq for row in conn.execute(sa.select(provenance_heads))}
    assert ends == {first.id: 8, second.id: 8}
    assert _audit(ledger) == []


def test_many_events_are_told_with_a_few_statements(ledger: Ledger) -> None:
    statements: list[str] = []
    sa.event.listen(ledger.engine, "before_cursor_execute", lambda *values: statements.append(str(values[2])))
    events = [Event("told", "survey", "A", f"execution-{number:04}") for number in range(1500)]
    with ledger.begin() as conn:
        provenance.record(conn, events, ids=UuidIds(), now=START)
    assert len([text for text in statements if not text.startswith(("BEGIN", "PRAGMA"))]) < 60
    assert [finding.code for finding in _audit(ledger)] == []


@pytest.mark.parametrize("source", list(Status))
@pytest.mark.parametrize("target", list(Status))
def test_the_database_has_the_law_of_moves(ledger: Ledger, source: Status, target: Status) -> None:
    execution = add_execution(ledger)
    with unguarded(ledger) as conn:
        conn.execute(sa.update(record).values(status=source.value))
    legal = source is target or fsm.allows(source, target)
    try:
        with ledger.begin() as conn:
            conn.execute(sa.update(record).where(record.c.id == execution.id).values(status=target.value))
        moved = True
    except IntegrityError as error:
        assert "cannot make this move" in str(error)  # noqa: PT017  # what was refused is the point
        moved = False
    assert moved is legal


@pytest.mark.parametrize("table", [provenance_events, execution_observations, execution_artifacts])
def test_evidence_cannot_be_changed(ledger: Ledger, table: sa.Table) -> None:
    with ledger.begin() as conn:
        values: dict[str, Any] = {
            column.name: START
            if "_at" in column.name
            else {}
            if column.name in {"payload", "metadata"}
            else "x"
            for column in table.c
            if not column.nullable
        }
        if table is execution_artifacts:
            values |= {"kind": "manifest", "size_bytes": 1}
        if "execution_id" in table.c and table is not provenance_events:
            conn.rollback()
            values["execution_id"] = add_execution(ledger).id
    with ledger.begin() as conn:
        conn.execute(sa.insert(table).values(values))
    with pytest.raises(IntegrityError, match="never changed"), ledger.begin() as conn:
        conn.execute(sa.update(table).values(id="y"))


def test_an_event_is_deleted_by_a_declared_purge_only(ledger: Ledger) -> None:
    execution = add_execution(ledger)
    _tell(ledger, execution.id, "one")
    with pytest.raises((IntegrityError, DatabaseError), match="without a purge"), ledger.begin() as conn:
        conn.execute(sa.delete(provenance_events))
    purge = {"id": "p", "actor": "me", "reason": "old", "begun_at": START}
    with ledger.begin() as conn:
        conn.execute(sa.insert(provenance_purges).values(before=START, **purge))
    with pytest.raises((IntegrityError, DatabaseError), match="without a purge"), ledger.begin() as conn:
        conn.execute(sa.delete(provenance_events))  # it is not older than the purge says
    with ledger.begin() as conn:
        conn.execute(sa.update(provenance_purges).values(before=START + timedelta(seconds=1)))
        conn.execute(sa.delete(provenance_events))
    assert _audit(ledger) == []


def test_damaged_documents_locks_and_untold_endings_are_found(ledger: Ledger, ids: SequenceIds) -> None:
    execution = add_execution(ledger)
    _tell(ledger, execution.id, "execution.created")
    with ledger.begin() as conn:
        conn.execute(
            sa.insert(execution_artifacts).values(
                id=ids.new(),
                execution_id=execution.id,
                kind="manifest",
                storage_kind="database",
                media_type="application/json",
                sha256="0" * 64,
                size_bytes=1,
                content=b"not what it was",
                producer_phase="manifest_generated",
                metadata={},
                created_at=START,
            )
        )
        moved = executions.move(
            conn,
            executions.get(conn, execution.id),
            now=START,
            patch=fsm.StatusPatch(status=Status.FAILED),
            values={"manifest_sha256": "1" * 64},
        )
        conn.execute(sa.update(execution_sources).values(active=True))
    assert moved.status in TERMINAL
    counts = Audited()
    found = {finding.code for finding in _audit(ledger, counts=counts)}
    assert found == {Fault.ARTIFACT, Fault.UNKNOWN_DOCUMENT, Fault.LOCK_LEFT, Fault.UNTOLD}
    assert (counts.events, counts.executions, counts.artifacts) == (1, 1, 1)
    assert _audit(ledger, execution_id="another") == []


def test_an_active_execution_without_its_lock_is_found(ledger: Ledger) -> None:
    execution = add_execution(ledger)
    with ledger.begin() as conn:
        conn.execute(sa.update(execution_sources).values(active=False))
    assert [(finding.code, finding.execution_id) for finding in _audit(ledger)] == [
        (Fault.LOCK_LOST, execution.id)
    ]
