from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from beampipe_dagster.backends.base import Backend, DaliugeState, SessionPresence
from beampipe_dagster.backends.daliuge.manager import IslandManager
from beampipe_dagster.backends.daliuge.physical import Drop, map_to_nodes
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
from beampipe_dagster_tests.support import graphs
from beampipe_dagster_tests.support.fake_daliuge import (
    BUILDING,
    CANCELLED,
    DEPLOY_FAULTS,
    FAILED,
    FINISHED,
    NODE,
    RUNNING,
    FakeDaliuge,
    Fault,
    FaultPlan,
    unroll,
)

SID = "BeampipeExecution-1.a"


@pytest.fixture
def fake() -> Iterator[FakeDaliuge]:
    with FakeDaliuge() as running:
        yield running


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def backend_for(fake: FakeDaliuge, clock: ManualClock) -> RestBackend:
    manager = IslandManager(url=fake.manager_url, read_seconds=0.4, write_seconds=0.4)
    return RestBackend(manager=manager, clock=clock)


@pytest.fixture
def backend(fake: FakeDaliuge, clock: ManualClock) -> RestBackend:
    return backend_for(fake, clock)


def graph(sid: str = SID, graph: graphs.Graph | None = None) -> list[Drop]:
    template = unroll(graph or graphs.bash_chain("true", "true"), sid)
    return map_to_nodes(template, nodes=[NODE], island="127.0.0.1:8001")


def oids(drops: list[Drop]) -> frozenset[str]:
    return frozenset(drop["oid"] for drop in drops)


def nothing() -> None:
    """There is no lease to renew."""


def start(backend: Backend, sid: str = SID) -> list[Drop]:
    drops = graph(sid)
    backend.submit(sid, drops, before_deploy=nothing)
    return drops


# -------------------------------------------------------------------- submitting


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


# -------------------------------------------------------------------- looking


def test_a_session_runs_and_finishes(fake: FakeDaliuge, backend: RestBackend) -> None:
    drops = start(backend)
    running = backend.observe({SID: oids(drops)})[SID]
    assert running.state is DaliugeState.RUNNING
    assert running.drops is not None
    assert running.drops.running + running.drops.waiting == 4
    fake.go(SID, FINISHED)
    finished = backend.observe({SID: oids(drops)})[SID]
    assert finished.state is DaliugeState.FINISHED
    assert finished.raw == {NODE: FINISHED}
    assert finished.drops is not None
    assert finished.drops.completed == finished.drops.total == 4
    assert finished.reason is None


def test_finished_that_becomes_failed_is_failed(
    fake: FakeDaliuge, backend: RestBackend, clock: ManualClock
) -> None:
    drops = start(backend)
    fake.go(SID, RUNNING, FINISHED, FAILED)
    assert backend.observe({SID: oids(drops)})[SID].state is DaliugeState.RUNNING
    before = clock.monotonic()
    seen = backend.observe({SID: oids(drops)})[SID]
    assert seen.state is DaliugeState.FAILED
    assert seen.reason == "it said finished first"
    assert clock.monotonic() - before == 1.0


def test_finished_that_runs_again_is_running(fake: FakeDaliuge, backend: RestBackend) -> None:
    drops = start(backend)
    fake.go(SID, FINISHED, RUNNING)
    assert backend.observe({SID: oids(drops)})[SID].state is DaliugeState.RUNNING


def test_finished_without_all_its_drops_has_failed(fake: FakeDaliuge, backend: RestBackend) -> None:
    drops = start(backend)
    fake.go(SID, FINISHED)
    lost = {f"lost-{number}" for number in range(5)}
    seen = backend.observe({SID: oids(drops) | lost})[SID]
    assert seen.state is DaliugeState.FAILED
    assert seen.reason == "it finished without 5 of its drops: lost-0, lost-1, lost-2, ..."


