from __future__ import annotations

import pytest

from beampipe_dagster.backends.base import DaliugeState, SessionPresence
from beampipe_dagster.backends.daliuge.rest import RestBackend
from beampipe_dagster.clock import ManualClock
from beampipe_dagster.errors import (
    BackendUnavailableError,
)
from beampipe_dagster_tests.backends.daliuge.rest_support import (
    SID,
    graph,
    nothing,
    oids,
    start,
)
from beampipe_dagster_tests.support import graphs
from beampipe_dagster_tests.support.fake_daliuge import (
    BUILDING,
    CANCELLED,
    FAILED,
    FINISHED,
    NODE,
    RUNNING,
    FakeDaliuge,
    Fault,
)


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
    fake.plan.on("nodes", Fault("cut"))
    sessions = dict.fromkeys([f"s-{number}" for number in range(50)])
    seen = backend.observe(sessions)
    assert fake.calls == ["nodes"]
    assert set(seen) == set(sessions)
    assert {one.state for one in seen.values()} == {DaliugeState.UNREACHABLE}
    fake.manager.stop()
    assert backend.observe({SID: None})[SID].state is DaliugeState.UNREACHABLE
    assert backend.presence(SID) is SessionPresence.UNREACHABLE


def test_a_node_that_is_down_is_found_out_once_for_all_sessions(
    fake: FakeDaliuge, backend: RestBackend
) -> None:
    """The manager's listing of a node that is away is an error page, which may mean other things too."""
    fake.plan.on("node_sessions", Fault("html"))
    fake.plan.on("status", Fault("node_down"))
    seen = backend.observe(dict.fromkeys([f"s-{number}" for number in range(50)]))
    assert fake.calls == ["nodes", "node_sessions", "status"]
    assert {one.state for one in seen.values()} == {DaliugeState.UNREACHABLE}


def test_a_listing_that_fails_is_done_without(fake: FakeDaliuge, backend: RestBackend) -> None:
    names = [f"s-{number}" for number in range(4)]
    for name in names:
        start(backend, name)
    for fault in (
        Fault("html"),
        Fault("answer", status=404, body="<html>Not found</html>"),
        Fault("answer", status=200, body='[{"sessionId": "s-1", "status": 3}, {"status": 3}]'),
        Fault("answer", status=200, body='{"s-1": 3}'),
    ):
        fake.plan.on("node_sessions", fault)
        seen = backend.observe(dict.fromkeys(names))
        assert {one.state for one in seen.values()} == {DaliugeState.RUNNING}, fault


def test_many_running_sessions_take_two_requests_and_one_for_each_that_is_counted(
    fake: FakeDaliuge, backend: RestBackend
) -> None:
    names = [f"s-{number}" for number in range(30)]
    for name in names:
        start(backend, name)
    fake.calls.clear()
    seen = backend.observe(dict.fromkeys(names), counted={"s-3", "s-4"})
    assert sorted(fake.calls) == ["graph_status", "graph_status", "node_sessions", "nodes"]
    assert {name for name, one in seen.items() if one.drops is not None} == {"s-3", "s-4"}
    assert {one.state for one in seen.values()} == {DaliugeState.RUNNING}


def test_a_session_that_is_in_no_listing_is_unknown_to_the_manager(backend: RestBackend) -> None:
    names = [f"s-{number}" for number in range(4)]
    for name in names[1:]:
        start(backend, name)
    seen = backend.observe(dict.fromkeys([*names, "not a session"]))
    assert [seen[name].state for name in names] == [
        DaliugeState.NOT_CREATED,
        *[DaliugeState.RUNNING] * 3,
    ]
    assert seen["s-0"].raw == {NODE: {"Status": "Success"}}
    assert seen["not a session"].reason == "no session can have this id"


def test_what_there_is_no_time_for_is_left_out(
    fake: FakeDaliuge, backend: RestBackend, clock: ManualClock
) -> None:
    names = [f"s-{number}" for number in range(4)]
    for name in names:
        start(backend, name)
    fake.go("s-0", FINISHED)
    assert backend.observe(dict.fromkeys(names), seconds=0.0) == {}
    seen = backend.observe(dict.fromkeys(names), seconds=0.5)
    assert set(seen) == {"s-1", "s-2", "s-3"}, "the second look would come too late"
    assert clock.monotonic() == 1.0


def test_the_drops_of_a_session_are_asked_for_only_when_it_finished(
    fake: FakeDaliuge, backend: RestBackend
) -> None:
    asked: list[str] = []

    class Lazy(dict[str, frozenset[str] | None]):
        def __getitem__(self, name: str) -> frozenset[str] | None:
            asked.append(name)
            return super().__getitem__(name)

    names = [f"s-{number}" for number in range(3)]
    wanted = Lazy({name: oids(start(backend, name)) for name in names})
    fake.go("s-1", FINISHED)
    assert backend.observe(wanted)["s-1"].state is DaliugeState.FINISHED
    assert asked == ["s-1"]


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
    assert fake.calls.count("node_sessions") == 1
    assert fake.calls.count("status") == 3
    assert clock.monotonic() == 1.0
    assert backend.observe({}) == {}


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


def test_a_session_that_goes_on_running_is_not_deleted(fake: FakeDaliuge, backend: RestBackend) -> None:
    start(backend)
    fake.plan.on("cancel", Fault("answer", status=200, body='{"Status": "Success"}'))
    with pytest.raises(BackendUnavailableError) as caught:
        backend.remove(SID)
    assert caught.value.code == "session_still_runs"
    assert SID in fake.sessions
    backend.remove(SID)
    assert fake.sessions == {}


def test_nothing_is_removed_unseen(fake: FakeDaliuge, backend: RestBackend) -> None:
    start(backend)
    fake.plan.on("status", Fault("html"))
    with pytest.raises(BackendUnavailableError):
        backend.remove(SID)
    fake.plan.on("status", None, Fault("html"))
    with pytest.raises(BackendUnavailableError):
        backend.remove(SID)
    assert SID in fake.sessions
    assert "delete" not in fake.calls


def test_removing_what_is_not_there_is_fine(fake: FakeDaliuge, backend: RestBackend) -> None:
    backend.remove(SID)
    assert fake.calls == ["status"]


def test_what_a_drop_logged_never_lets_in_where_its_files_came_from(
    fake: FakeDaliuge, backend: RestBackend
) -> None:
    drops = start(backend)
    fake.fail(SID, {drops[0]["oid"]: "wget https://archive/file.ms?token=s3cr3t: 404"})
    (failed,) = backend.observe({SID: None})[SID].failed_drops
    assert "https://archive/file.ms?..." in failed.log
    assert "s3cr3t" not in failed.log
