"""`beampipe execution queue`, `prepare`, `launch`, and `beampipe source prioritize`."""

from __future__ import annotations

from typing import Any

import pytest

from beampipe_dagster_tests.cli.support import SURVEY, Beampipe, World


@pytest.fixture
def waiting(world: World) -> World:
    """A and B wait, C is held."""
    world.looked_at("A")
    world.looked_at("B")
    world.looked_at("C", ready=False)
    return world


def test_an_empty_ledger_has_no_queue(beampipe: Beampipe) -> None:
    assert "There is no survey yet." in beampipe.ok("execution", "queue")
    assert beampipe.json("execution", "queue") == {"total": 0, "surveys": []}


def test_the_queue_shows_turns_and_why_a_source_does_not_run_yet(waiting: World, beampipe: Beampipe) -> None:
    assert "No tick has decided anything yet" in beampipe.ok("execution", "queue", SURVEY)
    waiting.platform.admission.tick(SURVEY)
    text = Beampipe(beampipe.home, columns=160).ok("execution", "queue", SURVEY)
    assert "1 source of wallaby_demo waits for an execution." in text
    assert "discovery_flags_failed: readiness flags do not pass: position" in text
    assert "in_flight_cap 0 of 2" in text
    assert "admitted 2" in text
    (survey,) = beampipe.json("execution", "queue")["surveys"]
    (held,) = survey["waiting"]
    assert (held["source_identifier"], held["position"], held["code"]) == (
        "C",
        None,
        "discovery_flags_failed",
    )
    assert survey["by_code"] == {"discovery_flags_failed": 1}
    assert survey["last_tick"]["admitted"] == 2


def test_a_priority_changes_the_turn(waiting: World, beampipe: Beampipe) -> None:
    assert "now with priority 5" in beampipe.ok("source", "prioritize", "-p", SURVEY, "B", "--priority", "5")
    assert "had it before" in beampipe.ok("source", "prioritize", "-p", SURVEY, "B", "--priority", "5")
    (survey,) = beampipe.json("execution", "queue")["surveys"]
    assert [(one["source_identifier"], one["priority"]) for one in survey["waiting"]][:2] == [
        ("B", 5),
        ("A", 0),
    ]
    assert waiting.platform.settings.execution_retry_max_attempts == 2
    beampipe.refused(
        "source", "prioritize", "-p", SURVEY, "nobody", "--priority", "1", code="source_not_registered"
    )


def test_a_source_is_registered_with_its_priority(world: World, beampipe: Beampipe) -> None:
    beampipe.ok("source", "register", "-p", SURVEY, "D", "--priority", "9")
    world.looked_at("D")
    (survey,) = beampipe.json("execution", "queue")["surveys"]
    assert [(one["source_identifier"], one["priority"]) for one in survey["waiting"]] == [("D", 9)]


def test_prepare_says_what_would_run_and_launches_nothing(waiting: World, beampipe: Beampipe) -> None:
    found = beampipe.json("execution", "prepare", SURVEY)
    assert found["totals"]["sources"] == 3
    assert found["totals"]["blocked"] == {"discovery_flags_failed": 1}
    assert found["profile"] is not None
    text = beampipe.ok("execution", "prepare", SURVEY, "A", "nobody")
    assert "nobody: the source is not registered [source_not_registered]" in text
    assert beampipe.json("execution", "list")["executions"] == []
    assert waiting.platform.clock.now() is not None


def test_a_launch_is_told_and_repeated_under_its_key(waiting: World, beampipe: Beampipe) -> None:
    args = ("execution", "launch", SURVEY, "A", "--idempotency-key", "k", "--no-submit", "--no-stage")
    first: dict[str, Any] = beampipe.json(*args)
    assert (first["replayed"], first["sources"]) == (False, ["A"])
    assert first["options"] == {"do_stage": False, "do_submit": False}
    again = beampipe.json(*args)
    assert (again["replayed"], again["execution_id"]) == (True, first["execution_id"])
    assert "launched execution" in beampipe.ok(*args)
    beampipe.refused(*args, "--force", code="idempotency_key_reused")
    assert waiting.platform.admission.tick(SURVEY).admitted != []


def test_a_refused_launch_lists_everything_that_speaks_against_it(waiting: World, beampipe: Beampipe) -> None:
    del waiting
    text = beampipe.refused("execution", "launch", SURVEY, "C", "nobody", code="launch_refused")
    assert "[too_many_sources]" in text
    assert "[discovery_flags_failed]" in text
    assert "[source_not_registered]" in text
