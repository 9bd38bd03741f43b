"""``beampipe up``: a whole beampipe on this machine, in one command."""

from __future__ import annotations

import os
import shlex
import site
import socket
import sys
import sysconfig
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape

from beampipe_dagster.clock import SystemClock
from beampipe_dagster.errors import BeampipeError, ConfigError
from beampipe_dagster.sandbox import daliuge
from beampipe_dagster.sandbox.home import Home, locked, make_home, prepare_home
from beampipe_dagster.sandbox.ports import LOOPBACK, check_ports
from beampipe_dagster.sandbox.process import ProcessSpec
from beampipe_dagster.sandbox.supervisor import (
    Event,
    EventKind,
    Limits,
    Supervisor,
    stop_on_signals,
)

_DAEMON_READY: Final = b"configured with the following daemons"
_PROBE_SECONDS: Final = 2.0
_SANDBOX_PACE: Final = {
    "BEAMPIPE_SCHEDULER_INTERVAL_SECONDS": "5",
    "BEAMPIPE_DIM_POLL_INTERVAL_SECONDS": "2",
    "BEAMPIPE_SHAPING_EXECUTION_MAX_IN_FLIGHT_RUNS": "4",
    "BEAMPIPE_LEASE_SECONDS": "20",
    "BEAMPIPE_ARCHIVE_OPEN_SECONDS": "5",
}
# Archives and clusters want patience; on one machine people want to see something happen.
_NO_PROXY: Final = "127.0.0.1,localhost,::1"


@dataclass(frozen=True, slots=True)
class UpPorts:
    """Where everything listens.

    Attributes
    ----------
    web
        Dagster's web server.
    code_server
        The code location, for the web server and the daemon.
    archive
        The sandbox archive.
    metrics
        The Prometheus exporter.
    daliuge
        The local DALiuGE.
    """

    web: int = 3000
    code_server: int = 4266
    archive: int = 8190
    metrics: int = 9090
    daliuge: daliuge.DaliugePorts = field(default_factory=daliuge.DaliugePorts)


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What ``beampipe up`` can be told.

    Attributes
    ----------
    home
        Directory of everything that is kept; made when it does not exist.
    host
        Address of the web server. It knows no passwords: anything but the loopback address needs a
        reverse proxy in front of it.
    ports
        Where everything listens.
    sandbox
        Whether the sandbox archive and a local DALiuGE are started.
    dlg
        DALiuGE's ``dlg`` command; looked for when not given.
    threads
        How many applications the local DALiuGE runs at the same time.
    """

    home: Path
    host: str = LOOPBACK
    ports: UpPorts = field(default_factory=UpPorts)
    sandbox: bool = True
    dlg: Path | None = None
    threads: int = 4

    @property
    def web_url(self) -> str:
        """Where the operator looks at it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.ports.web}"

    @property
    def archive_url(self) -> str:
        """Base URL of the sandbox archive."""
        return f"http://{LOOPBACK}:{self.ports.archive}"

    @property
    def metrics_url(self) -> str:
        """What Prometheus scrapes."""
        return f"http://{LOOPBACK}:{self.ports.metrics}/metrics"


def environment(options: UpOptions) -> dict[str, str]:
    """The variables that every process is started with, over the present ones.

    Parameters
    ----------
    options
        What is to be started.

    Returns
    -------
    dict
        Values by name.
    """
    home = str(options.home.expanduser().absolute())
    env = {
        "BEAMPIPE_HOME": home,
        "DAGSTER_HOME": home,
        "BEAMPIPE_METRICS_BIND_ADDR": f"{LOOPBACK}:{options.ports.metrics}",
        "DAGSTER_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
    }
    # Whatever proxy the machine has for the world, these processes talk to each other directly.
    for name in ("NO_PROXY", "no_proxy"):
        before = os.environ.get(name, "").strip(", ")
        env[name] = f"{before},{_NO_PROXY}" if before else _NO_PROXY
    source = Path(__file__).resolve().parents[2]
    if not _is_installed(source):
        before = os.environ.get("PYTHONPATH", "")
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(source), before]))
    if options.sandbox:
        env |= {name: value for name, value in _SANDBOX_PACE.items() if not os.environ.get(name)}
        env["BEAMPIPE_CASDA_TAP_URL"] = f"{options.archive_url}/casda/tap"
        env["BEAMPIPE_VIZIER_TAP_URL"] = f"{options.archive_url}/vizier/tap"
        env["BEAMPIPE_TM_URL"] = options.ports.daliuge.translator_url
        env["BEAMPIPE_DIM_URL"] = options.ports.daliuge.manager_url
    return env


