"""The example survey: its files fit together, and its graph runs."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from beampipe_dagster.backends.daliuge.manager import IslandManager
from beampipe_dagster.backends.daliuge.physical import map_to_nodes, roots
from beampipe_dagster.backends.daliuge.translator import Translator
from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.config.validation import load_project, validate_project
from beampipe_dagster.discovery.prepare import prepare_metadata
from beampipe_dagster.discovery.templates import render, template_context
from beampipe_dagster.execution.graph import PreparedGraph, parse_graph, prepare_graph, verify_injection
from beampipe_dagster.execution.graph_lint import Severity, lint
from beampipe_dagster.execution.manifest import build_manifest
from beampipe_dagster.execution.scope import Dataset, check_manifest
from beampipe_dagster.signature.payload import validate_records

if TYPE_CHECKING:
    from beampipe_dagster_tests.support.dlg import DaliugeStack

pytest_plugins = ["beampipe_dagster_tests.support.dlg"]

HOME = Path(__file__).resolve().parents[2] / "projects" / "example_survey"
TEXT = (HOME / "example_survey.yaml").read_text(encoding="utf-8")
FIELD = "EMU_2034-60"
IMAGES = [(47034, 0), (47034, 1), (62225, 0)]


@pytest.fixture(scope="module")
def builder() -> Iterator[ModuleType]:
    name = "example_survey_build_graph"
    spec = importlib.util.spec_from_file_location(name, HOME / "build_graph.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        yield module


def records() -> list[dict[str, JsonValue]]:
    rows: list[dict[str, JsonValue]] = [
        {
            "obs_id": f"ASKAP-{sbid}",
            "filename": f"image.i.{FIELD}.SB{sbid}.cont.taylor.{term}.restored.conv.fits",
            "obs_publisher_did": f"cube-{sbid}-{term}",
            "access_estsize": "1000",
            "quality_level": "",
            "em_min": "0.29",
        }
        for sbid, term in IMAGES
    ]
    enrichments: dict[str, JsonValue] = {"validation_report": {"47034": {"filename": "validation.tar"}}}
    return prepare_metadata(load_project(TEXT), FIELD, rows, enrichments).records


def manifest() -> dict[str, JsonValue]:
    return build_manifest(load_project(TEXT), records())


def prepared(execution_id: str) -> PreparedGraph:
    graph = parse_graph((HOME / "example_survey.graph").read_bytes(), sha256=None, name="example")
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    return prepare_graph(graph, manifest(), execution_id=execution_id, modified_at=moment)


def test_the_survey_is_valid_and_without_warnings() -> None:
    report = validate_project(TEXT)
    assert (report.errors, report.warnings, report.project_id) == ((), (), "example_survey")


def test_the_graph_is_what_its_builder_makes_and_what_the_survey_pins(builder: ModuleType) -> None:
    raw = (HOME / "example_survey.graph").read_bytes()
    assert builder.render() == raw, "run projects/example_survey/build_graph.py"
    graph = load_project(TEXT).graph
    assert graph is not None
    assert graph.sha256 == hashlib.sha256(raw).hexdigest()


def test_the_queries_are_filled_in_whole() -> None:
    config = load_project(TEXT)
    context = {**template_context(config, FIELD), "sbid": "47034"}
    queries = [
        render(query.template, context)
        for query in (*config.discovery.queries, *config.discovery.enrichments)
    ]
    assert not any("{" in query for query in queries)
    assert "o.obs_collection = 'EMU'" in queries[0]
    assert "e.sbid = 47034\n" in queries[1]


def test_its_records_are_complete_and_say_what_the_file_promises() -> None:
    made = records()
    validate_records(list(made))
    assert [(record["sbid"], record["taylor"], record["quality"]) for record in made] == [
        ("47034", "0", "unknown"),
        ("47034", "1", "unknown"),
        ("62225", "0", "unknown"),
    ]
    assert ["validation_report" in record for record in made] == [True, True, False]


def test_an_execution_has_one_entry_a_field_and_all_of_its_datasets() -> None:
    made = manifest()
    sources: Any = made["sources"]
    assert [(entry["survey_field"], len(entry["sbids"])) for entry in sources] == [(FIELD, 2)]
    assert set(sources[0]["sbids"][0]["datasets"][0]) == {
        "source_identifier",
        "sbid",
        "dataset_id",
        "taylor",
        "quality",
    }
    expected = {Dataset(FIELD, str(record["sbid"]), str(record["dataset_id"])) for record in records()}
    check_manifest(made, expected)


def test_the_graph_is_told_how_many_images_there_are() -> None:
    graph = prepared("e")
    assert [finding for finding in lint(graph.graph) if finding.severity is Severity.ERROR] == []
    changed: Any = graph.diff["changed_nodes"]
    assert changed == [
        {"node": "measure-images", "change": "modified", "fields": ["expected_images", "threshold"]}
    ]
    assert graph.injection is not None


@pytest.mark.integration
def test_the_graph_runs_and_measures_every_image(dlg: DaliugeStack) -> None:
    session_id = f"example-{uuid.uuid4()}"
    graph = prepared(session_id)
    translator, manager = Translator(url=dlg.translator_url), IslandManager(url=dlg.manager_url)
    drops = translator.translate(
        graph.graph, algorithm="metis", num_partitions=1, num_islands=1, oid_prefix=session_id
    )
    verify_injection(drops, graph.manifest_text)
    manager.create(session_id)
    manager.append(session_id, map_to_nodes(drops, nodes=[dlg.node], island=dlg.island))
    manager.deploy(session_id, roots(drops))
    end = time.monotonic() + 60
    products: list[Path] = []
    while not products or not products[0].read_text(encoding="utf-8").endswith("\n"):
        assert time.monotonic() < end, manager.status(session_id)
        time.sleep(0.2)
        products = [*(dlg.root / "example_survey").glob(f"catalogue.{session_id}_*.jsonl")]
    lines = [json.loads(line) for line in products[0].read_text(encoding="utf-8").splitlines()]
    assert [line["image"] for line in lines] == sorted(str(record["dataset_id"]) for record in records())
    assert {line["threshold"] for line in lines} == {4.5}
    translator.close()
    manager.close()
