"""The directory that everything local is kept in, made ready before any process starts."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

import yaml

from beampipe_dagster.errors import BeampipeError, ConfigError, ConflictError

LOCATION: Final = "beampipe_dagster"
"""Name of the code location in every workspace: schedules and sensors are known by it."""

_INITIALISE: Final = """
from dagster import DagsterInstance
with DagsterInstance.get() as instance:
    instance.get_runs_count()
"""
_INITIALISE_SECONDS: Final = 120


@dataclass(frozen=True, slots=True)
class Home:
    """The parts of a home directory.

    Attributes
    ----------
    root
        The directory itself: ``BEAMPIPE_HOME`` and ``DAGSTER_HOME`` of everything that runs.
    """

    root: Path

    @property
    def logs(self) -> Path:
        """What the processes print."""
        return self.root / "logs"

    @property
    def archive(self) -> Path:
        """Data of the sandbox archive."""
        return self.root / "sandbox" / "archive"

    @property
    def daliuge(self) -> Path:
        """DALiuGE's own directory."""
        return self.root / "dlg"

    @property
    def dagster_yaml(self) -> Path:
        """Configuration of Dagster's instance."""
        return self.root / "dagster.yaml"

    @property
    def workspace(self) -> Path:
        """Where the web server and the daemon find the code."""
        return self.root / "workspace.yaml"

    @property
    def lock(self) -> Path:
        """Held, and with the holder's process id in it, while the processes run."""
        return self.root / "up.lock"


def prepare_home(root: Path, *, code_server: tuple[str, int], environment: Mapping[str, str]) -> Home:
    """Make the directories and files of a home, and Dagster's tables.

    Several processes that open a new instance at the same time fail over each other, so it is
    opened once, in a process of its own, before any of them starts.

    Parameters
    ----------
    root
        The home. It is made for its owner alone; one that exists keeps its mode.
    code_server
        Host and port of the code server that the web server and the daemon share.
    environment
        Variables over the present ones, for the process that makes the tables.

    Returns
    -------
    Home
        The parts of it.

    Raises
    ------
    ConfigError
        ``home_unusable``: it cannot be made or written to.
    BeampipeError
        ``instance_failed``: Dagster cannot open its storage; the hint has its last words.
    """
    home = make_home(root)
    _write_workspace(home, *code_server)
    _write_dagster_yaml(home)
    _initialise(home, environment)
    return home


def make_home(root: Path) -> Home:
    """Make the directories of a home.

    Raises
    ------
    ConfigError
        ``home_unusable``: it cannot be made or written to.
    """
    home = Home(root.expanduser().absolute())
    try:
        home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (home.logs, home.archive, home.daliuge):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(home, error) from error
    return home


@contextmanager
def locked(home: Home) -> Iterator[None]:
    """Hold a home: only one supervisor runs in it.

    The system gives the lock up when the process ends, however it ends.

    Raises
    ------
    ConflictError
        ``home_in_use``: another one holds it; the message has its process id.
    ConfigError
        ``home_unusable``: the lock file cannot be written.
    """
    try:
        descriptor = os.open(home.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(home, error) from error
    with os.fdopen(descriptor, "r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = lock.read().strip() or "unknown"
            raise ConflictError(
                f"The home {home.root} is in use by another beampipe (process {holder}).",
                code="home_in_use",
                hint=f"Stop it (kill {holder}), or give this one its own home with BEAMPIPE_HOME.",
                details={"home": str(home.root), "pid": holder},
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            yield
        finally:
            lock.truncate(0)


def dagster_yaml() -> str:
    """The packaged configuration of Dagster's instance."""
    return files("beampipe_dagster.sandbox").joinpath("data/dagster.yaml").read_text("utf-8")


def _write_dagster_yaml(home: Home) -> None:
    """Write the packaged file, unless the operator has made the present one their own."""
    packaged = dagster_yaml()
    first = packaged.partition("\n")[0]
    path = home.dagster_yaml
    try:
        if path.exists() and path.read_text(encoding="utf-8").partition("\n")[0] != first:
            return
        path.write_text(packaged, encoding="utf-8")
    except OSError as error:
        raise _unusable(home, error) from error


def _write_workspace(home: Home, host: str, port: int) -> None:
    server = {"host": host, "port": port, "location_name": LOCATION}
    text = yaml.safe_dump({"load_from": [{"grpc_server": server}]}, sort_keys=False)
    try:
        home.workspace.write_text(f"# Written by `beampipe up` at each start.\n{text}", "utf-8")
    except OSError as error:
        raise _unusable(home, error) from error


def _initialise(home: Home, environment: Mapping[str, str]) -> None:
    try:
        answer = subprocess.run(  # noqa: S603  # a constant
            [sys.executable, "-c", _INITIALISE],
            env={**os.environ, **environment},
            cwd=home.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_INITIALISE_SECONDS,
            check=False,
        )
        failed, output = answer.returncode != 0, answer.stdout + answer.stderr
    except subprocess.TimeoutExpired:
        failed, output = True, f"no answer within {_INITIALISE_SECONDS} s"
    if failed:
        tail = "\n".join(output.strip().splitlines()[-8:])
        raise BeampipeError(
            f"Dagster cannot open its storage for the home {home.root}.",
            code="instance_failed",
            hint=f"Check BEAMPIPE_DATABASE_URL and {home.dagster_yaml}. It said:\n{tail}",
        )


def _unusable(home: Home, error: OSError) -> ConfigError:
    return ConfigError(
        f"The home {home.root} cannot be used: {error.strerror} ({error.filename}).",
        code="home_unusable",
        hint="Make the directory writable for you, or set BEAMPIPE_HOME to another one.",
    )
