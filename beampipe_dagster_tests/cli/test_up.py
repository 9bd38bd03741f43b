"""`beampipe up` and `beampipe demo`: what they hand to the supervisor, and what they never remove."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from beampipe_dagster.cli import up as module
from beampipe_dagster.errors import ConfigError
from beampipe_dagster.sandbox.home import locked, make_home
from beampipe_dagster.sandbox.up import UpOptions, UpPorts
from beampipe_dagster_tests.cli.support import SURVEY, Beampipe, World

PORTS = {
    "--port": 3100,
    "--code-server-port": 3101,
    "--metrics-port": 3102,
    "--archive-port": 3103,
    "--nm-port": 3104,
    "--dim-port": 3105,
    "--tm-port": 3106,
    "--events-port": 3107,
    "--rpc-port": 3108,
}
FLAGS = [text for flag, port in PORTS.items() for text in (flag, str(port))]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `run_up` was called with; it says that everything is up, and ends."""
    calls: list[dict[str, Any]] = []

    def run_up(options: UpOptions, **given: Any) -> int:
        calls.append({"options": options, **given})
        given["seed"]()
        if given["on_up"] is not None:
            given["on_up"]()
        given["console"].print("progress")
        return 0

    monkeypatch.setattr(module, "run_up", run_up)
    return calls


def test_without_options_everything_is_where_the_supervisor_has_it(
    empty: Beampipe, started: list[dict[str, Any]]
) -> None:
    empty.ok("up", "--no-sandbox")
    assert started[0]["options"] == UpOptions(home=empty.home, sandbox=False)


def test_every_option_arrives(empty: Beampipe, started: list[dict[str, Any]]) -> None:
    empty.ok("up", *FLAGS, "--host", "::1", "--dlg", "/opt/dlg", "--threads", "2", "--no-sandbox")
    options: UpOptions = started[0]["options"]
    ports = options.ports
    stack = ports.daliuge
    given = [ports.web, ports.code_server, ports.metrics, ports.archive]
    given += [stack.nm, stack.dim, stack.tm, stack.events, stack.rpc]
    assert given == list(PORTS.values())
    assert (options.host, options.dlg, options.threads, options.sandbox) == (
        "::1",
        Path("/opt/dlg"),
        2,
        False,
    )


def test_the_sandbox_has_the_demo_survey_and_its_sources(
    empty: Beampipe, started: list[dict[str, Any]]
) -> None:
    empty.ok("up", "--home", str(empty.home), *FLAGS)
    assert started[0]["options"].home == empty.home
    assert len(empty.json("source", "list", "-p", SURVEY)["sources"]) >= 6
    profile = empty.json("profile", "show", "local-daliuge")["spec"]
    assert profile["deployment"]["deploy_port"] == 3105


def test_without_the_sandbox_the_ledger_is_made_and_stays_empty(
    empty: Beampipe, started: list[dict[str, Any]]
) -> None:
    empty.ok("up", "--no-sandbox")
    assert started
    assert empty.json("ledger", "status")["state"] == "current"
    assert empty.json("project", "list") == {"projects": []}


def test_with_json_stdout_has_the_places_and_progress_is_on_stderr(
    empty: Beampipe, started: list[dict[str, Any]]
) -> None:
    result = empty("up", *FLAGS, "--json")
    places = json.loads(result.stdout)
    assert places["ui_url"] == "http://127.0.0.1:3100"
    assert places["archive_url"] == "http://127.0.0.1:3103"
    assert "progress" in result.stderr
    assert "archive_url" not in empty.json("up", "--no-sandbox")
    assert len(started) == 2


def test_what_the_supervisor_refuses_is_told(empty: Beampipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise ConfigError("port 3000 is taken", code="port_taken", hint="use --port")

    monkeypatch.setattr(module, "run_up", refuse)
    assert "hint: use --port" in empty.refused("up", "--no-sandbox", code="port_taken")


def test_the_live_table_has_the_sources_of_every_survey(world: World, beampipe: Beampipe) -> None:
    world.looked_at("A")
    table = module.LiveTable(UpOptions(home=beampipe.home))()
    out = Console(width=100, record=True, quiet=False, force_terminal=False)
    with out.capture() as captured:
        out.print(table)
    lines = captured.get().splitlines()
    assert [line.split()[:2] for line in lines[1:4]] == [
        ["A", "pending"],
        ["B", "unchecked"],
        ["C", "unchecked"],
    ]


@pytest.fixture
def demos(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `run_demo` was called with; it is not as expected when the time-out is 7."""
    calls: list[dict[str, Any]] = []

    def run_demo(options: UpOptions, *, report: Path, **given: Any) -> int:
        calls.append({"options": options, **given})
        given["console"].print("progress")
        report.write_text('{"as_expected": true}\n')
        return 1 if given["timeout_seconds"] == 7 else 0

    monkeypatch.setattr(module, "run_demo", run_demo)
    return calls


def test_the_demo_runs_in_a_home_of_its_own_and_its_exit_code_is_ours(
    empty: Beampipe, demos: list[dict[str, Any]], tmp_path: Path
) -> None:
    report = str(tmp_path / "report.json")
    empty.ok("demo", *FLAGS, "--report", report, "--keep-logs", str(tmp_path / "logs"))
    assert demos[0]["options"].home == empty.home / "demo"
    assert demos[0]["options"].ports.web == 3100
    assert (demos[0]["timeout_seconds"], demos[0]["keep_logs"]) == (300.0, tmp_path / "logs")
    assert empty("demo", "--report", report, "--timeout", "7").exit_code == 1
    assert UpPorts() == demos[1]["options"].ports


def test_with_json_the_demo_gives_its_report(
    empty: Beampipe, demos: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert empty.json("demo", "--report", str(tmp_path / "report.json")) == {"as_expected": True}
    assert len(demos) == 1


def test_a_new_demo_removes_the_home_of_the_one_before(
    empty: Beampipe, demos: list[dict[str, Any]], tmp_path: Path
) -> None:
    home = make_home(empty.home / "demo")
    with locked(home):
        (home.root / "ledger.db").write_text("old")
    empty.ok("demo", "--report", str(tmp_path / "report.json"))
    assert len(demos) == 1
    assert not home.root.exists()


def test_a_demo_never_removes_what_is_not_the_home_of_a_demo(
    empty: Beampipe, demos: list[dict[str, Any]], tmp_path: Path
) -> None:
    precious = empty.home / "demo" / "thesis.tex"
    precious.parent.mkdir(parents=True)
    precious.write_text("ten years")
    args = ("demo", "--report", str(tmp_path / "report.json"))
    assert "move it away" in empty.refused(*args, code="demo_home_not_empty")
    assert precious.read_text() == "ten years"
    assert demos == []


def test_a_demo_that_still_runs_is_left_alone(
    empty: Beampipe, demos: list[dict[str, Any]], tmp_path: Path
) -> None:
    with locked(make_home(empty.home / "demo")):
        empty.refused("demo", "--report", str(tmp_path / "report.json"), code="home_in_use")
    assert demos == []


def test_a_report_that_could_not_be_written_is_refused_before_anything_runs(
    empty: Beampipe, demos: list[dict[str, Any]], tmp_path: Path
) -> None:
    empty.refused("demo", "--report", str(tmp_path / "none" / "report.json"), code="report_unwritable")
    assert demos == []
