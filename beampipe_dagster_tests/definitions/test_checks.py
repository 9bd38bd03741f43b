"""The checks look at the ledger and say what is wrong."""

from __future__ import annotations

from typing import Any

import dagster as dg
import sqlalchemy as sa

from beampipe_dagster.defs import names
from beampipe_dagster.ledger import tables
from beampipe_dagster_tests.definitions.world import SURVEY, World
from beampipe_dagster_tests.support.fake_daliuge import RUNNING


def evaluate(world: World, asset: str, check: str) -> tuple[bool, dict[str, Any]]:
    """Run one check as the UI does; whether it passed, and its metadata."""
    key = dg.AssetCheckKey(names.asset_key(SURVEY, asset), check)
    job = dg.define_asset_job("checked", selection=dg.AssetSelection.checks(key))
    definitions = dg.Definitions.merge(world.load(), dg.Definitions(jobs=[job]))
    result = definitions.resolve_job_def("checked").execute_in_process(instance=world.instance)
    (evaluation,) = result.get_asset_check_evaluations()
    return evaluation.passed, {name: value.value for name, value in evaluation.metadata.items()}


def rows(table: Any) -> list[dict[str, Any]]:
    return [dict(record.data) for record in table.records]


def test_nothing_that_ended_is_no_failure(here: World) -> None:
    here.add_survey()
    passed, shown = evaluate(here, "execution_outcome", "execution_succeeded")
    assert passed
    assert shown == {"execution": "none has ended yet"}


def test_the_execution_that_ended_last_decides_not_the_one_that_began_last(here: World) -> None:
    first, second = here.with_sources("A1", "A2")
    here.admit()
    sessions = {key: here.submit(key) for key in (first, second)}
    drop = next(iter(here.daliuge.sessions[sessions[second]].drops))
    here.daliuge.go(sessions[first], RUNNING)
    here.daliuge.fail(sessions[second], {drop: "no beam"})
    here.clock.advance(10)
    here.platform.poll.tick()
    passed, shown = evaluate(here, "execution_outcome", "execution_succeeded")
    assert not passed
    assert shown["partition"] == second
    assert "no beam" in shown["error"]
    here.finish(sessions[first])
    here.clock.advance(10)
    here.platform.poll.tick()
    passed, shown = evaluate(here, "execution_outcome", "execution_succeeded")
    assert passed
    assert shown["partition"] == first


def test_held_sources_are_listed_with_their_reason(here: World) -> None:
    (key,) = here.with_sources("A1")
    assert evaluate(here, "source_registry", "no_source_held")[0]
    here.admit()
    here.daliuge.fail(here.submit(key), {next(iter(here.daliuge.graph)): "no beam"})
    here.clock.advance(10)
    here.platform.poll.tick()
    passed, shown = evaluate(here, "source_registry", "no_source_held")
    assert not passed
    (row,) = rows(shown["held"])
    assert (row["source"], row["code"]) == ("A1", "execution_failed")
    assert "no beam" in row["message"]


def test_stored_rows_that_were_changed_by_hand_are_found(here: World) -> None:
    here.with_sources("A1", "A2")
    passed, shown = evaluate(here, "archive_metadata", "rows_give_their_signature")
    assert passed
    assert shown["checked"] == 2
    rows_of = tables.archive_metadata
    with here.platform.ledger.begin() as conn:
        document = conn.execute(
            sa.select(rows_of.c.metadata_json).where(rows_of.c.source_identifier == "A1")
        ).scalar_one()
        document["datasets"][0]["dataset_id"] = "another"
        conn.execute(
            sa.update(rows_of).where(rows_of.c.source_identifier == "A1").values(metadata_json=document)
        )
    passed, shown = evaluate(here, "archive_metadata", "rows_give_their_signature")
    assert not passed
    (row,) = rows(shown["wrong"])
    assert row["source"] == "A1"
    assert row["registry"] == here.source("A1").discovery_signature
