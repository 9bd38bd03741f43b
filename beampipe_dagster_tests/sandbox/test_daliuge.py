from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from beampipe_dagster.errors import ConfigError
from beampipe_dagster.sandbox.daliuge import DaliugePorts, find_dlg, processes

ANSWERS: dict[str, object] = {
    "/api": {"hosts": ["127.0.0.1:8000:5555:6666"], "sessionIds": [], "sessions": []},
    "/jsonbody?lg_name=beampipe-stack.json": {"token": "another"},
    "/api/sessions/beampipe-stack/logs": "another",
    "/api/submission_method": {"methods": []},
}


class Stranger(BaseHTTPRequestHandler):
    """Another DALiuGE, which answers everything that ours would."""

    def do_GET(self) -> None:
        body = json.dumps(ANSWERS.get(self.path)).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base's name
        """Be quiet."""


@pytest.fixture
def stranger() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stranger)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield int(server.server_address[1])
    server.shutdown()
    server.server_close()
    thread.join()


def ports() -> DaliugePorts:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(5)]
        nm, dim, tm, events, rpc = (int(one.getsockname()[1]) for one in sockets)
    return DaliugePorts(nm=nm, dim=dim, tm=tm, events=events, rpc=rpc)


def command(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "dlg"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_the_three_processes_write_below_one_directory(tmp_path: Path) -> None:
    chosen = ports()
    root = tmp_path / "stack"
    specs = processes(dlg=Path("/opt/dlg/bin/dlg"), root=root, ports=chosen, threads=2)
    assert [spec.name for spec in specs] == ["dlg-nm", "dlg-dim", "dlg-tm"]
    for spec in specs:
        assert spec.argv[0] == "/opt/dlg/bin/dlg"
        assert spec.cwd == root
        assert spec.cwd.is_dir()
        assert spec.env["DLG_ROOT"] == str(root)
        assert spec.env["PATH"].startswith("/opt/dlg/bin:")
        assert "127.0.0.1" in spec.describe
        assert not spec.ready()
    nm, dim, tm = (" ".join(spec.argv) for spec in specs)
    assert f"-P {chosen.nm} --event_port {chosen.events} --rpc_port {chosen.rpc} -t 2" in nm
    assert f"-N {chosen.node}" in dim
    assert f"-p {chosen.tm} -d {root}/logical -t {root}/physical" in tm


def test_somebody_elses_daliuge_on_the_port_is_not_ready(tmp_path: Path, stranger: int) -> None:
    taken = DaliugePorts(nm=stranger, dim=stranger, tm=stranger, events=stranger, rpc=stranger)
    specs = processes(dlg=Path("/x/dlg"), root=tmp_path, ports=taken)
    assert [spec.ready() for spec in specs] == [False, False, False]


def test_the_variable_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named, beside = command(tmp_path / "named"), command(tmp_path / ".venv-daliuge" / "bin")
    on_path = command(tmp_path / "path")
    monkeypatch.chdir(tmp_path)
    environ = {"BEAMPIPE_DLG_BIN": str(named), "PATH": str(on_path.parent)}
    assert find_dlg(environ) == named
    assert find_dlg({**environ, "BEAMPIPE_DLG_BIN": " "}) == beside


def test_a_variable_that_names_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    for name in ("missing", "plain", "."):
        with pytest.raises(ConfigError) as caught:
            find_dlg({"BEAMPIPE_DLG_BIN": str(tmp_path / name)})
        assert caught.value.code == "dlg_not_found"
