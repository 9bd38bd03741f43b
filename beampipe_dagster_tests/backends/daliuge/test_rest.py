from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from beampipe_dagster.backends.base import DaliugeState, SessionPresence
from beampipe_dagster.backends.daliuge.physical import Drop
from beampipe_dagster.backends.daliuge.rest import RestBackend
from beampipe_dagster.clock import ManualClock
from beampipe_dagster.errors import (
    BackendError,
    BackendUnavailableError,
    ConflictError,
    GraphError,
    InputError,
    Retry,
    SubmissionUncertainError,
)
from beampipe_dagster_tests.backends.daliuge.rest_support import (
    SID,
    backend_for,
    graph,
    nothing,
    start,
)
from beampipe_dagster_tests.support import graphs
from beampipe_dagster_tests.support.fake_daliuge import (
    DEPLOY_FAULTS,
    NODE,
    RUNNING,
    FakeDaliuge,
    Fault,
    FaultPlan,
)


def test_a_submission_is_created_appended_counted_and_deployed_in_this_order(
    fake: FakeDaliuge, backend: RestBackend, clock: ManualClock
) -> None:
    at: list[list[str]] = []
    receipt = backend.submit(SID, graph(), before_deploy=lambda: at.append(list(fake.calls)))
    assert at == [["create", "append", "size"]]
    assert fake.calls == ["create", "append", "size", "deploy"]
    assert (receipt.session_id, receipt.manager_url) == (SID, fake.manager_url)
    assert (receipt.drops, receipt.roots, receipt.deployed_at) == (4, 1, clock.now())
    assert fake.ever_started == {SID}


@pytest.mark.parametrize("sid", ["", "a/b", "..\n", "a_b", "ä", "x" * 201, "a b", "a\n"])
def test_a_session_id_that_the_manager_cannot_handle_is_never_sent(
    fake: FakeDaliuge, backend: RestBackend, sid: str
) -> None:
    calls: list[Callable[[], object]] = [
        lambda: backend.submit(sid, graph(), before_deploy=nothing),
        lambda: backend.presence(sid),
        lambda: backend.discard(sid),
        lambda: backend.cancel(sid),
    ]
    for call in calls:
        with pytest.raises(InputError):
            call()
    assert backend.observe({sid: None})[sid].state is DaliugeState.NOT_CREATED
    assert fake.calls == []


def test_a_graph_that_would_run_for_ever_is_refused_before_anything_is_sent(
    fake: FakeDaliuge, backend: RestBackend
) -> None:
    cycle: list[Drop] = [
        {"oid": "a", "categoryType": "Application", "inputs": ["b"], "node": NODE},
        {"oid": "b", "categoryType": "Data", "producers": ["a"], "node": NODE},
    ]
    twice: list[Drop] = [{"oid": "a", "categoryType": "Data", "node": NODE}] * 2
    comma: list[Drop] = [{"oid": "a,b", "categoryType": "Data", "node": NODE}]
    empty: list[list[Drop]] = [[], [{}]]
    for drops in (*empty, cycle, twice, comma):
        with pytest.raises(GraphError) as caught:
            backend.submit(SID, drops, before_deploy=nothing)
        assert caught.value.code == "graph_not_deployable"
    assert fake.calls == []


@pytest.mark.parametrize("call", ["create", "append", "size"])
@pytest.mark.parametrize("kind", [*DEPLOY_FAULTS, "slow"])
def test_what_fails_before_the_deployment_started_nothing_and_leaves_nothing(
    fake: FakeDaliuge, backend: RestBackend, call: str, kind: str
) -> None:
    fake.plan.on(call, Fault(kind, seconds=0.8 if kind == "slow" else 0.0))
    with pytest.raises((BackendUnavailableError, GraphError)):
        backend.submit(SID, graph(), before_deploy=nothing)
    assert "deploy" not in fake.calls
    time.sleep(0.5 if kind == "slow" else 0.0)
    assert fake.ever_started == set()
    if (call, kind) != ("create", "slow"):  # that one is made after it was looked for
        assert fake.sessions == {}
    backend.submit("another", graph("another"), before_deploy=nothing)


@pytest.mark.parametrize("kind", ["done_html", "done_cut", "done_555", "html", "cut", "node_down"])
def test_a_deployment_that_may_have_happened_is_uncertain_and_left_alone(
    fake: FakeDaliuge, backend: RestBackend, kind: str
) -> None:
    fake.plan.on("deploy", Fault(kind))
    with pytest.raises(SubmissionUncertainError) as caught:
        backend.submit(SID, graph(), before_deploy=nothing)
    assert caught.value.retry is Retry.AFTER_RECONCILE
    found = backend.presence(SID)
    happened = kind.startswith("done")
    assert found is (SessionPresence.DEPLOYED if happened else SessionPresence.UNDEPLOYED)
    if happened:
        with pytest.raises(ConflictError):
            backend.discard(SID)
    else:
        backend.discard(SID)
        assert backend.presence(SID) is SessionPresence.ABSENT


