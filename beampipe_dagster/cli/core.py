"""What all commands share: the common options, how errors are told, and services that are made when asked for.

Only click is imported here: ``beampipe --help`` and errors of usage must not wait for anything else.
"""

from __future__ import annotations

import errno
import getpass
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from beampipe_dagster.errors import BeampipeError, LedgerError, Retry
from beampipe_dagster.sandbox.terminal import clean

if TYPE_CHECKING:
    from beampipe_dagster.assembly import Platform
    from beampipe_dagster.clock import Clock
    from beampipe_dagster.config.settings import Settings
    from beampipe_dagster.ledger.engine import Ledger

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130


class Context:
    """The state of one call of ``beampipe``.

    Attributes
    ----------
    json
        Whether stdout gets one JSON document and nothing else.
    debug
        Whether errors come with their traceback.
    home
        ``--home``, which overrules ``BEAMPIPE_HOME``.
    """

    def __init__(self, args: Sequence[str] = ()) -> None:
        # Errors of usage come before any option is read.
        self.json = "--json" in args
        self.debug = "--debug" in args
        self.home: Path | None = None

    @cached_property
    def environ(self) -> dict[str, str]:
        """The environment's variables, with ``--home`` in them."""
        if self.home is None:
            return dict(os.environ)
        return {**os.environ, "BEAMPIPE_HOME": str(self.home)}

    @cached_property
    def settings(self) -> Settings:
        """The settings of this process.

        Raises
        ------
        ConfigError
            A variable cannot be used.
        """
        from beampipe_dagster.cli.logs import to_stderr  # noqa: PLC0415  # start-up time
        from beampipe_dagster.config.settings import Settings  # noqa: PLC0415  # start-up time

        found = Settings.from_env(self.environ)
        to_stderr(as_json=found.log_json)
        return found

    @cached_property
    def platform(self) -> Platform:
        """Every service, on a ledger that is made or migrated where it has to be."""
        from beampipe_dagster.assembly import assemble  # noqa: PLC0415  # start-up time

        return assemble(self.settings)

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger for commands that only look: it must be there, and nothing is made or changed.

        Raises
        ------
        LedgerError
            ``ledger_missing``, ``ledger_not_migrated``, or it cannot be reached.
        """
        from beampipe_dagster.ledger.engine import Ledger  # noqa: PLC0415  # start-up time
        from beampipe_dagster.ledger.engine import sqlite_path as path_of  # noqa: PLC0415  # start-up time
        from beampipe_dagster.ledger.migrate import ensure_current  # noqa: PLC0415  # start-up time

        path = path_of(self.settings.database_url)
        if path is not None and not path.is_file():
            raise LedgerError(
                f"there is no ledger at {path}",
                code="ledger_missing",
                hint="is BEAMPIPE_HOME (or --home) the right one? A new one is made by: beampipe up, "
                "beampipe project add FILE, or beampipe ledger migrate",
                retry=Retry.NEVER,
            )
        ledger = Ledger(self.settings.database_url)
        ensure_current(ledger)
        return ledger

    @cached_property
    def clock(self) -> Clock:
        """What ages are counted from."""
        from beampipe_dagster.clock import SystemClock  # noqa: PLC0415  # start-up time

        return SystemClock()

    @property
    def actor(self) -> str:
        """Who the story says it was."""
        try:
            return f"cli:{getpass.getuser()}"[:100]
        except (OSError, KeyError, ImportError):  # no such user, as in some containers
            return "cli"

    def close(self) -> None:
        """Close the connections that were opened."""
        opened = vars(self)
        if "ledger" in opened:
            self.ledger.dispose()
        if "platform" in opened:
            self.platform.ledger.dispose()


pass_context = click.make_pass_decorator(Context, ensure=True)


def _set(name: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    def callback(ctx: click.Context, _param: click.Parameter, value: Any) -> Any:  # noqa: ANN401  # click's own
        if value:
            setattr(ctx.ensure_object(Context), name, value)
        return value

    return callback


def _common() -> list[click.Option]:
    return [
        click.Option(
            ["--json"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_set("json"),
            help="One JSON document on stdout, nothing else.",
        ),
        click.Option(
            ["--home"],
            type=click.Path(path_type=Path, file_okay=False),
            expose_value=False,
            callback=_set("home"),
            help="Where everything is kept; default BEAMPIPE_HOME, else ~/.beampipe.",
        ),
        click.Option(
            ["--debug"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_set("debug"),
            help="Show the traceback of an error.",
        ),
    ]


class Command(click.Command):
    """A command with ``--json``, ``--home`` and ``--debug``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  # click's own
        super().__init__(*args, **kwargs)
        self.params.extend(_common())


