from __future__ import annotations

import json
from typing import Any

import pytest
import sqlalchemy as sa

from beampipe_dagster.config.canonical import digest
from beampipe_dagster.errors import (
    BackendUnavailableError,
    BeampipeError,
    ConfigError,
    ConflictError,
    DataError,
    GraphError,
    LedgerError,
    NotFoundError,
    Retry,
)
from beampipe_dagster.execution.steps import LONGEST_WAIT_SECONDS
from beampipe_dagster.ledger import artifacts
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.states import ArtifactKind, ControlPhase, ExecutionPhase, Status
from beampipe_dagster.ledger.tables import discovery_signatures, project_configs
from beampipe_dagster_tests.support.fake_daliuge import Fault
from beampipe_dagster_tests.support.graphs import GraphBuilder, bash_chain, broken
from beampipe_dagster_tests.support.platforms import STEPS, Stage, ingest_graph

BUILDS = STEPS[:3]


def document(stage: Stage, execution: Execution, kind: ArtifactKind) -> Any:
    with stage.ledger.read() as conn:
        return artifacts.load(conn, artifacts.describe(conn, execution.id, kind).id)


def refused(stage: Stage, step: str, execution: Execution, **values: Any) -> BeampipeError:
    with pytest.raises(BeampipeError) as caught:
        stage.do(step, execution, **values)
    return caught.value


def test_the_steps_build_one_document_after_the_other(stage: Stage) -> None:
    execution = stage.admitted("A")
    seen = []
    for step in BUILDS:
        execution = stage.do(step, execution).execution
        seen.append((execution.status, execution.control_phase))
    assert seen == [
        (Status.RUNNING, ControlPhase.MANIFEST_GENERATED),
        (Status.RUNNING, ControlPhase.GRAPH_PATCHED),
        (Status.RUNNING, ControlPhase.TRANSLATED),
    ]
    assert set(stage.artifact_kinds(execution)) == {
        ArtifactKind.MANIFEST,
        ArtifactKind.SOURCE_GRAPH,
        ArtifactKind.PATCHED_GRAPH,
        ArtifactKind.PHYSICAL_GRAPH,
    }
    assert execution.manifest_sha256 == digest(document(stage, execution, ArtifactKind.MANIFEST))
    assert execution.physical_graph_sha256 == digest(document(stage, execution, ArtifactKind.PHYSICAL_GRAPH))
    assert execution.execution_phase is ExecutionPhase.STAGE_AND_MANIFEST
    assert execution.drop_counts == {"total": 4}
    assert stage.daliuge.sessions == {}
    told = [one.event_type for one in stage.events() if one.execution_id == execution.id]
    assert told[-3:] == ["execution.manifest_generated", "execution.graph_patched", "execution.translated"]


def test_the_manifest_says_what_is_processed_and_the_record_who_asked(stage: Stage) -> None:
    execution = stage.do("workflow_manifest", stage.admitted("A")).execution
    manifest = document(stage, execution, ArtifactKind.MANIFEST)
    (source,) = manifest["sources"]
    assert source["source_identifier"] == "A"
    (block,) = source["sbids"]
    assert (block["sbid"], len(block["datasets"])) == ("100", 1)
    assert execution.dataset_count == 1
    assert execution.run_record["requested_sources"] == {
        "count": 1,
        "source_identifiers": ["A"],
        "sources": execution.sources,
    }
    assert {
        key: value for key, value in (execution.workflow_manifest or {}).items() if key in manifest
    } == manifest


def test_the_graph_carries_the_manifest_and_the_patches(stage: Stage) -> None:
    stage.ready("A", beams=3)
    execution = stage.submit(stage.admit()[0], until="prepared_graph")
    graph = document(stage, execution, ArtifactKind.PATCHED_GRAPH)
    image = next(node for node in graph["nodeDataArray"] if node["name"] == "image")
    assert {one["name"]: one["value"] for one in image["fields"]}["num_cpus"] == 3
    assert document(stage, execution, ArtifactKind.SOURCE_GRAPH) == ingest_graph()
    assert graph["activeGraphConfigId"]


def test_a_graph_without_a_configuration_of_its_own_is_not_warned_about(stage: Stage) -> None:
    report = stage.do("prepared_graph", stage.submit(stage.admitted("A"), until="workflow_manifest"))
    assert [one["code"] for one in report.facts["findings"]] == ["estimated_drops"]