def test_a_deployment_that_answers_too_late_is_uncertain(fake: FakeDaliuge, backend: RestBackend) -> None:
    fake.plan.on("deploy", Fault("slow", seconds=0.8))
    with pytest.raises(SubmissionUncertainError):
        backend.submit(SID, graph(), before_deploy=nothing)


def test_a_manager_that_is_down_when_it_should_deploy_started_nothing(
    fake: FakeDaliuge, backend: RestBackend
) -> None:
    with pytest.raises(BackendUnavailableError) as caught:
        backend.submit(SID, graph(), before_deploy=fake.manager.stop)
    assert caught.value.retry is Retry.LATER
    assert fake.ever_started == set()


def test_a_node_that_was_restarted_before_the_deployment_started_nothing(
    fake: FakeDaliuge, backend: RestBackend
) -> None:
    with pytest.raises(BackendUnavailableError):
        backend.submit(SID, graph(), before_deploy=fake.restart_node)
    assert fake.ever_started == set()


def test_a_manager_that_was_restarted_before_the_deployment_leaves_no_session_running_for_ever(
    fake: FakeDaliuge, backend: RestBackend
) -> None:
    with pytest.raises(BackendUnavailableError):
        backend.submit(SID, graph(), before_deploy=fake.restart_manager)
    assert fake.ever_started == set()
    assert fake.sessions == {}


def test_a_manager_that_cannot_clean_up_leaves_the_submission_uncertain(
    fake: FakeDaliuge, backend: RestBackend
) -> None:
    fake.plan.on("cancel", Fault("html"))
    fake.plan.on("delete", Fault("html"))
    with pytest.raises(SubmissionUncertainError):
        backend.submit(SID, graph(), before_deploy=fake.restart_manager)
    assert backend.presence(SID) is SessionPresence.DEPLOYED


def test_a_session_that_is_there_already_is_not_touched(fake: FakeDaliuge, backend: RestBackend) -> None:
    start(backend)
    with pytest.raises(SubmissionUncertainError) as caught:
        backend.submit(SID, graph(), before_deploy=nothing)
    assert caught.value.code == "session_exists"
    assert fake.sessions[SID].state == RUNNING


def test_a_class_that_cannot_be_imported_is_the_graphs_fault(fake: FakeDaliuge, backend: RestBackend) -> None:
    with pytest.raises(GraphError) as caught:
        backend.submit(SID, graph(graph=graphs.unknown_class()), before_deploy=nothing)
    assert caught.value.code == "graph_refused"
    assert fake.sessions == {}


@pytest.mark.parametrize(
    "error",
    [
        ConflictError("lost"),
        BackendError("odd"),
        GraphError("odd"),
        KeyboardInterrupt(),
    ],
)
def test_what_the_caller_raises_before_the_deployment_comes_back_as_it_is(
    fake: FakeDaliuge, backend: RestBackend, error: BaseException
) -> None:
    def lost() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        backend.submit(SID, graph(), before_deploy=lost)
    assert caught.value is error
    assert fake.sessions == {}
    assert "deploy" not in fake.calls


@pytest.mark.parametrize("seed", range(40))
def test_whatever_fails_an_error_to_repeat_means_that_nothing_was_started(seed: int) -> None:
    with FakeDaliuge(plan=FaultPlan(seed=seed, rate=0.35)) as fake:
        backend = backend_for(fake, ManualClock())
        for number in range(4):
            sid = f"s-{number}"
            try:
                backend.submit(sid, graph(sid), before_deploy=nothing)
            except (BackendUnavailableError, GraphError):
                assert sid not in fake.ever_started
            except SubmissionUncertainError:
                assert fake.calls[-1] != "create"
            else:
                assert sid in fake.ever_started


@pytest.mark.parametrize("kind", DEPLOY_FAULTS)
def test_nodes_that_cannot_be_told_now_are_a_wait_whatever_the_manager_answers(
    fake: FakeDaliuge, backend: RestBackend, kind: str
) -> None:
    fake.plan.on("nodes", Fault(kind))
    with pytest.raises(BackendUnavailableError) as away:
        backend.nodes()
    assert away.value.retry is Retry.LATER
    assert backend.nodes() == [NODE]
