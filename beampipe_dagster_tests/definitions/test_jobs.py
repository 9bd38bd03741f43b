"""Discovery batches and the operator's jobs, run by Dagster in this process."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest

from beampipe_dagster.defs import jobs
from beampipe_dagster.discovery.archive import AnswerClass
from beampipe_dagster.errors import NotFoundError
from beampipe_dagster_tests.definitions.world import SURVEY, World, failure


def run(world: World, job: dg.JobDefinition, op: str, **config: Any) -> dg.ExecuteInProcessResult:
    return job.execute_in_process(
        run_config={"ops": {op: {"config": config}}},
        resources={"platform": world.resource},
        instance=world.instance,
        raise_on_error=False,
    )


def batch(world: World) -> dg.ExecuteInProcessResult:
    """The batch of the one claim that the survey's clock gives."""
    (claim,) = world.platform.discovery.tick(SURVEY).claims
    return run(world, jobs.discover_batch, "discover_sources_of_claim", claim=claim.token)


def told(result: dg.ExecuteInProcessResult) -> dict[str, list[str | None]]:
    """Partitions by asset, and observations as ``observed``."""
    out: dict[str, list[str | None]] = {}
    for event in result.all_events:
        if event.is_asset_observation:
            out.setdefault("observed", []).append(
                event.asset_observation_data.asset_observation.asset_key.path[-1]
            )
        if event.is_step_materialization and event.asset_key is not None:
            out.setdefault(event.asset_key.path[-1], []).append(event.partition)
    return out


