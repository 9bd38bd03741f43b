"""Graphs: overrides, the manifest's injection, differences."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

from beampipe_dagster.errors import GraphError
from beampipe_dagster.execution.graph import diff_graphs, find_ingest, inject_manifest
from beampipe_dagster.execution.patches import apply_overrides

if TYPE_CHECKING:
    from beampipe_dagster.config.canonical import JsonValue

JsonObject = dict[str, "JsonValue"]

FREE_TEXT = ("name", "shortDescription", "detailedDescription", "lastModifiedName")


def overridden(value: JsonValue) -> JsonValue:
    """``{graph, manifest}`` -> ``{graph}``, or the error's code and what was not found."""
    case = cast("dict[str, JsonObject]", value)
    try:
        return {"graph": apply_overrides(case["graph"], case["manifest"].get("graph_overrides"))}
    except GraphError as error:
        answer: JsonObject = {"error_code": error.code}
        node = error.details.get("node")
        if error.code == "graph_patch_field_not_found":
            answer["target"] = f"{node}: {error.details['field']}"
        elif error.code == "graph_patch_node_not_found":
            answer["node"] = node
        return answer


def injected(value: JsonValue) -> JsonValue:
    """``{graph, manifest, config_id}`` -> ``{graph}`` at the epoch, free texts masked."""
    case = cast("JsonObject", value)
    config_id = cast("str", case["config_id"])
    graph = inject_manifest(
        cast("JsonObject", case["graph"]),
        case["manifest"],
        config_id=config_id,
        modified_at=datetime.fromtimestamp(0, UTC),
    )
    configurations = cast("dict[str, JsonObject]", graph.get("graphConfigurations") or {})
    if config_id in configurations:
        model = cast("JsonObject", configurations[config_id]["modelData"])
        model.update(dict.fromkeys(FREE_TEXT, "<free text>"))
    return {"graph": graph}


def ingest_ids(value: JsonValue) -> JsonValue:
    """``{graph}`` -> the ids of the ingest node and of its field, or ``null``."""
    place = find_ingest(cast("dict[str, JsonObject]", value)["graph"])
    return None if place is None else [place.node_id, place.field_id]


def difference(value: JsonValue) -> JsonValue:
    """``{before, after}`` -> summary."""
    case = cast("dict[str, JsonObject]", value)
    return diff_graphs(case["before"], case["after"])


FUNCTIONS = {
    "apply_overrides": overridden,
    "inject": injected,
    "ingest_ids": ingest_ids,
    "graph_diff": difference,
}
