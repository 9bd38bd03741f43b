"""The demo survey's graph on a real DALiuGE, from records to what the mosaic says."""

from __future__ import annotations

import json
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from beampipe_dagster.backends.daliuge.manager import IslandManager
from beampipe_dagster.backends.daliuge.physical import Drop, map_to_nodes, roots
from beampipe_dagster.backends.daliuge.translator import Translator
from beampipe_dagster.config.validation import load_project
from beampipe_dagster.errors import GraphError
from beampipe_dagster.execution.graph import parse_graph, prepare_graph, verify_injection
from beampipe_dagster.execution.graph_lint import estimate_drops
from beampipe_dagster.execution.manifest import build_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from beampipe_dagster.config.canonical import JsonValue
    from beampipe_dagster.execution.graph import PreparedGraph
    from beampipe_dagster_tests.support.dlg import DaliugeStack

pytest_plugins = ["beampipe_dagster_tests.support.dlg"]
pytestmark = pytest.mark.integration

DEMO = Path(__file__).resolve().parents[2] / "projects" / "wallaby_demo"
FINISHED, FAILED = 4, 6
SECONDS = 0.4


@pytest.fixture
def translator(dlg: DaliugeStack) -> Iterator[Translator]:
    client = Translator(url=dlg.translator_url)
    yield client
    client.close()


@pytest.fixture
def manager(dlg: DaliugeStack) -> Iterator[IslandManager]:
    client = IslandManager(url=dlg.manager_url)
    yield client
    client.close()


def dataset(sbid: int, beam: int, quality: str = "GOOD") -> dict[str, JsonValue]:
    name = f"HIPASSJ1318-21_SB{sbid}_F00_B{beam:02}.ms.tar"
    return {
        "source_identifier": "HIPASSJ1318-21",
        "dataset_id": name,
        "filename": name,
        "sbid": str(sbid),
        "obs_id": f"ASKAP-{sbid}",
        "quality_level": quality,
        "sbid_to_eval_file": {"filename": "größe $HOME %d \"'.tar", "filesize": None},
    }


def prepare(records: list[dict[str, JsonValue]], execution_id: str) -> PreparedGraph:
    project = load_project((DEMO / "wallaby_demo.yaml").read_text(encoding="utf-8"))
    assert project.graph is not None
    assert project.graph.path is not None
    raw = (DEMO / project.graph.path).read_bytes()
    graph = parse_graph(raw, sha256=project.graph.sha256, name=project.graph.path)
    manifest = build_manifest(project, records)
    overrides: Any = manifest["graph_overrides"]
    quick: JsonValue = {"match": {"equals": "image-beam"}, "fields": [{"name": "seconds", "value": SECONDS}]}
    manifest["graph_overrides"] = {"patches": [*overrides["patches"], quick]}
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    return prepare_graph(graph, manifest, execution_id=execution_id, modified_at=moment)


def translate(translator: Translator, graph: PreparedGraph, session_id: str) -> list[Drop]:
    drops = translator.translate(
        graph.graph, algorithm="metis", num_partitions=1, num_islands=1, oid_prefix=session_id
    )
    verify_injection(drops, graph.manifest_text)
    return drops


def run(dlg: DaliugeStack, manager: IslandManager, drops: list[Drop], session_id: str) -> int:
    """Deploy, wait for the end, and give the session's state twice seen."""
    manager.create(session_id)
    deploy(dlg, manager, drops, session_id)
    return ended(dlg, manager, session_id)


def deploy(dlg: DaliugeStack, manager: IslandManager, drops: list[Drop], session_id: str) -> None:
    manager.append(session_id, map_to_nodes(drops, nodes=[dlg.node], island=dlg.island))
    manager.deploy(session_id, roots(drops))


def products(dlg: DaliugeStack, session_id: str, kind: str) -> list[Any]:
    """What a session has written, each from its own file."""
    paths = (dlg.root / "wallaby_demo").glob(f"{kind}.{session_id}_*.json")
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def ended(dlg: DaliugeStack, manager: IslandManager, session_id: str) -> int:
    end, last = time.monotonic() + 60, -1
    while True:
        status: Any = manager.status(session_id)
        state = int(status[dlg.node])
        if state == last and state in (FINISHED, FAILED):
            return state
        last = state
        assert time.monotonic() < end, f"session {session_id} is still {state}"
        time.sleep(0.3)


@pytest.mark.parametrize("blocks", [[1], [3], [4], [2, 1]], ids=str)
def test_every_dataset_of_every_block_is_imaged_and_joined(
    dlg: DaliugeStack, translator: Translator, manager: IslandManager, blocks: list[int]
) -> None:
    session_id = f"demo-{uuid.uuid4()}"
    records = [dataset(100 + n, beam) for n, beams in enumerate(blocks) for beam in range(beams)]
    prepared = prepare(records, session_id)
    drops = translate(translator, prepared, session_id)
    assert len(drops) == 4 * len(records) + 9 == estimate_drops(prepared.graph)
    assert run(dlg, manager, drops, session_id) == FINISHED
    made: Any = manager.graph_status(session_id)
    assert {entry["status"] for entry in made.values()} <= {2, 4, 5}
    (summary,) = products(dlg, session_id, "mosaic")
    assert summary["beams"] == [record["dataset_id"] for record in records]
    assert summary["sbids"] == [str(100 + n) for n in range(len(blocks))]
    beams = products(dlg, session_id, "beam")
    assert sorted(beam["beam"] for beam in beams) == summary["beams"]


def test_sessions_at_the_same_time_keep_their_products_apart(
    dlg: DaliugeStack, translator: Translator, manager: IslandManager
) -> None:
    sessions = {f"demo-{uuid.uuid4()}": 200 + n for n in range(4)}
    for session_id in sessions:
        manager.create(session_id)
    for session_id, sbid in sessions.items():
        prepared = prepare([dataset(sbid, beam) for beam in range(3)], session_id)
        deploy(dlg, manager, translate(translator, prepared, session_id), session_id)
    for session_id, sbid in sessions.items():
        assert ended(dlg, manager, session_id) == FINISHED
        (summary,) = products(dlg, session_id, "mosaic")
        assert summary["sbids"] == [str(sbid)]
        assert len(products(dlg, session_id, "beam")) == 3


def test_a_rejected_beam_fails_the_session_and_its_log_says_why(
    dlg: DaliugeStack, translator: Translator, manager: IslandManager
) -> None:
    session_id = f"demo-{uuid.uuid4()}"
    records = [dataset(100, 0), dataset(100, 1, "REJECTED"), dataset(100, 2)]
    drops = translate(translator, prepare(records, session_id), session_id)
    assert run(dlg, manager, drops, session_id) == FAILED
    made: Any = manager.graph_status(session_id)
    failed = [
        drop["oid"] for drop in drops if drop["name"] == "image-beam" and made[drop["oid"]]["execStatus"] == 3
    ]
    assert len(failed) == 1
    reason = f"beam {records[1]['dataset_id']}: quality_level REJECTED, refusing to image"
    assert reason in manager.drop_log(session_id, failed[0])
    assert products(dlg, session_id, "mosaic") == []


def test_a_manifest_that_the_translator_passed_over_is_noticed(translator: Translator) -> None:
    session_id = f"demo-{uuid.uuid4()}"
    prepared = prepare([dataset(100, 0)], session_id)
    prepared.graph["activeGraphConfigId"] = "not-a-configuration"
    with pytest.raises(GraphError) as caught:
        translate(translator, prepared, session_id)
    assert caught.value.code == "manifest_not_injected"
