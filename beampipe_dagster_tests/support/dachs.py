"""A real TAP server that is not ours: GAVO DaCHS on PostgreSQL, with the sandbox archive's tables in it.

Everything lives in one directory and ends with the test. Nothing of DaCHS is changed: the catalogue,
which VizieR calls ``"VIII/73/hicat"``, is ``viz.hicat`` here, since DaCHS takes no table names in quotes.
"""

from __future__ import annotations

import csv
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from beampipe_dagster.sandbox.archive.columns import EVALUATION_FILE, HICAT, OBSCORE, Table
from beampipe_dagster_tests.support import debian
from beampipe_dagster_tests.support.postgres import _as_postgres

START_SECONDS = 120.0
SCHEMAS: Mapping[str, tuple[Table, str]] = {
    "ivoa": (OBSCORE, "obscore"),
    "casda": (EVALUATION_FILE, "observation_evaluation_file"),
    "viz": (HICAT, "hicat"),
}
"""DaCHS' schema, the sandbox's table, and DaCHS' name of it."""

_TYPES = {"char": "text", "int": "integer", "long": "bigint", "double": "double precision"}


_IMPORTS = """
import sys
from gavo.user import cli
for name in sys.argv[1:]:
    sys.argv[:] = ["gavo", "--disable-spew", "imp", name]
    try:
        cli.main()
    except SystemExit as error:
        if error.code:
            raise
"""


def _as_python(code: str) -> tuple[str, str, str]:
    return "/usr/bin/python3", "-c", code


def unavailable() -> str | None:
    """Why there can be no DaCHS here; ``None`` when there can."""
    for path, package in (
        ("lib/python3/dist-packages/gavo/__init__.py", "python3-gavo"),
        ("lib/postgresql/15/bin/postgres", "postgresql-15"),
        ("lib/postgresql/15/lib/pg_sphere.so", "postgresql-15-pgsphere"),
        ("lib/postgresql/15/lib/q3c.so", "postgresql-15-q3c"),
    ):
        if debian.find(path) is None:
            return f"{package} is not there; scripts/unpack-debian.sh gets it"
    if os.geteuid() == 0 and not _as_postgres():
        return "PostgreSQL refuses to run as root, and there is no setpriv"
    return None


@dataclass(frozen=True)
class Dachs:
    """A running server."""

    directory: Path
    port: int

    @property
    def url(self) -> str:
        """The TAP service's base URL."""
        return f"http://127.0.0.1:{self.port}/tap"


@contextmanager
def running_dachs(archive: Path) -> Iterator[Dachs]:
    """DaCHS with the tables of a sandbox archive, which lives in the directory ``archive``."""
    directory = Path(tempfile.mkdtemp(prefix="beampipe-dachs-", dir="/tmp"))  # postgres must get in
    processes: list[subprocess.Popen[bytes]] = []
    try:
        place = _Place(directory, _free_port(), _free_port())
        place.prepare(archive)
        processes.append(place.start_postgres())
        place.load()
        processes.append(place.start_dachs())
        yield Dachs(directory, place.http_port)
    finally:
        for process in reversed(processes):
            _end(process)
        shutil.rmtree(directory, ignore_errors=True)


