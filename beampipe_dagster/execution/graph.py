"""Logical graphs: reading one, giving it its manifest, and saying what was changed.

A graph is EAGLE's JSON (``nodeDataArray``, ``linkDataArray``). The manifest reaches it through a graph
configuration: an entry of ``graphConfigurations`` that sets the field ``manifest_path`` of the node
``beampipe-ingest``, named by ``activeGraphConfigId``. DALiuGE's translator applies the active
configuration when it unrolls the graph. It ignores what it does not find without a word, so the result
of the translation is checked with :func:`verify_injection`.

Everything here is a function of its arguments: the same graph, manifest, execution and moment give the
same bytes and the same hash.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from beampipe_dagster.config.canonical import JsonValue, canonical_json, digest, parse_json
from beampipe_dagster.errors import ConfigError, GraphError
from beampipe_dagster.execution.manifest import OVERRIDES, embedded_text
from beampipe_dagster.execution.patches import NODES, JsonObject, apply_overrides, objects

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

MAX_GRAPH_BYTES = 16 * 1024 * 1024
"""Largest graph file that is read, in bytes."""
INGEST_NODE = "beampipe-ingest"
"""Name of the node through which a manifest enters a graph."""
INGEST_FIELD = "manifest_path"
"""Name of that node's field which takes the manifest's text."""

_CONFIGURATIONS = "graphConfigurations"
_ACTIVE = "activeGraphConfigId"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://beampipe.dev/graph-configuration")


@dataclass(frozen=True, slots=True)
class InjectionReport:
    """Where the manifest went: the identifiers of the node and of its field."""

    node_id: str
    field_id: str


@dataclass(frozen=True, slots=True)
class PreparedGraph:
    """A graph that is ready for the translator.

    Parameters
    ----------
    graph
        The logical graph with its manifest and its overrides.
    sha256
        Digest of its canonical JSON; the same for the same execution whenever it is prepared.
    source_sha256
        Digest of the canonical JSON of the graph as it was fetched. Not the pin, which is of the
        file's bytes.
    diff
        What was changed, as :func:`diff_graphs` says it.
    node_count
        Number of logical nodes.
    manifest_text
        The text that the ingest node was given; what :func:`verify_injection` compares with.
    injection
        Where it went; ``None`` when the graph has no ingest node and runs without a manifest.
    """

    graph: JsonObject = field(repr=False)
    sha256: str
    source_sha256: str
    diff: JsonObject
    node_count: int
    manifest_text: str = field(repr=False)
    injection: InjectionReport | None


def parse_graph(raw: bytes, *, sha256: str | None, name: str) -> JsonObject:
    """Read a graph file.

    Parameters
    ----------
    raw
        The file's bytes.
    sha256
        The pin: SHA-256 that the bytes must have, in any case of letters; ``None`` takes any file.
    name
        What an error calls the file: its path or URL.

    Returns
    -------
    dict
        The logical graph.

    Raises
    ------
    GraphError
        ``graph_too_large``; ``graph_pin_mismatch``, found before anything is parsed;
        ``invalid_graph``: not JSON, or not a logical graph.
    """
    if len(raw) > MAX_GRAPH_BYTES:
        raise GraphError(
            f"{name}: the graph has {len(raw)} bytes; the limit is {MAX_GRAPH_BYTES}",
            code="graph_too_large",
            hint="Save the logical graph, not a physical one, and keep data out of its fields.",
            details={"bytes": len(raw), "limit": MAX_GRAPH_BYTES},
        )
    if sha256 is not None and sha256.strip():
        _check_pin(raw, pin=sha256.strip(), name=name)
    try:
        graph = parse_json(raw, name=name)
    except ConfigError as error:
        raise GraphError(error.message, hint="Give a logical graph as EAGLE saves it.") from error
    if not isinstance(graph, dict) or not isinstance(graph.get(NODES), list):
        raise GraphError(
            f"{name}: not a logical graph; it has no list {NODES!r}",
            hint="Give a logical graph as EAGLE saves it, not a physical graph or a palette.",
        )
    return graph


def _check_pin(raw: bytes, *, pin: str, name: str) -> None:
    actual = hashlib.sha256(raw).hexdigest()
    if actual != pin.lower():
        raise GraphError(
            f"{name}: the graph's SHA-256 is {actual}, but the project pins {pin.lower()}",
            code="graph_pin_mismatch",
            hint="If the new graph is what you want, put its SHA-256 into graph.sha256.",
            details={"expected": pin.lower(), "actual": actual},
        )


def graph_config_id(execution_id: str) -> str:
    """The identifier of an execution's graph configuration: a UUID version 5 of its own."""
    return str(uuid.uuid5(_NAMESPACE, execution_id))


