"""A look ahead: what would run, what speaks against it, and that nothing is changed by looking."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from beampipe_dagster.errors import NotFoundError
from beampipe_dagster.execution.prepare import Prepared
from beampipe_dagster.ledger.states import ArtifactKind
from beampipe_dagster.ledger.tables import metadata
from beampipe_dagster_tests.support.ledgers import SURVEY
from beampipe_dagster_tests.support.platforms import Stage


def prepare(stage: Stage, *names: str, **values: Any) -> Prepared:
    before = dump(stage)
    found = stage.platform.preparation.prepare(SURVEY, list(names) or None, **values)
    assert dump(stage) == before
    return found


def dump(stage: Stage) -> dict[str, list[Any]]:
    """Every row of every table."""
    with stage.ledger.read() as conn:
        return {
            table.name: sorted(map(repr, conn.execute(sa.select(table)).all()))
            for table in metadata.sorted_tables
        }


def test_nothing_pending_is_nothing_to_do(stage: Stage) -> None:
    found = prepare(stage)
    assert (found.ready, found.sources, found.executions) == (False, (), ())


def test_what_is_said_is_what_an_execution_then_is(stage: Stage) -> None:
    stage.ready("A", "B")
    found = prepare(stage)
    assert found.ready
    assert (found.profile, found.datasets) == ("local r1", 2)
    assert [one.sources for one in found.executions] == [("A",), ("B",)]
    for promised, execution in zip(found.executions, stage.admit(), strict=True):
        done = stage.submit(execution, until="prepared_graph")
        assert promised.partition_key == done.partition_key
        assert promised.manifest_sha256 == done.manifest_sha256
        assert promised.graph_sha256 is not None
        assert [one.code for one in promised.findings] == ["estimated_drops"]
        assert ArtifactKind.PATCHED_GRAPH in stage.artifact_kinds(execution)
        assert promised.nodes == stage.do("prepared_graph", execution).facts["nodes"]


def test_the_digest_of_the_graph_is_the_same_each_time(stage: Stage) -> None:
    stage.ready("A")
    (first,) = prepare(stage).executions
    stage.clock.advance(1000)
    (second,) = prepare(stage).executions
    assert first == second


def test_each_thing_that_speaks_against_it_is_named_with_its_source(stage: Stage) -> None:
    stage.ready("A")
    stage.archives.deposit("held", 7)
    stage.archives.catalogue("held", known=False)
    stage.register("held")
    stage.discover()
    found = prepare(stage, "A", "held", "nobody")
    assert not found.ready
    assert {one.source_identifier: [p.code for p in one.problems] for one in found.sources} == {
        "A": [],
        "held": ["discovery_flags_failed"],
        "nobody": ["source_not_registered"],
    }
    assert [one.sources for one in found.executions] == [("A",)]
    shown = found.as_dict()
    assert shown["totals"] == {
        "sources": 3,
        "ready_sources": 1,
        "executions": 1,
        "datasets": 1,
        "blocked": {"discovery_flags_failed": 1, "source_not_registered": 1},
    }


def test_a_full_room_and_a_missing_profile_are_said(stage: Stage) -> None:
    stage.add_survey(execution={"concurrent_execution_run_limit": 1})
    stage.ready("A", "B")
    stage.admit()
    found = prepare(stage)
    assert [one.code for one in found.problems] == ["project_in_flight_cap"]
    assert found.caps["project_in_flight_cap"] == [1, 1]
    found = prepare(stage, profile="lokal")
    assert [one.code for one in found.problems] == ["profile_not_found"]
    assert found.profile is None


def test_a_graph_that_cannot_run_is_said_before_anything_runs(stage: Stage) -> None:
    from beampipe_dagster_tests.support.platforms import ingest_graph  # noqa: PLC0415  # only here

    graph = ingest_graph()
    graph["linkDataArray"] = [*graph["linkDataArray"], {**graph["linkDataArray"][0], "to": "nowhere"}]
    stage.add_survey(graph=graph)
    stage.ready("A")
    (run,) = prepare(stage).executions
    assert run.problems != ()
    assert run.manifest_sha256 is not None


def test_a_survey_that_is_not_there_is_an_error(stage: Stage) -> None:
    with pytest.raises(NotFoundError):
        stage.platform.preparation.prepare("nope")