def test_a_manifest_that_no_longer_says_which_datasets_it_is_about_is_not_compared(stage: Stage) -> None:
    manifest = {
        "group_by": ["source_identifier"],
        "expand_from": "metadata",
        "dataset_template": {"file": "{dataset_id}"},
    }
    stage.add_survey(manifest=manifest)
    report = stage.do("workflow_manifest", stage.admitted("A"))
    assert report.facts["manifest"]["sources"][0]["sbids"][0]["datasets"] == [{"file": "A_SB100_beam00.tar"}]


@pytest.mark.parametrize("step", BUILDS)
def test_a_step_that_is_done_is_told_again_and_never_done_again(stage: Stage, step: str) -> None:
    execution = stage.submit(stage.admitted("A"), until=step)
    calls, told = len(stage.daliuge.calls), len(stage.events())
    again = stage.do(step, execution)
    assert again.done_before
    assert again.artifact is not None
    assert again.execution.updated_at == execution.updated_at
    assert (len(stage.daliuge.calls), len(stage.events())) == (calls, told)
    assert again.execution.status is Status.RUNNING


def test_a_step_that_is_done_needs_nothing_that_made_it(stage: Stage) -> None:
    execution = stage.submit(stage.admitted("A"), until="physical_graph")
    with stage.ledger.begin() as conn:
        conn.execute(sa.update(discovery_signatures).values(metadata_json={}))
        conn.execute(sa.update(project_configs).values(graph_sha256=None))
    stage.daliuge.translator.stop()
    for step in BUILDS:
        assert stage.do(step, execution).done_before


@pytest.mark.parametrize("step", STEPS[1:])
def test_a_step_before_its_turn_is_refused_and_fails_nothing(stage: Stage, step: str) -> None:
    execution = stage.admitted("A")
    error = refused(stage, step, execution)
    assert isinstance(error, ConflictError)
    assert (error.code, error.retry) == ("step_not_ready", Retry.LATER)
    now = stage.execution(execution)
    assert (now.status, now.lease_token, now.last_error) == (Status.PENDING, None, None)


def test_an_execution_that_waits_is_not_failed_by_the_steps_after_it(stage: Stage) -> None:
    execution = stage.submit(stage.admitted("A"), until="prepared_graph")
    stage.daliuge.translator.stop()
    assert refused(stage, "physical_graph", execution).retry is Retry.LATER
    assert refused(stage, "backend_run", execution).code == "step_not_ready"
    assert stage.execution(execution).status is Status.RUNNING


def test_a_translator_that_is_away_is_waited_for_longer_and_longer(stage: Stage) -> None:
    execution = stage.submit(stage.admitted("A"), until="prepared_graph")
    stage.daliuge.translator.stop()
    waits = []
    for _ in range(8):
        error = refused(stage, "physical_graph", execution)
        assert isinstance(error, BackendUnavailableError)
        now = stage.execution(execution)
        assert now.next_launch_at is not None
        assert (now.status, now.lease_token) == (Status.RUNNING, None)
        assert now.last_error == str(error)
        assert now.last_error_code == "backend_unreachable"
        waits.append((now.next_launch_at - stage.clock.now()).total_seconds())
        stage.clock.advance(waits[-1])
    assert waits == [5, 10, 20, 40, 80, 160, 300, LONGEST_WAIT_SECONDS]
    (told,) = stage.events("execution.waiting")
    assert told.payload["control_phase"] == "graph_patched"
    stage.daliuge.translator.start()
    assert stage.submit(execution).status is Status.RUNNING
    assert stage.execution(execution).last_error is None