def test_a_session_without_drops_that_finished_has_failed(fake: FakeDaliuge, backend: RestBackend) -> None:
    start(backend)
    fake.sessions[SID].drops.clear()
    fake.go(SID, FINISHED)
    seen = backend.observe({SID: None})[SID]
    assert (seen.state, seen.reason) == (
        DaliugeState.FAILED,
        "it finished without a single drop",
    )


@pytest.mark.parametrize(
    ("status", "reason"),
    [(3, "1 of 4 drops are in error"), (6, "1 of 4 drops were cancelled")],
)
def test_finished_with_a_drop_that_did_not_complete_has_failed(
    fake: FakeDaliuge, backend: RestBackend, status: int, reason: str
) -> None:
    drops = start(backend)
    fake.go(SID, FINISHED)
    fake.sessions[SID].statuses[drops[0]["oid"]] = {"execStatus": 2, "status": status}
    seen = backend.observe({SID: oids(drops)})[SID]
    assert seen.state is DaliugeState.FAILED
    assert seen.reason == f"it finished, but {reason}"


def test_finished_with_a_drop_still_at_work_is_running(fake: FakeDaliuge, backend: RestBackend) -> None:
    drops = start(backend)
    fake.go(SID, FINISHED)
    fake.sessions[SID].statuses[drops[0]["oid"]] = {"execStatus": 1, "status": 0}
    seen = backend.observe({SID: oids(drops)})[SID]
    assert seen.state is DaliugeState.RUNNING
    assert seen.reason == "it says finished, but 1 of 4 drops have not ended"


def test_values_in_memory_that_are_gone_again_have_completed(fake: FakeDaliuge, backend: RestBackend) -> None:
    drops = start(backend)
    fake.go(SID, FINISHED)
    for drop, status in zip(drops, (4, 5), strict=False):
        fake.sessions[SID].statuses[drop["oid"]] = {"status": status}
    assert backend.observe({SID: oids(drops)})[SID].state is DaliugeState.FINISHED


def test_finished_whose_drops_cannot_be_read_is_not_finished(fake: FakeDaliuge, backend: RestBackend) -> None:
    drops = start(backend)
    fake.go(SID, FINISHED)
    for kind in ("html", "cut", "node_down"):
        fake.plan.on("graph_status", Fault(kind))
        assert backend.observe({SID: oids(drops)})[SID].state is DaliugeState.UNREACHABLE
    assert backend.observe({SID: oids(drops)})[SID].state is DaliugeState.FINISHED


def test_a_failed_session_says_which_drops_and_why(fake: FakeDaliuge, backend: RestBackend) -> None:
    drops = start(backend)
    app, data = drops[0]["oid"], drops[1]["oid"]
    fake.fail(SID, {data: "", app: "kaboom"})
    seen = backend.observe({SID: oids(drops)})[SID]
    assert seen.state is DaliugeState.FAILED
    assert seen.reason == "2 of 4 drops are in error"
    assert [(drop.oid, drop.name, drop.log) for drop in seen.failed_drops] == [
        (app, "step1", "ERROR: kaboom"),
        (data, "file1", ""),
    ]


def test_no_more_than_ten_failed_drops_are_told_those_with_a_log_first(
    fake: FakeDaliuge, backend: RestBackend
) -> None:
    drops = graph(graph=graphs.bash_chain(*["true"] * 14))
    backend.submit(SID, drops, before_deploy=nothing)
    apps = [drop["oid"] for drop in drops if drop["categoryType"] == "Application"]
    errors = dict.fromkeys(oids(drops), "") | {apps[12]: "it was me"}
    fake.fail(SID, errors)
    seen = backend.observe({SID: None})[SID]
    assert len(seen.failed_drops) == 10
    assert seen.failed_drops[0].log == "ERROR: it was me"


