"""What is wrong with a logical graph, before the translator sees it.

DALiuGE's translator takes a graph with a cycle or a dangling parent in silence, answers many other
mistakes with a bare HTTP 500, and a session without a root runs for ever. So a graph is looked at here
first, and all findings are told at once.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from beampipe_dagster.execution.graph import find_ingest
from beampipe_dagster.execution.patches import LINKS, NODES, JsonObject, objects

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from beampipe_dagster.config.canonical import JsonValue

# The fields from which the translator takes how often it copies what a construct holds. Of several it
# takes the first.
_COPIES = {
    "Scatter": ("num_of_copies", "num_of_splits", "Number of copies"),
    "Loop": ("num_of_iter", "Number of Iterations", "Number of loops"),
}
# Nodes of the drawing only, which are never unrolled to a drop.
_DRAWING = frozenset({"Comment", "Description", "Variables", "GlobalVariables"})
_SIDES = ("input", "output")


class Severity(StrEnum):
    """What a finding means for an execution."""

    ERROR = "error"
    """The graph cannot run, or would never end."""
    WARNING = "warning"
    """It runs, though perhaps not as meant."""
    INFO = "info"
    """Worth knowing."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about a graph.

    Parameters
    ----------
    code
        Stable identifier of the rule.
    severity
        What it means for an execution.
    message
        One sentence for the survey's author.
    node
        Name of the node that it is about, or its id when it has no name; ``None`` for the whole graph.
    hint
        What to do, where the message alone does not say it.
    candidates
        What could have been meant instead.
    """

    code: str
    severity: Severity
    message: str
    node: str | None = None
    hint: str = ""
    candidates: tuple[str, ...] = ()

    def as_dict(self) -> JsonObject:
        """The finding as JSON; ``hint`` and ``candidates`` only where there are any."""
        out: JsonObject = {
            "code": self.code,
            "severity": self.severity.value,
            "message": self.message,
            "node": self.node,
        }
        if self.hint:
            out["hint"] = self.hint
        if self.candidates:
            out["candidates"] = [*self.candidates]
        return out


def lint(
    graph: JsonObject, *, source: JsonObject | None = None, patched_names: Collection[str] = ()
) -> list[Finding]:
    """Look at a logical graph.

    Parameters
    ----------
    graph
        Logical graph in EAGLE's format.
    source
        The graph as it was before it got its manifest, where ``graph`` has one: the manifest comes with a
        configuration of its own, which only replaces one that the survey's graph had.
    patched_names
        Names of the nodes that the survey's ``graph_patches`` reach.

    Returns
    -------
    list of Finding
        Errors first, then warnings, then the estimated number of drops (``estimated_drops``), which is
        left out while there are errors.
    """
    nodes = _Nodes(graph)
    findings = [
        *_about_ids(nodes),
        *_about_parents(nodes),
        *_about_links(nodes),
        *_about_copies(nodes),
        *_about_roots(nodes),
        *_about_manifest(nodes, graph if source is None else source),
        *_about_patches(nodes, patched_names),
    ]
    if not any(finding.severity is Severity.ERROR for finding in findings):
        drops = estimate_drops(graph)
        message = f"The graph unrolls to about {drops} drops."
        findings.append(Finding("estimated_drops", Severity.INFO, message))
    order = list(Severity)
    return sorted(findings, key=lambda finding: order.index(finding.severity))


def estimate_drops(graph: JsonObject) -> int:
    """About how many drops a graph unrolls to, when its copies are as its fields say.

    Copies of nested constructs multiply. What a gather or a group-by divides is not taken into
    account, so that the estimate is exact for scatters and too high for gathers.
    """
    nodes = _Nodes(graph)
    total = 0
    for node in nodes.all:
        copies = nodes.copies_around(node)
        if node.get("category") in _DRAWING:
            continue
        if nodes.is_group(node):
            total += copies * sum(_has_application(node, side) for side in _SIDES)
        else:
            total += copies
    return total


class _Nodes:
    """A graph's nodes by id, and how they lie in one another."""

    def __init__(self, graph: JsonObject) -> None:
        self.graph = graph
        self.all = list(objects(graph.get(NODES)))
        self.links = list(objects(graph.get(LINKS)))
        self.by_id = {str(node["id"]): node for node in self.all if "id" in node}
        self._children = Counter(str(node.get("parentId")) for node in self.all)

    def parent_of(self, node: JsonObject) -> JsonObject | None:
        parent = node.get("parentId")
        return None if parent is None else self.by_id.get(str(parent))

    def ancestors(self, node: JsonObject) -> list[JsonObject]:
        """From the nearest to the outermost; ends where the nesting runs in a circle."""
        found: list[JsonObject] = []
        parent = self.parent_of(node)
        while parent is not None and not any(parent is known for known in (node, *found)):
            found.append(parent)
            parent = self.parent_of(parent)
        return found

    def is_group(self, node: JsonObject) -> bool:
        return node.get("isGroup") is True or self._children[str(node.get("id"))] > 0

    def copies_around(self, node: JsonObject) -> int:
        copies = 1
        for ancestor in self.ancestors(node):
            number = _as_count(_copies_field(ancestor))
            copies *= 1 if number is None else number
        return copies


def _has_application(node: JsonObject, side: str) -> bool:
    return node.get(f"{side}ApplicationType") not in (None, "", "None", "UnknownApplication")


def _label(node: JsonObject) -> str:
    return str(node.get("name") or node.get("id"))


def _error(code: str, message: str, node: JsonObject | None = None) -> Finding:
    return Finding(code, Severity.ERROR, message, None if node is None else _label(node))


def _warning(code: str, message: str, node: str | None = None) -> Finding:
    return Finding(code, Severity.WARNING, message, node)


