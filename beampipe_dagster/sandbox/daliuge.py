"""DALiuGE on this machine: its node manager, island manager and translator as plain processes.

DALiuGE lives in an environment of its own (its pins do not go with a modern web stack); only its
``dlg`` command is needed here. Everything that it writes goes below one directory.

A node or island manager whose port is taken prints ``Address already in use`` and *stays alive*
without serving. So a running process proves nothing, and an answering port may be somebody else's:
each ``ready`` asks for something that only the process started here can know.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from beampipe_dagster.config.canonical import JsonValue, parse_json
from beampipe_dagster.errors import BeampipeError, ConfigError
from beampipe_dagster.sandbox.process import ProcessSpec

HOST = "127.0.0.1"
"""All of it listens on the loopback interface only: DALiuGE knows no authentication."""

_DLG_BIN = "BEAMPIPE_DLG_BIN"
_VENV_DLG = Path(".venv-daliuge") / "bin" / "dlg"
_MAX_REQUEST_MB = 256
_PROBE_SECONDS = 3.0
_MARKER = "beampipe-stack"


@dataclass(frozen=True, slots=True)
class DaliugePorts:
    """The ports of one stack.

    Attributes
    ----------
    nm, dim, tm
        HTTP ports of the node manager, the island manager and the translator.
    events, rpc
        The node manager's ports for events and calls between nodes.
    """

    nm: int = 8000
    dim: int = 8001
    tm: int = 8084
    events: int = 5555
    rpc: int = 6666

    @property
    def node(self) -> str:
        """The node as DALiuGE writes it: ``host:http:events:rpc``."""
        return f"{HOST}:{self.nm}:{self.events}:{self.rpc}"

    @property
    def manager_url(self) -> str:
        """Base URL of the island manager."""
        return f"http://{HOST}:{self.dim}"

    @property
    def translator_url(self) -> str:
        """Base URL of the translator."""
        return f"http://{HOST}:{self.tm}"


def find_dlg(environ: Mapping[str, str] = os.environ) -> Path | None:
    """DALiuGE's ``dlg`` command.

    Looked for in ``BEAMPIPE_DLG_BIN``, then ``.venv-daliuge/bin/dlg`` in the working directory and
    beside this checkout, then on the search path.

    Parameters
    ----------
    environ
        The environment to look at.

    Returns
    -------
    Path or None
        Absolute path of the command; None when there is none.

    Raises
    ------
    ConfigError
        ``dlg_not_found``: ``BEAMPIPE_DLG_BIN`` names something that cannot be run.
    """
    named = environ.get(_DLG_BIN, "").strip()
    if named:
        path = Path(named).expanduser().absolute()
        if os.access(path, os.X_OK) and path.is_file():
            return path
        raise ConfigError(
            f"{_DLG_BIN} names {named}, which is no command that can be run",
            code="dlg_not_found",
            hint=f"Point {_DLG_BIN} at DALiuGE's dlg command, or unset it.",
        )
    for folder in (Path.cwd(), Path(__file__).resolve().parents[2]):
        path = folder / _VENV_DLG
        if os.access(path, os.X_OK):
            return path
    found = shutil.which("dlg", path=environ.get("PATH"))
    return Path(found).absolute() if found else None


def processes(*, dlg: Path, root: Path, ports: DaliugePorts, threads: int = 4) -> list[ProcessSpec]:
    """The three processes of a local DALiuGE; they may start in any order or at once.

    Parameters
    ----------
    dlg
        DALiuGE's ``dlg`` command.
    root
        The directory for everything that it writes (``workspace/``, ``logs/``, ...); made here.
    ports
        Where they listen.
    threads
        How many applications run at the same time, in all sessions together.

    Returns
    -------
    list of ProcessSpec
        Node manager, island manager and translator. Stop them as process groups: the node manager
        answers SIGTERM only when its running applications have ended.
    """
    root = root.absolute()
    logs, logical, physical = (root / name for name in ("logs", "logical", "physical"))
    for folder in (root / "workspace", logs, logical, physical):
        folder.mkdir(parents=True, exist_ok=True)
    # The translator's tracebacks go to its standard output only: see them at once.
    env = {
        "DLG_ROOT": str(root),
        "PATH": f"{dlg.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
    }
    manager = ("-m", str(_MAX_REQUEST_MB), "-l", str(logs))
    listen = ("-H", HOST, "-P", str(ports.nm), "--event_port", str(ports.events))
    nm = ("nm", *listen, "--rpc_port", str(ports.rpc), "-t", str(threads), *manager)
    dim = ("dim", "-H", HOST, "-P", str(ports.dim), "-N", ports.node, *manager)
    folders = ("-d", str(logical), "-t", str(physical), "-l", str(logs))
    tm = ("tm", "-H", HOST, "-p", str(ports.tm), *folders)

    def spec(name: str, args: tuple[str, ...], ready: Callable[[], bool], what: str) -> ProcessSpec:
        return ProcessSpec(name=name, argv=(str(dlg), *args), env=env, cwd=root, ready=ready, describe=what)

    nm_ready, tm_ready = _node_manager_ready(logs, ports), _translator_ready(logical, ports)
    island = f"DALiuGE island manager, {ports.manager_url}"
    return [
        spec("dlg-nm", nm, nm_ready, f"DALiuGE node manager, http://{HOST}:{ports.nm}"),
        spec("dlg-dim", dim, lambda: _island_manager_ready(ports), island),
        spec("dlg-tm", tm, tm_ready, f"DALiuGE translator, {ports.translator_url}"),
    ]


def _node_manager_ready(logs: Path, ports: DaliugePorts) -> Callable[[], bool]:
    # A node manager serves the session logs of its own log directory: a planted one proves it.
    token = secrets.token_hex(16)
    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError:
        address = HOST
    (logs / f"dlg_{address}_{_MARKER}.log").write_text(token, encoding="utf-8")

    def ready() -> bool:
        if not (_listens(ports.events) and _listens(ports.rpc)):
            return False
        return _get(ports.nm, f"/api/sessions/{_MARKER}/logs") == token.encode()

    return ready


def _island_manager_ready(ports: DaliugePorts) -> bool:
    state = _get_json(ports.dim, "/api")
    return isinstance(state, dict) and state.get("hosts") == [ports.node]


def _translator_ready(logical: Path, ports: DaliugePorts) -> Callable[[], bool]:
    # A translator serves the logical graphs of its own directory.
    token: dict[str, JsonValue] = {"token": secrets.token_hex(16)}
    name = f"{_MARKER}.json"
    (logical / name).write_text(json.dumps(token), encoding="utf-8")
    return lambda: _get_json(ports.tm, f"/jsonbody?lg_name={name}") == token


def _get(port: int, path: str) -> bytes | None:
    connection = http.client.HTTPConnection(HOST, port, timeout=_PROBE_SECONDS)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return body if answer.status == http.HTTPStatus.OK else None


def _get_json(port: int, path: str) -> JsonValue:
    body = _get(port, path)
    try:
        return parse_json(body) if body else None
    except BeampipeError:
        return None


def _listens(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=_PROBE_SECONDS).close()
    except OSError:
        return False
    return True
