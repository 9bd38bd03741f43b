from __future__ import annotations

import pytest

from beampipe_dagster.errors import BeampipeError, ConflictError
from beampipe_dagster.execution.launch import Launch
from beampipe_dagster.ids import UuidIds
from beampipe_dagster.ledger.states import Status
from beampipe_dagster_tests.support.fake_daliuge import CANCELLED, FINISHED, Fault
from beampipe_dagster_tests.support.ledgers import SURVEY, at_once
from beampipe_dagster_tests.support.platforms import Stage, make_platform

RELAUNCH = 120


def due(stage: Stage) -> list[Launch]:
    return stage.platform.launcher.due(SURVEY)


def refusal(stage: Stage, key: str) -> BeampipeError:
    with pytest.raises(ConflictError) as caught:
        stage.platform.launcher.for_partition(SURVEY, key, actor="anna")
    assert caught.value.hint
    return caught.value


def test_an_admitted_execution_is_launched_once(stage: Stage) -> None:
    execution = stage.admitted("A")
    (launch,) = due(stage)
    assert (launch.execution.id, launch.run_key) == (execution.id, f"{execution.id}:1")
    assert due(stage) == []


def test_a_launch_that_never_began_is_repeated_under_a_new_key(stage: Stage) -> None:
    execution = stage.admitted("A")
    keys = []
    for _ in range(3):
        (launch,) = due(stage)
        keys.append(launch.run_key)
        stage.clock.advance(RELAUNCH - 1)
        assert due(stage) == []
        stage.clock.advance(1)
    assert keys == [f"{execution.id}:{number}" for number in (1, 2, 3)]


def test_a_launch_is_not_repeated_while_somebody_works_on_it(stage: Stage) -> None:
    execution = stage.admitted("A")
    due(stage)
    stage.clock.advance(RELAUNCH)
    stage.do("workflow_manifest", execution)
    assert due(stage) == []
    stage.clock.advance(61)
    assert [one.execution.id for one in due(stage)] == [execution.id]


def test_an_execution_that_waits_is_launched_when_its_wait_is_over(stage: Stage) -> None:
    execution = stage.submit(stage.admitted("A"), until="prepared_graph")
    due(stage)
    stage.daliuge.translator.stop()
    with pytest.raises(BeampipeError):
        stage.do("physical_graph", execution)
    stage.clock.advance(4)
    assert due(stage) == []
    stage.clock.advance(1)
    assert len(due(stage)) == 1


def test_what_is_submitted_or_uncertain_or_over_is_never_launched(stage: Stage) -> None:
    stage.ready("A", "B")
    first, second = stage.admit()
    first = stage.submit(first)
    second = stage.submit(second, until="physical_graph")
    stage.daliuge.plan.on("deploy", Fault("done_html"))
    with pytest.raises(BeampipeError):
        stage.do("backend_run", second)
    stage.clock.advance(10_000)
    assert due(stage) == []
    stage.daliuge.go(stage.session(first), FINISHED)
    stage.poll()
    stage.clock.advance(10_000)
    assert due(stage) == []


def test_two_daemons_never_launch_the_same_twice(stage: Stage) -> None:
    stage.ready("A", "B", "C", "D")
    stage.admit()
    other = make_platform(
        stage.ledger, home=stage.home, clock=stage.clock, archives=stage.archives, ids=UuidIds()
    )
    done = at_once(
        *(lambda one=platform: one.launcher.due(SURVEY) for platform in (stage.platform, other) * 2)
    )
    keys = [launch.run_key for launches in done if isinstance(launches, list) for launch in launches]
    assert not [one for one in done if isinstance(one, BaseException)]
    assert len(keys) == len(set(keys))
    remaining = [launch.run_key for launch in due(stage)]
    assert len(keys) + len(remaining) == 4


def test_a_partition_of_an_active_execution_means_that_execution(stage: Stage) -> None:
    execution = stage.admitted("A")
    found = stage.platform.launcher.for_partition(SURVEY, execution.partition_key, actor="anna")
    assert found.id == execution.id
    stage.submit(execution)
    found = stage.platform.launcher.for_partition(SURVEY, execution.partition_key, actor="anna")
    assert (found.id, len(stage.executions())) == (execution.id, 1)


def test_a_partition_without_an_execution_is_admitted_for_who_asks(stage: Stage) -> None:
    stage.ready("A")
    key = f"A@{(stage.source('A').discovery_signature or '')[:12]}"
    made = stage.platform.launcher.for_partition(SURVEY, key, actor="anna")
    assert (made.created_by, made.partition_key) == ("anna", key)
    assert stage.admit() == []


@pytest.mark.parametrize(
    ("end", "status"), [(FINISHED, Status.COMPLETED), (CANCELLED, Status.CANCELLED), (6, Status.FAILED)]
)
def test_a_partition_whose_execution_is_over_is_refused_with_how_it_ended(
    stage: Stage, end: int, status: Status
) -> None:
    execution = stage.submitted("A")
    stage.daliuge.go(stage.session(execution), end)
    stage.poll()
    assert stage.execution(execution).status is status
    assert refusal(stage, execution.partition_key).code == f"execution_{status}"
    assert stage.daliuge.deploys() == 1


def test_a_key_that_nobody_discovered_is_refused(stage: Stage) -> None:
    assert refusal(stage, "A@0123456789ab").code == "partition_unknown"
    assert refusal(stage, "not a key").code == "partition_unknown"


def test_a_key_with_a_successor_is_refused(stage: Stage) -> None:
    stage.ready("A")
    key = f"A@{(stage.source('A').discovery_signature or '')[:12]}"
    stage.archives.deposit("A", 8)
    stage.request("A")
    assert refusal(stage, key).code == "signature_superseded"
