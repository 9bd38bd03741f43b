from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from beampipe_dagster.config.canonical import digest
from beampipe_dagster.errors import NotFoundError
from beampipe_dagster.ids import SequenceIds
from beampipe_dagster.ledger import artifacts
from beampipe_dagster.ledger.artifacts import Artifact
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.states import ArtifactKind, ControlPhase
from beampipe_dagster.ledger.tables import execution_artifacts
from beampipe_dagster_tests.support.ledgers import START, add_execution, unguarded

DOCUMENT: dict[str, Any] = {"b": [1, 2.5, None, "ü"], "a": {"x": True}}


@pytest.fixture
def execution(ledger: Ledger, ids: SequenceIds) -> str:
    return add_execution(ledger, ids=ids).id


def put(
    ledger: Ledger, execution: str, ids: SequenceIds, document: Any = DOCUMENT, *, after: float = 0
) -> Artifact:
    with ledger.begin() as conn:
        return artifacts.put(
            conn,
            execution,
            ArtifactKind.MANIFEST,
            document,
            phase=ControlPhase.MANIFEST_GENERATED,
            facts={"datasets": 3},
            ids=ids,
            now=START + timedelta(seconds=after),
        )


def test_a_document_comes_back_as_it_was_with_its_digest(
    ledger: Ledger, ids: SequenceIds, execution: str
) -> None:
    kept = put(ledger, execution, ids)
    assert kept.sha256 == digest(DOCUMENT)
    assert kept.metadata == {"datasets": 3}
    assert kept.size_bytes == len('{"a":{"x":true},"b":[1,2.5,null,"ü"]}'.encode())
    with ledger.read() as conn:
        assert artifacts.load(conn, kept.id) == DOCUMENT


def test_the_same_document_is_kept_once_and_never_changed(
    ledger: Ledger, ids: SequenceIds, execution: str
) -> None:
    first = put(ledger, execution, ids)
    other = put(ledger, execution, ids, {"new": 1}, after=1)
    again = put(ledger, execution, ids, dict(reversed(DOCUMENT.items())), after=2)
    assert again == first
    with ledger.read() as conn:
        assert [one.id for one in artifacts.listing(conn, execution)] == [first.id, other.id]
        assert artifacts.describe(conn, execution, ArtifactKind.MANIFEST) == other


@pytest.mark.parametrize("content", [b"not even zlib", b"", None])
def test_damaged_bytes_are_found(
    ledger: Ledger, ids: SequenceIds, execution: str, content: bytes | None
) -> None:
    kept = put(ledger, execution, ids)
    other = put(ledger, execution, ids, {"other": "document"}, after=1)
    with unguarded(ledger) as conn:
        columns = execution_artifacts.c
        stolen = sa.select(columns.content).where(columns.id == other.id).scalar_subquery()
        value = stolen if content is None else content
        conn.execute(sa.update(execution_artifacts).where(columns.id == kept.id).values(content=value))
    with ledger.read() as conn, pytest.raises(NotFoundError) as caught:
        artifacts.load(conn, kept.id)
    assert caught.value.code == "artifact_damaged"


def test_what_is_not_there_is_said_so(ledger: Ledger, execution: str) -> None:
    with ledger.read() as conn:
        assert artifacts.find(conn, execution, ArtifactKind.PHYSICAL_GRAPH) is None
        with pytest.raises(NotFoundError, match="no physical_graph") as caught:
            artifacts.describe(conn, execution, ArtifactKind.PHYSICAL_GRAPH)
        assert caught.value.code == "artifact_not_found"
        with pytest.raises(NotFoundError):
            artifacts.load(conn, "nothing")