def stages(options: UpOptions) -> list[list[ProcessSpec]]:
    """The processes of ``beampipe up``, in the order in which they need each other.

    First the sandbox (archive, DALiuGE), which nothing else has to be there for; then what reads
    the ledger as it is after seeding (code server, exporter); then Dagster's web server and daemon.

    Raises
    ------
    ConfigError
        ``dlg_not_found``: the sandbox is wanted and there is no DALiuGE.
    """
    home = Home(options.home.expanduser().absolute())
    env = environment(options)
    return [
        _sandbox(options, home, env) if options.sandbox else [],
        [_code_server(options, home, env), _exporter(options, home, env)],
        [_web_server(options, home, env), _daemon(home, env)],
    ]


def check_all_ports(options: UpOptions) -> None:
    """See that everything can listen where it is told to, in one look.

    Raises
    ------
    ConfigError
        As of :func:`beampipe_dagster.sandbox.ports.check_ports`.
    """
    ports = options.ports
    uses = {
        "web server": (ports.web, "--port"),
        "code server": (ports.code_server, "--code-server-port"),
        "metrics": (ports.metrics, "--metrics-port"),
    }
    if options.sandbox:
        stack = ports.daliuge
        uses |= {
            "sandbox archive": (ports.archive, "--archive-port"),
            "DALiuGE node manager": (stack.nm, "--nm-port"),
            "DALiuGE island manager": (stack.dim, "--dim-port"),
            "DALiuGE translator": (stack.tm, "--tm-port"),
            "DALiuGE events": (stack.events, "--events-port"),
            "DALiuGE calls between nodes": (stack.rpc, "--rpc-port"),
        }
    check_ports(
        {use: port for use, (port, _) in uses.items()},
        flags={use: flag for use, (_, flag) in uses.items()},
    )


def run_up(
    options: UpOptions,
    *,
    console: Console | None = None,
    seed: Callable[[], None] | None = None,
    table: Callable[[], RenderableType] | None = None,
    stop: threading.Event | None = None,
    on_up: Callable[[], None] | None = None,
    limits: Limits | None = None,
) -> int:
    """Start everything, keep it running until it is told to stop, and stop it.

    Parameters
    ----------
    options
        What to start.
    console
        Where progress is shown; nowhere without it.
    seed
        Called when the sandbox serves and before anything reads the ledger: migrate it, and put
        surveys and sources in. A :class:`BeampipeError` from it ends everything.
    table
        What to show while it runs, asked for every second; only shown on a terminal.
    stop
        Set it to end everything; SIGINT, SIGTERM and SIGHUP set it too, in the main thread.
    on_up
        Called once, when everything serves.
    limits
        How patient the supervisor is.

    Returns
    -------
    int
        Exit code: 0 after a stop that was asked for.

    Raises
    ------
    BeampipeError
        Something could not be started or ended for good; everything has been stopped.
    """
    stop = stop or threading.Event()
    out = console or Console(quiet=True)
    home = make_home(options.home)
    with locked(home):
        check_all_ports(options)
        specs = stages(options)
        out.print(f"beampipe in [bold]{escape(str(home.root))}[/bold]", soft_wrap=True)
        server = (LOOPBACK, options.ports.code_server)
        settings = environment(options)
        prepare_home(home.root, code_server=server, environment=settings)
        write_environment(home, settings)
        supervisor = Supervisor(
            stages=specs,
            log_dir=home.logs,
            clock=SystemClock(),
            on_event=lambda event: _show(out, event),
            limits=limits,
        )

        def after_stage(index: int) -> None:
            if index == 0 and seed is not None:
                seed()

        with supervisor, stop_on_signals(stop, again=supervisor.hurry):
            if supervisor.start(after_stage=after_stage, stop=stop):
                _welcome(out, options, home)
                if on_up is not None:
                    on_up()
                _watch(supervisor, stop, out, table)
            out.print("Stopping; press Ctrl-C again to stop at once.")
        out.print("Stopped; nothing is left running.")
    return 0


def write_environment(home: Home, settings: Mapping[str, str]) -> Path:
    """Leave the settings in ``<home>/env``, for a shell that runs Dagster itself on this home.

    There is no secret in them: a database's URL stays in the environment that it came from.
    """
    lines = ["# For `set -a; . THIS_FILE; set +a`, before `dagster dev -w workspace.yaml`."]
    lines += [f"{name}={shlex.quote(value)}" for name, value in sorted(settings.items())]
    path = home.root / "env"
    path.write_text("\n".join(lines) + "\n")
    return path


def _watch(
    supervisor: Supervisor,
    stop: threading.Event,
    out: Console,
    table: Callable[[], RenderableType] | None,
) -> None:
    if table is None or not out.is_terminal:
        supervisor.watch(stop)
        return

    def shown() -> RenderableType:
        try:
            return table()
        except BeampipeError as error:
            return f"[yellow]{escape(error.message)}[/yellow]"

    with Live(get_renderable=shown, console=out, refresh_per_second=1):
        supervisor.watch(stop)


def _show(out: Console, event: Event) -> None:
    if event.kind is EventKind.READY:
        took = f"[dim]{event.seconds:.1f} s[/dim]"
        out.print(f"  [green]ready[/green]  {escape(event.spec.describe)}  {took}", soft_wrap=True)
    elif event.kind is EventKind.EXITED:
        out.print(f"  [yellow]ended[/yellow]  {escape(event.message)}", soft_wrap=True)