def test_a_failed_session_is_failed_also_when_its_logs_cannot_be_read(
    fake: FakeDaliuge, backend: RestBackend
) -> None:
    drops = start(backend)
    fake.fail(SID, {drops[0]["oid"]: "kaboom"})
    fake.plan.on("session_graph", Fault("html"))
    fake.plan.on("drop", Fault("html"))
    seen = backend.observe({SID: None})[SID]
    assert seen.state is DaliugeState.FAILED
    assert [(drop.name, drop.log) for drop in seen.failed_drops] == [(drops[0]["oid"], "")]
    fake.plan.on("graph_status", Fault("html"))
    assert backend.observe({SID: None})[SID].state is DaliugeState.FAILED


def test_a_session_that_a_restarted_node_lost_is_not_created_and_never_running(
    fake: FakeDaliuge, backend: RestBackend
) -> None:
    drops = start(backend)
    fake.restart_node()
    seen = backend.observe({SID: oids(drops)})[SID]
    assert seen.state is DaliugeState.NOT_CREATED
    assert seen.reason == "the manager does not know this session"
    assert backend.presence(SID) is SessionPresence.ABSENT


def test_an_answer_that_means_nothing_is_unknown(fake: FakeDaliuge, backend: RestBackend) -> None:
    start(backend)
    fake.plan.on("status", *[Fault("answer", status=200, body='{"n1": 42}')] * 2)
    seen = backend.observe({SID: None})[SID]
    assert seen.state is DaliugeState.UNKNOWN
    assert seen.reason == "the manager's answer means nothing: {'n1': 42}"
    assert backend.presence(SID) is SessionPresence.UNREACHABLE


def test_one_failed_node_fails_the_session_while_others_run(fake: FakeDaliuge, backend: RestBackend) -> None:
    start(backend)
    fake.plan.on("status", Fault("answer", status=200, body='{"n1": 6, "n2": 3}'))
    assert backend.observe({SID: None})[SID].state is DaliugeState.FAILED


def test_a_manager_that_is_down_is_asked_once_for_all_sessions(
    fake: FakeDaliuge, backend: RestBackend
) -> None:
    fake.plan.on("status", Fault("node_down"))
    sessions = dict.fromkeys([f"s-{number}" for number in range(50)])
    seen = backend.observe(sessions)
    assert fake.calls == ["status"]
    assert set(seen) == set(sessions)
    assert {one.state for one in seen.values()} == {DaliugeState.UNREACHABLE}
    fake.manager.stop()
    assert backend.observe({SID: None})[SID].state is DaliugeState.UNREACHABLE
    assert backend.presence(SID) is SessionPresence.UNREACHABLE


def test_one_session_that_cannot_be_read_does_not_hide_the_others(
    fake: FakeDaliuge, backend: RestBackend
) -> None:
    start(backend, "s-1")
    start(backend, "s-2")
    fake.plan.on("status", Fault("html"))
    seen = backend.observe({"s-1": None, "s-2": None})
    assert seen["s-1"].state is DaliugeState.UNREACHABLE
    assert seen["s-2"].state is DaliugeState.RUNNING


def test_many_sessions_are_looked_at_and_only_finished_ones_twice(
    fake: FakeDaliuge, backend: RestBackend, clock: ManualClock
) -> None:
    for number in range(6):
        start(backend, f"s-{number}")
    for number in range(3):
        fake.go(f"s-{number}", FINISHED)
    fake.calls.clear()
    seen = backend.observe({f"s-{number}": None for number in range(6)})
    assert [seen[f"s-{number}"].state for number in range(6)] == ["finished"] * 3 + ["running"] * 3
    assert fake.calls.count("status") == 9
    assert clock.monotonic() == 1.0
    assert backend.observe({}) == {}


