from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from beampipe_dagster.errors import ConfigError
from beampipe_dagster.sandbox.archive.server import ArchiveServer

COMMAND = [sys.executable, "-m", "beampipe_dagster.sandbox.archive"]
SLOW = "SELECT COUNT(*) FROM ivoa.obscore a, ivoa.obscore b, ivoa.obscore c, ivoa.obscore d"


@contextmanager
def process(data_dir: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The archive as a process, and its root URL from its own line."""
    started = subprocess.Popen(
        [*COMMAND, "--data-dir", str(data_dir), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert started.stdout is not None
        line = started.stdout.readline()
        found = re.search(r"page=(http://\S+)/$", line.strip())
        assert found, line
        yield started, found[1]
    finally:
        started.kill()
        started.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_process_within_a_second(tmp_path: Path, number: signal.Signals) -> None:
    with process(tmp_path) as (child, base), httpx.Client() as client:
        # A kept connection, a long poll, a slow query and a latency must not hold it up.
        job = client.post(
            f"{base}/casda/tap/async", data={"LANG": "ADQL", "QUERY": SLOW, "PHASE": "RUN"}
        ).headers["location"]
        httpx.put(f"{base}/sandbox/faults/vizier", json={"latency": 30})
        waiting = [socket.create_connection(("127.0.0.1", int(base.rpartition(":")[2]))) for _ in range(2)]
        paths = (f"{job[len(base) :]}?WAIT=60", "/vizier/tap/sync?LANG=ADQL&QUERY=x")
        for connection, path in zip(waiting, paths, strict=True):
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        time.sleep(0.2)
        started = time.monotonic()
        child.send_signal(number)
        assert child.wait(timeout=5) == 0
        assert time.monotonic() - started < 1.0
        for connection in waiting:
            connection.close()
        assert child.stderr is not None
        assert child.stderr.read() == ""


def test_a_restart_keeps_deposits_and_faults(tmp_path: Path) -> None:
    with process(tmp_path) as (_, base):
        httpx.post(f"{base}/sandbox/deposits", json={"source_identifier": "HIPASSJ1320-12"})
        httpx.put(f"{base}/sandbox/faults/casda", json={"overflow": 2})
    with process(tmp_path) as (_, base):
        assert httpx.get(f"{base}/sandbox/faults").json()["casda"] == {"overflow": 2}
        assert "HIPASSJ1320-12_SB73100_F00_B00.ms.tar" in httpx.get(f"{base}/").text


def test_a_taken_port_ends_with_2_and_one_line_that_names_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [*COMMAND, "--data-dir", str(tmp_path / "d"), "--port", str(port)],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert f"Port {port} on 127.0.0.1 is in use" in done.stderr
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("port", ["70000", "-1"])
def test_an_impossible_port_ends_with_2(tmp_path: Path, port: str) -> None:
    done = subprocess.run(
        [*COMMAND, "--data-dir", str(tmp_path), f"--port={port}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_two_servers_run_side_by_side_and_start_again_on_their_port(tmp_path: Path) -> None:
    with ArchiveServer(tmp_path / "a") as first, ArchiveServer(tmp_path / "b") as second:
        assert first.base_url != second.base_url
        httpx.put(f"{first.base_url}/sandbox/faults/casda", json={"down": True})
        assert httpx.get(f"{second.casda_url}/availability").status_code == 200
        base = first.base_url
        first.stop()
        with pytest.raises(httpx.ConnectError):
            httpx.get(base)
        first.start()
        assert first.base_url == base
        assert httpx.get(f"{base}/sandbox/faults").json()["casda"] == {"down": True}


def test_a_server_on_a_taken_port_says_so(tmp_path: Path) -> None:
    with ArchiveServer(tmp_path / "a") as first:
        port = int(first.base_url.rpartition(":")[2])
        with pytest.raises(ConfigError, match=str(port)) as caught:
            ArchiveServer(tmp_path / "b", port=port).start()
        assert caught.value.code == "port_taken"


def test_an_answer_does_not_wait_for_the_clients_acknowledgement(tmp_path: Path) -> None:
    with ArchiveServer(tmp_path) as server, httpx.Client() as client:
        parameters = {"LANG": "ADQL", "QUERY": "SELECT TOP 1 * FROM ivoa.obscore"}
        started = time.monotonic()
        for _ in range(50):
            client.get(f"{server.casda_url}/sync", params=parameters)
        # Nagle's algorithm would cost 40 ms each: 2 s.
        assert time.monotonic() - started < 1.5