def test_an_island_without_nodes_is_waited_for(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    execution = stage.submit(stage.admitted("A"), until="prepared_graph")
    with monkeypatch.context() as patched:
        patched.setattr(stage.daliuge, "nodes", lambda *_: [])
        error = refused(stage, "physical_graph", execution)
    assert (error.code, error.retry) == ("no_nodes", Retry.LATER)
    assert not stage.execution(execution).terminal
    assert stage.do("physical_graph", execution).execution.control_phase is ControlPhase.TRANSLATED


def test_a_graph_that_cannot_be_translated_fails_with_the_translators_reason(stage: Stage) -> None:
    execution = stage.submit(stage.admitted("A"), until="prepared_graph")
    stage.daliuge.plan.on("translate", Fault("answer", status=500, body="Internal Server Error"))
    trace = json.dumps({"detail": "Traceback\nKeyError: 'no such port'\n"})
    stage.daliuge.plan.on("explain", Fault("answer", status=500, body=trace))
    error = refused(stage, "physical_graph", execution)
    failed = stage.execution(execution)
    assert error.code == "translation_failed"
    assert (failed.status, failed.failure_class) == (Status.FAILED, "graph")
    assert failed.last_error is not None
    assert "no such port" in failed.last_error


def test_a_profile_that_the_translator_refuses_fails_as_a_configuration(stage: Stage) -> None:
    execution = stage.submit(stage.admitted("A"), until="prepared_graph")
    stage.daliuge.plan.on("translate", Fault("answer", status=422, body='{"detail": "no such algorithm"}'))
    error = refused(stage, "physical_graph", execution)
    assert isinstance(error, ConfigError)
    assert stage.execution(execution).failure_class == "configuration"


def test_a_graph_that_cannot_run_fails_before_anything_is_asked(stage: Stage) -> None:
    graph = broken()
    patch = {"match": {"kind": "node_name", "equals": "seed"}, "set": {"num_cpus": 1}}
    stage.add_survey(graph=graph, graph_patches=[patch])
    execution = stage.do("workflow_manifest", stage.admitted("A")).execution
    error = refused(stage, "prepared_graph", execution)
    assert isinstance(error, GraphError)
    assert error.code == "graph_lint_failed"
    assert stage.daliuge.calls == []
    failed = stage.execution(execution)
    assert (failed.status, failed.terminal_outcome, failed.failure_class) == (
        Status.FAILED,
        "failed",
        "graph",
    )
    assert failed.last_error == str(error)
    hold = stage.source("A").hold
    assert hold is not None
    assert (hold["code"], hold["execution_id"]) == ("execution_failed", execution.id)
    assert [one.kind for one in stage.told("execution_outcome")] == ["materialization", "check"]
    assert stage.admit() == []


def test_a_failed_signature_is_not_tried_again_and_a_new_one_is(stage: Stage) -> None:
    execution = stage.submit(stage.admitted("A"), until="prepared_graph")
    stage.daliuge.plan.on("translate", Fault("answer", status=422, body='{"detail": "no"}'))
    assert refused(stage, "physical_graph", execution).code == "translation_refused"
    stage.request("A")
    assert stage.admit() == []
    stage.archives.deposit("A", 9)
    stage.request("A")
    assert stage.source("A").hold is None
    (second,) = stage.admit()
    assert stage.submit(second).status is Status.RUNNING


def test_a_manifest_that_the_translator_dropped_is_found(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    execution = stage.submit(stage.admitted("A"), until="prepared_graph")
    translate = stage.daliuge.translate

    def forget(name: str, body: bytes) -> object:
        drops: Any = translate(name, body)
        return [{key: value for key, value in drop.items() if key != "applicationArgs"} for drop in drops]

    monkeypatch.setattr(stage.daliuge, "translate", forget)
    assert refused(stage, "physical_graph", execution).code == "manifest_not_injected"
    assert stage.execution(execution).status is Status.FAILED


def test_a_survey_without_a_manifest_node_runs_without_a_manifest(stage: Stage) -> None:
    patch = {"match": {"kind": "node_name", "equals": "step1"}, "set": {"num_cpus": 2}}
    stage.add_survey(graph=bash_chain("true"), graph_patches=[patch])
    assert stage.submitted("A").status is Status.RUNNING


def test_a_deposit_after_admission_belongs_to_the_next_execution(stage: Stage) -> None:
    first = stage.admitted("A")
    stage.archives.deposit("A", 999)
    stage.request("A")
    first = stage.submit(first)
    assert stage.daliuge.manifest_of(stage.session(first))["sources"][0]["sbids"][0]["sbid"] == "100"
    assert len(stage.daliuge.manifest_of(stage.session(first))["sources"]) == 1
    stage.daliuge.go(stage.session(first), 4)
    stage.poll()
    (second,) = stage.admit()
    stage.submit(second)
    sources = stage.daliuge.manifest_of(stage.session(second))["sources"]
    assert {block["sbid"] for source in sources for block in source["sbids"]} == {"100", "999"}


def test_a_revision_after_admission_belongs_to_the_next_execution(stage: Stage) -> None:
    first = stage.admitted("A")
    patch = {"match": {"kind": "node_name", "equals": "image"}, "set": {"num_cpus": 77}}
    stage.add_survey(graph_patches=[patch])
    first = stage.submit(first, until="prepared_graph")
    graph = document(stage, first, ArtifactKind.PATCHED_GRAPH)
    image = next(node for node in graph["nodeDataArray"] if node["name"] == "image")
    assert {one["name"]: one["value"] for one in image["fields"]}["num_cpus"] == 1


def test_metadata_that_no_longer_give_their_signature_are_never_processed(stage: Stage) -> None:
    execution = stage.admitted("A")
    with stage.ledger.begin() as conn:
        changed = {"100": {"datasets": [{"sbid": "100", "dataset_id": "forged"}]}}
        conn.execute(sa.update(discovery_signatures).values(metadata_json=changed))
    error = refused(stage, "workflow_manifest", execution)
    assert isinstance(error, DataError)
    assert error.code == "signature_mismatch"
    failed = stage.execution(execution)
    assert (failed.status, failed.failure_class) == (Status.FAILED, "validation")


def test_an_execution_over_several_sources_has_all_of_their_datasets(stage: Stage) -> None:
    stage.add_survey(execution={"max_sources_per_execution": 3})
    execution = stage.admitted("A", "B", "C")
    execution = stage.submit(execution)
    sources = stage.daliuge.manifest_of(stage.session(execution))["sources"]
    assert [one["source_identifier"] for one in sources] == ["A", "B", "C"]
    told = [one.source_identifier for one in stage.events("execution.translated")]
    assert told == ["A", "B", "C"]


def test_two_processes_never_work_on_one_execution(stage: Stage) -> None:
    execution = stage.admitted("A")
    stage.do("workflow_manifest", execution, holder="first")
    error = refused(stage, "prepared_graph", execution, holder="second")
    assert (error.code, error.retry) == ("execution_busy", Retry.LATER)
    stage.clock.advance(61)
    stage.do("prepared_graph", execution, holder="second")
    assert refused(stage, "physical_graph", execution, holder="first").code == "execution_busy"


def test_a_terminal_execution_is_refused(stage: Stage) -> None:
    execution = stage.submitted("A")
    stage.daliuge.go(stage.session(execution), 4)
    stage.poll()
    for step in STEPS:
        assert refused(stage, step, execution).code == "execution_terminal"
    assert stage.execution(execution).status is Status.COMPLETED


def test_an_unknown_execution_is_said_so(stage: Stage) -> None:
    with pytest.raises(NotFoundError) as caught:
        stage.platform.steps.workflow_manifest("nothing", holder="me")
    assert caught.value.code == "execution_not_found"


def test_a_defect_fails_the_execution_with_its_name(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    execution = stage.admitted("A")

    def fail(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("beampipe_dagster.execution.steps.build_manifest", fail)
    error = refused(stage, "workflow_manifest", execution)
    assert error.code == "internal"
    failed = stage.execution(execution)
    assert (failed.status, failed.failure_class) == (Status.FAILED, "internal")
    assert failed.last_error is not None
    assert "ZeroDivisionError: oops" in failed.last_error


def test_a_ledger_that_is_away_for_a_moment_is_waited_for(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    execution = stage.admitted("A")

    def fail(*_: object) -> None:
        raise LedgerError("away")

    with monkeypatch.context() as patched:
        patched.setattr("beampipe_dagster.execution.steps.build_manifest", fail)
        assert refused(stage, "workflow_manifest", execution).code == "ledger_unavailable"
    assert stage.execution(execution).status is Status.PENDING
    assert stage.submit(execution).status is Status.RUNNING


def test_a_graph_without_roots_is_a_finding(stage: Stage) -> None:
    builder = GraphBuilder("circle").bash("one", "true", inputs=["in"], outputs=["out"]).file("file")
    graph = builder.link("one.out", "file.io").link("file.io", "one.in").build()
    patch = {"match": {"kind": "node_name", "equals": "one"}, "set": {"num_cpus": 2}}
    stage.add_survey(graph=graph, graph_patches=[patch])
    execution = stage.do("workflow_manifest", stage.admitted("A")).execution
    assert refused(stage, "prepared_graph", execution).code == "graph_lint_failed"
