"""A real survey's logical graphs: translated, placed and dry-run on a real DALiuGE, for 1 to 300 beams.

They are looked for in ``BEAMPIPE_REFERENCE_DIR``, else in ``shared/reference`` beside the repository; where there
are none, these tests are skipped. A dry run puts an application that does nothing in the place of every other one.
Sessions of 300 beams are run only with ``BEAMPIPE_SLOW_TESTS=1``: appending and deploying them takes a minute.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest

from beampipe_dagster.backends.base import DaliugeState
from beampipe_dagster.backends.daliuge.manager import IslandManager
from beampipe_dagster.backends.daliuge.physical import Drop, map_to_nodes, roots
from beampipe_dagster.backends.daliuge.rest import RestBackend
from beampipe_dagster.backends.daliuge.translator import Translator
from beampipe_dagster.clock import SystemClock

if TYPE_CHECKING:
    from beampipe_dagster_tests.support.dlg import DaliugeStack

pytest_plugins = ["beampipe_dagster_tests.support.dlg"]

REFERENCE: Final = Path(
    os.environ.get("BEAMPIPE_REFERENCE_DIR")
    or Path(__file__).resolve().parents[2].parent / "shared" / "reference"
)
GRAPHS: Final = {
    "with downloads": "wallaby-hires_deploy-setonix-beampipe.graph",
    "without downloads": "wallaby-hires_test-pipeline-nodownloads-beampipe.graph",
}
DROPS: Final = {"with downloads": (18, 29), "without downloads": (13, 19)}
"""Drops a beam, and drops besides."""

SLOW: Final = os.environ.get("BEAMPIPE_SLOW_TESTS", "") == "1"
COPIES: Final = (1, 36, pytest.param(300, marks=pytest.mark.skipif(not SLOW, reason="takes a minute")))

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        not (REFERENCE / "config" / "graphs").is_dir(),
        reason="no reference graphs (set BEAMPIPE_REFERENCE_DIR)",
    ),
]


@pytest.fixture
def translator(dlg: DaliugeStack) -> Iterator[Translator]:
    client = Translator(url=dlg.translator_url)
    yield client
    client.close()


@pytest.fixture
def session() -> str:
    return f"wallaby-{uuid.uuid4()}"


@pytest.fixture(params=GRAPHS)
def graph(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def logical(graph: str, copies: int) -> dict[str, Any]:
    """The graph for so many beams."""
    path = REFERENCE / "config" / "graphs" / GRAPHS[graph]
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    changed = 0
    for field in fields_of(document):
        if field["name"] == "num_of_copies":
            field["value"] = copies
            changed += 1
    assert changed == 1, "one scatter makes the beams"
    return document


def fields_of(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for node in document["nodeDataArray"]:
        for kind in ("fields", "inputAppFields", "outputAppFields"):
            yield from node.get(kind) or []


def expected_drops(graph: str, copies: int) -> int:
    each, besides = DROPS[graph]
    return each * copies + besides


def translated(translator: Translator, document: dict[str, Any], prefix: str) -> list[Drop]:
    return translator.translate(
        document, algorithm="metis", num_partitions=1, num_islands=1, oid_prefix=prefix
    )


def dry(dlg: DaliugeStack, document: dict[str, Any], prefix: str) -> list[Drop]:
    """The drops of a dry run: every application is one that sleeps for no time."""
    for field in fields_of(document):
        if field["name"] == "execution_time":
            field["value"] = field["defaultValue"] = 0
    form = {
        "lg_content": json.dumps(document),
        "algorithm": "metis",
        "num_partitions": "1",
        "num_islands": "1",
        "oid_prefix": prefix,
        "default_app": "dlg.apps.simple.SleepApp",
    }
    answer = httpx.post(
        f"{dlg.translator_url}/unroll_and_partition", data=form, timeout=120, headers={"Connection": "close"}
    )
    answer.raise_for_status()
    return [drop for drop in answer.json() if "oid" in drop]


def nothing() -> None:
    """The lease of this submission needs no renewal."""


@pytest.mark.parametrize("copies", [1, 36, 300])
def test_the_graph_is_translated_and_placed_for_any_number_of_beams(
    dlg: DaliugeStack,
    translator: Translator,
    graph: str,
    copies: int,
    session: str,
    record_property: Any,
) -> None:
    begin = time.monotonic()
    template = translated(translator, logical(graph, copies), session)
    middle = time.monotonic()
    drops = map_to_nodes(template, nodes=[dlg.node], island=dlg.island)
    end = time.monotonic()
    record_property("translate_seconds", round(middle - begin, 2))
    record_property("place_seconds", round(end - middle, 3))
    assert len(drops) == expected_drops(graph, copies)
    assert {drop["node"] for drop in drops} == {dlg.node}
    assert roots(drops), "something has to begin"
    assert end - middle < 5, "placing is one substitution a drop"


def test_placing_equals_the_translators_own_mapping(
    dlg: DaliugeStack, translator: Translator, graph: str, session: str
) -> None:
    template = translated(translator, logical(graph, 1), session)
    form = {
        "pgt_content": json.dumps(template),
        "host": "127.0.0.1",
        "port": str(dlg.ports.dim),
        "num_islands": "1",
        "co_host_dim": "true",
    }
    answer = httpx.post(f"{dlg.translator_url}/map", data=form, timeout=60)
    answer.raise_for_status()
    theirs = [drop for drop in answer.json() if "oid" in drop]
    assert map_to_nodes(template, nodes=[dlg.node], island=dlg.island) == theirs


@pytest.mark.parametrize("copies", COPIES)
def test_a_dry_run_finishes_with_every_drop(
    dlg: DaliugeStack, graph: str, copies: int, session: str, record_property: Any
) -> None:
    drops = map_to_nodes(dry(dlg, logical(graph, copies), session), nodes=[dlg.node], island=dlg.island)
    backend = RestBackend(manager=IslandManager(url=dlg.manager_url), clock=SystemClock())
    begin = time.monotonic()
    receipt = backend.submit(session, drops, before_deploy=nothing)
    deployed = time.monotonic()
    expected = frozenset(drop["oid"] for drop in drops)
    while (seen := backend.observe({session: expected})[session]).state is DaliugeState.RUNNING:
        assert time.monotonic() - deployed < 240, seen
        time.sleep(0.2)
    assert seen.state is DaliugeState.FINISHED, seen
    assert seen.drops is not None
    assert seen.drops.completed == receipt.drops == expected_drops(graph, copies)
    record_property("submit_seconds", round(deployed - begin, 2))
    record_property("run_seconds", round(time.monotonic() - deployed, 2))
    backend.remove(session)
