"""`beampipe archive`: what it shows, and what an operator can do about an archive."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from beampipe_dagster_tests.cli.support import SURVEY, Beampipe, World
from beampipe_dagster_tests.support.fake_tap import FakeTap, html, rows

GOOD = rows([{"table_name": "obscore"}])


@pytest.fixture
def taps() -> Iterator[tuple[FakeTap, FakeTap]]:
    with FakeTap(GOOD) as casda, FakeTap(GOOD) as vizier:
        yield casda, vizier


class Calls:
    """`beampipe` with the URLs of two archives."""

    def __init__(self, beampipe: Beampipe, taps: tuple[FakeTap, FakeTap]) -> None:
        self.beampipe = beampipe
        self.env = dict(
            zip(("BEAMPIPE_CASDA_TAP_URL", "BEAMPIPE_VIZIER_TAP_URL"), (tap.url for tap in taps), strict=True)
        )

    def text(self, *args: str, exit_code: int = 0) -> str:
        result = self.beampipe("archive", *args, env=self.env)
        assert result.exit_code == exit_code, result.output
        return result.stdout + result.stderr

    def json(self, *args: str, exit_code: int = 0) -> Any:
        result = self.beampipe("archive", *args, "--json", env=self.env)
        assert result.exit_code == exit_code, result.output
        return json.loads(result.stdout)


@pytest.fixture
def calls(world: World, beampipe: Beampipe, taps: tuple[FakeTap, FakeTap]) -> Calls:
    del world
    return Calls(beampipe, taps)


def test_archives_that_were_never_asked_are_listed_too(calls: Calls) -> None:
    found = calls.json("list")["archives"]
    assert [(item["name"], item["state"], item["asked"]) for item in found] == [
        ("casda", "closed", False),
        ("vizier", "closed", False),
    ]
    assert "not asked yet" in calls.text("list")


def test_a_probe_asks_once_and_its_answer_is_kept(calls: Calls, taps: tuple[FakeTap, FakeTap]) -> None:
    assert "answers." in calls.text("probe", "casda")
    assert len(taps[0].queries) == 1
    item = calls.json("show", "casda")
    assert (item["good_count"], item["permits_in_use"], item["surveys"]) == (1, 0, [SURVEY])
    assert item["last_good_at"] is not None
    assert item["latency_seconds"] > 0
    text = calls.text("show", "casda")
    assert "1 answered, 0 not" in text
    assert "4 requests at a time" in text


def test_an_archive_that_is_opened_by_hand_is_not_asked_until_it_is_closed(
    calls: Calls, beampipe: Beampipe
) -> None:
    opened = calls.text("open", "casda", "--reason", "they move house")
    assert "beampipe archive close casda" in opened
    item = calls.json("show", "casda")
    assert (item["state"], item["by_hand"], item["until"]) == ("open", True, None)
    assert "they move house" in item["why"]
    assert "open" in calls.text("list")
    explained = beampipe.json("source", "explain", "-p", SURVEY, "A")
    assert explained["answer"]["code"] == "archive_circuit_open"
    assert "archive casda: circuit open since" in explained["answer"]["sentence"]
    assert "is asked again" in calls.text("close", "casda")
    assert "was asked already" in calls.text("close", "casda")
    assert beampipe.json("source", "explain", "-p", SURVEY, "A")["answer"]["code"] == "discovery_never_ran"
    story = beampipe.ok("timeline", "project", SURVEY)
    assert "they move" in " ".join(story.split())
    assert "is asked again (by hand)" in " ".join(story.split())


def test_a_circuit_can_be_opened_for_a_time(calls: Calls) -> None:
    assert calls.json("open", "vizier", "--minutes", "90")["until"] is not None
    assert "until" in calls.json("show", "vizier")["why"]


def test_a_probe_that_fails_is_exit_code_1_and_leaves_a_circuit_as_it_was_wanted(
    calls: Calls, taps: tuple[FakeTap, FakeTap]
) -> None:
    taps[0].script[:] = [html(status=503)]
    calls.text("open", "casda")
    found = calls.json("probe", "casda", exit_code=1)
    assert (found["answered"], found["state"], found["error"]["code"]) == (
        False,
        "open",
        "archive_unavailable",
    )
    assert calls.json("show", "casda")["by_hand"]
    taps[0].script[:] = [GOOD]
    assert calls.json("probe", "casda")["state"] == "closed"


def test_an_archive_that_nobody_has_is_refused_with_what_to_do(calls: Calls, beampipe: Beampipe) -> None:
    del calls
    for command in ("show", "open", "close", "probe"):
        beampipe.refused("archive", command, "eso", code="archive_not_known")


def test_a_name_that_means_two_archives_is_refused_with_both(
    calls: Calls, taps: tuple[FakeTap, FakeTap]
) -> None:
    calls.text("open", "casda")
    calls.env["BEAMPIPE_CASDA_TAP_URL"] = taps[1].url.replace("/tap", "/other")
    calls.json("show", "casda", exit_code=1)
    key = taps[0].url.removeprefix("http://")
    assert calls.json("show", key)["by_hand"]
    found = calls.json("probe", key, exit_code=1)
    assert found["error"]["code"] == "archive_not_used"
