"""An operator's launch: everything that speaks against it at once, caps, keys, options."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from beampipe_dagster.clock import SystemClock
from beampipe_dagster.config.settings import Settings
from beampipe_dagster.errors import BeampipeError, ConflictError, InputError
from beampipe_dagster.execution.admission import AdmissionService, Launched
from beampipe_dagster.execution.options import LaunchOptions
from beampipe_dagster.execution.request import LaunchRequest
from beampipe_dagster.ids import UuidIds
from beampipe_dagster.ledger import executions
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.states import Status
from beampipe_dagster_tests.support.ledgers import SURVEY
from beampipe_dagster_tests.support.platforms import Stage

NAMES = ("A", "B", "C", "D")


def launch(stage: Stage, *names: str, **values: Any) -> Launched:
    return stage.platform.admission.launch(
        LaunchRequest(SURVEY, names, values.pop("actor", "anna"), **values)
    )


def refusal(stage: Stage, *names: str, **values: Any) -> BeampipeError:
    with pytest.raises(BeampipeError) as caught:
        launch(stage, *names, **values)
    assert caught.value.hint
    return caught.value


def test_a_launch_takes_its_sources_out_of_the_queue(stage: Stage) -> None:
    stage.add_survey(execution={"enabled": False, "max_sources_per_execution": 2})
    stage.ready("A", "B")
    done = launch(stage, "B", "A")
    assert not done.replayed
    assert done.execution.source_identifiers == ["B", "A"]
    assert done.execution.created_by == "anna"
    assert not stage.source("A").workflow_run_pending
    assert [one.execution.id for one in stage.platform.launcher.due(SURVEY)] == [done.execution.id]


def test_all_that_speaks_against_it_is_said_at_once(stage: Stage) -> None:
    stage.ready("A")
    stage.archives.deposit("held", 7)
    stage.archives.catalogue("held", known=False)
    stage.register("held")
    stage.discover()
    stage.admit()
    error = refusal(stage, "A", "held", "nobody", "nobody", profile="lokal")
    assert error.code == "launch_refused"
    found = error.details["problems"]
    assert [(one["code"], one["source"]) for one in found] == [
        ("too_many_sources", None),
        ("profile_not_found", None),
        ("source_already_executing", "A"),
        ("discovery_flags_failed", "held"),
        ("duplicate_source", "nobody"),
        ("source_not_registered", "nobody"),
    ]
    assert all(one["hint"] for one in found)
    assert all(one["message"] in error.message for one in found)
    assert len(stage.executions()) == 1


def test_a_single_problem_has_its_own_code(stage: Stage) -> None:
    assert refusal(stage, "nobody").code == "source_not_registered"
    assert refusal(stage).code == "no_sources"


def test_launches_count_in_the_caps_and_force_overrules_all_but_the_profiles(stage: Stage) -> None:
    stage.add_survey(execution={"concurrent_execution_run_limit": 1})
    stage.add_profile(max_concurrent_executions=2)
    stage.ready(*NAMES)
    launch(stage, "A")
    assert stage.platform.admission.tick(SURVEY).skip_reason == "project_in_flight_cap"
    assert refusal(stage, "B").code == "project_in_flight_cap"
    launch(stage, "B", force=True)
    assert refusal(stage, "C", force=True).code == "profile_in_flight_cap"
    stage.platform.admission._max_in_flight = 2
    assert refusal(stage, "C").details["problems"][1]["code"] == "in_flight_cap"


def test_the_same_request_under_the_same_key_gives_the_same_execution(stage: Stage) -> None:
    stage.ready("A", "B")
    first = launch(stage, "A", key="k-1")
    again = launch(stage, " A ", key="k-1")
    assert (again.replayed, again.execution.id) == (True, first.execution.id)
    error = refusal(stage, "B", key="k-1")
    assert (error.code, error.details["execution_id"]) == ("idempotency_key_reused", first.execution.id)
    options = LaunchOptions(do_submit=False)
    assert refusal(stage, "A", key="k-1", options=options).code == "idempotency_key_reused"
    assert launch(stage, "B", key="k-1", actor="berta").execution.id != first.execution.id


@pytest.mark.parametrize("key", ["", " ", "a b", "ä", "x" * 129, "a\n"])
def test_a_key_is_visible_ascii(stage: Stage, key: str) -> None:
    stage.ready("A")
    error = refusal(stage, "A", key=key)
    assert isinstance(error, InputError)
    assert error.code == "invalid_idempotency_key"
    assert launch(stage, "A", key="!" * 128).execution.status is Status.PENDING


def test_what_was_executed_is_not_launched_again(stage: Stage) -> None:
    execution = stage.submitted("A")
    stage.daliuge.go(stage.session(execution), 4)
    stage.poll()
    assert refusal(stage, "A").code == "signature_already_executed"


def test_a_launch_without_submission_ends_with_the_physical_graph_as_success(stage: Stage) -> None:
    stage.ready("A")
    options = LaunchOptions(do_stage=False, do_submit=False)
    execution = launch(stage, "A", options=options).execution
    assert LaunchOptions.of(execution.options) == options
    done = stage.submit(execution)
    assert (done.status, done.terminal_outcome) == (Status.NOT_SUBMITTED, "succeeded")
    assert done.physical_graph_sha256 is not None
    assert stage.daliuge.deploys() == 0
    source = stage.source("A")
    assert source.last_executed_discovery_signature == source.discovery_signature
    stage.clock.advance(10_000)
    assert stage.admit() == []
    assert stage.platform.launcher.due(SURVEY) == []
    (check,) = (one for one in stage.told("execution_outcome") if one.kind == "check")
    assert check.payload["passed"] is True


def _race(url: str, home: str, way: str, start: Any, answers: Any) -> None:
    """One process: a tick, or a launch by hand, of the same sources at the same moment."""
    settings = Settings(home=Path(home), database_url=url)
    ledger = Ledger(settings.database_url)
    service = AdmissionService(ledger=ledger, clock=SystemClock(), ids=UuidIds(), max_in_flight=99)
    start.wait(60)
    made: list[str] = []
    try:
        if way == "tick":
            made = [one.id for one in service.tick(SURVEY).admitted]
        else:
            request = LaunchRequest(SURVEY, (way,), "anna")
            made = [service.launch(request).execution.id]
    except ConflictError as error:
        if error.code != "source_already_executing":
            raise
    answers.put(made)
    ledger.dispose()


def test_processes_that_admit_and_launch_at_once_never_run_a_source_twice(stage: Stage) -> None:
    stage.ready(*NAMES)
    context = multiprocessing.get_context("spawn")
    ways = ["tick", "tick", "A", "A", "B"]
    start, answers = context.Barrier(len(ways)), context.Queue()
    processes = [
        context.Process(target=_race, args=(stage.ledger.url, str(stage.home), way, start, answers))
        for way in ways
    ]
    for process in processes:
        process.start()
    made = [name for _ in ways for name in answers.get(timeout=120)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    held = [name for execution in stage.executions() for name in execution.source_identifiers]
    assert sorted(held) == sorted(NAMES)
    assert sorted(made) == sorted(one.id for one in stage.executions())
    assert not any(stage.source(name).workflow_run_pending for name in NAMES)
    with stage.ledger.read() as conn:
        assert executions.active_sources(conn, SURVEY) == set(NAMES)
