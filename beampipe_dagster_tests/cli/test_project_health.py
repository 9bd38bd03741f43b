"""`beampipe project health`, against services on real sockets."""

from __future__ import annotations

import json

from beampipe_dagster.sandbox.ports import free_port
from beampipe_dagster_tests.cli.support import SURVEY, Beampipe, World
from beampipe_dagster_tests.support.fake_tap import FakeTap, Reply, availability_document, rows


def test_archives_that_answer_are_up_and_one_that_does_not_is_exit_code_1(
    world: World, beampipe: Beampipe
) -> None:
    world.looked_at("A")
    up: dict[str, Reply] = {"availability": availability_document(available=True)}
    down: dict[str, Reply] = {"availability": availability_document(available=False, note="maintenance")}
    with FakeTap(rows([]), pages=up) as casda, FakeTap(rows([]), pages=down) as vizier:
        env = {"BEAMPIPE_CASDA_TAP_URL": casda.url, "BEAMPIPE_VIZIER_TAP_URL": casda.url}
        good = beampipe("project", "health", SURVEY, env=env)
        assert good.exit_code == 0, good.output
        assert "casda" in good.stdout
        assert "ms" in good.stdout
        env["BEAMPIPE_VIZIER_TAP_URL"] = vizier.url
        bad = beampipe("project", "health", SURVEY, "--json", env=env)
    assert bad.exit_code == 1
    document = json.loads(bad.stdout)
    found = {item["adapter"]: item for item in document["archives"]}
    assert not document["healthy"]
    assert (found["casda"]["available"], found["vizier"]["available"]) == (True, False)
    assert found["casda"]["last_good_at"] is not None
    assert "maintenance" in found["vizier"]["message"]


def test_an_archive_that_cannot_be_reached_is_down_and_says_why(world: World, beampipe: Beampipe) -> None:
    del world
    url = f"http://127.0.0.1:{free_port()}/tap"
    result = beampipe(
        "project", "health", SURVEY, env={"BEAMPIPE_CASDA_TAP_URL": url, "BEAMPIPE_VIZIER_TAP_URL": url}
    )
    assert result.exit_code == 1
    assert "down" in result.stdout


def test_an_unknown_survey_is_refused(beampipe: Beampipe) -> None:
    beampipe.refused("project", "health", "nope", code="project_not_found")


def test_the_queries_are_shown_with_their_form_and_what_may_surprise(
    world: World, beampipe: Beampipe
) -> None:
    del world
    up: dict[str, Reply] = {"availability": availability_document(available=True)}
    with FakeTap(rows([]), pages=up) as tap:
        env = {"BEAMPIPE_CASDA_TAP_URL": tap.url, "BEAMPIPE_VIZIER_TAP_URL": tap.url}
        text = beampipe("project", "health", SURVEY, env=env)
        document = json.loads(beampipe("project", "health", SURVEY, "--json", env=env).stdout)
    assert text.exit_code == 0, text.output
    assert "sources a request" in " ".join(text.stdout.split()) or "a request" in text.stdout
    assert "visibility: like_on_upload" in text.stdout
    found = {item["name"]: item for item in document["queries"]}
    assert [found[name]["form"] for name in ("visibility", "ra_dec_vsys", "sbid_to_eval_file")] == [
        "or",
        "in",
        "in",
    ]
    assert all(item["exact"] and not item["upload"] for item in document["queries"])