def _welcome(out: Console, options: UpOptions, home: Home) -> None:
    rows = [("Dagster", options.web_url), ("metrics", options.metrics_url)]
    if options.sandbox:
        rows += [
            ("CASDA-like archive", f"{options.archive_url}/casda/tap"),
            ("VizieR-like archive", f"{options.archive_url}/vizier/tap"),
            ("DALiuGE translator", options.ports.daliuge.translator_url),
            ("DALiuGE manager", options.ports.daliuge.manager_url),
        ]
    rows.append(("logs", str(home.logs)))
    out.print("Everything is up. Ctrl-C stops it.")
    for name, place in rows:
        out.print(f"  {name:<20} {escape(place)}", soft_wrap=True)


def _sandbox(options: UpOptions, home: Home, env: Mapping[str, str]) -> list[ProcessSpec]:
    dlg = options.dlg or daliuge.find_dlg()
    if dlg is None:
        raise ConfigError(
            "DALiuGE's dlg command was not found, and the sandbox needs it.",
            code="dlg_not_found",
            hint="Run `make run`, which installs it, set BEAMPIPE_DLG_BIN, or use --no-sandbox.",
        )
    data, port = str(home.archive), str(options.ports.archive)
    listen = ("--host", LOOPBACK, "--port", port)
    module = ("-m", "beampipe_dagster.sandbox.archive", "--data-dir", data, *listen)
    archive = ProcessSpec(
        name="archive",
        argv=(sys.executable, *module, "--seed", "demo"),
        env=env,
        cwd=home.root,
        ready=lambda: serves(f"{options.archive_url}/casda/tap/availability"),
        describe=f"Sandbox archive, {options.archive_url}",
    )
    stack = daliuge.processes(
        dlg=dlg, root=home.daliuge, ports=options.ports.daliuge, threads=options.threads
    )
    return [archive, *stack]


def _code_server(options: UpOptions, home: Home, env: Mapping[str, str]) -> ProcessSpec:
    port = options.ports.code_server
    listen = ("-h", LOOPBACK, "-p", str(port))
    module = ("-m", "beampipe_dagster.definitions")
    return ProcessSpec(
        name="code-server",
        argv=(*_dagster("dagster"), "code-server", "start", *listen, *module),
        env=env,
        cwd=home.root,  # It listens only after it has loaded the code.
        ready=lambda: _accepts(port),
        describe="Dagster code server",
    )


def _exporter(options: UpOptions, home: Home, env: Mapping[str, str]) -> ProcessSpec:
    listen = ("--host", LOOPBACK, "--port", str(options.ports.metrics))
    return ProcessSpec(
        name="metrics",
        argv=(sys.executable, "-m", "beampipe_dagster.observe.metrics", *listen),
        env=env,
        cwd=home.root,
        ready=lambda: serves(options.metrics_url),
        describe=f"Metrics, {options.metrics_url}",
    )


def _web_server(options: UpOptions, home: Home, env: Mapping[str, str]) -> ProcessSpec:
    listen = ("-h", options.host, "-p", str(options.ports.web))
    return ProcessSpec(
        name="webserver",
        argv=(*_dagster("dagster_webserver"), *listen, "-w", str(home.workspace)),
        env=env,
        cwd=home.root,
        ready=lambda: serves(f"{options.web_url}/server_info"),
        describe=f"Dagster web server, {options.web_url}",
    )


def _daemon(home: Home, env: Mapping[str, str]) -> ProcessSpec:
    log = home.logs / "daemon.log"
    return ProcessSpec(
        name="daemon",
        argv=(*_dagster("dagster._daemon"), "run", "-w", str(home.workspace)),
        env=env,
        cwd=home.root,
        ready=lambda: _daemon_ready(log),
        describe="Dagster daemon",
    )


def _dagster(module: str) -> tuple[str, ...]:
    # As modules: that works wherever the interpreter is, with no scripts on any path.
    return (sys.executable, "-m", module)


def serves(url: str) -> bool:
    """Whether a GET of a local URL is answered with success, quickly and past any proxy."""
    try:
        answer = httpx.get(url, timeout=_PROBE_SECONDS, trust_env=False)
    except httpx.HTTPError:
        return False
    return answer.is_success


def _accepts(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), timeout=_PROBE_SECONDS).close()
    except OSError:
        return False
    return True


def _daemon_ready(log: Path) -> bool:
    # Asking the daemon's heartbeat through Dagster's command line takes seconds of processor time.
    try:
        return _DAEMON_READY in log.read_bytes()
    except OSError:
        return False


def _is_installed(folder: Path) -> bool:
    """Whether an interpreter finds the packages in *folder* without being told."""
    places = {sysconfig.get_path("purelib"), *site.getsitepackages(), site.getusersitepackages()}
    return str(folder) in places
