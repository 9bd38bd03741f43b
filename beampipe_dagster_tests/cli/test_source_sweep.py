"""`beampipe source sweep`, against the sandbox's archive on a real socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from beampipe_dagster.config.yaml_loader import load_yaml
from beampipe_dagster.sandbox.archive.server import ArchiveServer
from beampipe_dagster_tests.cli.support import DEMO, SURVEY, Beampipe, World

MARK = {"column": "obs_release_date", "lag_hours": 1}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ArchiveServer]:
    with ArchiveServer(tmp_path / "archive") as running:
        yield running


def with_watermark(beampipe: Beampipe, directory: Path, **query: Any) -> None:
    spec: Any = load_yaml((DEMO / "wallaby_demo.yaml").read_bytes()).value
    spec["discovery"]["queries"][0].update(watermark=MARK, **query)
    spec["graph"]["path"] = str(DEMO / spec["graph"]["path"])
    file = directory / "survey.yaml"
    file.write_text(json.dumps(spec))
    beampipe.ok("project", "add", str(file))


def test_a_survey_without_a_watermark_says_how_rows_are_found(world: World, beampipe: Beampipe) -> None:
    del world
    assert "has a watermark" in beampipe.ok("source", "sweep", SURVEY)
    assert beampipe.json("source", "sweep", SURVEY)["skip_reason"] == "no_watermark"


def test_new_files_make_their_sources_due(
    world: World, beampipe: Beampipe, tmp_path: Path, server: ArchiveServer
) -> None:
    del world
    with_watermark(beampipe, tmp_path)
    env = {"BEAMPIPE_CASDA_TAP_URL": server.casda_url, "BEAMPIPE_VIZIER_TAP_URL": server.vizier_url}
    first = beampipe("source", "sweep", SURVEY, env=env)
    assert first.exit_code == 0, first.output
    assert "all sources are looked at" in first.stdout
    again = beampipe("source", "sweep", SURVEY, "--json", env=env)
    (found,) = json.loads(again.stdout)["sweeps"]
    assert (found["new_rows"], found["error"]) == (0, None)
    server.store.deposit("HIPASSJ1300-13", beams=2)
    (found,) = json.loads(beampipe("source", "sweep", SURVEY, "--json", env=env).stdout)["sweeps"]
    assert found["new_rows"] == 2


def test_an_archive_that_is_away_is_exit_code_1_and_changes_nothing(
    world: World, beampipe: Beampipe, tmp_path: Path
) -> None:
    del world
    with_watermark(beampipe, tmp_path)
    env = {"BEAMPIPE_CASDA_TAP_URL": "http://127.0.0.1:9/tap"}
    result = beampipe("source", "sweep", SURVEY, env=env)
    assert result.exit_code == 1
    assert "nothing was changed" in result.stdout


def test_a_query_that_cannot_be_swept_says_why(world: World, beampipe: Beampipe, tmp_path: Path) -> None:
    del world
    with_watermark(beampipe, tmp_path, template="SELECT DISTINCT * FROM t WHERE a = '{source_identifier}'")
    document = beampipe.json("source", "sweep", SURVEY, exit_code=1)
    assert document["sweeps"][0]["error"]["code"] == "watermark_not_possible"


def test_an_unknown_survey_is_refused(beampipe: Beampipe) -> None:
    beampipe.refused("source", "sweep", "nope", code="project_not_found")
