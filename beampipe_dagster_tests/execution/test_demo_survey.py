"""The demo survey's files fit together. That its graph runs is tested with the real DALiuGE."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from beampipe_dagster.config.validation import load_project, validate_project
from beampipe_dagster.execution.graph import find_ingest, parse_graph
from beampipe_dagster.execution.manifest import build_manifest
from beampipe_dagster.execution.patches import apply_overrides, objects

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

DEMO = Path(__file__).resolve().parents[2] / "projects" / "wallaby_demo"
PROJECT = (DEMO / "wallaby_demo.yaml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def builder() -> Iterator[ModuleType]:
    name = "wallaby_demo_build_graph"
    spec = importlib.util.spec_from_file_location(name, DEMO / "build_graph.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        yield module


def dataset(number: int, **more: str) -> dict[str, Any]:
    name = f"HIPASSJ1318-21_SB72962_F00_B{number:02}.ms.tar"
    return {"dataset_id": name, "sbid": "72962", "source_identifier": "HIPASSJ1318-21", **more}


def test_the_survey_is_valid_and_without_warnings() -> None:
    report = validate_project(PROJECT)
    assert (report.errors, report.warnings, report.project_id) == ((), (), "wallaby_demo")


def test_the_graph_is_what_its_builder_makes(builder: ModuleType) -> None:
    assert builder.render() == (DEMO / "wallaby_demo.graph").read_bytes(), (
        "run projects/wallaby_demo/build_graph.py"
    )


def test_the_graph_beside_the_survey_has_the_pinned_hash() -> None:
    graph = load_project(PROJECT).graph
    assert graph is not None
    assert graph.path == "wallaby_demo.graph"
    raw = (DEMO / graph.path).read_bytes()
    assert hashlib.sha256(raw).hexdigest() == graph.sha256


def test_every_patch_of_the_survey_reaches_its_node() -> None:
    raw = (DEMO / "wallaby_demo.graph").read_bytes()
    graph = parse_graph(raw, sha256=None, name="demo")
    manifest = build_manifest(load_project(PROJECT), [dataset(0), dataset(1)])
    patched = apply_overrides(graph, manifest["graph_overrides"])
    copies = [
        field["value"]
        for node in objects(patched["nodeDataArray"])
        for field in objects(node["fields"])
        if field["name"] == "num_of_copies"
    ]
    assert copies == [2]
    assert find_ingest(graph) is not None


def test_the_profile_that_the_survey_names_is_the_one_beside_it() -> None:
    profile = json.loads((DEMO / "profile.json").read_text(encoding="utf-8"))
    execution = load_project(PROJECT).automation.execution
    assert execution is not None
    assert profile["name"] == execution.deployment_profile_name == "local-daliuge"
    assert profile["deployment"]["kind"] == "rest_remote"


def test_all_blocks_of_all_sources_are_imaged(builder: ModuleType) -> None:
    sources = [
        {"sbids": [{"datasets": [{"n": 1}, {"n": 2}]}]},
        {"sbids": [{"datasets": [{"n": 3}]}, {"datasets": [{"n": 4}]}]},
    ]
    plan = builder.plan_beams(json.dumps({"sources": sources}).encode())
    assert [entry["n"] for entry in plan] == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="no dataset"):
        builder.plan_beams(b'{"sources":[]}')


def test_a_rejected_observation_is_not_imaged(builder: ModuleType) -> None:
    reason = "beam HIPASSJ1318-21_SB72962_F00_B01.ms.tar: quality_level REJECTED, refusing to image"
    with pytest.raises(ValueError, match=reason):
        builder.image_beam([dataset(0), dataset(1, quality_level="REJECTED")], seconds=0)


def test_the_mosaic_sums_up_its_beams_in_whatever_order_they_come(builder: ModuleType) -> None:
    lines = [builder.image_beam([dataset(number)], seconds=0) for number in (2, 0, 1)]
    summary = json.loads(builder.mosaic(b"".join(lines)))
    assert summary["beam_count"] == 3
    assert summary["beams"] == sorted(summary["beams"])
    assert (summary["sbids"], summary["sources"]) == (["72962"], ["HIPASSJ1318-21"])


def test_a_graph_that_got_no_manifest_says_so(builder: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nobody gave this graph a manifest"):
        builder.beampipe_ingest(" ")
    (tmp_path / "m.json").write_bytes(b'{"a":1}')
    assert builder.beampipe_ingest(str(tmp_path / "m.json")) == b'{"a":1}'
    assert builder.beampipe_ingest('{"a": "\u00fc"}') == '{"a": "\u00fc"}'.encode()
