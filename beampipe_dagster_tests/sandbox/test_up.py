"""What `beampipe up` starts, with which environment, and how it runs."""

from __future__ import annotations

import dataclasses
import io
import re
import socket
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from beampipe_dagster.errors import BeampipeError, ConfigError, ConflictError
from beampipe_dagster.sandbox import up
from beampipe_dagster.sandbox.daliuge import DaliugePorts
from beampipe_dagster.sandbox.home import locked, make_home
from beampipe_dagster.sandbox.ports import free_port
from beampipe_dagster.sandbox.process import ProcessSpec
from beampipe_dagster.sandbox.supervisor import Limits
from beampipe_dagster.sandbox.up import UpOptions, UpPorts, environment, run_up, stages
from beampipe_dagster_tests.sandbox.supervising import spec

QUICK = Limits(ready_timeout=30, grace=2, poll=0.02)


@pytest.fixture
def options(tmp_path: Path) -> UpOptions:
    port = free_port
    stack = DaliugePorts(nm=port(), dim=port(), tm=port(), events=port(), rpc=port())
    ports = UpPorts(web=port(), code_server=port(), archive=port(), metrics=port(), daliuge=stack)
    return UpOptions(home=tmp_path / "home", ports=ports, dlg=Path("/opt/dlg"))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[ProcessSpec]:
    """Small processes in place of the real ones; the home is prepared as always."""
    specs = [spec("one", folder=tmp_path), spec("two", folder=tmp_path)]
    monkeypatch.setattr(up, "stages", lambda _options: [specs[:1], specs[1:]])
    return specs


def test_the_sandbox_is_first_then_what_reads_the_ledger_then_dagster(options: UpOptions) -> None:
    names = [[child.name for child in stage] for stage in stages(options)]
    assert names == [
        ["archive", "dlg-nm", "dlg-dim", "dlg-tm"],
        ["code-server", "metrics"],
        ["webserver", "daemon"],
    ]


def test_without_the_sandbox_neither_archive_nor_daliuge_is_started_or_named(
    options: UpOptions,
) -> None:
    alone = dataclasses.replace(options, sandbox=False, dlg=None)
    assert [child.name for stage in stages(alone) for child in stage] == [
        "code-server",
        "metrics",
        "webserver",
        "daemon",
    ]
    assert not {name for name in environment(alone) if name.endswith(("TAP_URL", "TM_URL"))}


def test_a_sandbox_without_daliuge_says_how_to_get_it(
    options: UpOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("beampipe_dagster.sandbox.daliuge.find_dlg", lambda: None)
    with pytest.raises(ConfigError) as caught:
        stages(dataclasses.replace(options, dlg=None))
    assert caught.value.code == "dlg_not_found"
    assert "make run" in caught.value.hint


def test_the_processes_find_each_other_past_a_proxy(
    options: UpOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "example.org")
    monkeypatch.delenv("NO_PROXY", raising=False)
    env = environment(options)
    assert env["no_proxy"] == "example.org,127.0.0.1,localhost,::1"
    assert env["NO_PROXY"] == "127.0.0.1,localhost,::1"
    archive = f"http://127.0.0.1:{options.ports.archive}"
    assert env["BEAMPIPE_CASDA_TAP_URL"] == f"{archive}/casda/tap"
    assert env["BEAMPIPE_VIZIER_TAP_URL"] == f"{archive}/vizier/tap"
    assert env["BEAMPIPE_TM_URL"] == f"http://127.0.0.1:{options.ports.daliuge.tm}"
    assert env["BEAMPIPE_DIM_URL"] == f"http://127.0.0.1:{options.ports.daliuge.dim}"
    assert env["BEAMPIPE_HOME"] == env["DAGSTER_HOME"] == str(options.home)


def test_a_probe_does_not_ask_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert up.serves(f"http://127.0.0.1:{server.getsockname()[1]}/")
        thread.join()


def test_it_seeds_before_the_second_stage_and_ends_with_success_when_told(
    options: UpOptions, tiny: list[ProcessSpec], tmp_path: Path
) -> None:
    told: list[str] = []
    stop = threading.Event()

    def seed() -> None:
        told.append(f"seed {tiny[0].ready()} {tiny[1].ready()}")

    def on_up() -> None:
        told.append(f"up {tiny[1].ready()}")
        stop.set()

    output = io.StringIO()
    console = Console(file=output, width=200)
    code = run_up(options, console=console, seed=seed, stop=stop, on_up=on_up, limits=QUICK)
    assert code == 0
    assert told == ["seed True False", "up True"]
    assert f"Dagster              http://127.0.0.1:{options.ports.web}\n" in output.getvalue()
    assert "nothing is left running" in output.getvalue()
    assert (options.home / "logs" / "two.log").exists()
    assert (tmp_path / "home" / "workspace.yaml").exists()


@pytest.mark.usefixtures("tiny")
def test_on_a_terminal_the_table_is_shown_and_its_error_does_not_end_it(
    options: UpOptions,
) -> None:
    stop = threading.Event()
    output = io.StringIO()

    def table() -> str:
        if "busy" not in output.getvalue():
            raise ConfigError("the ledger is [busy]")
        if "sources" in output.getvalue():
            stop.set()
        return "all sources"

    console = Console(file=output, width=100, force_terminal=True)
    assert run_up(options, console=console, table=table, stop=stop, limits=QUICK) == 0
    assert "the ledger is [busy]" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output.getvalue())
    assert "all sources" in output.getvalue()


@pytest.mark.usefixtures("tiny")
def test_a_seed_that_fails_ends_everything(options: UpOptions) -> None:
    def seed() -> None:
        raise ConfigError("the survey is broken")

    with pytest.raises(BeampipeError, match="the survey is broken"):
        run_up(options, seed=seed, limits=QUICK)
    with locked(make_home(options.home)):
        pass


@pytest.mark.usefixtures("tiny")
def test_a_taken_port_is_told_before_anything_is_started(options: UpOptions) -> None:
    told = r"DALiuGE island manager.*--dim-port changes it"
    dim = options.ports.daliuge.dim
    with socket.create_server(("127.0.0.1", dim)), pytest.raises(ConfigError, match=told):
        run_up(options, limits=QUICK)
    assert not (options.home / "workspace.yaml").exists()


@pytest.mark.usefixtures("tiny")
def test_a_second_up_in_the_same_home_is_refused(options: UpOptions) -> None:
    with locked(make_home(options.home)), pytest.raises(ConflictError):
        run_up(options, limits=QUICK)


def test_the_commands_are_modules_of_this_interpreter(options: UpOptions) -> None:
    own = [child for stage in stages(options) for child in stage if "dlg" not in child.name]
    assert {child.argv[:2] for child in own} == {(sys.executable, "-m")}
