"""Overrides of a logical graph: the values that a manifest asks for, set on the nodes that it names.

A manifest carries ``graph_overrides = {"patches": [{"match": {"equals": NAME}, "fields": [{"name":
FIELD, "value": VALUE}, ...]}, ...]}``. A patch reaches *every* node of exactly that name; a later
patch wins. Matches of the other kinds (``node_id``, ``node_name_index``, ``category``,
``field_value``) say their kind and reach one node, unless ``count`` says ``many``. Nothing is skipped
in silence: a node or a field that is not there is an error that names what is there instead.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, TypeAlias

from beampipe_dagster.config.canonical import JsonValue, canonical_json
from beampipe_dagster.config.project import OWN_MATCH_FIELDS
from beampipe_dagster.errors import GraphError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

JsonObject: TypeAlias = dict[str, JsonValue]

NODES = "nodeDataArray"
"""Key of the list of nodes in EAGLE's graph format."""
LINKS = "linkDataArray"
"""Key of the list of links in EAGLE's graph format."""

_SHOWN = 5
_TEXT = 80


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
        ``graph_patch_ambiguous``, ``graph_patch_field_not_found``: with the candidates in ``details``.
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
    chosen = choose(nodes, match)
    entries = list(objects(patch.get("fields")))
    found: set[str] = set()
    for index, node in chosen:
        nodes[index] = _patched_node(node, entries, found)
    for entry in entries:
        if str(entry.get("name")) not in found:
            raise field_not_found(match, entry.get("name"), [node for _, node in chosen])


def own_kind(match: JsonValue) -> str | None:
    """The kind of a match that is not about a name in ``equals``; ``None`` for those that are.

    A kind counts only with one of its own fields: graphs were always matched by ``equals`` whatever
    ``kind`` stood beside it.
    """
    if not isinstance(match, dict):
        return None
    kind = match.get("kind")
    own = OWN_MATCH_FIELDS.get(kind, ()) if isinstance(kind, str) else ()
    return str(kind) if any(name in match for name in own) else None


def may_be_many(match: JsonValue) -> bool:
    """Whether several nodes may match: as ``count`` says, else only a name may have several."""
    count = match.get("count") if isinstance(match, dict) else None
    return count == "many" if isinstance(count, str) else own_kind(match) is None


def reached(nodes: Sequence[JsonValue], match: JsonValue) -> list[tuple[int, JsonObject]]:
    """The nodes that a match is about, with their places in the list; neither none nor many is judged."""
    every = [(index, node) for index, node in enumerate(nodes) if isinstance(node, dict)]
    asked: JsonObject = match if isinstance(match, dict) else {}
    kind = own_kind(match)
    if kind is None:
        wanted = asked.get("equals")
        return [item for item in every if wanted is None or item[1].get("name") == wanted]
    if kind == "node_id":
        return [item for item in every if item[1].get("id") == asked.get("id")]
    if kind == "category":
        return [item for item in every if item[1].get("category") == asked.get("category")]
    if kind == "node_name_index":
        named = [item for item in every if item[1].get("name") == asked.get("name")]
        place = asked.get("index")
        return named[place : place + 1] if isinstance(place, int) and place >= 0 else []
    wanted = canonical_json(asked.get("value"))
    return [
        item
        for item in every
        if any(
            field.get("name") == asked.get("field") and canonical_json(field.get("value")) == wanted
            for field in objects(item[1].get("fields"))
        )
    ]


def choose(nodes: Sequence[JsonValue], match: JsonValue) -> list[tuple[int, JsonObject]]:
    """The nodes to patch, with their places.

    Raises
    ------
    GraphError
        ``graph_patch_node_not_found``: there is none; ``graph_patch_ambiguous``: there are several
        where one is meant. Both with the candidates in ``details``.
    """
    chosen = reached(nodes, match)
    if not chosen:
        raise node_not_found(match, nodes)
    if len(chosen) > 1 and not may_be_many(match):
        labels = [label for index, _ in chosen[:_SHOWN] if (label := place_of(nodes, index))]
        raise GraphError(
            f"graph_patches: {len(chosen)} nodes match {described(match)}, where one is meant",
            code="graph_patch_ambiguous",
            hint="Name one by node_id, or by node_name_index; or say count: many. They are: "
            + "; ".join(labels)
            + ("; ..." if len(chosen) > len(labels) else "."),
            details={"node": described(match), "matches": len(chosen), "candidates": labels},
        )
    return chosen