def _about_ids(nodes: _Nodes) -> Iterator[Finding]:
    counts = Counter(str(node["id"]) for node in nodes.all if "id" in node)
    for node in nodes.all:
        if "id" not in node:
            yield _error("missing_node_id", "The node has no id; no link can reach it.", node)
    for identifier, count in counts.items():
        if count > 1:
            message = f"{count} nodes share the id {identifier}; the links to them are ambiguous."
            yield _error("duplicate_node_id", message, nodes.by_id[identifier])


def _about_parents(nodes: _Nodes) -> Iterator[Finding]:
    for node in nodes.all:
        parent = node.get("parentId")
        if parent is None:
            continue
        if str(parent) not in nodes.by_id:
            message = f"The parent {parent} is not in the graph; the node would run once, outside it."
            yield _error("dangling_parent", message, node)
            continue
        outermost = (nodes.ancestors(node) or [node])[-1]
        if nodes.parent_of(outermost) is not None:
            yield _error("parent_cycle", "The node lies, through its parents, in itself.", node)


def _about_links(nodes: _Nodes) -> Iterator[Finding]:
    edges: dict[str, list[str]] = {}
    for link in nodes.links:
        ends = [(end, str(link.get(end))) for end in ("from", "to")]
        missing = [(end, name) for end, name in ends if name not in nodes.by_id]
        for end, name in missing:
            other = nodes.by_id.get(dict(ends)["to" if end == "from" else "from"])
            message = f"A link goes {end} {name}, which is not in the graph."
            yield _error("dangling_link", message, other)
        # A loop is closed on purpose, and unrolls to a row.
        if not missing and link.get("closesLoop") is not True:
            source, target = _vertex(nodes, link, "from"), _vertex(nodes, link, "to")
            edges.setdefault(source, []).append(target)
    cycle = _find_cycle(edges)
    if cycle:
        shown = " -> ".join(_label(nodes.by_id[vertex.partition("\0")[0]]) for vertex in cycle)
        first = nodes.by_id[cycle[0].partition("\0")[0]]
        message = f"The links run in a circle, so that nothing in it can start: {shown}."
        yield _error("graph_cycle", message, first)


def _vertex(nodes: _Nodes, link: JsonObject, end: str) -> str:
    """The node at a link's end; a construct's two applications are two places."""
    identifier = str(link.get(end))
    fields = objects(nodes.by_id[identifier].get("outputAppFields"))
    port = link.get(f"{end}Port")
    inside = any(entry.get("id") == port for entry in fields)
    return f"{identifier}\0output" if inside else identifier


def _find_cycle(edges: dict[str, list[str]]) -> list[str]:
    """The vertices of one cycle, the first one again at the end; empty when there is none."""
    done: set[str] = set()
    for start in edges:
        path: list[str] = []
        on_path: set[str] = set()
        stack = [(start, False)]
        while stack:
            vertex, leaving = stack.pop()
            if leaving:
                path.pop()
                on_path.discard(vertex)
                done.add(vertex)
            elif vertex in on_path:
                return [*path[path.index(vertex) :], vertex]
            elif vertex not in done:
                path.append(vertex)
                on_path.add(vertex)
                stack.append((vertex, True))
                stack.extend((target, False) for target in reversed(edges.get(vertex, [])))
    return []


def _copies_field(node: JsonObject) -> JsonObject | None:
    names = _COPIES.get(str(node.get("category")), ())
    fields = list(objects(node.get("fields")))
    for name in names:
        for entry in fields:
            if entry.get("name") == name:
                return entry
    return None


def _as_count(entry: JsonObject | None) -> int | None:
    value: JsonValue = None if entry is None else entry.get("value")
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        return None
    return value


def _about_copies(nodes: _Nodes) -> Iterator[Finding]:
    for node in nodes.all:
        category = str(node.get("category"))
        if category not in _COPIES:
            continue
        entry = _copies_field(node)
        name = _COPIES[category][0]
        if entry is None:
            message = f"The {category} has no field {name!r}; the translator would take its own number."
            yield _error(f"invalid_{name}", message, node)
        elif _as_count(entry) is None:
            message = f"{entry.get('name')} is {entry.get('value')!r}; it must be an integer from 1 on."
            yield _error(f"invalid_{name}", message, node)


def _about_roots(nodes: _Nodes) -> Iterator[Finding]:
    targets = {str(link.get("to")) for link in nodes.links if link.get("closesLoop") is not True}
    starting = [
        node
        for node in nodes.all
        if str(node.get("id")) not in targets
        and node.get("category") not in _DRAWING
        and not nodes.is_group(node)
    ]
    if not starting:
        yield _error("no_roots", "No node starts without an input; the session would run for ever.")


def _about_manifest(nodes: _Nodes, source: JsonObject) -> Iterator[Finding]:
    if find_ingest(nodes.graph) is None:
        yield _warning(
            "no_manifest_node",
            "No node 'beampipe-ingest' with a field 'manifest_path' (both with ids): the graph runs"
            " without a manifest.",
        )
        return
    active = source.get("activeGraphConfigId")
    if isinstance(active, str) and active:
        yield _warning(
            "active_configuration_replaced",
            f"The graph's active configuration {active} is not used: the manifest's own takes its"
            " place. Put its values into the fields of the nodes.",
        )


def _about_patches(nodes: _Nodes, patched_names: Collection[str]) -> Iterator[Finding]:
    counts = Counter(node.get("name") for node in nodes.all)
    for name in sorted({*patched_names, "beampipe-ingest"}):
        if counts[name] > 1:
            what = "only the first gets the manifest" if name == "beampipe-ingest" else "all are patched"
            message = f"{counts[name]} nodes are named {name!r}; {what}. Names should differ."
            yield _warning("duplicate_node_name", message, name)
