"""A real Slurm for tests: controller, nodes, authentication and, when wanted, accounting, all on this host.

Everything lives in a short directory of its own and on ports of its own, runs as the user of the tests, and
ends with the test process. Daemons can be killed, stopped for a while and started again.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest

from beampipe_dagster_tests.support.debian import need

START_SECONDS = 60.0
NODES = 3
CONTROLLER, ACCOUNTING, DATABASE = "slurmctld", "slurmdbd", "mariadbd"
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "setpriv")
_ACCOUNTING_PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db", "mariadb", "sacct", "sacctmgr")
_PORTS = range(20000, 32000)
"""Below the ports that a kernel gives out by itself."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def unavailable(*, accounting: bool = True) -> str | None:
    """Why there can be no cluster here; ``None`` when there can."""
    wanted = _PROGRAMS + (_ACCOUNTING_PROGRAMS if accounting else ())
    missing = [name for name in wanted if shutil.which(name, path=_PATH) is None]
    return f"Slurm is not installed (no {', '.join(missing)})" if missing else None


@dataclass
class Cluster:
    """A running cluster.

    Parameters
    ----------
    directory
        Holds all its files.
    accounting
        Whether there are accounting daemons; without them ``sacct`` only says that it is off.
    """

    directory: Path
    accounting: bool
    children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: count(1))
    started_in: float = 0.0

    @property
    def conf(self) -> Path:
        """What ``SLURM_CONF`` names."""
        return self.directory / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which commands find the cluster, and nothing of another one."""
        kept = {"LANG", "HOME", "USER", "LOGNAME"}
        given = {name: value for name, value in os.environ.items() if name in kept}
        return {
            **given,
            "PATH": _PATH,
            "SLURM_CONF": str(self.conf),
            "MYSQL_UNIX_PORT": f"{self.directory}/sql.sock",
        }

    def shell(
        self, command: str, *, stdin: str = "", seconds: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as a login node would."""
        return subprocess.run(
            ["bash", "-c", command],
            input=stdin,
            env=self.environment,
            cwd=self.directory,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )

    def said(self, command: str, *, stdin: str = "") -> str:
        """What a command that succeeds prints."""
        done = self.shell(command, stdin=stdin)
        assert done.returncode == 0, f"{command}: {done.returncode} {done.stdout} {done.stderr}"
        return done.stdout.strip()

    def submit(self, script: str, options: str = "") -> str:
        """Submit a script; its job's id."""
        command = f"sbatch --parsable -o /dev/null {options}"
        return self.said(command, stdin=f"#!/bin/bash\n{script}\n")

    def name(self) -> str:
        """A job's name that no other test has."""
        return f"bp-{os.getpid()}-{next(self.numbers)}"

    def start(self, name: str) -> None:
        """Start a daemon again, as at first, and wait until it answers."""
        getattr(self, f"_start_{name.partition('.')[0]}")(*name.partition(".")[2:])

    def stop(self, name: str, *, kill: bool = False) -> None:
        """End a daemon; at once and without a farewell when killed."""
        child = self.children.pop(name, None)
        if child is None:
            return
        child.send_signal(signal.SIGCONT)
        child.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        try:
            child.wait(timeout=15)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(timeout=15)

    @contextmanager
    def without(self, name: str) -> Iterator[None]:
        """A daemon is away for a while."""
        self.stop(name, kill=True)
        try:
            yield
        finally:
            self.start(name)

    @contextmanager
    def hung(self, name: str) -> Iterator[None]:
        """A daemon accepts connections and says nothing for a while."""
        self.children[name].send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.children[name].send_signal(signal.SIGCONT)

    def up(self) -> None:
        """Start everything."""
        begun = time.monotonic()
        names = ["ctld", "dbd", *(f"n{number}" for number in range(1, NODES + 1))]
        self.ports = dict(zip(names, _free_ports(len(names)), strict=True))
        for name in ("log", "state", "spool"):
            (self.directory / name).mkdir()
        (self.directory / "munge.key").write_bytes(os.urandom(128))
        (self.directory / "munge.key").chmod(0o400)
        self._configure()
        self._start_munged()
        if self.accounting:
            self._start_mariadbd()
            self._start_slurmdbd()
        self._start_slurmctld()
        for node in range(1, NODES + 1):
            self._start_slurmd(f"n{node}")
        self.wait_for_nodes()
        self.started_in = time.monotonic() - begun

    def down(self) -> None:
        """End everything, jobs as well."""
        for name in sorted(self.children, key=lambda one: one != CONTROLLER):
            if not name.startswith(("munged", DATABASE, ACCOUNTING)):
                self.stop(name)
        self._end_jobs()
        for name in (ACCOUNTING, DATABASE, "munged"):
            self.stop(name)

    def wait_for_nodes(self) -> None:
        """Wait until every node can take jobs."""
        _wait_until(
            lambda: self.shell("sinfo -h -N -p work -o %T").stdout.split() == ["idle"] * NODES, self._logs
        )

    def wait_for_controller(self) -> None:
        """Wait until the controller answers."""
        _wait_until(lambda: self.shell("scontrol ping").returncode == 0, self._logs)

    def _end_jobs(self) -> None:
        mark = str(self.directory).encode()
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if int(entry.name) != os.getpid() and mark in (entry / "environ").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)

    def _spawn(self, name: str, *command: str) -> None:
        with (self.directory / "log" / f"{name}.out").open("ab") as out:
            self.children[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self.environment,
                cwd=self.directory,
                start_new_session=True,
            )

    def _logs(self) -> str:
        return "\n".join(
            f"== {path.name}\n{path.read_text(errors='replace')[-1500:]}"
            for path in sorted((self.directory / "log").iterdir())
        )

    def _start_munged(self, *_: str) -> None:
        here = self.directory
        options = [f"--key-file={here}/munge.key", f"--socket={here}/munge.sock"]
        options += [f"--pid-file={here}/munged.pid", f"--log-file={here}/log/munged.log"]
        options += [f"--seed-file={here}/munge.seed", "--num-threads=2"]
        self._spawn("munged", "munged", "--foreground", "--force", *options)
        _wait_until((here / "munge.sock").exists, self._logs)

    def _start_mariadbd(self, *_: str) -> None:
        here, user = self.directory, _user()
        if not (here / "sql").exists():
            made = self.shell(
                f"mariadb-install-db --no-defaults --user={user} --datadir={here}/sql --skip-test-db"
                " --auth-root-authentication-method=normal --skip-name-resolve --innodb-log-file-size=8M"
            )
            assert made.returncode == 0, made.stdout + made.stderr
        (here / "sql.sock").unlink(missing_ok=True)
        self._spawn(DATABASE, DATABASE, f"--defaults-file={here}/my.cnf")
        _wait_until((here / "sql.sock").exists, self._logs)
        self.said(
            f'mariadb --no-defaults --socket={here}/sql.sock -uroot -e "CREATE DATABASE IF NOT EXISTS acct;'
            " CREATE USER IF NOT EXISTS 'slurm'@'localhost' IDENTIFIED BY 'slurm';"
            " GRANT ALL ON acct.* TO 'slurm'@'localhost'\""
        )

    def _start_slurmdbd(self, *_: str) -> None:
        self._spawn(ACCOUNTING, ACCOUNTING, "-D")
        _wait_until(lambda: _listens(self.ports["dbd"]), self._logs)

    def _start_slurmctld(self, *_: str) -> None:
        self._spawn(CONTROLLER, CONTROLLER, "-D")
        self.wait_for_controller()

    def _start_slurmd(self, node: str) -> None:
        (self.directory / "spool" / node).mkdir(exist_ok=True)
        self._spawn(f"slurmd.{node}", "slurmd", "-D", "-N", node)

    def _configure(self) -> None:
        here, user = self.directory, _user()
        values = {"here": here, "user": user, "host": socket.gethostname().split(".")[0], **self.ports}
        (here / "my.cnf").write_text(_MY_CNF.format_map(values))
        dbd = here / "slurmdbd.conf"
        dbd.touch(mode=0o600)
        dbd.write_text(_DBD_CONF.format_map(values))
        nodes = "".join(
            f"NodeName=n{number} NodeHostname={values['host']} NodeAddr=127.0.0.1"
            f" Port={self.ports[f'n{number}']} CPUs=4 RealMemory=4000 State=UNKNOWN\n"
            for number in range(1, NODES + 1)
        )
        accounting = _ACCOUNTING if self.accounting else "AccountingStorageType=accounting_storage/none\n"
        self.conf.write_text((_SLURM_CONF + accounting).format_map(values) + nodes + _PARTITIONS)


