"""The clients and the backend against a real DALiuGE."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx
import pytest

from beampipe_dagster.backends.base import DaliugeState, SessionObservation, SessionPresence
from beampipe_dagster.backends.daliuge.manager import IslandManager
from beampipe_dagster.backends.daliuge.physical import Drop, map_to_nodes, roots
from beampipe_dagster.backends.daliuge.rest import RestBackend
from beampipe_dagster.backends.daliuge.translator import Translator
from beampipe_dagster.clock import SystemClock
from beampipe_dagster.errors import (
    BackendError,
    BackendUnavailableError,
    ConfigError,
    ConflictError,
    GraphError,
    SubmissionUncertainError,
)
from beampipe_dagster_tests.support import graphs

if TYPE_CHECKING:
    from beampipe_dagster_tests.support.dlg import DaliugeStack

pytest_plugins = ["beampipe_dagster_tests.support.dlg"]
pytestmark = pytest.mark.integration


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


@pytest.fixture
def backend(manager: IslandManager) -> RestBackend:
    return RestBackend(manager=manager, clock=SystemClock(), settle_seconds=0.3)


@pytest.fixture
def session_id() -> str:
    return f"test-{uuid.uuid4()}"


def translate(translator: Translator, graph: graphs.Graph, prefix: str) -> list[Drop]:
    return translator.translate(graph, algorithm="metis", num_partitions=1, num_islands=1, oid_prefix=prefix)


def placed(translator: Translator, dlg: DaliugeStack, graph: graphs.Graph, prefix: str) -> list[Drop]:
    template = translate(translator, graph, prefix)
    return map_to_nodes(template, nodes=[dlg.node], island=dlg.island)


def oids(drops: list[Drop]) -> frozenset[str]:
    return frozenset(drop["oid"] for drop in drops)


def nothing() -> None:
    """The lease of this submission needs no renewal."""


def settled(backend: RestBackend, session_id: str, expected: frozenset[str] | None) -> SessionObservation:
    end = time.monotonic() + 60
    while True:
        seen = backend.observe({session_id: expected})[session_id]
        active = {DaliugeState.PRISTINE, DaliugeState.BUILDING, DaliugeState.DEPLOYING}
        if seen.state not in {*active, DaliugeState.RUNNING}:
            return seen
        assert time.monotonic() < end, f"still {seen}"
        time.sleep(0.1)


def test_placing_equals_the_translators_own_mapping(
    dlg: DaliugeStack, translator: Translator, session_id: str
) -> None:
    template = translate(translator, graphs.scattered(4), session_id)
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


def test_the_same_prefix_gives_the_same_graph(translator: Translator, session_id: str) -> None:
    first = translate(translator, graphs.scattered(3), session_id)
    assert translate(translator, graphs.scattered(3), session_id) == first
    assert all(drop["oid"].startswith(f"{session_id}_") for drop in first)


def test_a_graph_that_the_translator_fails_over_brings_its_traceback_back(
    translator: Translator, session_id: str
) -> None:
    with pytest.raises(GraphError) as caught:
        translate(translator, graphs.broken(), session_id)
    assert caught.value.code == "translation_failed"
    trace = caught.value.details["traceback"]
    assert any("_split_list" in line for line in trace)
    assert trace[-1] == "ValueError: range() arg 3 must not be zero"
    assert trace[-1] in caught.value.message


def test_many_failing_translations_in_a_row_are_all_told_apart_from_an_outage(
    translator: Translator, session_id: str
) -> None:
    for _ in range(10):
        with pytest.raises(GraphError):
            translate(translator, graphs.broken(), session_id)
    assert len(translate(translator, graphs.hello(), session_id)) == 2


def test_an_unknown_algorithm_is_a_matter_of_configuration(translator: Translator, session_id: str) -> None:
    with pytest.raises(ConfigError, match="algorithm") as caught:
        translator.translate(
            graphs.hello(),
            algorithm="magic",
            num_partitions=1,
            num_islands=1,
            oid_prefix=session_id,
        )
    assert caught.value.code == "translation_refused"


def test_a_graph_of_more_than_a_mebibyte_is_translated(translator: Translator, session_id: str) -> None:
    drops = translate(translator, graphs.hello(greet="x" * 2_000_000), session_id)
    assert len(drops) == 2


def test_a_translator_that_serves_is_available(dlg: DaliugeStack, translator: Translator) -> None:
    assert translator.available()
    other = Translator(url=dlg.manager_url)
    assert translator.traceback_of(graphs.hello()) is None
    # The island manager has the same call, and means to be deployed to by it.
    with pytest.raises(BackendUnavailableError):
        translate(other, graphs.hello(), "x")


def test_a_graph_runs_to_its_end_and_every_drop_is_seen(
    dlg: DaliugeStack, translator: Translator, backend: RestBackend, session_id: str
) -> None:
    drops = placed(translator, dlg, graphs.scattered(3), session_id)
    called = []
    receipt = backend.submit(session_id, drops, before_deploy=lambda: called.append(1))
    assert (receipt.drops, receipt.roots) == (len(drops), len(roots(drops)))
    assert called == [1]
    seen = settled(backend, session_id, oids(drops))
    assert seen.state is DaliugeState.FINISHED, seen
    assert seen.drops is not None
    assert seen.drops.completed == seen.drops.total == len(drops)
    assert backend.presence(session_id) is SessionPresence.DEPLOYED


def test_a_failing_command_is_reported_with_what_it_said(
    dlg: DaliugeStack, translator: Translator, backend: RestBackend, session_id: str
) -> None:
    drops = placed(translator, dlg, graphs.failing(), session_id)
    backend.submit(session_id, drops, before_deploy=nothing)
    seen = settled(backend, session_id, oids(drops))
    assert seen.state is DaliugeState.FAILED
    assert seen.drops is not None
    assert (seen.drops.completed, seen.drops.error) == (2, 4)
    first = seen.failed_drops[0]
    assert first.name == "step2"
    assert "no calibration table" in first.log
    assert "BASH_COMMAND_FAILED" in first.log
    assert "<pre>" not in first.log
    assert [drop.name for drop in seen.failed_drops if drop.log] == ["step2"]


def test_what_a_command_says_keeps_its_letters(
    dlg: DaliugeStack, translator: Translator, backend: RestBackend, session_id: str
) -> None:
    graph = graphs.bash_chain("echo 'Ångström <b> & Jy·km/s' >&2; exit 1")
    drops = placed(translator, dlg, graph, session_id)
    backend.submit(session_id, drops, before_deploy=nothing)
    seen = settled(backend, session_id, oids(drops))
    assert "Ångström <b> & Jy·km/s" in seen.failed_drops[0].log


def test_a_cancelled_session_is_cancelled_and_its_drops_too(
    dlg: DaliugeStack, translator: Translator, backend: RestBackend, session_id: str
) -> None:
    drops = placed(translator, dlg, graphs.sleeping(60), session_id)
    backend.submit(session_id, drops, before_deploy=nothing)
    seen = backend.observe({session_id: oids(drops)})[session_id]
    assert seen.state is DaliugeState.RUNNING
    cancelled = backend.cancel(session_id)
    assert cancelled.state is DaliugeState.CANCELLED
    assert backend.cancel(session_id).state is DaliugeState.CANCELLED
    with pytest.raises(ConflictError):
        backend.discard(session_id)


def test_cancelling_what_has_finished_says_that_it_has(
    dlg: DaliugeStack, translator: Translator, backend: RestBackend, session_id: str
) -> None:
    drops = placed(translator, dlg, graphs.hello(), session_id)
    backend.submit(session_id, drops, before_deploy=nothing)
    assert settled(backend, session_id, oids(drops)).state is DaliugeState.FINISHED
    assert backend.cancel(session_id).state is DaliugeState.FINISHED


def test_a_session_that_was_never_deployed_is_cancelled_by_deleting_it(
    manager: IslandManager, backend: RestBackend, session_id: str
) -> None:
    manager.create(session_id)
    assert backend.presence(session_id) is SessionPresence.UNDEPLOYED
    assert backend.cancel(session_id).state is DaliugeState.CANCELLED
    assert backend.presence(session_id) is SessionPresence.ABSENT


def test_an_unknown_session_is_not_created_and_never_running(backend: RestBackend, session_id: str) -> None:
    seen = backend.observe({session_id: None})[session_id]
    assert seen.state is DaliugeState.NOT_CREATED
    assert seen.reason == "the manager does not know this session"
    assert backend.presence(session_id) is SessionPresence.ABSENT
    assert backend.cancel(session_id).state is DaliugeState.NOT_CREATED
    backend.discard(session_id)


def test_a_session_id_is_used_once(
    dlg: DaliugeStack,
    translator: Translator,
    manager: IslandManager,
    backend: RestBackend,
    session_id: str,
) -> None:
    drops = placed(translator, dlg, graphs.hello(), session_id)
    backend.submit(session_id, drops, before_deploy=nothing)
    with pytest.raises(SubmissionUncertainError) as caught:
        backend.submit(session_id, drops, before_deploy=nothing)
    assert caught.value.code == "session_exists"
    assert settled(backend, session_id, oids(drops)).state is DaliugeState.FINISHED
    with pytest.raises(ConflictError):
        manager.create(session_id)
    manager.delete(session_id)
    with pytest.raises(BackendError) as absent:
        manager.delete(session_id)
    assert absent.value.code == "session_absent"


def test_a_class_that_nobody_installed_is_refused_and_leaves_no_session(
    dlg: DaliugeStack,
    translator: Translator,
    manager: IslandManager,
    backend: RestBackend,
    session_id: str,
) -> None:
    drops = placed(translator, dlg, graphs.unknown_class(), session_id)
    with pytest.raises(GraphError) as caught:
        backend.submit(session_id, drops, before_deploy=nothing)
    assert caught.value.code == "graph_refused"
    assert session_id not in manager.sessions()


def test_drops_on_a_strange_node_are_refused(
    translator: Translator, manager: IslandManager, backend: RestBackend, session_id: str
) -> None:
    template = translate(translator, graphs.hello(), session_id)
    drops = map_to_nodes(template, nodes=["127.0.0.1:1:2:3"], island="127.0.0.1:4")
    with pytest.raises(GraphError, match="does not belong to this DM"):
        backend.submit(session_id, drops, before_deploy=nothing)
    assert session_id not in manager.sessions()


def test_a_lost_lease_stops_the_submission_before_anything_runs(
    dlg: DaliugeStack, translator: Translator, backend: RestBackend, session_id: str
) -> None:
    drops = placed(translator, dlg, graphs.hello(), session_id)

    def lost() -> None:
        raise ConflictError("somebody else has this execution", code="lease_lost")

    with pytest.raises(ConflictError, match="somebody else"):
        backend.submit(session_id, drops, before_deploy=lost)
    assert backend.presence(session_id) is SessionPresence.ABSENT


def test_an_empty_session_that_finishes_at_once_has_failed(
    manager: IslandManager, backend: RestBackend, session_id: str
) -> None:
    manager.create(session_id)
    manager.deploy(session_id, [])
    seen = settled(backend, session_id, None)
    assert seen.state is DaliugeState.FAILED
    assert seen.reason == "it finished without a single drop"


def test_roots_that_the_manager_does_not_know_start_nothing_and_are_cleaned_up(
    translator: Translator,
    manager: IslandManager,
    backend: RestBackend,
    session_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    template = translate(translator, graphs.hello(), session_id)
    drops = map_to_nodes(template, nodes=manager.nodes(), island="127.0.0.1:8001")
    deploy = manager.deploy
    monkeypatch.setattr(manager, "deploy", lambda session, _roots: deploy(session, ["strange"]))
    with pytest.raises(BackendUnavailableError):
        backend.submit(session_id, drops, before_deploy=nothing)
    assert backend.presence(session_id) is SessionPresence.ABSENT


def test_the_manager_knows_its_node(dlg: DaliugeStack, backend: RestBackend) -> None:
    assert backend.nodes() == [dlg.node]


def test_one_node_can_be_asked_for_its_drops(
    dlg: DaliugeStack,
    translator: Translator,
    manager: IslandManager,
    backend: RestBackend,
    session_id: str,
) -> None:
    drops = placed(translator, dlg, graphs.hello(), session_id)
    backend.submit(session_id, drops, before_deploy=nothing)
    settled(backend, session_id, oids(drops))
    whole = manager.graph_status(session_id)
    assert manager.node_graph_status(dlg.node, session_id) == whole
