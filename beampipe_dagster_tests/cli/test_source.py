"""`beampipe source`."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from beampipe_dagster.cli.source_view import what_changed
from beampipe_dagster.ledger import sources
from beampipe_dagster.ledger.states import Status
from beampipe_dagster_tests.cli.support import SURVEY, Beampipe, World


def _states(beampipe: Beampipe, *args: str) -> dict[str, str]:
    return {
        row["source_identifier"]: row["state"] for row in beampipe.json("source", "list", *args)["sources"]
    }


@pytest.fixture
def busy(world: World) -> World:
    """A completed, B failed, C held."""
    for name in "ABC":
        world.looked_at(name, ready=name != "C")
    world.ended(world.submitted(world.admitted("A"), done=9), Status.COMPLETED)
    world.ended(world.submitted(world.admitted("B")), Status.FAILED, error="drop image failed: no")
    world.platform.admission.tick(SURVEY)
    return world


def test_the_list_says_what_each_source_does_and_why(busy: World, beampipe: Beampipe) -> None:
    del busy
    assert _states(beampipe) == {"A": "completed", "B": "failed", "C": "held"}
    lines = {line.split()[0]: line for line in beampipe.ok("source", "list").splitlines()}
    assert "9/9" in lines["A"]
    assert "drop image failed: no" in lines["B"]
    assert "discovery_flags_failed" in lines["C"]


def test_the_list_can_be_narrowed(busy: World, beampipe: Beampipe) -> None:
    assert _states(beampipe, "--held") == {"C": "held"}
    assert _states(beampipe, "--failed") == {"B": "failed"}
    assert _states(beampipe, "--pending") == {}
    assert "No source is pending." in beampipe.ok("source", "list", "--pending")
    busy.looked_at("A", datasets=3)
    assert _states(beampipe, "--pending") == {"A": "pending"}


def test_a_failed_look_is_among_the_failed_with_its_reason(world: World, beampipe: Beampipe) -> None:
    error = {"code": "archive_timeout", "message": "no answer within 60 s"}
    world.set_source("A", last_outcome="timeout", last_error=error)
    assert _states(beampipe, "--failed") == {"A": "discovery_failed"}
    assert "archive_timeout: no answer within 60 s" in beampipe.ok("source", "list")


def test_a_limit_is_told(world: World, beampipe: Beampipe) -> None:
    del world
    assert "first 2 are shown" in beampipe.ok("source", "list", "--limit", "2")
    assert beampipe.json("source", "list", "--limit", "2")["truncated"]
    whole = beampipe.json("source", "list", "--limit", "0")
    assert (len(whole["sources"]), whole["truncated"]) == (3, False)


def test_a_list_of_a_large_survey_is_read_page_by_page(
    world: World, beampipe: Beampipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    del world
    monkeypatch.setattr("beampipe_dagster.cli.source.PAGE", 2)
    assert list(_states(beampipe)) == ["A", "B", "C"]


def test_an_unknown_survey_is_refused_everywhere(beampipe: Beampipe) -> None:
    for command in (("list",), ("show", "A"), ("discover", "A"), ("register", "A")):
        beampipe.refused("source", command[0], "-p", "nope", *command[1:], code="project_not_found")


def test_a_survey_without_sources_is_told(beampipe: Beampipe) -> None:
    assert "No source is registered." in beampipe.ok("source", "list")


def test_registering_adds_and_asks_for_a_look(world: World, beampipe: Beampipe) -> None:
    text = beampipe.ok("source", "register", "-p", SURVEY, "D", "A")
    assert "Added 1 source to wallaby_demo: D" in text
    assert "1 source known before: A" in text
    assert "next discovery tick" in text
    with world.platform.ledger.read() as conn:
        rows = {row.source_identifier: row for row in _all(conn)}
    assert rows["A"].discovery_requested_at is not None
    assert rows["B"].discovery_requested_at is None


def _all(conn: Any) -> list[Any]:
    from beampipe_dagster.ledger import sources  # noqa: PLC0415  # beside its one use

    return sources.listing(conn, SURVEY)


def test_registering_without_a_look_asks_for_none(world: World, beampipe: Beampipe) -> None:
    answer = beampipe.json("source", "register", "-p", SURVEY, "A", "--no-discover")
    assert (answer["known"], answer["marked_for_discovery"]) == (["A"], 0)
    with world.platform.ledger.read() as conn:
        assert all(row.discovery_requested_at is None for row in _all(conn))


def test_a_disabled_source_is_known_and_nothing_more(world: World, beampipe: Beampipe) -> None:
    del world
    answer = beampipe.json("source", "register", "-p", SURVEY, "A", "--disabled")
    assert (answer["enabled"], answer["marked_for_discovery"]) == (False, 0)
    assert _states(beampipe)["A"] == "disabled"
    assert "disabled sources are not looked at" in beampipe.ok("source", "discover", "-p", SURVEY, "A", "B")


def test_a_bad_name_registers_nothing(world: World, beampipe: Beampipe) -> None:
    del world
    beampipe.refused("source", "register", "-p", SURVEY, "D", "100%", code="invalid_identifier")
    assert "D" not in _states(beampipe)


def test_a_file_registers_all_or_nothing(world: World, beampipe: Beampipe, tmp_path: Path) -> None:
    del world
    path = tmp_path / "more.csv"
    path.write_text("source_identifier,ra_deg,dec_deg\nD,1.5,-2\nE,400,0\n")
    args = ("source", "register", "-p", SURVEY, "--file", str(path))
    text = beampipe.refused(*args, code="invalid_source_file")
    assert f"{path}:3: ra_deg of 'E' is '400'" in text
    assert "D" not in _states(beampipe)
    path.write_text("source_identifier,ra_deg,dec_deg\nD,1.5,-2\nE,,\n")
    assert "Added 2 sources" in beampipe.ok(*args)
    found = {row["source_identifier"]: row for row in beampipe.json("source", "list")["sources"]}
    assert (found["D"]["ra_deg"], found["D"]["dec_deg"], found["E"]["ra_deg"]) == (1.5, -2.0, None)


def test_a_look_can_be_asked_for_some_or_all(world: World, beampipe: Beampipe) -> None:
    del world
    assert beampipe.json("source", "discover", "-p", SURVEY, "A", "A")["marked"] == 1
    assert beampipe.json("source", "discover", "-p", SURVEY, "--all")["marked"] == 3
    assert "1 source will be looked at" in beampipe.ok("source", "discover", "-p", SURVEY, "B")


def test_a_look_at_an_unknown_source_marks_nothing(world: World, beampipe: Beampipe) -> None:
    beampipe.refused("source", "discover", "-p", SURVEY, "A", "Z", code="source_not_registered")
    with world.platform.ledger.read() as conn:
        assert all(row.discovery_requested_at is None for row in _all(conn))


def test_a_page_has_metadata_signatures_readiness_and_executions(busy: World, beampipe: Beampipe) -> None:
    del busy
    text = beampipe.ok("source", "show", "-p", SURVEY, "C")
    assert text.startswith("C  held: discovery_flags_failed\n")
    assert "no: readiness flags do not pass: position [discovery_flags_failed]" in text
    assert "hint" in text
    assert "C_B01.ms" in text
    assert "0/1 pass, not position" in text
    assert "2 datasets added in SB7" in text
    page = beampipe.json("source", "show", "-p", SURVEY, "C")
    assert page["readiness"]["blocker"]["code"] == "discovery_flags_failed"
    assert page["state"]["word"] == "held"
    assert list(page["metadata"]) == ["7"]
    assert page["executions"] == []


def test_the_page_of_a_failed_source_has_its_execution_and_reason(busy: World, beampipe: Beampipe) -> None:
    del busy
    page = beampipe.json("source", "show", "-p", SURVEY, "B")
    (run,) = page["executions"]
    assert (run["status"], run["last_error"]) == ("failed", "drop image failed: no")
    text = beampipe.ok("source", "show", "-p", SURVEY, "B")
    assert "drop image failed: no" in text
    assert run["id"][:13] in text
    assert "it runs again when the archives give it a new signature" in text


def test_the_page_of_a_source_that_nobody_looked_at_says_so(world: World, beampipe: Beampipe) -> None:
    del world
    text = beampipe.ok("source", "show", "-p", SURVEY, "A")
    assert "never" in text
    assert "The archives have given nothing yet." in text
    assert "10.00000 -20.00000" in text
    assert "[discovery_never_ran]" in text


def test_an_unknown_source_is_told_with_what_to_do(world: World, beampipe: Beampipe) -> None:
    del world
    text = beampipe.refused("source", "show", "-p", SURVEY, "Z", code="source_not_registered")
    assert "beampipe source register" in text


def test_the_time_of_waiting_is_shown(world: World, beampipe: Beampipe) -> None:
    world.looked_at("A")
    ago = world.platform.clock.now() - timedelta(hours=2, minutes=10, seconds=30)
    world.set_source("A", workflow_run_pending_at=ago)
    assert "2h 10m" in beampipe.ok("source", "show", "-p", SURVEY, "A")


@pytest.mark.parametrize(
    ("diff", "words"),
    [
        ({}, "no dataset"),
        ({"added": [{"sbid": "7", "dataset": "a"}], "counts": {"added": 1}}, "1 dataset added in SB7"),
        (
            {"flags": [{"sbid": "7", "fields": {"vsys": {}}}], "flags_count": 1},
            "flags changed",
        ),
        (
            {
                "changed": [{"sbid": "7", "dataset": "a", "fields": {"quality": {}}}],
                "counts": {"changed": 1},
                "flags": [{"sbid": "7", "fields": {"vsys": {}}}],
                "flags_count": 1,
            },
            "1 dataset changed in SB7 (quality); flags changed",
        ),
        (
            {"removed": [{"sbid": "7", "dataset": "a"}], "counts": {"removed": 60}},
            "60 datasets removed in SB7",
        ),
    ],
)
def test_a_diff_is_told_in_words(diff: dict[str, Any], words: str) -> None:
    assert what_changed(diff) == words


def test_what_is_refused_can_be_left_out(world: World, beampipe: Beampipe) -> None:
    del world
    beampipe.refused("source", "register", "-p", SURVEY, "D", "50%", code="invalid_identifier")
    answer = beampipe.json("source", "register", "-p", SURVEY, "D", "50%", "--skip-refused")
    assert (answer["added"], list(answer["refused"])) == (["D"], ["50%"])
    assert "Refused: '50%'" in beampipe.ok("source", "register", "-p", SURVEY, "E", "50%", "--skip-refused")


def test_sources_come_from_standard_input_as_json(world: World, beampipe: Beampipe) -> None:
    text = '[{"source_identifier": "J1", "ra_deg": 1.5, "dec_deg": -2.0, "stale_after_hours": 6}, "J2"]'
    result = beampipe("source", "register", "-p", SURVEY, "--file", "-", "--json", stdin=text)
    assert json.loads(result.stdout)["added"] == ["J1", "J2"]
    with world.platform.ledger.read() as conn:
        row = sources.get(conn, SURVEY, "J1")
    assert (row.ra_deg, row.dec_deg, row.stale_after_hours) == (1.5, -2.0, 6)


def test_disabling_and_enabling_say_what_changed(world: World, beampipe: Beampipe) -> None:
    del world
    answer = beampipe.json("source", "disable", "-p", SURVEY, "A", "B")
    assert (answer["disabled"], answer["unchanged"]) == (["A", "B"], [])
    assert _states(beampipe) == {"A": "disabled", "B": "disabled", "C": "unchecked"}
    text = beampipe.ok("source", "enable", "-p", SURVEY, "A", "C")
    assert "Enabled 1 source of wallaby_demo: A" in text
    assert "1 source enabled before: C" in text
    beampipe.refused("source", "enable", "-p", SURVEY, "A", "nobody", code="source_not_registered")
    beampipe.refused("source", "disable", "-p", SURVEY, code="usage", exit_code=2)
    assert "disabled" in beampipe.ok("timeline", "source", "-p", SURVEY, "B")


def test_deleting_asks_first_and_keeps_the_story(world: World, beampipe: Beampipe) -> None:
    del world
    asked = beampipe("source", "delete", "-p", SURVEY, "A", stdin="n\n")
    assert asked.exit_code != 0
    assert "Delete 1 source of wallaby_demo (A)?" in asked.output
    beampipe.refused("source", "delete", "-p", SURVEY, "nobody", "--yes", code="source_not_registered")
    assert len(_states(beampipe)) == 3
    result = beampipe("source", "delete", "-p", SURVEY, "A", "--json")
    assert json.loads(result.stdout)["error"]["code"] == "usage"
    assert beampipe.json("source", "delete", "-p", SURVEY, "A", "--yes")["deleted"] == ["A"]
    assert beampipe("source", "delete", "-p", SURVEY, "B", stdin="y\n").exit_code == 0
    assert list(_states(beampipe)) == ["C"]


def test_a_source_in_use_is_not_deleted(busy: World, beampipe: Beampipe) -> None:
    busy.looked_at("A", datasets=3)
    busy.admitted("A")
    assert "A by execution" in beampipe.refused(
        "source", "delete", "-p", SURVEY, "A", "--yes", code="source_busy"
    )


def test_quarantined_sources_are_among_the_failed(world: World, beampipe: Beampipe) -> None:
    error = {"code": "invalid_metadata", "message": "no SBID"}
    moment = world.platform.clock.now()
    world.set_source("A", last_outcome="error", last_error=error, quarantined_at=moment)
    assert _states(beampipe, "--failed") == {"A": "quarantined"}
    assert "invalid_metadata: no SBID" in beampipe.ok("source", "list", "--failed")


def test_explain_answers_in_words_and_as_json(busy: World, beampipe: Beampipe) -> None:
    del busy
    text = beampipe.ok("source", "explain", "-p", SURVEY, "C")
    assert "[discovery_flags_failed]" in text
    assert "you can" in text
    answers = {
        name: beampipe.json("source", "explain", "-p", SURVEY, name)["answer"]
        for name in ("A", "B", "C", "Z")
    }
    assert {name: answer["code"] for name, answer in answers.items()} == {
        "A": "signature_already_executed",
        "B": "execution_failed",
        "C": "discovery_flags_failed",
        "Z": "source_not_registered",
    }
    assert all(answer["sentence"] and answer["next"] and answer["operator"] for answer in answers.values())
    beampipe.refused("source", "explain", "-p", "nope", "A", code="project_not_found")
