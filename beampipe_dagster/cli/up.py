"""``beampipe up`` and ``beampipe demo``: a whole beampipe on this machine."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from rich.console import Console, RenderableType

from beampipe_dagster.assembly import Platform
from beampipe_dagster.cli.core import Command, Context, pass_context
from beampipe_dagster.errors import ConflictError, InputError
from beampipe_dagster.ledger import projects
from beampipe_dagster.sandbox.daliuge import DaliugePorts
from beampipe_dagster.sandbox.demo import demo_options, platform_of, run_demo, seed
from beampipe_dagster.sandbox.home import Home, locked
from beampipe_dagster.sandbox.up import UpOptions, UpPorts, run_up
from beampipe_dagster.sandbox.watch import executions_table

F = TypeVar("F", bound=Callable[..., Any])

_PORTS: Final = UpPorts()
_PORT_OPTIONS: Final = (
    ("--port", "web", _PORTS.web, "Dagster's web server."),
    ("--code-server-port", "code_server", _PORTS.code_server, "Dagster's code server."),
    ("--metrics-port", "metrics", _PORTS.metrics, "The Prometheus exporter."),
    ("--archive-port", "archive", _PORTS.archive, "The sandbox archive."),
    ("--nm-port", "nm", _PORTS.daliuge.nm, "DALiuGE's node manager."),
    ("--dim-port", "dim", _PORTS.daliuge.dim, "DALiuGE's island manager."),
    ("--tm-port", "tm", _PORTS.daliuge.tm, "DALiuGE's translator."),
    ("--events-port", "events", _PORTS.daliuge.events, "DALiuGE's events."),
    ("--rpc-port", "rpc", _PORTS.daliuge.rpc, "DALiuGE's calls between nodes."),
)
_OF_DALIUGE: Final = frozenset({"nm", "dim", "tm", "events", "rpc"})


def _options(function: F) -> F:
    """The options that say where everything listens."""
    decorators = [
        click.option(flag, name, type=int, default=port, show_default=True, help=f"Port: {text}")
        for flag, name, port, text in _PORT_OPTIONS
    ]
    decorators += [
        click.option(
            "--dlg",
            type=click.Path(path_type=Path, dir_okay=False),
            help="DALiuGE's dlg command; looked for without it.",
        ),
        click.option(
            "--threads",
            type=click.IntRange(min=1),
            default=4,
            show_default=True,
            help="Applications that the local DALiuGE runs at a time.",
        ),
    ]
    for decorator in reversed(decorators):
        function = decorator(function)
    return function


def up_options(context: Context, given: dict[str, Any], *, host: str | None, sandbox: bool) -> UpOptions:
    """Options of the supervisor from those of the command line."""
    ports = {name: given[name] for _, name, _, _ in _PORT_OPTIONS}
    stack = DaliugePorts(**{name: ports.pop(name) for name in _OF_DALIUGE})
    return UpOptions(
        home=context.settings.home,
        ports=UpPorts(**ports, daliuge=stack),
        sandbox=sandbox,
        dlg=given["dlg"],
        threads=given["threads"],
        **({} if host is None else {"host": host}),
    )


@dataclass(frozen=True)
class LiveTable:
    """What ``beampipe up`` shows while it runs: every source of every survey."""

    options: UpOptions

    @cached_property
    def _platform(self) -> Platform:
        return platform_of(self.options)

    def __call__(self) -> RenderableType:
        """The table as of now.

        Raises
        ------
        LedgerError
            The ledger cannot be read.
        """
        with self._platform.ledger.read() as conn:
            names = [item.project_id for item in projects.all_active(conn)]
        return executions_table(self._platform, names)


def _prepare(options: UpOptions) -> None:
    """Make the ledger ready, and in a sandbox put the demo survey into it."""
    if options.sandbox:
        seed(options)
    else:
        platform_of(options).ledger.dispose()


def _progress(context: Context) -> Console:
    """Where progress goes: with ``--json`` stdout is for the document alone."""
    return Console(file=sys.stderr if context.json else sys.stdout, highlight=False)


@click.command("up", cls=Command)
@click.option(
    "--no-sandbox", is_flag=True, help="Without the sandbox archive, the demo survey and a local DALiuGE."
)
@click.option(
    "--host",
    help="Address of the web server. It knows no passwords: keep it on the loopback address, or behind a proxy.",
)
@_options
@pass_context
def up(context: Context, /, *, no_sandbox: bool, host: str | None, **given: Any) -> int:  # noqa: ANN401  # the ports
    """Start everything on this machine and show what the sources are doing. Ctrl-C stops it.

    The sandbox archive, a local DALiuGE, Dagster's web server and daemon, and the metrics exporter; with the
    demo survey in the ledger.
    """
    options = up_options(context, given, host=host, sandbox=not no_sandbox)
    return run_up(
        options,
        console=_progress(context),
        seed=functools.partial(_prepare, options),
        table=LiveTable(options),
        on_up=functools.partial(_say_up, options) if context.json else None,
    )


def _say_up(options: UpOptions) -> None:
    """One document when everything serves, for what started us."""
    places: dict[str, str] = {
        "home": str(options.home),
        "ui_url": options.web_url,
        "metrics_url": options.metrics_url,
    }
    if options.sandbox:
        places |= {
            "archive_url": options.archive_url,
            "translator_url": options.ports.daliuge.translator_url,
            "manager_url": options.ports.daliuge.manager_url,
        }
    click.echo(json.dumps(places, indent=2))
    sys.stdout.flush()


@click.command("demo", cls=Command)
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("demo-report.json"),
    show_default=True,
    help="Where the report is written.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=300.0,
    show_default=True,
    help="Seconds in which the sources must reach their states.",
)
@click.option(
    "--keep-logs",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo-logs"),
    show_default=True,
    help="Where the logs are copied to when something was not as expected.",
)
@_options
@pass_context
def demo(
    context: Context,
    /,
    report: Path,
    timeout: float,
    keep_logs: Path,
    **given: Any,  # noqa: ANN401  # the ports
) -> int:
    """Run the demo survey unattended, from discovery to results, and check every outcome.

    It starts on a new home in the directory demo of the home, and removes the one of the demo before. Exit code 1
    when something was not as expected; the report says what.
    """
    if not report.absolute().parent.is_dir():
        raise InputError(
            f"the report cannot be written to {report}",
            code="report_unwritable",
            hint="make its directory first, or give another --report",
        )
    options = up_options(context, given, host=None, sandbox=True)
    fresh = _fresh(options, options.home / "demo")
    code = run_demo(
        fresh,
        report=report,
        timeout_seconds=timeout,
        keep_logs=keep_logs,
        console=_progress(context),
    )
    if context.json:
        click.echo(report.read_text(encoding="utf-8"), nl=False)
    return code


def _fresh(options: UpOptions, home: Path) -> UpOptions:
    """The options on an empty home; nothing is removed but the home of a demo that has ended.

    Raises
    ------
    ConflictError
        ``demo_home_not_empty``, or ``home_in_use`` while another demo runs in it.
    """
    if not home.exists():
        return demo_options(options, home)
    known = Home(home)
    if home.is_symlink() or not home.is_dir() or (any(home.iterdir()) and not known.lock.is_file()):
        raise ConflictError(
            f"{home} is not the home of an earlier demo",
            code="demo_home_not_empty",
            hint="move it away, or use another --home: a demo begins on a new home and removes this directory",
        )
    with locked(known):
        return demo_options(options, home)
