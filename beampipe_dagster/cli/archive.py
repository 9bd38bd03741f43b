"""``beampipe archive``: the archives' gates: whether they are asked, how they answer, and by whom they are asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import click
from rich.console import Console
from rich.text import Text
from sqlalchemy.engine import Connection

from beampipe_dagster.assembly import polite_archives
from beampipe_dagster.cli.core import EXIT_FAILED, Context, Group, pass_context
from beampipe_dagster.cli.render import cell, emit, facts, number, table, when
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.discovery.gate import Use, close_circuit, open_circuit
from beampipe_dagster.discovery.health import adapters_of
from beampipe_dagster.discovery.polite import PoliteArchives
from beampipe_dagster.errors import ArchiveError, BeampipeError, ConfigError, InputError, NotFoundError
from beampipe_dagster.ids import UuidIds
from beampipe_dagster.ledger import circuits, gates, projects
from beampipe_dagster.ledger.circuits import CircuitState
from beampipe_dagster.ledger.gates import ArchiveRow
from beampipe_dagster.sandbox.terminal import shortened

_MILLISECONDS: Final = 1000
_ERROR_LENGTH: Final = 60
_STYLES: Final = {"closed": "green", "open": "bold red", "half_open": "yellow"}


@dataclass(frozen=True, slots=True)
class _Service:
    """A TAP service, as surveys define it and as the ledger knows it."""

    key: str
    name: str
    url: str
    uses: tuple[tuple[ProjectConfig, Use], ...]
    row: ArchiveRow | None


@click.group(cls=Group)
def archive() -> None:
    """Archives: whether they are asked, how they answer, who asks them."""


@archive.command("list")
@pass_context
def listing(context: Context) -> None:
    """The archives of all surveys, with their state and health."""
    with context.ledger.read() as conn:
        found = _services(context, conn)
        in_use = gates.permits_in_use(conn, now=context.clock.now())
    data = {"archives": [_as_json(item, in_use, context.clock.now()) for item in found]}

    def people(out: Console) -> None:
        if not found:
            out.print("No survey asks an archive yet.")
            return
        out.print(_table(found, in_use, context.clock.now()))

    emit(context, data, people)


@archive.command("show")
@click.argument("name")
@pass_context
def show(context: Context, name: str) -> None:
    """One archive: limits, circuit, health, and who asks it now. NAME is an adapter's name or HOST/PATH."""
    now = context.clock.now()
    with context.ledger.read() as conn:
        found = _resolve(_services(context, conn), name)
        in_use = gates.permits_in_use(conn, now=now)
        holders = gates.holders(conn, found.key, now=now)
    data = _as_json(found, in_use, now)
    data |= {
        "holders": [{"holder": holder, "since": since} for holder, since in holders],
        "surveys": [use.user.project_module for _, use in found.uses],
    }
    emit(context, data, lambda out: _show(out, found, holders, now))


@archive.command("open")
@click.argument("name")
@click.option("--reason", default="", metavar="TEXT", help="Why; it is shown wherever a source waits for it.")
@click.option(
    "--minutes",
    type=click.IntRange(min=1, max=525_600),
    help="Ask it again after so many minutes; without it, when it is closed by hand.",
)
@pass_context
def open_command(context: Context, name: str, reason: str, minutes: int | None) -> None:
    """Stop asking an archive (open its circuit), as for a maintenance. Nothing fails; sources wait."""
    found = _known(context, name)
    now = context.clock.now()
    until = None if minutes is None else now + timedelta(minutes=minutes)
    with context.ledger.begin() as conn:
        open_circuit(conn, found.key, actor=context.actor, reason=reason, until=until, ids=UuidIds(), now=now)
    data = {"archive": found.key, "state": CircuitState.OPEN, "until": until}
    words = f"until {when(until)} UTC" if until else "until: beampipe archive close " + name
    emit(context, data, lambda out: out.print(f"{found.key} is not asked any more, {words}"))