class Group(click.Group):
    """A group whose commands are :class:`Command`."""

    command_class = Command


class Root(click.Group):
    """The root: groups are imported when they are used, and every error is told here.

    Attributes
    ----------
    lazy
        Name of a command to where it is (``module:attribute``) and what it does.
    """

    command_class = Command

    def __init__(self, *args: Any, lazy: dict[str, tuple[str, str]], **kwargs: Any) -> None:  # noqa: ANN401  # click's own
        super().__init__(*args, **kwargs)
        self.lazy = lazy
        self.params.extend(_common()[1:2])

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order in which they are first needed."""
        del ctx
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        del ctx
        if cmd_name not in self.lazy:
            return None
        module, _, attribute = self.lazy[cmd_name][0].partition(":")
        found: click.Command = getattr(importlib.import_module(module), attribute)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.lazy.items()])

    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        *,
        standalone_mode: bool = True,
        **extra: Any,  # noqa: ANN401  # click's own
    ) -> Any:  # noqa: ANN401  # click's own
        """Run, tell errors in our way, and exit with their code."""
        given = list(sys.argv[1:] if args is None else args)
        context = Context(given)
        if not standalone_mode:
            return super().main(given, prog_name, standalone_mode=False, obj=context, **extra)
        extra.pop("obj", None)
        code = _run(
            lambda: super(Root, self).main(given, prog_name, standalone_mode=False, obj=context, **extra),
            context,
        )
        sys.exit(code)


def _run(action: Callable[[], Any], context: Context) -> int:
    """Exit code of ``action``, whose errors are shown."""
    try:
        answer = action()
        sys.stdout.flush()
    except (click.exceptions.Exit, click.Abort, click.ClickException) as error:
        return _click_ended(context, error)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001  # whatever it was, a person reads it
        if isinstance(error, OSError) and error.errno == errno.EPIPE:
            return _pipe_closed()
        if context.debug:
            traceback.print_exc(file=sys.stderr)
        show_error(context, error if isinstance(error, BeampipeError) else _defect(error))
        return EXIT_FAILED
    finally:
        context.close()
    return answer if isinstance(answer, int) else 0


def _click_ended(context: Context, error: Exception) -> int:
    """Exit code for the ways in which click itself ends a command."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.UsageError):
        _show_usage(context, error)
        return EXIT_USAGE
    if isinstance(error, click.ClickException):
        show_error(context, BeampipeError(error.format_message(), code="unusable"))
        return EXIT_FAILED
    return EXIT_INTERRUPTED


def show_error(context: Context, error: BeampipeError) -> None:
    """Tell an error: on stderr for people, as JSON on stdout with ``--json``."""
    if context.json:
        click.echo(json.dumps({"error": error.as_dict()}, indent=2, default=str))
        return
    head = click.style(f"error[{error.code}]", fg="red", bold=True)
    click.echo(f"{head}: {clean(error.message)}", err=True)
    if error.hint:
        click.echo(f"{click.style('hint', fg='cyan')}: {clean(error.hint)}", err=True)


def _show_usage(context: Context, error: click.UsageError) -> None:
    path = error.ctx.command_path if error.ctx else "beampipe"
    if isinstance(error, click.exceptions.NoArgsIsHelpError) and not context.json:
        click.echo(error.format_message(), err=True)
        return
    message = error.format_message() or "the command needs arguments"
    show_error(context, BeampipeError(message.rstrip("."), code="usage", hint=f"see: {path} --help"))


def _defect(error: Exception) -> BeampipeError:
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return BeampipeError(
            f"{place}{error.strerror}",
            code="system_error",
            hint="check the path, its permissions, and the room on the disk",
        )
    return BeampipeError(
        f"{type(error).__name__}: {error}",
        hint="this is a defect; run it again with --debug and report what it shows",
    )


def _pipe_closed() -> int:
    """Whoever read our output has gone (``beampipe … | head``): nothing is said, as click does it too."""
    # Python flushes stdout once more at exit; that must not fail either.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return EXIT_FAILED
