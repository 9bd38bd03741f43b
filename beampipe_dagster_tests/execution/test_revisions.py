from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.config.validation import load_project
from beampipe_dagster.errors import BeampipeError
from beampipe_dagster.execution.explain import Expected, explain
from beampipe_dagster.execution.revision_diff import Effect, diff_configs
from beampipe_dagster.execution.revisions import RevisionService
from beampipe_dagster.ledger import projects
from beampipe_dagster.ledger.tables import daliuge_deployment_profile
from beampipe_dagster_tests.support.ledgers import SURVEY
from beampipe_dagster_tests.support.platforms import Stage, ingest_graph, survey_spec

DEMO = Path(__file__).resolve().parents[2] / "projects" / "wallaby_demo" / "wallaby_demo.yaml"
MAP = "discovery.prepare_metadata.field_map"


def service(stage: Stage) -> RevisionService:
    platform = stage.platform
    return RevisionService(ledger=platform.ledger, clock=platform.clock, ids=platform.ids)


def changed(spec: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The spec with another value at a dotted path; ``...`` removes it."""
    out: dict[str, Any] = json.loads(json.dumps(spec))
    place = out
    *steps, last = path.split(".")
    for step in steps:
        place = place.setdefault(step, {})
    if value is ...:
        place.pop(last, None)
    else:
        place[last] = value
    return out


def current(stage: Stage) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads((stage.home / "survey.yaml").read_text())
    return spec


def write(stage: Stage, spec: Mapping[str, Any], name: str = "next.yaml") -> Path:
    path = stage.home / name
    path.write_text(json.dumps(spec))
    return path


def add(stage: Stage, path: str, value: Any) -> list[str]:
    """Add the survey with one change; the codes of its warnings."""
    added = stage.platform.projects.add_project(
        write(stage, changed(current(stage), path, value)), actor="anna"
    )
    assert added.changed
    return [warning.code for warning in added.warnings]


def active_version(stage: Stage) -> int:
    with stage.ledger.read() as conn:
        return projects.active(conn, SURVEY).version


def code_of(stage: Stage, *args: Any) -> str:
    with pytest.raises(BeampipeError) as caught:
        service(stage).activate(*args, actor="anna")
    return caught.value.code


def test_an_older_revision_becomes_active_again_and_the_story_says_so(stage: Stage) -> None:
    add(stage, "automation.discovery.batch_size", 7)
    stage.clock.advance(10)
    done = service(stage).activate(SURVEY, 1, actor="anna")
    assert (done.changed, done.revision.version, done.previous.version) == (True, 1, 2)
    assert active_version(stage) == 1
    last = stage.events("config.activated")[-1]
    assert (last.actor, last.payload["version"], last.payload["previous_version"]) == ("anna", 1, 2)
    assert last.payload["spec_sha256"] == done.revision.spec_sha256
    assert done.as_dict()["previous_version"] == 2


def test_the_active_revision_activated_again_changes_nothing(stage: Stage) -> None:
    assert not service(stage).activate(SURVEY, 1, actor="anna").changed
    assert len(stage.events("config.activated")) == 1


def test_what_is_not_there_cannot_be_activated(stage: Stage) -> None:
    assert code_of(stage, SURVEY, 2) == "revision_not_found"
    assert code_of(stage, "nobody", 1) == "project_not_found"
    assert active_version(stage) == 1


def test_the_next_execution_is_made_with_the_revision_that_was_gone_back_to(stage: Stage) -> None:
    stage.add_survey(
        graph_patches=[{"match": {"kind": "node_name", "equals": "image"}, "set": {"num_cpus": 9}}]
    )
    service(stage).activate(SURVEY, 1, actor="anna")
    execution = stage.admitted("A")
    with stage.ledger.read() as conn:
        assert projects.revision(conn, execution.project_config_id).version == 1


def test_executions_on_their_way_are_named_when_another_revision_becomes_active(stage: Stage) -> None:
    execution = stage.admitted("A")
    assert add(stage, "automation.discovery.batch_size", 7) == ["in_flight_config_pins"]
    done = service(stage).activate(SURVEY, 1, actor="anna")
    assert done.warnings == ()
    again = service(stage).activate(SURVEY, 2, actor="anna")
    (warning,) = again.warnings
    assert (warning.code, warning.path) == ("in_flight_config_pins", "spec_sha256")
    assert execution.id[:13] in warning.message


@pytest.mark.parametrize(
    ("path", "value", "code"),
    [
        ("discovery.prepare_metadata.signature.exclude_fields", ["filesize"], "signature_changed"),
        (f"{MAP}.extra", {"from": "obs_id"}, "field_map_changed"),
        ("definitions.transforms.trim", {"kind": "trim"}, "definitions_changed"),
    ],
)
def test_what_may_make_sources_run_again_is_warned_of_when_it_is_added(
    stage: Stage, path: str, value: Any, code: str
) -> None:
    assert add(stage, path, value) == [code]
    (warning,) = service(stage).activate(SURVEY, 1, actor="anna").warnings
    assert warning.code == code


def test_the_history_has_every_revision_with_its_turns_and_its_executions(stage: Stage) -> None:
    stage.submit(stage.admitted("A"))
    add(stage, "automation.discovery.batch_size", 7)
    service(stage).activate(SURVEY, 1, actor="anna")
    newest, first = service(stage).history(SURVEY)
    assert (newest.revision.version, newest.revision.active, len(newest.activations)) == (2, False, 1)
    assert (first.revision.version, first.revision.active) == (1, True)
    assert [turn.actor for turn in first.activations] == ["test", "anna"]
    assert (first.executions, first.in_flight, newest.executions) == (1, 1, 0)
    assert json.dumps(first.as_dict())
    with pytest.raises(BeampipeError) as caught:
        service(stage).history("nobody")
    assert caught.value.code == "project_not_found"


SPEC = survey_spec("0" * 64)
QUERIES = SPEC["discovery"]["queries"]
CHANGES: list[tuple[str, Any, str, set[Effect]]] = [
    ("metadata.description", "words", "description_changed", {Effect.NONE}),
    ("adapters.required", ["casda"], "adapters_changed", {Effect.SCHEDULING}),
    ("adapters.casda_tap_url", "https://x/tap", "archive_url_changed", {Effect.DATASETS}),
    ("adapters.tap.retries", 4, "archive_limits_changed", {Effect.SCHEDULING}),
    (
        "adapters.definitions.eso",
        {"tap_url": "https://x/tap"},
        "archive_definitions_changed",
        {Effect.DATASETS},
    ),
    ("graph.sha256", "1" * 64, "graph_changed", {Effect.EXECUTIONS}),
    ("graph.path", "elsewhere.graph", "graph_moved", {Effect.NONE}),
    ("discovery.enrichments", QUERIES[1:], "enrichments_changed", {Effect.DATASETS, Effect.SIGNATURES}),
    ("discovery.queries", QUERIES[:1], "queries_changed", {Effect.DATASETS, Effect.SIGNATURES}),
    (f"{MAP}.extra", {"from": "x"}, "field_map_changed", {Effect.SIGNATURES, Effect.EXECUTIONS}),
    (
        "discovery.prepare_metadata.discovery_flags",
        {},
        "flags_changed",
        {Effect.SIGNATURES, Effect.READINESS},
    ),
    ("discovery.prepare_metadata.signature", ..., "signature_changed", {Effect.SIGNATURES}),
    ("definitions.transforms.trim", {"kind": "trim"}, "definitions_changed", {Effect.SIGNATURES}),
    ("source_identity", {}, "identity_changed", {Effect.DATASETS}),
    ("manifest", {"group_by": ["sbid"]}, "manifest_changed", {Effect.EXECUTIONS}),
    ("graph_patches", [], "patches_changed", {Effect.EXECUTIONS}),
    ("output_verification.required", True, "verification_changed", {Effect.EXECUTIONS}),
    (
        "plugins",
        [{"name": "wallaby", "version": "1"}],
        "plugins_changed",
        {Effect.SIGNATURES, Effect.EXECUTIONS},
    ),
    ("staging", {"enabled": True}, "staging_changed", {Effect.EXECUTIONS}),
    ("extension", {"hooks": ["manifest"]}, "extension_changed", {Effect.EXECUTIONS}),
    ("automation.discovery.batch_size", 7, "automation_changed", {Effect.SCHEDULING}),
    ("automation.execution", ..., "automation_changed", {Effect.SCHEDULING}),
]  # fmt: skip  # a change a line


@pytest.mark.parametrize(("path", "value", "code", "effects"), CHANGES)
def test_a_change_is_named_with_what_it_has_an_effect_on(
    path: str, value: Any, code: str, effects: set[Effect]
) -> None:
    old = ProjectConfig.from_json(SPEC)
    new = ProjectConfig.from_json(changed(SPEC, path, value))
    found = diff_configs(old, new, names=("a", "b"))
    assert [(change.code, set(change.effects)) for change in found.changes] == [(code, effects)]
    assert found.changes[0].message
    back = diff_configs(new, old, names=("b", "a"))
    assert [change.code for change in back.changes] == [code]


def test_every_section_of_a_project_is_compared() -> None:
    """A section that a later release adds must not be able to differ in silence."""
    compared = {path.split(".")[0] for path, _, _, _ in CHANGES}
    known = {info.alias or name for name, info in ProjectConfig.model_fields.items()}
    assert known - compared == {"apiVersion", "kind"}


def test_the_same_document_has_no_difference() -> None:
    config = ProjectConfig.from_json(SPEC)
    assert diff_configs(config, config, names=("a", "b")).as_dict() == {
        "changes": [],
        "effects": [],
        "text": "",
    }


def test_two_revisions_are_compared_in_words_and_in_lines(stage: Stage) -> None:
    other = ingest_graph()
    other["nodeDataArray"][0]["name"] = "beampipe-ingest"
    other["nodeDataArray"].append({**other["nodeDataArray"][1], "id": "new"})
    stage.add_survey(graph=other, automation={"discovery": {"enabled": True, "batch_size": 9}})
    found = service(stage).diff(SURVEY, 1)
    assert [change.code for change in found.diff.changes] == [
        "graph_changed", "automation_changed", "automation_changed"
    ]  # fmt: skip  # one line
    assert found.graph is not None
    assert found.graph["changed_node_count"] == 1
    assert found.diff.text.startswith("--- revision 1\n+++ revision 2\n")
    assert found.diff.effects == (Effect.EXECUTIONS, Effect.SCHEDULING)
    back = service(stage).diff(SURVEY, 2, 1)
    assert (back.old, back.new) == ("revision 2", "revision 1")


def test_a_file_is_compared_with_the_active_revision(stage: Stage) -> None:
    path = write(stage, changed(current(stage), "automation.discovery.batch_size", 9))
    found = service(stage).diff_file(path)
    assert [change.path for change in found.diff.changes] == ["automation.discovery"]
    assert "batch_size: 5 → 9" in found.diff.changes[0].message
    assert active_version(stage) == 1


# -- impact: what is foretold is what happens ------------------------------------------------------------

EXACT: list[tuple[str, Any]] = [
    ("discovery.prepare_metadata.signature.exclude_fields", ["access_url", "velocity"]),
    ("discovery.prepare_metadata.signature.exclude_fields", []),
    ("discovery.prepare_metadata.signature.exclude_fields", ["filename", "access_url"]),
    ("discovery.prepare_metadata.signature.include_discovery_flags", False),
    ("discovery.prepare_metadata.signature", {"exclude_fields": ["access_url"]}),
    (f"{MAP}.extra", {"from": "obs_id"}),
    (f"{MAP}.extra", {"from": "OBS_ID", "transform": "digits"}),
    (f"{MAP}.extra", {"from": "nowhere"}),
    (f"{MAP}.extra", {"from": "source_identifier"}),
    (f"{MAP}.obs_id", {"from": "obs_id", "transform": "digits"}),
    (f"{MAP}.sbid", {"from": "filename", "transform": "digits"}),
    (f"{MAP}.dataset_id", {"from": "access_url"}),
    (f"{MAP}.filename", {"from": "access_url"}),
    ("definitions.transforms.digits", {"kind": "strip_prefix", "prefix": "ASKAP-1"}),
    ("definitions.transforms.unused", {"kind": "trim"}),
    ("automation.discovery.batch_size", 4),
]


@pytest.mark.parametrize(("path", "value"), EXACT)
def test_the_signatures_that_are_foretold_are_those_that_discovery_gives(
    stage: Stage, path: str, value: Any
) -> None:
    names = ["A", "B", "C"]
    stage.ready(*names, quality="GOOD")
    stage.register("NONE")
    stage.discover()
    before = {name: stage.source(name).discovery_signature for name in (*names, "NONE")}
    file = write(stage, changed(current(stage), path, value))
    foretold = service(stage).impact_of_file(file)
    assert foretold.exact, foretold.unknown
    assert (foretold.sources, foretold.compared) == (4, 4)
    assert {name: stage.source(name).discovery_signature for name in before} == before
    stage.platform.projects.add_project(file, actor="anna")
    stage.request(*names, "NONE")
    after = {name: stage.source(name).discovery_signature for name in before}
    assert {one.source_identifier: one.new_signature for one in foretold.examples} == {
        name: signature for name, signature in after.items() if signature != before[name]
    }
    assert foretold.changed == len(foretold.examples)


def test_the_survey_that_is_active_has_no_impact(stage: Stage) -> None:
    stage.ready("A", "B")
    found = service(stage).impact_of_file(stage.home / "survey.yaml")
    assert (found.compared, found.changed, found.would_run, found.exact) == (2, 0, 0, True)


def test_sources_that_are_not_ready_would_not_run(stage: Stage) -> None:
    stage.ready("A", "B", "C", "D")
    stage.archives.catalogue("B", known=False)
    stage.request("B")
    stage.register("C", enabled=False)
    path = write(stage, changed(current(stage), f"{MAP}.extra", {"from": "obs_id"}))
    found = service(stage).impact_of_file(path)
    assert (found.changed, found.would_run) == (4, 2)
    assert found.blocked == {"discovery_flags_failed": 1, "source_disabled": 1}
    assert found.automatic


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        ("discovery.queries", SPEC["discovery"]["queries"][:1], "discovery.queries changed"),
        ("adapters.casda_tap_url", "https://x.example/tap", "another service"),
        (
            "discovery.prepare_metadata.discovery_flags.more",
            {"from": "enrichments.catalogue"},
            "the flag 'more'",
        ),
        ("source_identity", {}, "source_identity changed"),
        (f"{MAP}.visibility_filename", ..., "'visibility_filename' is no longer mapped"),
        (f"{MAP}.extra", {"from": "SBID"}, "the column 'SBID'"),
    ],
)
def test_what_stored_rows_cannot_say_is_said(stage: Stage, path: str, value: Any, word: str) -> None:
    stage.ready("A")
    found = service(stage).impact_of_file(write(stage, changed(current(stage), path, value)))
    assert not found.exact
    assert any(word in sentence for sentence in found.unknown), found.unknown
    assert json.dumps(found.as_dict())


def test_going_back_foretells_the_signatures_of_before(stage: Stage) -> None:
    stage.ready("A")
    first = stage.source("A").discovery_signature
    add(stage, f"{MAP}.extra", {"from": "obs_id"})
    stage.request("A")
    assert stage.source("A").discovery_signature != first
    found = service(stage).impact_of_version(SURVEY, 1)
    assert [one.new_signature for one in found.examples] == [first]


def test_rows_of_an_earlier_revision_are_counted(stage: Stage) -> None:
    stage.ready("A", "B")
    stage.clock.advance(10)
    add(stage, "automation.discovery.batch_size", 7)
    stage.request("A")
    found = service(stage).impact_of_version(SURVEY, 1)
    assert [sentence for sentence in found.unknown if sentence.startswith("1 of the sources")]


def test_another_surveys_file_is_refused(stage: Stage) -> None:
    config = load_project(DEMO.read_text())
    with pytest.raises(BeampipeError) as caught:
        service(stage).impact(SURVEY, config)
    assert caught.value.code == "another_project"


# -- explain ---------------------------------------------------------------------------------------------


def words(config: ProjectConfig, **more: Any) -> dict[str, str]:
    return {one.title: "\n".join(one.lines) for one in explain(config, **more).sections}


def test_a_survey_is_explained_with_a_source_filled_in() -> None:
    found = words(load_project(DEMO.read_text()), source_identifier="HIPASSJ0001-02")
    assert "WHERE o.filename LIKE 'HIPASSJ0001-02_SB%'" in found["Queries"]
    assert "WHERE HIPASS = 'J0001-02'" in found["Queries"]
    assert "sbid is 'obs_id', through sbid_number" in found["Datasets"]
    assert "ra_dec_vsys_complete" in found["Readiness"]
    assert "access_url, evaluation_file_access_url, filesize" in found["Signature"]
    assert "Every node with the name 'Scatter/GenericScatterApp/Beam' gets num_of_copies" in found["Graph"]
    assert "4 executions at a time" in found["When"]
    assert "local-daliuge" in found["Where"]


def test_an_explanation_needs_nothing_but_what_the_file_must_have() -> None:
    bare = {
        "apiVersion": "beampipe.dev/v2",
        "kind": "ProjectConfig",
        "metadata": {"id": "s"},
        "adapters": {"required": ["casda"]},
    }
    found = words(load_project(json.dumps(bare)))
    assert set(found) == {
        "Archives", "Queries", "Datasets", "Readiness", "Signature", "Graph", "When", "Where"
    }  # fmt: skip  # one line
    assert all(found.values())


def test_an_identifier_that_no_query_takes_is_said_and_not_raised() -> None:
    found = words(load_project(DEMO.read_text()), source_identifier="a%b")
    assert "cannot be filled in" in found["Queries"]


def test_credentials_are_explained_by_the_name_of_their_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESO_TOKEN", "hunter2")
    definitions = {
        "eso": {"tap_url": "https://e.example/tap", "auth_env": {"token": "ESO_TOKEN"}, "maxrec": 9}
    }
    spec = changed(SPEC, "adapters", {"required": ["eso"], "definitions": definitions})
    text = words(ProjectConfig.from_json(spec))["Archives"]
    assert "ESO_TOKEN" in text
    assert "9 rows at most" in text
    assert "hunter2" not in text


def test_the_active_revision_is_explained_with_one_of_its_sources_and_its_profile(stage: Stage) -> None:
    stage.register("A")
    found = service(stage).explain(SURVEY)
    assert found.source_identifier == "A"
    assert any("127.0.0.1" in line for one in found.sections for line in one.lines if one.title == "Where")
    assert service(stage).explain_file(DEMO).project_id == "wallaby_demo"
    assert json.dumps(found.as_dict())


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ([], "is not known yet"),
        ([0, 0], "No source had a row so far; 2 sources had none."),
        ([3], "Expect 3 rows a source: so many had each of 1 source."),
        ([4, 4, 0], "Expect 4 rows a source: so many had each of 2 sources; 1 source had none."),
        ([1, 9, 2, 4], "Expect 1 to 9 rows a source, in the median 3, as 4 sources had."),
        ([1, 2], "in the median 1.5, as 2 sources had."),
    ],
)
def test_how_many_rows_to_expect_is_said_from_those_that_were_found(counts: list[int], sentence: str) -> None:
    text = words(load_project(DEMO.read_text()), expected=Expected.of(counts))["Datasets"]
    assert sentence in text


def test_stored_metadata_say_how_many_rows_to_expect(stage: Stage) -> None:
    def datasets() -> str:
        found = service(stage).explain(SURVEY)
        return next("\n".join(one.lines) for one in found.sections if one.title == "Datasets")

    assert "is not known yet" in datasets()
    stage.archives.deposit("A", 100, beams=6)
    stage.archives.deposit("B", 101, beams=2)
    stage.archives.deposit("C", 102, beams=3)
    stage.register("A", "B", "C", "D")
    stage.discover()
    assert "Expect 2 to 6 rows a source, in the median 3, as 3 sources had; 1 source had none." in datasets()
    stage.archives.withdraw("A")
    stage.archives.deposit("A", 103)
    stage.vanished("A")
    assert "Expect 1 to 3 rows a source, in the median 2" in datasets()
    (found,) = [
        one
        for one in service(stage).explain_file(stage.home / "survey.yaml").sections
        if one.title == "Datasets"
    ]
    assert "Expect 1 to 3 rows" in "\n".join(found.lines)


def test_going_back_to_a_revision_whose_profile_is_gone_is_warned_of(stage: Stage) -> None:
    stage.add_profile("other", is_default=False)
    stage.add_survey(execution={"deployment_profile_name": "other"})
    stage.add_survey()
    with stage.ledger.begin() as conn:
        named = daliuge_deployment_profile.c.name == "other"
        conn.execute(sa.delete(daliuge_deployment_profile).where(named))
    done = service(stage).activate(SURVEY, 2, actor="anna")
    assert done.changed
    assert "profile_not_found" in [warning.code for warning in done.warnings]