@archive.command("close")
@click.argument("name")
@pass_context
def close_command(context: Context, name: str) -> None:
    """Ask an archive again (close its circuit), and end a pause that it asked for."""
    found = _known(context, name)
    with context.ledger.begin() as conn:
        changed = close_circuit(conn, found.key, actor=context.actor, ids=UuidIds(), now=context.clock.now())
    data = {"archive": found.key, "state": CircuitState.CLOSED, "changed": changed}
    words = "is asked again." if changed else "was asked already."
    emit(context, data, lambda out: out.print(f"{found.key} {words}"))


@archive.command("probe")
@click.argument("name")
@pass_context
def probe(context: Context, name: str) -> int:
    """Ask an archive one small query now, whatever its circuit says; an answer closes it.

    Exit code 1 when it does not answer.
    """
    found = _known(context, name)
    if not found.uses:
        raise InputError(
            f"no active survey uses {found.key}",
            code="archive_not_used",
            hint="an archive is asked as a survey defines it; see: beampipe archive list",
        )
    config, use = found.uses[0]
    error: BeampipeError | None = None
    try:
        _polite(context).get(_once(config), use.user.adapter).probe()
    except ArchiveError as caught:
        error = caught
    with context.ledger.read() as conn:
        row = gates.get(conn, found.key)
    data = {
        "archive": found.key,
        "answered": error is None,
        "state": row.circuit.state,
        "error": error.as_dict() if error else None,
    }
    words = f"{found.key} does not answer: {error.message}" if error else f"{found.key} answers."
    emit(context, data, lambda out: out.print(words))
    return EXIT_FAILED if error else 0


def _once(config: ProjectConfig) -> ProjectConfig:
    """The survey, without repetitions of queries that fail: an operator wants to see what happens now."""
    limits = config.adapters.tap.model_copy(update={"retries": 0})
    return config.model_copy(update={"adapters": config.adapters.model_copy(update={"tap": limits})})


def _polite(context: Context) -> PoliteArchives:
    return polite_archives(
        context.settings,
        ledger=context.ledger,
        clock=context.clock,
        ids=UuidIds(),
        environ=context.environ,
        actor=context.actor,
    )


def _services(context: Context, conn: Connection) -> list[_Service]:
    """The archives of active surveys, and others that the ledger knows, by name."""
    uses: dict[str, list[tuple[ProjectConfig, Use]]] = {}
    for config, use in _uses(context, conn):
        uses.setdefault(use.key, []).append((config, use))
    rows = {row.key: row for row in gates.everything(conn)}
    found = []
    for key in {*uses, *rows}:
        mine, row = tuple(uses.get(key, ())), rows.get(key)
        name = mine[0][1].user.adapter if mine else row.name if row else key
        url = mine[0][1].url if mine else row.url if row else key
        found.append(_Service(key, name, url, mine, row))
    return sorted(found, key=lambda item: (item.name, item.key))


def _uses(context: Context, conn: Connection) -> Iterator[tuple[ProjectConfig, Use]]:
    archives = _polite(context)
    for revision in projects.all_active(conn):
        config = ProjectConfig.from_json(revision.spec)
        for adapter in adapters_of(config):
            try:
                yield config, archives.use_of(config, adapter)
            except ConfigError:
                continue  # `beampipe project health` says what is wrong with it


def _resolve(services: Sequence[_Service], name: str) -> _Service:
    found = [item for item in services if item.key == name]
    found = found or [
        item for item in services if name in {item.name, *(use.user.adapter for _, use in item.uses)}
    ]
    if not found:
        raise NotFoundError(
            f"no survey has an archive {name!r}",
            code="archive_not_known",
            hint="see those that are known: beampipe archive list",
        )
    if len(found) > 1:
        raise InputError(
            f"surveys call several archives {name!r}: {', '.join(item.key for item in found)}",
            code="archive_ambiguous",
            hint="give its host and path, as in: beampipe archive list",
            details={"candidates": [item.key for item in found]},
        )
    return found[0]


def _known(context: Context, name: str) -> _Service:
    """The archive, with a row in the ledger."""
    with context.ledger.read() as conn:
        found = _resolve(_services(context, conn), name)
    for _, use in found.uses:
        _polite(context).gate.make_known(use)
    return found


