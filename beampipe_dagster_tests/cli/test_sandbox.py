"""`beampipe sandbox` against a running sandbox archive."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from beampipe_dagster.cli import sandbox
from beampipe_dagster.sandbox.archive.columns import ARCHIVES
from beampipe_dagster.sandbox.archive.deposits import QUALITIES
from beampipe_dagster.sandbox.archive.server import ArchiveServer
from beampipe_dagster.sandbox.ports import free_port
from beampipe_dagster_tests.cli.support import SURVEY, Beampipe, World


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ArchiveServer]:
    with ArchiveServer(tmp_path / "archive") as running:
        yield running


@pytest.fixture
def at(server: ArchiveServer) -> tuple[str, str]:
    """The option that names it."""
    return "--archive-url", server.casda_url.removesuffix("/casda/tap")


def test_archives_and_qualities_are_those_of_the_sandbox() -> None:
    assert sandbox.ARCHIVES == ARCHIVES
    assert sandbox.QUALITIES == QUALITIES


def test_the_archive_is_found_by_the_setting_of_its_tap_service(
    server: ArchiveServer, beampipe: Beampipe
) -> None:
    result = beampipe("sandbox", "faults", "show", env={"BEAMPIPE_CASDA_TAP_URL": server.casda_url})
    assert result.exit_code == 0
    assert result.stdout.count("well behaved") == 2


def test_a_deposit_says_which_files_there_are_now(beampipe: Beampipe, at: tuple[str, str]) -> None:
    text = beampipe.ok("sandbox", "deposit", "J1", "--beams", "2", "--quality", "bad", "--sbid", "90000", *at)
    assert "Deposited 2 files of J1 in SB90000" in text
    assert text.count("BAD") == 2
    assert "beampipe source discover -p SURVEY J1" in text
    answer = beampipe.json("sandbox", "deposit", "J1", "--count", "2", *at)
    assert (len(answer["sbids"]), len(answer["files"])) == (2, 2)


def test_a_deposit_can_ask_a_survey_to_look(world: World, beampipe: Beampipe, at: tuple[str, str]) -> None:
    del world
    text = beampipe.ok("sandbox", "deposit", "A", "-p", SURVEY, *at)
    assert "wallaby_demo looks at it at its next discovery tick." in text
    beampipe.ok("source", "register", "-p", SURVEY, "A", "--disabled")
    assert "does not look" in beampipe.ok("sandbox", "deposit", "A", "-p", SURVEY, *at)


def test_nothing_is_deposited_for_a_survey_that_does_not_know_the_source(
    world: World, beampipe: Beampipe, at: tuple[str, str]
) -> None:
    del world
    beampipe.refused("sandbox", "deposit", "Z", "-p", SURVEY, *at, code="source_not_registered")
    answer = beampipe.json("sandbox", "deposit", "Z", *at)
    assert answer["files"][0]["filename"].endswith("_B00.ms.tar")


def test_what_the_archive_refuses_is_told_with_its_own_code(beampipe: Beampipe, at: tuple[str, str]) -> None:
    assert "beams" in beampipe.refused(
        "sandbox", "deposit", "J1", "--beams", "99", *at, code="invalid_deposit"
    )
    text = beampipe.refused(
        "sandbox", "faults", "set", "casda", "--latency", "900", *at, code="invalid_fault"
    )
    assert "hint: " in text


def test_faults_are_set_shown_and_cleared(beampipe: Beampipe, at: tuple[str, str]) -> None:
    text = beampipe.ok("sandbox", "faults", "set", "casda", "--latency", "0.5", "--down", *at)
    assert "latency 0.5, down" in text
    shown = beampipe.json("sandbox", "faults", "show", *at)["faults"]
    assert shown == {"casda": {"latency": 0.5, "down": True}, "vizier": {}}
    answer = beampipe.json("sandbox", "faults", "set", "vizier", "--status", "503", "--count", "3", *at)
    assert answer == {"archive": "vizier", "faults": {"status": 503, "count": 3}}
    beampipe.ok("sandbox", "faults", "clear", "casda", *at)
    assert set(beampipe.json("sandbox", "faults", "show", *at)["faults"]["vizier"]) == {"status", "count"}
    assert beampipe.ok("sandbox", "faults", "clear", *at).count("well behaved") == 2


def test_every_switch_of_the_archive_has_an_option(beampipe: Beampipe, at: tuple[str, str]) -> None:
    numbers = {"latency": 0, "error-rate": 0.5, "seed": 7, "status": 500}
    numbers |= {"retry-after": 2, "overflow": 3, "count": 9}
    args = [text for name, value in numbers.items() for text in (f"--{name}", str(value))]
    args += ["--busy", "--empty", "--html", "--truncated", "--down"]
    found = beampipe.json("sandbox", "faults", "set", "casda", *args, *at)["faults"]
    assert set(found) | {"latency"} == {
        arg.removeprefix("--").replace("-", "_") for arg in args if arg[0] == "-"
    }


def test_the_log_shows_queries_and_what_became_of_them(
    server: ArchiveServer, beampipe: Beampipe, at: tuple[str, str]
) -> None:
    assert "No query yet." in beampipe.ok("sandbox", "log", *at)
    query = {"REQUEST": "doQuery", "LANG": "ADQL", "QUERY": "SELECT TOP 1 obs_id FROM ivoa.obscore"}
    for _ in range(3):
        httpx.get(f"{server.casda_url}/sync", params=query, trust_env=False)
    text = beampipe.ok("sandbox", "log", "--limit", "2", *at)
    assert text.count("SELECT TOP 1 obs_id") == 2
    assert "3 queries in all." in text
    assert len(beampipe.json("sandbox", "log", "--archive", "casda", *at)["requests"]) == 3
    assert beampipe.json("sandbox", "log", "--archive", "vizier", *at)["requests"] == []


def test_an_archive_that_is_not_there_is_told_with_how_to_start_it(beampipe: Beampipe) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    for command in (("log",), ("faults", "show"), ("faults", "clear"), ("deposit", "J1")):
        text = beampipe.refused("sandbox", *command, "--archive-url", url, code="sandbox_unreachable")
        assert "beampipe up" in text


class _Other(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_something_else_at_the_url_is_not_taken_for_an_archive(beampipe: Beampipe) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{other.server_port}"
        text = beampipe.refused("sandbox", "log", "--archive-url", url, code="sandbox_answer")
        other.shutdown()
    assert "answers 200" in text


def test_a_url_of_another_kind_is_an_error_of_usage(beampipe: Beampipe) -> None:
    beampipe.refused("sandbox", "log", "--archive-url", "ftp://x", code="usage", exit_code=2)