def _user() -> str:
    return "root" if os.geteuid() == 0 else os.environ.get("USER", str(os.geteuid()))


def _listens(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_ports(wanted: int) -> list[int]:
    found: list[int] = []
    first = os.getpid() * 53 % len(_PORTS)
    for offset in range(len(_PORTS)):
        port = _PORTS[(first + offset) % len(_PORTS)]
        with closing(socket.socket()) as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == wanted:
            return found
    raise AssertionError("no free ports for a cluster")


def _wait_until(condition: object, logs: object, *, seconds: float = START_SECONDS) -> None:
    assert callable(condition)
    assert callable(logs)
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"Slurm does not start: {logs()}")
        time.sleep(0.05)


@contextmanager
def running_cluster(*, accounting: bool = True) -> Iterator[Cluster]:
    """A cluster whose nodes are idle."""
    # Sockets' paths must be short, so that it does not live below pytest's own directory.
    memory = Path("/dev/shm")  # noqa: S108  # a directory of its own is made in it
    place = memory if os.access(memory, os.W_OK) else Path("/tmp")  # noqa: S108  # as above
    directory = Path(tempfile.mkdtemp(prefix="bp-slurm-", dir=place))
    directory.chmod(0o755)
    cluster = Cluster(directory, accounting)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[Cluster]:
    """The test process's cluster with accounting; skipped where Slurm is not installed, but not in CI."""
    need(unavailable())
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def slurm_without_accounting() -> Iterator[Cluster]:
    """A cluster that keeps no accounts."""
    need(unavailable(accounting=False))
    with running_cluster(accounting=False) as cluster:
        yield cluster