def _as_json(item: _Service, in_use: dict[str, int], now: datetime) -> dict[str, Any]:
    row = item.row
    data: dict[str, Any] = {"archive": item.key, "name": item.name, "url": item.url}
    if row is None:
        return data | {"state": CircuitState.CLOSED, "asked": False, "permits_in_use": 0}
    return data | {
        "state": row.circuit.state,
        "asked": row.last_good_at is not None or row.last_failure_at is not None,
        "why": circuits.in_words(row.circuit, now=now) if _open(row) else None,
        "since": row.circuit.opened_at,
        "until": row.circuit.open_until,
        "by_hand": row.circuit.by_hand,
        "failures": row.circuit.failures,
        "pause_until": row.pause_until,
        "latency_seconds": row.latency_seconds,
        "last_good_at": row.last_good_at,
        "last_failure_at": row.last_failure_at,
        "last_error": row.last_error,
        "good_count": row.good_count,
        "failure_count": row.failure_count,
        "permits_in_use": in_use.get(item.key, 0),
        "max_concurrency": row.max_concurrency,
        "min_interval_ms": row.min_interval_ms,
    }


def _open(row: ArchiveRow) -> bool:
    return row.circuit.state is not CircuitState.CLOSED


def _state(row: ArchiveRow | None) -> Text:
    if row is None:
        return cell("not asked yet", "dim")
    word = row.circuit.state.value
    return cell(word.replace("_", " "), _STYLES[word])


def _latency(row: ArchiveRow | None) -> str | None:
    if row is None or row.latency_seconds is None:
        return None
    return f"{row.latency_seconds * _MILLISECONDS:,.0f} ms"


def _table(found: Sequence[_Service], in_use: dict[str, int], now: datetime) -> Any:  # noqa: ANN401  # rich's
    right = {"justify": "right"}
    rows = table(
        "archive",
        "service",
        "state",
        "since (UTC)",
        ("answers in", right),
        "last good (UTC)",
        ("in use", right),
        "last error",
    )
    for item in found:
        row = item.row
        error = str((row.last_error or {}).get("message") or "") if row and row.answers is False else ""
        used = f"{in_use.get(item.key, 0)}/{row.max_concurrency}" if row else None
        rows.add_row(
            cell(item.name, "bold"),
            cell(item.key),
            _state(row),
            cell(when(row.circuit.opened_at, now=now) if row else None),
            cell(_latency(row)),
            cell(when(row.last_good_at, now=now) if row else None),
            cell(used),
            cell(shortened(error, _ERROR_LENGTH)),
        )
    return rows


def _show(out: Console, item: _Service, holders: Sequence[tuple[str, datetime]], now: datetime) -> None:
    row = item.row
    pairs: list[tuple[str, object]] = [
        ("archive", cell(item.name, "bold")),
        ("service", item.url),
        ("surveys", ", ".join(use.user.project_module for _, use in item.uses) or None),
        ("state", _state(row)),
    ]
    if row is not None:
        error = row.last_error or {}
        paused = row.pause_until is not None and row.pause_until > now
        pairs += [
            ("why", cell(circuits.in_words(row.circuit, now=now), "red") if _open(row) else None),
            ("quiet until", f"{when(row.pause_until, now=now)} UTC, as it asked" if paused else None),
            ("answers in", _latency(row)),
            ("last good", f"{when(row.last_good_at, now=now)} UTC" if row.last_good_at else None),
            ("last failure", f"{when(row.last_failure_at, now=now)} UTC" if row.last_failure_at else None),
            ("last error", error.get("message")),
            ("requests", f"{row.good_count:,} answered, {row.failure_count:,} not"),
            (
                "limits",
                f"{number(row.max_concurrency, 'request')} at a time"
                + (f", one each {row.min_interval_ms} ms" if row.min_interval_ms else ""),
            ),
            ("on their way", len(holders)),
        ]
        pairs += [("", f"{holder} since {when(since, now=now)}") for holder, since in holders]
    out.print(facts(pairs))
