"""Project files, and manifest, patch and difference of an execution with very many datasets."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from beampipe_dagster.config.canonical import JsonValue, digest
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.config.validation import load_project, validate_project
from beampipe_dagster.execution.graph import diff_graphs, inject_manifest, parse_graph, prepare_graph
from beampipe_dagster.execution.manifest import OVERRIDES, build_manifest, embedded_text
from beampipe_dagster.execution.patches import apply_overrides
from beampipe_dagster_tests.bench.measure import Figures, goal, milliseconds, peak_megabytes
from beampipe_dagster_tests.golden.runner import default_directory

JsonObject = dict[str, JsonValue]

DEMO: Final = Path(__file__).resolve().parents[2] / "projects" / "wallaby_demo"
REFERENCE: Final = default_directory().parent / "config"
DATASETS: Final = 10_000
BEAMS: Final = 36
MOMENT: Final = datetime(2026, 1, 1, tzinfo=UTC)


def run() -> Figures:
    """All figures; times in milliseconds, memory in 10^6 bytes."""
    survey, graph_file = _survey()
    text, raw = survey.read_bytes(), graph_file.read_bytes()
    config, records = load_project(text), survey_records()
    graph = parse_graph(raw, sha256=None, name=graph_file.name)

    def manifest_and_patch() -> JsonObject:
        manifest = build_manifest(config, records)
        return diff_graphs(graph, apply_overrides(graph, manifest[OVERRIDES]))

    figures: Figures = {"graph": graph_file.name, "graph_bytes": len(raw), "nodes": _node_count(graph)}
    figures |= {"datasets": len(records), **_validation()}
    figures |= {
        "manifest_patch_ms": milliseconds(manifest_and_patch),
        "peak_mb": peak_megabytes(manifest_and_patch),
        "baseline": "loading the graph's file, then hashing its canonical JSON",
        "graph_load_ms": milliseconds(lambda: parse_graph(raw, sha256=None, name=graph_file.name)),
        "graph_hash_ms": milliseconds(lambda: digest(graph)),
    }
    baseline = round(figures["graph_load_ms"] + figures["graph_hash_ms"], 3)
    figures["baseline_ms"] = baseline
    figures["manifest_patch_ratio"] = round(figures["manifest_patch_ms"] / baseline, 3)
    figures |= _whole_preparation(config, graph, records)
    figures["goals"] = {
        "manifest_patch_ms": goal(figures["manifest_patch_ms"], 50),
        "peak_mb": goal(figures["peak_mb"], 40),
        "validate_ms": goal(figures["validate_ms"], 50),
    }
    return figures


def _survey() -> tuple[Path, Path]:
    """The largest real survey that is there, and its graph."""
    wallaby = REFERENCE / "wallaby_hires.v2.yaml"
    graph = REFERENCE / "graphs" / "wallaby-hires_deploy-setonix-beampipe.graph"
    if wallaby.is_file() and graph.is_file():
        return wallaby, graph
    return DEMO / "wallaby_demo.yaml", DEMO / "wallaby_demo.graph"


def _validation() -> Figures:
    demo = (DEMO / "wallaby_demo.yaml").read_bytes()
    value = load_project(demo).as_json()
    validate_ms = milliseconds(lambda: validate_project(demo))
    typed_ms = milliseconds(lambda: ProjectConfig.from_json(value).spec_sha256)
    figures: Figures = {
        "validate_ms": validate_ms,
        "validate_baseline": "typing and hashing the same project, without its YAML",
        "validate_baseline_ms": typed_ms,
        "validate_ratio": round(validate_ms / typed_ms, 3),
    }
    wallaby = REFERENCE / "wallaby_hires.v2.yaml"
    if wallaby.is_file():
        raw = wallaby.read_bytes()
        figures["validate_wallaby_ms"] = milliseconds(lambda: validate_project(raw))
    return figures


def _whole_preparation(config: ProjectConfig, graph: JsonObject, records: list[JsonObject]) -> Figures:
    """What must read every byte of the manifest: beside the plain text of the same manifest."""
    manifest = build_manifest(config, records)
    text_ms = milliseconds(lambda: embedded_text(manifest), times=3)
    inject_ms = milliseconds(
        lambda: inject_manifest(graph, manifest, config_id="c", modified_at=MOMENT), times=3
    )
    prepare_ms = milliseconds(
        lambda: prepare_graph(graph, manifest, execution_id="e", modified_at=MOMENT), times=3
    )
    return {
        "manifest_text_mb": round(len(embedded_text(manifest)) / 1e6, 3),
        "manifest_text_ms": text_ms,
        "inject_ms": inject_ms,
        "inject_ratio": round(inject_ms / text_ms, 3),
        "prepare_ms": prepare_ms,
        "prepare_ratio": round(prepare_ms / text_ms, 3),
    }


def survey_records() -> list[JsonObject]:
    """Records of one source, as discovery keeps them: 36 beams to a scheduling block."""
    return [_record(70_000 + number // BEAMS, number % BEAMS) for number in range(DATASETS)]


def _record(sbid: int, beam: int) -> JsonObject:
    name = f"HIPASSJ1318-21_SB{sbid}_F00_B{beam:02}.ms.tar"
    return {
        "source_identifier": "HIPASSJ1318-21",
        "sbid": str(sbid),
        "dataset_id": name,
        "visibility_filename": name,
        "filename": name,
        "scan_id": f"scan-{beam}-{sbid}",
        "obs_id": f"ASKAP-{sbid}",
        "obs_publisher_did": f"ivo://au.csiro/casda#scan-{beam}-{sbid}",
        "obs_collection": "WALLABY",
        "dataproduct_type": "visibility",
        "access_estsize": "5000000",
        "quality_level": "GOOD",
        "s_ra": "199.5",
        "s_dec": "-21.25",
        "ra_string": "13h18m0s",
        "dec_string": "-21.15.0",
        "vsys": "2505.3",
        "evaluation_file": f"calibration-metadata-processing-logs-SB{sbid}_2025-04-21-063210.tar",
        "sbid_to_eval_file": {
            "filename": f"calibration-SB{sbid}.tar",
            "format": "calibration",
            "sbid": str(sbid),
        },
    }


def _node_count(graph: JsonObject) -> int:
    nodes = graph["nodeDataArray"]
    return len(nodes) if isinstance(nodes, list) else 0
