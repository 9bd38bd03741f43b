"""A real OpenSSH server for tests: on a port of its own, with keys of its own, as an ordinary user.

Installed, or only unpacked (``apt-get download openssh-server libwrap0`` and ``dpkg -x`` into the directory of
``support.debian``). It ends with the test process, also when that is killed.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh
import pytest

from beampipe_dagster_tests.support import debian

START_SECONDS = 20.0


def unavailable() -> str | None:
    """Why there can be no server here; ``None`` when there can."""
    if debian.find("sbin/sshd") is None:
        return "OpenSSH's server is not installed (apt-get install openssh-server)"
    if shutil.which("setpriv") is None:
        return "there is no setpriv"
    if os.geteuid() == 0 and _user() is None:
        return "there is no ordinary user with a shell for sshd to run as"
    return None


def _user() -> pwd.struct_passwd | None:
    """Who the server runs as, and lets in: ourselves, or, for the super-user, PostgreSQL's user."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid())
    try:
        found = pwd.getpwnam("postgres")
    except KeyError:
        return None
    return found if found.pw_shell.endswith("sh") else None


@dataclass
class Sshd:
    """A server; its settings are those of the next :meth:`start`."""

    directory: Path
    port: int
    user: str
    options: dict[str, str] = field(default_factory=dict)
    noise: str = ""
    process: subprocess.Popen[bytes] | None = None

    @property
    def host_key(self) -> Path:
        return self.directory / "host_key"

    @property
    def authorized(self) -> Path:
        return self.directory / "authorized_keys"

    @property
    def home(self) -> Path:
        return self.directory / "files"

    def new_host_key(self) -> str:
        """Another host key; its public half."""
        key = asyncssh.generate_private_key("ssh-ed25519")
        self.host_key.unlink(missing_ok=True)
        self._write(self.host_key, key.export_private_key(), 0o600)
        return key.export_public_key().decode().strip()

    def allow(self, key: asyncssh.SSHKey, options: str = "") -> None:
        """Let in who has this key, and nobody else."""
        public = key.export_public_key().decode().strip()
        self._write(self.authorized, f"{options} {public}\n".lstrip().encode(), 0o644)

    def known_hosts(self, name: str | None = None) -> str:
        """The server's line."""
        public = asyncssh.read_private_key(self.host_key).export_public_key().decode().split()
        return f"{name or f'[127.0.0.1]:{self.port}'} {public[0]} {public[1]}\n"

    def start(self) -> None:
        """Start it, and wait until it listens."""
        config = self.directory / "sshd_config"
        lines = {
            "Port": str(self.port),
            "ListenAddress": "127.0.0.1",
            "HostKey": str(self.host_key),
            "PidFile": "none",
            "AuthorizedKeysFile": str(self.authorized),
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "UsePAM": "no",
            "StrictModes": "no",
            "UseDNS": "no",
            "Subsystem": "sftp internal-sftp",
            "LogLevel": "ERROR",
            **self.options,
        }
        if self.noise:
            # What a login shell prints before the command; the command itself is run afterwards.
            script = self.directory / "noisy"
            self._write(
                script,
                f'#!/bin/sh\nprintf "{self.noise}\\n"; printf "{self.noise}\\n" >&2\n'
                'eval "$SSH_ORIGINAL_COMMAND"\n'.encode(),
                0o755,
            )
            lines["ForceCommand"] = str(script)
        self._write(config, "".join(f"{key} {value}\n" for key, value in lines.items()).encode(), 0o644)
        binary = debian.find("sbin/sshd")
        assert binary is not None
        command = ["setpriv", "--pdeathsig", "KILL"]
        found = _user()
        if os.geteuid() == 0 and found is not None:
            command += [f"--reuid={found.pw_uid}", f"--regid={found.pw_gid}", "--clear-groups"]
        libraries = debian.root() / "usr" / "lib" / f"{os.uname().machine}-linux-gnu"
        self.process = subprocess.Popen(
            [*command, str(binary), "-D", "-e", "-f", str(config)],
            env={"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": str(libraries)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(self.directory / "log").open("ab"),
            start_new_session=True,
        )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"sshd does not listen: {(self.directory / 'log').read_text()}")

    def sessions(self) -> list[int]:
        """The processes of open connections, without what they started."""
        assert self.process is not None
        return _children().get(self.process.pid, [])

    def cut(self) -> None:
        """Kill the open connections, and what runs on them; the server stays."""
        assert self.process is not None
        children, pending = _children(), [self.process.pid]
        for pid in pending:
            pending += children.get(pid, [])
        for pid in pending[1:]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """Stop the server and its connections."""
        if self.process is None:
            return
        self.cut()
        self.process.kill()
        self.process.wait(timeout=10)
        self.process = None

    def restart(self, **options: str) -> None:
        """Start anew with other settings."""
        self.stop()
        self.options = options
        self.start()

    def _write(self, path: Path, data: bytes, mode: int) -> None:
        path.write_bytes(data)
        path.chmod(mode)
        found = _user()
        if os.geteuid() == 0 and found is not None:
            os.chown(path, found.pw_uid, found.pw_gid)


def _children() -> dict[int, list[int]]:
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], check=True, capture_output=True, text=True)
    found: dict[int, list[int]] = {}
    for line in listed.stdout.splitlines():
        pid, parent = line.split()
        found.setdefault(int(parent), []).append(int(pid))
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def new_sshd() -> Iterator[Sshd]:
    """A server that is not started yet; skips the test where there can be none."""
    debian.need(unavailable())
    found = _user()
    assert found is not None
    # A short path that every user can reach: pytest's own directories are closed to others.
    directory = Path(tempfile.mkdtemp(prefix="bp-sshd-", dir="/tmp"))  # a directory of its own
    server = Sshd(directory, _free_port(), found.pw_name)
    try:
        directory.chmod(0o755)
        server.home.mkdir()
        if os.geteuid() == 0:
            for path in (directory, server.home):
                os.chown(path, found.pw_uid, found.pw_gid)
        server.new_host_key()
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def sshd() -> Iterator[Sshd]:
    """A server that is not started yet."""
    with new_sshd() as server:
        yield server


__all__ = ["Sshd", "new_sshd", "sshd", "unavailable"]