_MY_CNF = """\
[mysqld]
user = {user}
datadir = {here}/sql
socket = {here}/sql.sock
pid-file = {here}/sql.pid
log-error = {here}/log/mariadbd.log
tmpdir = {here}
skip-networking
skip-name-resolve
performance-schema = OFF
innodb-buffer-pool-size = 64M
innodb-log-file-size = 8M
innodb-lock-wait-timeout = 900
innodb-flush-log-at-trx-commit = 0
skip-log-bin
"""
_DBD_CONF = """\
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={dbd}
SlurmUser={user}
AuthType=auth/munge
AuthInfo=socket={here}/munge.sock
DebugLevel=info
LogFile={here}/log/slurmdbd.log
PidFile={here}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StoragePass=slurm
StorageLoc=acct
"""
# The connection to the accounts does not read AuthInfo: the socket is its password.
_ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd}
AccountingStoragePass={here}/munge.sock
AccountingStoreFlags=job_comment
"""
# Times are short, so that a lost node and a job that left the queue are seen within a test.
_SLURM_CONF = """\
ClusterName=beampipe
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={here}/munge.sock
CredType=cred/munge
StateSaveLocation={here}/state
SlurmdSpoolDir={here}/spool/%n
SlurmctldPidFile={here}/slurmctld.pid
SlurmdPidFile={here}/slurmd.%n.pid
SlurmctldLogFile={here}/log/slurmctld.log
SlurmdLogFile={here}/log/slurmd.%n.log
SlurmdParameters=config_overrides
MailProg=/bin/true
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=2,default_queue_depth=2000
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
MinJobAge=20
KillWait=2
SlurmdTimeout=8
MessageTimeout=4
BatchStartTimeout=10
"""
_PARTITIONS = """\
PartitionName=work Nodes=n[1-3] Default=YES MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=REQUEUE
PartitionName=urgent Nodes=n[1-3] MaxTime=1:00:00 State=UP PriorityTier=100 PreemptMode=OFF
PartitionName=short Nodes=n[1-3] MaxTime=1 State=UP PriorityTier=10
PartitionName=down Nodes=n[1-3] State=DOWN
"""
