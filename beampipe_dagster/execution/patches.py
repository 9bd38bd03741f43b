"""Overrides of a logical graph: the values that a manifest asks for, set on the nodes that it names.

A manifest carries ``graph_overrides = {"patches": [{"match": {"equals": NAME}, "fields": [{"name":
FIELD, "value": VALUE}, ...]}, ...]}``. A patch reaches *every* node of exactly that name; a later
patch wins. Nothing is skipped in silence: a node or a field that is not there is an error that names
what is there instead.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, TypeAlias

from beampipe_dagster.config.canonical import JsonValue, canonical_json
from beampipe_dagster.errors import GraphError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

JsonObject: TypeAlias = dict[str, JsonValue]

NODES = "nodeDataArray"
"""Key of the list of nodes in EAGLE's graph format."""
LINKS = "linkDataArray"
"""Key of the list of links in EAGLE's graph format."""

_SHOWN = 5


def objects(value: JsonValue) -> Iterator[JsonObject]:
    """The objects of a list, in order; anything else has none."""
    if isinstance(value, list):
        for entry in value:
            if isinstance(entry, dict):
                yield entry


def apply_overrides(graph: JsonObject, overrides: JsonValue) -> JsonObject:
    """Set the fields that a manifest's ``graph_overrides`` name.

    Parameters
    ----------
    graph
        Logical graph in EAGLE's format. It is not changed.
    overrides
        ``{"patches": [...]}``; anything without a list of patches asks for nothing. A match without
        ``equals`` reaches every node, a field without ``value`` becomes ``null``.

    Returns
    -------
    dict
        The graph with the values set. Only what changed is new; the rest is shared with ``graph``. A
        field of type ``Integer`` gets the value's text as its ``defaultValue`` too, because EAGLE and
        the translator read either.

    Raises
    ------
    GraphError
        ``invalid_graph``: there are patches and no list of nodes. ``graph_patch_node_not_found``,
        ``graph_patch_field_not_found``: with the candidates in ``details``.
    """
    patches = overrides.get("patches") if isinstance(overrides, dict) else None
    if not isinstance(patches, list) or not patches:
        return graph
    nodes = graph.get(NODES)
    if not isinstance(nodes, list):
        raise GraphError(
            f"the graph has no list {NODES!r}, so that nothing can be patched",
            hint="Give a logical graph as EAGLE saves it.",
        )
    patched = list(nodes)
    for patch in objects(patches):
        _apply_patch(patched, patch)
    return {**graph, NODES: patched}


def _apply_patch(nodes: list[JsonValue], patch: JsonObject) -> None:
    match = patch.get("match")
    wanted = match.get("equals") if isinstance(match, dict) else None
    chosen = [
        (index, node)
        for index, node in enumerate(nodes)
        if isinstance(node, dict) and (wanted is None or node.get("name") == wanted)
    ]
    if not chosen:
        raise _node_not_found(wanted, nodes)
    entries = list(objects(patch.get("fields")))
    found: set[str] = set()
    for index, node in chosen:
        nodes[index] = _patched_node(node, entries, found)
    for entry in entries:
        if str(entry.get("name")) not in found:
            raise _field_not_found(wanted, entry, [node for _, node in chosen])


def _patched_node(node: JsonObject, entries: list[JsonObject], found: set[str]) -> JsonObject:
    fields = node.get("fields")
    if not isinstance(fields, list):
        return node
    patched = list(fields)
    for entry in entries:
        for index, field in enumerate(patched):
            if isinstance(field, dict) and field.get("name") == entry.get("name"):
                patched[index] = _patched_field(field, entry.get("value"))
                found.add(str(entry.get("name")))
    return {**node, "fields": patched}


def _patched_field(field: JsonObject, value: JsonValue) -> JsonObject:
    new = {**field, "value": value}
    if field.get("type") == "Integer":
        new["defaultValue"] = canonical_json(value)
    return new


def _node_not_found(wanted: JsonValue, nodes: Iterable[JsonValue]) -> GraphError:
    names = {str(node["name"]) for node in nodes if isinstance(node, dict) and "name" in node}
    candidates = nearest(str(wanted), names)
    return GraphError(
        f"graph_patches: no node of the graph is named {wanted!r}",
        code="graph_patch_node_not_found",
        hint=_did_you_mean("nodes", candidates),
        details={"node": wanted, "candidates": candidates},
    )


def _field_not_found(wanted: JsonValue, entry: JsonObject, nodes: Iterable[JsonObject]) -> GraphError:
    names = {str(field.get("name")) for node in nodes for field in objects(node.get("fields"))}
    name = entry.get("name")
    candidates = nearest(str(name), names)
    return GraphError(
        f"graph_patches: no node named {wanted!r} has a field {name!r}",
        code="graph_patch_field_not_found",
        hint=_did_you_mean("fields", candidates),
        details={"node": wanted, "field": name, "candidates": candidates},
    )


def nearest(wanted: str, names: Iterable[str], *, limit: int = _SHOWN) -> list[str]:
    """The names most like the wanted one; when none is like it, the first ones in order."""
    known = sorted(set(names))
    folded = {name.casefold(): name for name in reversed(known)}
    inside = [name for name in known if wanted and wanted.casefold() in name.casefold()]
    close = [folded[name] for name in get_close_matches(wanted.casefold(), folded, n=limit, cutoff=0.5)]
    return list(dict.fromkeys([*close, *inside]))[:limit] or known[:limit]


def _did_you_mean(what: str, candidates: list[str]) -> str:
    if not candidates:
        return f"The graph has no {what} at all; is it the right file?"
    listed = ", ".join(repr(name) for name in candidates)
    return f"Names are compared exactly. The nearest {what}: {listed}."