def described(match: JsonValue) -> str:
    """A match in words, e.g. ``the name 'image'`` or ``the id 'a-b'``."""
    asked: JsonObject = match if isinstance(match, dict) else {}
    kind = own_kind(match)
    if kind == "node_id":
        return f"the id {asked.get('id')!r}"
    if kind == "category":
        return f"the category {asked.get('category')!r}"
    if kind == "node_name_index":
        return f"the name {asked.get('name')!r} with the index {asked.get('index')!r}"
    if kind == "field_value":
        return f"the field {asked.get('field')!r} with the value {asked.get('value')!r}"
    return f"the name {asked.get('equals')!r}" if "equals" in asked else "any name"


def place_of(nodes: Sequence[JsonValue], index: int) -> str:
    """A node as a patch can name it: its name with its index among its namesakes, and its id."""
    node = nodes[index]
    if not isinstance(node, dict):
        return ""
    before = nodes[:index]
    namesakes = sum(1 for one in before if isinstance(one, dict) and one.get("name") == node.get("name"))
    return f"{node.get('name')}[{namesakes}] (id {node.get('id')})"


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


def node_not_found(match: JsonValue, nodes: Sequence[JsonValue]) -> GraphError:
    """The error for a match that reaches nothing."""
    asked: JsonObject = match if isinstance(match, dict) else {}
    if own_kind(match) is None:
        wanted = asked.get("equals")
        candidates = nearest(str(wanted), _values_of(nodes, "name"))
        return GraphError(
            f"graph_patches: no node of the graph is named {wanted!r}",
            code="graph_patch_node_not_found",
            hint=_did_you_mean("nodes", candidates),
            details={"node": wanted, "candidates": candidates},
        )
    what, candidates = _candidates(asked, nodes)
    return GraphError(
        f"graph_patches: no node of the graph has {described(match)}",
        code="graph_patch_node_not_found",
        hint=_did_you_mean(what, candidates),
        details={"node": described(match), "candidates": candidates},
    )


def _candidates(asked: JsonObject, nodes: Sequence[JsonValue]) -> tuple[str, list[str]]:
    """What could have been meant instead, and what it is."""
    kind = own_kind(asked)
    if kind == "node_id":
        return "ids", nearest(str(asked.get("id")), _values_of(nodes, "id"))
    if kind == "category":
        return "categories", nearest(str(asked.get("category")), _values_of(nodes, "category"))
    if kind == "node_name_index":
        name = asked.get("name")
        places = [
            place_of(nodes, index)
            for index, node in enumerate(nodes)
            if isinstance(node, dict) and node.get("name") == name
        ]
        return "nodes", places[:_SHOWN] or nearest(str(name), _values_of(nodes, "name"))
    fields = [field for node in nodes if isinstance(node, dict) for field in objects(node.get("fields"))]
    values = {
        canonical_json(field.get("value")) for field in fields if field.get("name") == asked.get("field")
    }
    if values:
        wanted = canonical_json(asked.get("value"))
        return f"values of {asked.get('field')!r}", [_cut(one) for one in nearest(wanted, values)]
    return "fields", nearest(str(asked.get("field")), {str(field.get("name")) for field in fields})


def _values_of(nodes: Sequence[JsonValue], key: str) -> set[str]:
    return {str(node[key]) for node in nodes if isinstance(node, dict) and key in node}


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT else f"{text[: _TEXT - 3]}..."


def field_not_found(match: JsonValue, name: JsonValue, nodes: Iterable[JsonObject]) -> GraphError:
    """The error for a field that none of the matching nodes has."""
    asked: JsonObject = match if isinstance(match, dict) else {}
    names = {str(field.get("name")) for node in nodes for field in objects(node.get("fields"))}
    candidates = nearest(str(name), names)
    by_name = own_kind(match) is None
    which = f"named {asked.get('equals')!r}" if by_name else f"with {described(match)}"
    return GraphError(
        f"graph_patches: no node {which} has a field {name!r}",
        code="graph_patch_field_not_found",
        hint=_did_you_mean("fields", candidates),
        details={
            "node": asked.get("equals") if by_name else described(match),
            "field": name,
            "candidates": candidates,
        },
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