def find_ingest(graph: JsonObject) -> InjectionReport | None:
    """The first node ``beampipe-ingest`` that has a field ``manifest_path``, both with a string id."""
    for node in objects(graph.get(NODES)):
        if node.get("name") != INGEST_NODE:
            continue
        for entry in objects(node.get("fields")):
            if entry.get("name") == INGEST_FIELD:
                node_id, field_id = node.get("id"), entry.get("id")
                if isinstance(node_id, str) and isinstance(field_id, str):
                    return InjectionReport(node_id, field_id)
    return None


def inject_manifest(
    graph: JsonObject, manifest: JsonValue, *, config_id: str, modified_at: datetime
) -> JsonObject:
    """Give a graph its manifest, as the graph configuration that the translator applies.

    Parameters
    ----------
    graph
        Logical graph; it is not changed.
    manifest
        The manifest; its overrides stay out of the text.
    config_id
        Identifier of the new configuration (:func:`graph_config_id`).
    modified_at
        When the execution was made, for the configuration's own record.

    Returns
    -------
    dict
        The graph with one more configuration, which is the active one. Without an ingest node it is
        the graph as it was.

    Raises
    ------
    GraphError
        ``invalid_graph``: ``graphConfigurations`` is something else than an object.
    """
    return _inject(
        graph, find_ingest(graph), embedded_text(manifest), config_id=config_id, modified_at=modified_at
    )


def _inject(
    graph: JsonObject, place: InjectionReport | None, text: str, *, config_id: str, modified_at: datetime
) -> JsonObject:
    """The graph with the manifest's text at ``place``, in a configuration of its own."""
    if place is None:
        return graph
    known = graph.get(_CONFIGURATIONS)
    if known is not None and not isinstance(known, dict):
        raise GraphError(
            f"the graph's {_CONFIGURATIONS!r} is no object",
            hint="Open the graph in EAGLE and save it again.",
        )
    setting: JsonObject = {"value": text, "comment": ""}
    configuration: JsonObject = {
        "id": config_id,
        "modelData": _model_data(graph, modified_at),
        "nodes": {place.node_id: {"fields": {place.field_id: setting}}},
    }
    return {
        **graph,
        _CONFIGURATIONS: {**(known or {}), config_id: configuration},
        _ACTIVE: config_id,
    }


def _model_data(graph: JsonObject, modified_at: datetime) -> JsonObject:
    return {
        "name": "beampipe manifest",
        "shortDescription": "The manifest of one execution",
        "detailedDescription": f"Sets {INGEST_FIELD} of {INGEST_NODE}.",
        "type": "GraphConfig",
        "schemaVersion": "1.0",
        "readonly": True,
        "location": {
            "repositoryService": "Beampipe",
            "repositoryBranch": "",
            "repositoryName": "",
            "repositoryPath": "",
            "repositoryFileName": "",
            "commitHash": "",
            "downloadUrl": "",
        },
        "generatorVersion": "beampipe-v1",
        "generatorCommitHash": "",
        "generatorName": "beampipe",
        "repositoryUrl": "",
        "graphLocation": {},
        "signature": "",
        "lastModifiedName": "beampipe",
        "lastModifiedEmail": "",
        "lastModifiedDatetime": int(modified_at.timestamp()),
        "numLGNodes": node_count(graph),
    }


def node_count(graph: JsonObject) -> int:
    """Number of logical nodes."""
    nodes = graph.get(NODES)
    return len(nodes) if isinstance(nodes, list) else 0