@pytest.fixture
def added(here: World, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The partitions that each call added."""
    calls: list[list[str]] = []
    add = here.instance.add_dynamic_partitions

    def counted(name: str, keys: list[str]) -> None:
        calls.append(sorted(keys))
        add(name, keys)

    monkeypatch.setattr(here.instance, "add_dynamic_partitions", counted)
    return calls


def test_a_batch_adds_all_its_partitions_in_one_call_and_tells_what_changed(
    here: World, added: list[list[str]]
) -> None:
    here.add_survey()
    here.register("A1", "A2", "A3", "A4")
    here.archive.deposit("A1", "A2", "A3")
    result = batch(here)
    assert result.success
    keys = [f"{name}@{(here.source(name).discovery_signature or '')[:12]}" for name in ("A1", "A2", "A3")]
    assert added == [keys]
    assert sorted(str(key) for key in told(result)["archive_metadata"]) == keys
    assert told(result)["observed"] == ["source_registry"]
    assert here.undelivered() == [
        message for message in here.undelivered() if message.correlation_id is None
    ], "what the batch has told is delivered"


def test_only_what_changed_is_told_again(here: World, added: list[list[str]]) -> None:
    here.add_survey()
    here.register("A1", "A2")
    here.archive.deposit("A1", "A2")
    assert batch(here).success
    added.clear()
    here.archive.deposit("A2", sbid=200)
    here.clock.advance(1)
    here.platform.registry.mark_for_discovery(SURVEY, None, actor="test")
    result = batch(here)
    (key,) = told(result)["archive_metadata"]
    assert key == f"A2@{(here.source('A2').discovery_signature or '')[:12]}"
    assert added == [[key]]


def test_a_look_without_news_tells_no_partition(here: World, added: list[list[str]]) -> None:
    here.with_sources("A1")
    added.clear()
    here.clock.advance(1)
    here.platform.registry.mark_for_discovery(SURVEY, None, actor="test")
    result = batch(here)
    assert result.success
    assert told(result) == {"observed": ["source_registry"]}
    assert added == []


def test_an_archive_that_is_away_changes_nothing_and_is_named(here: World, added: list[list[str]]) -> None:
    here.add_survey()
    here.register("A1")
    here.archive.deposit("A1")
    here.archive.fault = AnswerClass.UNAVAILABLE
    result = batch(here)
    assert result.success
    assert added == []
    source = here.source("A1")
    assert (source.last_outcome, source.discovery_signature) == ("error", None)
    (output,) = [event for event in result.all_events if event.event_type_value == "STEP_OUTPUT"]
    failed = output.step_output_data.metadata["failed"]
    assert isinstance(failed, dg.TableMetadataValue)
    assert failed.records[0].data["source"] == "A1"
    assert "archive_unavailable" in str(failed.records[0].data["error"])


def test_a_claim_is_worked_on_once(here: World) -> None:
    here.add_survey()
    here.register("A1")
    here.archive.deposit("A1")
    (claim,) = here.platform.discovery.tick(SURVEY).claims
    config = {"claim": claim.token}
    assert run(here, jobs.discover_batch, "discover_sources_of_claim", **config).success
    again = run(here, jobs.discover_batch, "discover_sources_of_claim", **config)
    assert again.success
    assert told(again) == {}


def test_an_unknown_claim_is_refused_in_one_sentence(here: World) -> None:
    said = failure(run(here, jobs.discover_batch, "discover_sources_of_claim", claim="nonsense"))
    assert said["code"] == "claim_not_found"
    assert "Traceback" not in said["description"]


def test_sources_are_registered_and_looked_at_at_once(here: World) -> None:
    here.add_survey()
    result = run(here, jobs.register_sources, "register", project=SURVEY, sources=[" A1 ", "A2"])
    assert result.success
    assert here.source("A1").discovery_requested_at == here.clock.now()
    assert here.source("A2").enabled
    again = run(
        here,
        jobs.register_sources,
        "register",
        project=SURVEY,
        sources=["A2", "A3"],
        enabled=False,
        discover_now=False,
    )
    (output,) = [event for event in again.all_events if event.event_type_value == "STEP_OUTPUT"]
    shown = {name: value.value for name, value in output.step_output_data.metadata.items()}
    assert shown == {"added": "A3", "known before": "A2"}
    assert not here.source("A2").enabled


@pytest.mark.parametrize(
    ("sources", "code"),
    [
        ([], "no_sources"),
        (["A1", "A1"], "duplicate_source"),
        (["A1", "   "], "invalid_identifier"),
        (["A1", "O'Brien"], "invalid_identifier"),
        (["A1", "x" * 101], "invalid_identifier"),
    ],
)
def test_bad_sources_are_refused_with_a_hint_and_none_is_registered(
    here: World, sources: list[str], code: str
) -> None:
    here.add_survey()
    before = here.undelivered()
    said = failure(run(here, jobs.register_sources, "register", project=SURVEY, sources=sources))
    assert said["code"] == code
    assert said["hint"]
    assert said["description"] == f"[{code}] {said['message']} ({said['hint']})"
    with pytest.raises(NotFoundError):
        here.source("A1")
    assert here.undelivered() == before


@pytest.mark.parametrize(
    ("job", "op"), [(jobs.register_sources, "register"), (jobs.discover_sources, "mark")]
)
def test_an_unknown_survey_is_refused_and_the_known_ones_are_named(
    here: World, job: dg.JobDefinition, op: str
) -> None:
    here.add_survey("known")
    said = failure(run(here, job, op, project="unknown", sources=["A1"]))
    assert said["code"] == "project_not_found"
    assert "known" in said["hint"]


def test_unknown_sources_are_named_and_nothing_is_marked(here: World) -> None:
    here.add_survey()
    here.register("A1")
    said = failure(run(here, jobs.discover_sources, "mark", project=SURVEY, sources=["A1", "B1"]))
    assert said["code"] == "source_not_registered"
    assert "B1" in said["message"]
    assert here.source("A1").discovery_requested_at is None


def test_without_names_all_sources_are_looked_at(here: World) -> None:
    here.add_survey()
    here.register("A1", "A2")
    result = run(here, jobs.discover_sources, "mark", project=SURVEY)
    assert result.success
    assert {here.source(name).discovery_requested_at for name in ("A1", "A2")} == {here.clock.now()}


def test_every_field_of_the_launchpad_is_described() -> None:
    for job, op in ((jobs.register_sources, "register"), (jobs.discover_sources, "mark")):
        schema = job.get_node_named(op).definition.config_schema
        assert schema is not None
        fields = getattr(schema.config_type, "fields", {})
        assert fields
        assert [name for name, field in fields.items() if not field.description] == []


def test_sources_are_disabled_and_enabled_from_the_launchpad(here: World) -> None:
    here.add_survey()
    here.register("A1", "A2")
    given = {"project": SURVEY, "sources": [" A1 "]}
    assert run(here, jobs.set_sources_enabled, "set_enabled", enabled=False, **given).success
    assert (here.source("A1").enabled, here.source("A2").enabled) == (False, True)
    assert run(here, jobs.set_sources_enabled, "set_enabled", enabled=True, **given).success
    assert here.source("A1").enabled
    refused = run(
        here, jobs.set_sources_enabled, "set_enabled", project=SURVEY, sources=["nobody"], enabled=False
    )
    assert not refused.success
