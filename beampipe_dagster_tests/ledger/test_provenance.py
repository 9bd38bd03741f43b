from __future__ import annotations

from datetime import timedelta

from beampipe_dagster.ids import SequenceIds
from beampipe_dagster.ledger import provenance
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.provenance import Event
from beampipe_dagster_tests.support.ledgers import START


def test_the_story_is_told_in_its_order_and_filtered_by_what_it_is_about(
    ledger: Ledger, ids: SequenceIds
) -> None:
    with ledger.begin() as conn:
        for number, name in enumerate("ABA"):
            now = START + timedelta(seconds=number)
            events = [Event(f"e{number}", "survey", name, "run", {"n": number})]
            provenance.record(conn, events, ids=ids, now=now)
        provenance.record(conn, [Event("other", "another")], ids=ids, now=START)
        provenance.record(conn, [], ids=ids, now=START)
    with ledger.read() as conn:
        told = provenance.timeline(conn, project_module="survey")
        assert [(one.event_type, one.payload["n"]) for one in told] == [("e0", 0), ("e1", 1), ("e2", 2)]
        assert [one.event_type for one in provenance.timeline(conn, source_identifier="A")] == ["e0", "e2"]
        assert [one.event_type for one in provenance.timeline(conn, execution_id="run", limit=2)] == [
            "e1",
            "e2",
        ]
        assert len(provenance.timeline(conn)) == 4
