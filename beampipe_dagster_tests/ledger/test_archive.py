from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from beampipe_dagster.errors import NotFoundError
from beampipe_dagster.ids import SequenceIds
from beampipe_dagster.ledger import archive
from beampipe_dagster.ledger.archive import SignatureChange
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster_tests.support.ledgers import START, SURVEY


def block(number: int) -> dict[str, Any]:
    return {"datasets": [{"n": number}]}


def change(ids: SequenceIds, signature: str, **values: Any) -> SignatureChange:
    made = SignatureChange(
        id=ids.new(),
        project_module=SURVEY,
        source_identifier="A",
        signature=signature * 64,
        previous_signature=None,
        partition_key=f"A@{signature * 12}",
        project_config_id="revision",
        sbid_count=1,
        dataset_count=1,
        diff={"added": ["x"]},
        evidence=[{"rows": 1}],
        metadata_json={"1": block(1)},
        discovered_at=START,
    )
    return replace(made, **values)


def test_metadata_are_replaced_as_a_whole(ledger: Ledger, ids: SequenceIds) -> None:
    with ledger.begin() as conn:
        for blocks in ({"10": block(1), "9": block(2)}, {"9": block(3), "8": block(4)}):
            archive.replace_metadata(conn, SURVEY, "A", blocks, ids=ids, now=START)
        archive.replace_metadata(conn, SURVEY, "B", {"9": block(5)}, ids=ids, now=START)
        archive.replace_metadata(conn, "another", "A", {"7": block(6)}, ids=ids, now=START)
        found = archive.metadata_of(conn, SURVEY, ["A", "B", "C"])
    assert found == {"A": {"8": block(4), "9": block(3)}, "B": {"9": block(5)}}
    assert list(found["A"]) == ["8", "9"]


def test_no_metadata_leave_no_row(ledger: Ledger, ids: SequenceIds) -> None:
    with ledger.begin() as conn:
        archive.replace_metadata(conn, SURVEY, "A", {"1": block(1)}, ids=ids, now=START)
        archive.replace_metadata(conn, SURVEY, "A", {}, ids=ids, now=START)
        assert archive.metadata_of(conn, SURVEY, ["A"]) == {}


def test_a_signature_that_came_back_is_found_by_its_newest_change(ledger: Ledger, ids: SequenceIds) -> None:
    with ledger.begin() as conn:
        for number, signature in enumerate("aba"):
            at = START + timedelta(hours=number)
            archive.record_change(conn, change(ids, signature, discovered_at=at, dataset_count=number))
        newest = archive.latest_change(conn, SURVEY, "A@" + "a" * 12)
        assert newest is not None
        assert newest.dataset_count == 2
        assert archive.change_for(conn, SURVEY, "A", "b" * 64).dataset_count == 1
        history = archive.changes_of(conn, SURVEY, "A")
        assert [one.signature[0] for one in history] == ["a", "b", "a"]
        assert archive.changes_of(conn, SURVEY, "A", limit=1) == history[:1]


def test_an_unknown_signature_is_said_so(ledger: Ledger) -> None:
    with ledger.read() as conn:
        assert archive.latest_change(conn, SURVEY, "A@" + "a" * 12) is None
        with pytest.raises(NotFoundError) as caught:
            archive.change_for(conn, SURVEY, "A", "a" * 64)
    assert caught.value.code == "signature_not_found"
