"""What commands log, and where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from beampipe_dagster.cli.core import Context
from beampipe_dagster.clock import SystemClock
from beampipe_dagster.discovery.tap import TapArchive
from beampipe_dagster_tests.cli.support import SURVEY, Beampipe, World
from beampipe_dagster_tests.support.fake_tap import FakeTap, Reply, availability_document, busy, rows


def asked_twice(monkeypatch: pytest.MonkeyPatch, home: Path, *, as_json: bool) -> None:
    """Ask an archive that is busy at first, as a command does."""
    monkeypatch.setenv("BEAMPIPE_HOME", str(home))
    monkeypatch.setenv("BEAMPIPE_LOG_JSON", "true" if as_json else "false")
    assert Context().settings.log_json is as_json
    with FakeTap(busy(), rows([{"a": "1"}])) as tap:
        archive = TapArchive(adapter="eso", url=tap.url, timeout_seconds=5, retries=1, clock=SystemClock())
        assert archive.query("SELECT 1").rows == [{"a": "1"}]


def test_lines_about_retries_are_on_stderr_for_people(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked_twice(monkeypatch, tmp_path, as_json=False)
    said = capsys.readouterr()
    assert said.out == ""
    assert "stamina.retry_scheduled" in said.err


def test_lines_about_retries_are_on_stderr_as_json_when_that_is_wanted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked_twice(monkeypatch, tmp_path, as_json=True)
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert json.loads(line)["event"] == "stamina.retry_scheduled"
    assert json.loads(line)["level"] == "warning"


def test_a_command_that_asks_a_flaky_archive_prints_one_document(world: World, beampipe: Beampipe) -> None:
    world.looked_at("A")
    pages: dict[str, Reply] = {"availability": availability_document(available=True), "capabilities": busy()}
    with FakeTap(busy(), rows([]), busy(), pages=pages) as tap:
        env = {"BEAMPIPE_CASDA_TAP_URL": tap.url, "BEAMPIPE_VIZIER_TAP_URL": tap.url}
        result = beampipe("project", "health", SURVEY, "--json", env=env)
    assert json.loads(result.stdout)["healthy"] is True