@dataclass(frozen=True)
class _Place:
    """A directory with a database cluster and DaCHS' own files."""

    directory: Path
    database_port: int
    http_port: int

    @property
    def binaries(self) -> Path:
        found = debian.find("lib/postgresql/15/lib/q3c.so")
        assert found is not None
        return found.parent.parent / "bin"

    def environment(self) -> dict[str, str]:
        root = debian.root()
        libraries = root / "usr/lib/x86_64-linux-gnu"
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TZ") if name in os.environ}
        return {
            **kept,
            "HOME": str(self.directory),
            # DaCHS starts its jobs as `gavo`.
            "PATH": f"{root}/usr/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LD_LIBRARY_PATH": ":".join(
                str(libraries / sub) for sub in ("", "openblas-pthread", "blas", "lapack")
            ),
            "PYTHONPATH": str(root / "usr/lib/python3/dist-packages"),
            "GAVOSETTINGS": str(self.directory / "gavo.rc"),
            "GAVOCUSTOM": "/dev/null",
            "MPLCONFIGDIR": str(self.directory / "mpl"),
        }

    def prepare(self, archive: Path) -> None:
        for name in ("gavo", "run", "mpl"):
            (self.directory / name).mkdir()
        (self.directory / "gavo.rc").write_text(
            f"[general]\nrootDir: {self.directory}/gavo\ngroup: postgres\n"
            f"[web]\nbindAddress: 127.0.0.1\nserverPort: {self.http_port}\n"
            f"serverURL: http://127.0.0.1:{self.http_port}\nuser:\n"
            f"[async]\nmaxTAPRunning: 4\n"
            f"[db]\nprofilePath: {self.directory}/gavo/etc\n"
        )
        for schema, (table, name) in SCHEMAS.items():
            inputs = self.directory / "gavo/inputs" / schema
            inputs.mkdir(parents=True)
            (inputs / "q.rd").write_text(_descriptor(schema, table, name))
            _export(archive / f"{table.schema}.sqlite", table, inputs / f"{name}.csv")
        if os.geteuid() == 0:
            for path in (self.directory, *self.directory.rglob("*")):
                shutil.chown(path, "postgres", "postgres")

    def start_postgres(self) -> subprocess.Popen[bytes]:
        data = self.directory / "pg"
        self.run(
            self.binaries / "initdb", "-D", data, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8",
            "-U", "postgres", "--no-sync",
        )  # fmt: skip
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.database_port,
            "unix_socket_directories": self.directory / "run",
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
        }
        arguments = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        process = self.start("postgres", self.binaries / "postgres", "-D", data, *arguments)
        at = ("-h", "127.0.0.1", "-p", str(self.database_port), "-U", "postgres")
        self.wait("postgres", process, lambda: self.succeeds(self.binaries / "pg_isready", *at))
        self.run(self.binaries / "createdb", *at, "--encoding=UTF-8", "--template=template0", "gavo")
        return process

    def load(self) -> None:
        source = f"host=127.0.0.1 port={self.database_port} user=postgres dbname=gavo"
        self.run("gavo", "--disable-spew", "init", "-d", source)
        # One process for all: most of the time it would spend on starting.
        self.run(*_as_python(_IMPORTS), *(f"{schema}/q" for schema in SCHEMAS))

    def start_dachs(self) -> subprocess.Popen[bytes]:
        process = self.start("dachs", "gavo", "--disable-spew", "serve", "start", "-f")
        self.wait("dachs", process, self.answers)
        return process

    def answers(self) -> bool:
        try:
            url = f"http://127.0.0.1:{self.http_port}/tap/availability"
            with urllib.request.urlopen(url, timeout=10):
                return True
        except OSError:
            return False

    def succeeds(self, *words: object) -> bool:
        done = subprocess.run(
            self.command(*words),
            env=self.environment(),
            cwd=self.directory,
            capture_output=True,
            timeout=START_SECONDS,
            check=False,
        )
        return done.returncode == 0

    def command(self, *words: object) -> list[str]:
        words = ("/usr/bin/python3", debian.find("bin/gavo"), *words[1:]) if words[0] == "gavo" else words
        return [*_as_postgres(), *map(str, words)]

    def run(self, *words: object) -> None:
        done = subprocess.run(
            self.command(*words),
            env=self.environment(),
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stdout[-3000:]}{done.stderr[-3000:]}"

    def start(self, name: str, *words: object) -> subprocess.Popen[bytes]:
        with (self.directory / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                self.command(*words),
                env=self.environment(),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, name: str, process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
        end = time.monotonic() + START_SECONDS
        while not ready():
            assert process.poll() is None, self.log(name)
            assert time.monotonic() < end, self.log(name)
            time.sleep(0.1)

    def log(self, name: str) -> str:
        return f"{name} does not start: {(self.directory / f'{name}.log').read_text()[-3000:]}"


def _descriptor(schema: str, table: Table, name: str) -> str:
    """A table as DaCHS describes one, filled from a file of comma-separated values."""
    columns = []
    for column in table.columns:
        null = "" if column.datatype in {"char", "double"} else '<values nullLiteral="-1"/>'
        kind = _TYPES[column.datatype]
        columns.append(
            f'<column name={quoteattr(column.name)} type="{kind}" unit={quoteattr(column.unit)} '
            f"ucd={quoteattr(column.ucd)} description={quoteattr(column.description)}>{null}</column>"
        )
    return (
        f'<resource schema="{schema}" resdir="{schema}">'
        f'<meta name="title">{schema}</meta><meta name="creationDate">2026-01-01T00:00:00Z</meta>'
        f'<meta name="description">{escape(table.description)}</meta><meta name="subject">tests</meta>'
        f'<table id="{name}" onDisk="True" adql="True">'
        f'<meta name="description">{escape(table.description)}</meta>{"".join(columns)}</table>'
        f'<data id="import"><sources>{name}.csv</sources><csvGrammar/>'
        f'<make table="{name}"><rowmaker idmaps="*"/></make></data></resource>'
    )


def _export(file: Path, table: Table, target: Path) -> None:
    names = [column.name for column in table.columns]
    quoted = ", ".join(f'"{name}"' for name in names)
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as db, target.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(names)
        writer.writerows(db.execute(f'SELECT {quoted} FROM "{table.name}"'))  # noqa: S608  # our own names


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=10)