# -------------------------------------------------------------------- presence, cancelling


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ('{"n1": 0}', SessionPresence.UNDEPLOYED),
        ('{"n1": 0, "n2": 1}', SessionPresence.UNDEPLOYED),
        ('{"n1": 1, "n2": 2}', SessionPresence.DEPLOYED),
        ('{"n1": 4, "n2": 5}', SessionPresence.DEPLOYED),
        ('{"n1": {"Status": "Success"}, "n2": 1}', SessionPresence.UNDEPLOYED),
        ('{"n1": {"Status": "Success"}, "n2": 3}', SessionPresence.DEPLOYED),
        ('{"n1": {"Status": "Success"}}', SessionPresence.ABSENT),
        ('{"n1": 9}', SessionPresence.UNREACHABLE),
        ("{}", SessionPresence.UNREACHABLE),
    ],
)
def test_presence_is_over_all_nodes(
    fake: FakeDaliuge, backend: RestBackend, body: str, found: SessionPresence
) -> None:
    fake.plan.on("status", Fault("answer", status=200, body=body))
    assert backend.presence(SID) is found


def test_a_running_session_is_cancelled(fake: FakeDaliuge, backend: RestBackend) -> None:
    start(backend)
    seen = backend.cancel(SID)
    assert seen.state is DaliugeState.CANCELLED
    assert seen.drops is not None
    assert seen.drops.cancelled == 4
    assert fake.sessions[SID].state == CANCELLED


def test_a_cancellation_that_was_refused_says_what_the_session_is(
    fake: FakeDaliuge, backend: RestBackend
) -> None:
    drops = start(backend)
    fake.plan.on("cancel", Fault("done_555"), Fault("answer", status=555, body=refused()))
    assert backend.cancel(SID).state is DaliugeState.CANCELLED
    fake.sessions[SID].state = RUNNING
    seen = backend.cancel(SID)
    assert seen.state is DaliugeState.RUNNING
    assert seen.reason is not None
    assert seen.reason.startswith("the manager refused to cancel it")
    fake.fail(SID, {drops[0]["oid"]: "kaboom"})
    assert backend.cancel(SID).state is DaliugeState.FAILED


def refused() -> str:
    return '{"type": "DaliugeException", "args": ["no"]}'


def test_a_cancellation_that_changes_nothing_is_not_believed(fake: FakeDaliuge, backend: RestBackend) -> None:
    start(backend)
    fake.plan.on("cancel", Fault("answer", status=200, body='{"Status": "Success"}'))
    seen = backend.cancel(SID)
    assert seen.state is DaliugeState.RUNNING
    assert seen.reason == "the manager accepted to cancel it, but it still runs"


def test_a_cancellation_that_gets_no_answer_is_unreachable(fake: FakeDaliuge, backend: RestBackend) -> None:
    start(backend)
    fake.plan.on("cancel", Fault("done_cut"))
    assert backend.cancel(SID).state is DaliugeState.UNREACHABLE
    assert backend.cancel(SID).state is DaliugeState.CANCELLED


def test_a_session_that_never_ran_is_cancelled_by_deleting_it(
    fake: FakeDaliuge, backend: RestBackend
) -> None:
    start(backend)
    fake.sessions[SID].state = BUILDING
    fake.plan.on("delete", Fault("html"))
    assert backend.cancel(SID).state is DaliugeState.BUILDING
    assert backend.cancel(SID).state is DaliugeState.CANCELLED
    assert fake.sessions == {}


def test_discarding_what_is_not_there_is_fine(backend: RestBackend) -> None:
    backend.discard(SID)


def test_discarding_needs_a_look_first(fake: FakeDaliuge, backend: RestBackend) -> None:
    start(backend)
    fake.sessions[SID].state = BUILDING
    fake.plan.on("status", Fault("html"))
    with pytest.raises(BackendUnavailableError):
        backend.discard(SID)
    assert SID in fake.sessions


def test_a_restarted_manager_that_fails_over_its_own_list_has_deleted_the_session(
    fake: FakeDaliuge, backend: RestBackend
) -> None:
    start(backend)
    fake.sessions[SID].state = BUILDING
    fake.restart_manager()
    backend.discard(SID)
    assert fake.sessions == {}


def test_the_nodes_are_the_managers(backend: RestBackend) -> None:
    assert backend.nodes() == [NODE]
