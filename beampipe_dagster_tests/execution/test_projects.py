from __future__ import annotations

import json
from pathlib import Path

import pytest

from beampipe_dagster.errors import BeampipeError, ConfigError, GraphError, InputError
from beampipe_dagster.execution import projects as service
from beampipe_dagster.ids import UuidIds
from beampipe_dagster.ledger import projects
from beampipe_dagster_tests.support.graphs import hello
from beampipe_dagster_tests.support.ledgers import SURVEY, at_once
from beampipe_dagster_tests.support.platforms import Stage, make_platform

GREETER = {"match": {"kind": "node_name", "equals": "greeter"}, "set": {"num_cpus": 2}}


def add(stage: Stage, path: Path | None = None) -> service.AddedProject:
    return stage.platform.projects.add_project(path or stage.home / "survey.yaml", actor="anna")


def error_of(stage: Stage, path: Path) -> BeampipeError:
    with pytest.raises(BeampipeError) as caught:
        add(stage, path)
    return caught.value


def test_the_same_document_makes_no_new_revision(stage: Stage) -> None:
    again = add(stage)
    assert (again.changed, again.revision.version) == (False, 1)
    text = (stage.home / "survey.yaml").read_text()
    (stage.home / "survey.yaml").write_text("# a comment\n" + text)
    assert not add(stage).changed
    assert len(stage.events("config.activated")) == 1


def test_a_changed_document_is_a_new_revision_with_its_graph(stage: Stage) -> None:
    stage.add_survey(graph=hello(), graph_patches=[GREETER])
    with stage.ledger.read() as conn:
        active = projects.active(conn, SURVEY)
        assert active.version == 2
        assert active.graph_sha256 is not None
        assert json.loads(projects.graph(conn, active.graph_sha256)) == hello()
    assert [one.payload["version"] for one in stage.events("config.activated")] == [1, 2]
    assert active.source_text == (stage.home / "survey.yaml").read_text()


def test_an_earlier_document_becomes_active_again_as_a_new_revision(stage: Stage) -> None:
    stage.add_survey(graph=hello(), graph_patches=[GREETER])
    stage.add_survey()
    with stage.ledger.read() as conn:
        assert projects.active(conn, SURVEY).version == 3


def test_a_graph_that_is_not_the_pinned_one_is_refused(stage: Stage) -> None:
    (stage.home / "survey.graph").write_text("{}")
    stage.add_profile()
    error = error_of(stage, stage.home / "survey.yaml")
    assert isinstance(error, GraphError)
    assert error.code == "graph_pin_mismatch"


def test_a_graph_that_is_not_there_is_refused_with_where_it_was_looked_for(stage: Stage) -> None:
    (stage.home / "survey.graph").unlink()
    error = error_of(stage, stage.home / "survey.yaml")
    assert error.code == "graph_unreadable"
    assert str(stage.home / "survey.graph") in error.hint


def test_a_file_that_cannot_be_used_changes_nothing(stage: Stage, tmp_path: Path) -> None:
    cases = {"file_unreadable": tmp_path / "nothing.yaml"}
    for name, content in {
        "file_not_text": b"\xff\xfe",
        "file_too_large": b"#" * (service.FILE_LIMIT + 1),
        "invalid_project": b"apiVersion: beampipe.dev/v2\nkind: ProjectConfig\nmetadata: {id: survey}\n",
    }.items():
        cases[name] = tmp_path / name
        cases[name].write_bytes(content)
    for code, path in cases.items():
        error = error_of(stage, path)
        assert error.code == code
        assert str(path) in error.message
    assert error_of(stage, tmp_path).code == "file_unreadable"
    with stage.ledger.read() as conn:
        assert projects.active(conn, SURVEY).version == 1


def test_two_processes_may_add_the_same_survey_at_once(stage: Stage) -> None:
    graph = json.loads((stage.home / "survey.yaml").read_text())
    graph["metadata"] = {"id": "another"}
    (stage.home / "another.yaml").write_text(json.dumps(graph))
    platforms = [
        make_platform(
            stage.ledger, home=stage.home, clock=stage.clock, archives=stage.archives, ids=UuidIds()
        )
        for _ in range(3)
    ]
    done = at_once(
        *(
            lambda one=platform: one.projects.add_project(stage.home / "another.yaml", actor="x")
            for platform in platforms
        )
    )
    assert sorted(str(getattr(one, "changed", one)) for one in done) == ["False", "False", "True"]


def test_a_profile_is_read_from_a_file_and_refused_whole(stage: Stage, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    profile = {
        "name": "remote",
        "translation": {"algo": "metis", "num_par": 1, "num_islands": 1},
        "deployment": {"kind": "rest_remote", "deploy_host": "dim"},
    }
    path.write_text(json.dumps(profile))
    stored, added = stage.platform.projects.add_profile(path)
    assert (stored.name, stored.revision, added) == ("remote", 1, True)
    assert stage.platform.projects.add_profile(path)[1] is False
    path.write_text(json.dumps({**profile, "name": "no good name"}))
    with pytest.raises(ConfigError) as caught:
        stage.platform.projects.add_profile(path)
    assert caught.value.code == "invalid_profile"
    with pytest.raises(InputError):
        stage.platform.projects.add_profile(tmp_path / "nothing.json")