def prepare_graph(
    graph: JsonObject, manifest: JsonObject, *, execution_id: str, modified_at: datetime
) -> PreparedGraph:
    """Make the graph of one execution: the manifest first, then its overrides.

    Parameters
    ----------
    graph
        The survey's logical graph (:func:`parse_graph`); it is not changed.
    manifest
        The execution's manifest with its ``graph_overrides``.
    execution_id
        Names the graph configuration, so that two executions never share one.
    modified_at
        A moment that belongs to the execution, such as when it was admitted: with the present
        moment the hash would differ each time.

    Raises
    ------
    GraphError
        As :func:`inject_manifest` and :func:`~beampipe_dagster.execution.patches.apply_overrides`.
    """
    place, text = find_ingest(graph), embedded_text(manifest)
    injected = _inject(graph, place, text, config_id=graph_config_id(execution_id), modified_at=modified_at)
    prepared = apply_overrides(injected, manifest.get(OVERRIDES))
    return PreparedGraph(
        graph=prepared,
        sha256=digest(prepared),
        source_sha256=digest(graph),
        diff=diff_graphs(graph, prepared),
        node_count=node_count(prepared),
        manifest_text=text,
        injection=place,
    )


def verify_injection(drops: Iterable[JsonObject], manifest_text: str) -> None:
    """Check that the translator has put the manifest where the graph reads it.

    Parameters
    ----------
    drops
        The drops that the translator made.
    manifest_text
        What the ingest drop must have been given (:attr:`PreparedGraph.manifest_text`).

    Raises
    ------
    GraphError
        ``manifest_not_injected``: no ingest drop, or one with something else. Running such a graph
        would process nothing, or another execution's datasets.
    """
    reason = f"the translator made no drop named {INGEST_NODE!r}"
    for drop in drops:
        if drop.get("name") != INGEST_NODE:
            continue
        arguments = drop.get("applicationArgs")
        argument = arguments.get(INGEST_FIELD) if isinstance(arguments, dict) else None
        value = argument.get("value") if isinstance(argument, dict) else None
        if value == manifest_text:
            return
        given = f"{len(value)} characters" if isinstance(value, str) else repr(value)
        reason = (
            f"drop {drop.get('oid')!r} ({INGEST_NODE}) has {given} in {INGEST_FIELD!r} instead of"
            f" the manifest's {len(manifest_text)} characters"
        )
    raise GraphError(
        f"the manifest did not reach the physical graph: {reason}",
        code="manifest_not_injected",
        hint=f"The graph needs a node {INGEST_NODE!r} with a field {INGEST_FIELD!r}, both with ids.",
    )


def diff_graphs(before: JsonObject, after: JsonObject) -> JsonObject:
    """Say what two graphs differ in.

    Returns
    -------
    dict
        ``before_node_count``, ``after_node_count``, ``changed_node_count``, ``changed_nodes`` (first
        the added and modified, then the removed, each in the order of their keys) and
        ``graph_configuration_changed``. A modified node is named, with the names of the fields that
        changed; an added or removed one is given by its key, which is its id or else its name.
    """
    old, new = _by_key(before), _by_key(after)
    changed: list[JsonValue] = []
    for key in sorted(new):
        if key not in old:
            changed.append({"node": key, "change": "added"})
        elif not _same(old[key], new[key]):
            name = new[key].get("name")
            fields: list[JsonValue] = [*_changed_fields(old[key], new[key])]
            shown = name if isinstance(name, str) else key
            changed.append({"node": shown, "change": "modified", "fields": fields})
    changed.extend({"node": key, "change": "removed"} for key in sorted(set(old) - set(new)))
    return {
        "before_node_count": node_count(before),
        "after_node_count": node_count(after),
        "changed_node_count": len(changed),
        "changed_nodes": changed,
        "graph_configuration_changed": not _same(before.get(_CONFIGURATIONS), after.get(_CONFIGURATIONS)),
    }


def _same(old: JsonValue, new: JsonValue) -> bool:
    """Whether two values are the same JSON: to Python alone 1, 1.0 and true are equal."""
    return old is new or (old == new and canonical_json(old) == canonical_json(new))


def _by_key(graph: JsonObject) -> dict[str, JsonObject]:
    found: dict[str, JsonObject] = {}
    for index, node in enumerate(objects(graph.get(NODES))):
        keys = (node.get("id"), node.get("name"))
        found[next((key for key in keys if isinstance(key, str)), f"#{index}")] = node
    return found


def _changed_fields(before: JsonObject, after: JsonObject) -> list[str]:
    old, new = _fields_by_name(before), _fields_by_name(after)
    names = old.keys() | new.keys()
    return sorted(name for name in names if not _same(old.get(name), new.get(name)))


def _fields_by_name(node: JsonObject) -> dict[str, list[JsonValue]]:
    found: dict[str, list[JsonValue]] = {}
    for entry in objects(node.get("fields")):
        found.setdefault(str(entry.get("name")), []).append(entry)
    return found
