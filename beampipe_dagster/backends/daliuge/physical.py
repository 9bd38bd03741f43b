"""Physical graphs: placing partitions on nodes, finding roots, telling what a graph holds.

A drop is the JSON object that DALiuGE's translator writes; it is handed on as it came. The
translator could place drops on nodes too, but only by sending it the whole graph back: a minute for
4,000 drops. What it does is one substitution a drop, done here instead.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from beampipe_dagster.errors import GraphError, InputError

Drop: TypeAlias = dict[str, Any]
"""One element of a physical graph, as DALiuGE's JSON has it."""

_APPLICATIONS = frozenset({"Application", "Socket", "app"})
_DATA = "Data"


@dataclass(frozen=True, slots=True)
class GraphSummary:
    """What a physical graph holds.

    Attributes
    ----------
    drops, roots
        How many there are.
    categories
        Drops by category (``BashShellApp``, ``File``, ...), sorted by name.
    partitions
        How many nodes, or places for nodes, the drops name.
    size_bytes
        Length of the graph as compact JSON in UTF-8.
    """

    drops: int
    roots: int
    categories: dict[str, int]
    partitions: int
    size_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """The summary as JSON."""
        return {
            "drops": self.drops,
            "roots": self.roots,
            "categories": self.categories,
            "partitions": self.partitions,
            "size_bytes": self.size_bytes,
        }


def map_to_nodes(pgt: Sequence[Drop], *, nodes: Sequence[str], island: str) -> list[Drop]:
    """Place a partitioned graph template on nodes.

    Parameters
    ----------
    pgt
        Drops whose ``node`` is ``#<partition>``. Elements without ``oid`` are left out.
    nodes
        The nodes, ``host:http:events:rpc``, one a partition. Give one: in DALiuGE 6.6 data that
        crosses node managers does not arrive in Python functions and shell commands.
    island
        The island manager, ``host:port``.

    Returns
    -------
    list of dict
        The same drops, placed; equal to what the translator's ``/map`` makes.

    Raises
    ------
    InputError
        No node is given.
    GraphError
        ``graph_not_placeable``: a drop names no partition, or one that has no node.
    """
    if not nodes:
        raise InputError(
            "there is no node to place the graph on",
            hint="See that the island manager has a node manager: GET <manager>/api/nodes.",
        )
    places = {f"#{number}": node for number, node in enumerate(nodes)}
    placed = []
    for drop in pgt:
        if "oid" not in drop:
            continue
        place = drop.get("node")
        node = places.get(place) if isinstance(place, str) else None
        if node is None:
            raise GraphError(
                f"drop {drop['oid']} is in partition {place!r}, but there are {len(nodes)} node(s)",
                code="graph_not_placeable",
                hint="Translate with num_partitions: 1 and the algorithm metis; others may make "
                "more partitions than were asked for.",
            )
        placed.append({**drop, "node": node, "island": island})
    return placed


def roots(drops: Iterable[Drop]) -> list[str]:
    """The drops that a deployment starts with, sorted: those that no other drop leads to.

    The rule is DALiuGE's own (``dlg.common.get_roots``): applications without inputs and data
    without producers, unless some drop names them as its output or consumer.
    """
    every: set[str] = set()
    led_to: set[str] = set()
    for drop in drops:
        oid = drop.get("oid")
        if not isinstance(oid, str):
            continue
        every.add(oid)
        kind = drop.get("categoryType", drop.get("type"))
        incoming: tuple[str, ...]
        outgoing: tuple[str, ...]
        if kind in _APPLICATIONS:
            incoming, outgoing = ("inputs", "streamingInputs"), ("outputs",)
        elif kind == _DATA:
            incoming, outgoing = ("producers",), ("consumers", "streamingConsumers")
        else:
            continue
        if any(drop.get(name) for name in incoming):
            led_to.add(oid)
        for name in outgoing:
            led_to.update(_targets(drop.get(name)))
    return sorted(every - led_to)


def summary(drops: Sequence[Drop]) -> GraphSummary:
    """Count what a physical graph holds, placed or not."""
    real = [drop for drop in drops if "oid" in drop]
    categories = Counter(str(drop.get("category", "unknown")) for drop in real)
    return GraphSummary(
        drops=len(real),
        roots=len(roots(real)),
        categories=dict(sorted(categories.items())),
        partitions=len({str(drop.get("node")) for drop in real}),
        size_bytes=len(json.dumps(real, ensure_ascii=False, separators=(",", ":")).encode()),
    )


def _targets(links: object) -> Iterable[str]:
    # A link is an identifier, or an object whose only key is one.
    if isinstance(links, list):
        for link in links:
            if isinstance(link, str):
                yield link
            elif isinstance(link, dict):
                yield from link
