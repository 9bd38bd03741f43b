"""Help, errors and exit codes of the root."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from beampipe_dagster.cli import core
from beampipe_dagster.cli.main import root
from beampipe_dagster.errors import ConfigError
from beampipe_dagster_tests.cli.support import DEMO, Beampipe, World

ALL_ACTIVE = "beampipe_dagster.ledger.projects.all_active"
HEAVY = ("dagster", "astropy", "pyvo", "sqlglot", "sqlalchemy", "rich", "pydantic", "httpx")
COMMANDS = {
    "archive close",
    "archive list",
    "archive open",
    "archive probe",
    "archive show",
    "demo",
    "execution artifact",
    "execution cancel",
    "execution hold",
    "execution launch",
    "execution list",
    "execution prepare",
    "execution queue",
    "execution release",
    "execution retry",
    "execution show",
    "execution verify",
    "ledger migrate",
    "ledger status",
    "ledger verify",
    "profile add",
    "profile list",
    "profile pause",
    "profile render",
    "profile resume",
    "profile show",
    "profile validate",
    "project activate",
    "project add",
    "project diff",
    "project explain",
    "project health",
    "project history",
    "project hold",
    "project impact",
    "project list",
    "project prune",
    "project release",
    "project schema",
    "project show",
    "project validate",
    "sandbox deposit",
    "sandbox faults clear",
    "sandbox faults set",
    "sandbox faults show",
    "sandbox log",
    "slurm credentials check",
    "slurm credentials import",
    "slurm credentials init",
    "slurm credentials list",
    "slurm credentials remove",
    "slurm ping",
    "source delete",
    "source disable",
    "source discover",
    "source enable",
    "source explain",
    "source hold",
    "source list",
    "source prioritize",
    "source register",
    "source release",
    "source set",
    "source show",
    "source sweep",
    "source unhold",
    "timeline execution",
    "timeline project",
    "timeline source",
    "up",
}


def _commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    ctx = click.Context(group)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from _commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def test_the_commands_are_these() -> None:
    assert {name for name, _ in _commands(root)} == COMMANDS


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help_and_json(empty: Beampipe, command: str) -> None:
    text = empty.ok(*command.split(), "--help")
    assert text.startswith(f"Usage: beampipe {command} ")
    assert "--json" in text
    assert "--debug" in text
    assert "--home" in text


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_option_says_what_it_does(command: str) -> None:
    found = dict(_commands(root))[command]
    silent = [p.name for p in found.params if isinstance(p, click.Option) and not p.help]
    assert silent in ([], ["quality"])


def test_the_root_s_help_lists_every_group(empty: Beampipe) -> None:
    text = empty.ok("--help")
    assert all(f"  {name.split()[0]} " in text for name in COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom beampipe_dagster.cli.main import root\n"
        "try:\n    root.main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "timeline" in done.stdout


def test_an_unknown_command_is_an_error_of_usage(empty: Beampipe) -> None:
    text = empty.refused("nonsense", code="usage", exit_code=2)
    assert "No such command 'nonsense'" in text
    assert "hint: see: beampipe --help" in text


@pytest.mark.parametrize(
    "args",
    [
        ("source", "list", "--nonsense"),
        ("source", "show", "A"),
        ("execution", "show"),
        ("execution", "list", "--limit", "0"),
        ("sandbox", "faults", "set", "simbad"),
        ("source", "register", "-p", "survey"),
        ("source", "discover", "-p", "survey"),
        ("source", "discover", "-p", "survey", "A", "--all"),
        ("sandbox", "faults", "set", "casda"),
        ("up", "--port", "high"),
    ],
)
def test_errors_of_usage_exit_with_2_and_name_the_help(empty: Beampipe, args: tuple[str, ...]) -> None:
    text = empty.refused(*args, code="usage", exit_code=2)
    assert "hint: see: beampipe" in text
    assert "--help" in text


def test_an_error_has_code_message_and_hint_on_stderr_and_nothing_on_stdout(beampipe: Beampipe) -> None:
    result = beampipe("project", "show", "nope")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "error[project_not_found]: there is no project 'nope'",
        "hint: known projects: none; add one with: beampipe project add FILE",
    ]


def test_with_json_an_error_is_a_document_on_stdout_and_nothing_on_stderr(beampipe: Beampipe) -> None:
    result = beampipe("project", "show", "nope", "--json")
    assert result.stderr == ""
    error = json.loads(result.stdout)["error"]
    assert (error["code"], error["retry"]) == ("project_not_found", "never")
    assert error["hint"]


def test_a_traceback_is_shown_with_debug_only(beampipe: Beampipe) -> None:
    assert "Traceback" not in beampipe("project", "show", "nope").output
    shown = beampipe("project", "show", "nope", "--debug").stderr
    assert "Traceback (most recent call last)" in shown
    assert "error[project_not_found]" in shown


def test_a_defect_is_told_without_a_traceback(beampipe: Beampipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(ALL_ACTIVE, broken)
    text = beampipe.refused("project", "list", code="internal")
    assert "ZeroDivisionError: by zero" in text
    assert "--debug" in text


def test_ctrl_c_exits_with_130_and_says_nothing(beampipe: Beampipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ALL_ACTIVE, interrupted)
    result = beampipe("project", "list")
    assert result.exit_code == core.EXIT_INTERRUPTED == 130
    assert result.output.strip() == ""


def test_a_command_that_only_looks_makes_no_ledger(empty: Beampipe) -> None:
    text = empty.refused("source", "list", code="ledger_missing")
    assert str(empty.home / "ledger.db") in text
    assert not empty.home.exists()


def test_a_ledger_of_another_version_is_refused_with_what_to_do(empty: Beampipe) -> None:
    empty.home.mkdir()
    (empty.home / "ledger.db").touch()
    assert "beampipe ledger migrate" in empty.refused("source", "list", code="ledger_not_migrated")


def test_a_file_that_is_no_database_is_told_as_such(empty: Beampipe) -> None:
    empty.home.mkdir()
    (empty.home / "ledger.db").write_text("this is not a database, whatever its name says\n" * 40)
    assert "not a database" in empty.refused("source", "list", code="ledger_unavailable")


def test_a_home_that_cannot_be_made_is_an_error_with_its_path(empty: Beampipe) -> None:
    empty.home.write_text("a file")
    assert str(empty.home) in empty.refused(
        "project", "add", str(DEMO / "wallaby_demo.yaml"), code="ledger_directory"
    )


def test_a_bad_setting_is_named(beampipe: Beampipe) -> None:
    result = beampipe("source", "list", env={"BEAMPIPE_LEASE_SECONDS": "soon"})
    assert result.exit_code == 1
    assert "BEAMPIPE_LEASE_SECONDS" in result.stderr


@pytest.mark.parametrize("before", [True, False])
def test_home_overrules_the_environment_before_and_after_the_command(
    world: World,
    beampipe: Beampipe,
    tmp_path: Path,
    before: bool,  # noqa: FBT001  # a parameter
) -> None:
    del world
    elsewhere = Beampipe(tmp_path / "elsewhere")
    home = ["--home", str(beampipe.home)]
    args = [*home, "project", "list"] if before else ["project", "list", *home]
    assert "wallaby_demo" in elsewhere.ok(*args)


def test_a_reader_that_goes_away_is_told_nothing(world: World, beampipe: Beampipe) -> None:
    del world
    env = {**os.environ, "BEAMPIPE_HOME": str(beampipe.home)}
    command = [sys.executable, "-c", "from beampipe_dagster.cli.main import main; main()"]
    with subprocess.Popen(
        [*command, "project", "show", "wallaby_demo", "--json"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        stderr = process.stderr.read().decode()
    assert (stderr, process.returncode) == ("", 1)


def test_an_error_s_text_does_nothing_to_the_terminal(beampipe: Beampipe) -> None:
    text = beampipe.refused("project", "show", "a\x1b[2Jb\x9b", code="project_not_found")
    assert "\x1b[2J" not in text
    assert "\x9b" not in text


def test_errors_of_ours_that_a_command_raises_exit_with_1(
    beampipe: Beampipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ConfigError("no", code="made_up", hint="")

    monkeypatch.setattr(ALL_ACTIVE, refuse)
    assert beampipe.refused("project", "list", code="made_up") == "error[made_up]: no\n"
