"""Sources that come, change and go, and requests to look at them now."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from sqlalchemy.engine import Connection

from beampipe_dagster.clock import Clock
from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.errors import ConflictError, InputError
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger import outbox, projects, provenance, registration, sources
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.sources import NewSource, Source

IDENTIFIER: Final = re.compile(r"(?!.*\.\.\.)[A-Za-z0-9][A-Za-z0-9 +._:-]{0,99}")
"""What an identifier may look like. It goes into ADQL literals and LIKE patterns, where no escape is portable:
a backslash or a percent sign would change the query. It also leads the keys of Dagster's partitions, which
cannot hold three dots in a row."""

REGISTRY_ASSET: Final = "source_registry"
SHOWN: Final = 10
"""Names that a message lists; all are in the details."""

TOLD_ONE_BY_ONE: Final = 1000
"""Requests for more sources than these are one event of the survey: the rows would be locked while it is written."""

LONGEST_HOURS: Final = 87_600
"""Ten years: the longest time for which an answer is believed."""


@dataclass(frozen=True, slots=True)
class Registered:
    """What a registration did, by name.

    Attributes
    ----------
    added, updated, known
        New ones; those that were known and changed; those that were known exactly so.
    refused
        Those that cannot be registered, with the reason; only where the others were wanted all the same.
    """

    added: list[str]
    updated: list[str]
    known: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


class SourceRegistry:
    """Use cases around the registry."""

    def __init__(self, *, ledger: Ledger, clock: Clock, ids: Ids) -> None:
        self._ledger = ledger
        self._clock = clock
        self._ids = ids

    def register(
        self, project_id: str, new: Sequence[NewSource], *, actor: str, skip_refused: bool = False
    ) -> Registered:
        """Register sources with an existing survey, in one transaction; doing it again changes nothing.

        Parameters
        ----------
        skip_refused
            Whether sources that cannot be registered are left out and reported; otherwise one of them refuses all.

        Raises
        ------
        InputError
            ``invalid_identifier``, ``duplicate_source``, ``invalid_position``, ``invalid_staleness``,
            ``no_sources``.
        NotFoundError
            ``project_not_found``.
        """
        good, refused = _sorted_out(new)
        if refused and not skip_refused:
            raise next(iter(refused.values()))
        if not good and not refused:
            raise InputError("no sources were given", code="no_sources", hint="name at least one source")
        now = self._clock.now()
        with self._ledger.begin() as conn:
            projects.active(conn, project_id)
            done = registration.upsert(conn, project_id, good, ids=self._ids, now=now)
            enabled = {source.source_identifier: source.enabled for source in good}
            for event_type, names in (("source.registered", done.added), ("source.updated", done.changed)):
                told: list[tuple[str, dict[str, JsonValue]]] = [
                    (name, {"enabled": enabled[name]}) for name in names
                ]
                self._record(conn, project_id, event_type, told, actor, now)
            if done.added or done.changed:
                numbers = {"added_now": len(done.added), "updated_now": len(done.changed)}
                self._tell(conn, project_id, numbers, now)
        reasons = {name: error.message for name, error in refused.items()}
        return Registered(done.added, done.changed, done.known, reasons)

    def enable(self, project_id: str, identifiers: Sequence[str], *, actor: str) -> list[str]:
        """Let discovery and execution touch these sources; those that were not enabled before, by name.

        Their quarantine and their back-off end.

        Raises
        ------
        InputError
            ``source_not_registered``: some of the names are unknown; nothing is changed.
        """
        return self._set_enabled(project_id, identifiers, enabled=True, actor=actor)

    def disable(self, project_id: str, identifiers: Sequence[str], *, actor: str) -> list[str]:
        """Keep discovery and execution from these sources; those that were enabled before, by name.

        A look or an execution that has begun goes on.

        Raises
        ------
        InputError
            ``source_not_registered``: some of the names are unknown; nothing is changed.
        """
        return self._set_enabled(project_id, identifiers, enabled=False, actor=actor)

    def _set_enabled(
        self, project_id: str, identifiers: Sequence[str], *, enabled: bool, actor: str
    ) -> list[str]:
        now = self._clock.now()
        with self._ledger.begin() as conn:
            rows = self._all_of(conn, project_id, identifiers)
            rows = [row for row in rows if row.enabled != enabled or (enabled and row.quarantined_at)]
            if not rows:
                return []
            registration.set_enabled(conn, [row.id for row in rows], enabled=enabled, now=now)
            changed = [row.source_identifier for row in rows]
            event = "source.enabled" if enabled else "source.disabled"
            self._record(conn, project_id, event, [(name, {}) for name in changed], actor, now)
            self._tell(conn, project_id, {"enabled_now" if enabled else "disabled_now": len(changed)}, now)
        return changed

    def set_staleness(
        self, project_id: str, identifiers: Sequence[str], hours: int | None, *, actor: str
    ) -> list[str]:
        """Say after how long a look at these sources is stale; those for which it was another time, by name.

        Parameters
        ----------
        hours
            From 1; ``None`` for what the survey says.

        Raises
        ------
        InputError
            ``invalid_staleness``; ``source_not_registered``: some of the names are unknown. Nothing is changed.
        """
        if not _staleness_fits(hours):
            raise _invalid_staleness(_few(identifiers), hours)
        now = self._clock.now()
        with self._ledger.begin() as conn:
            rows = self._all_of(conn, project_id, identifiers)
            rows = [row for row in rows if row.stale_after_hours != hours]
            if not rows:
                return []
            registration.set_staleness(conn, [row.id for row in rows], hours=hours, now=now)
            told: list[tuple[str, dict[str, JsonValue]]] = [
                (row.source_identifier, {"before": row.stale_after_hours, "hours": hours}) for row in rows
            ]
            self._record(conn, project_id, "source.staleness_set", told, actor, now)
        return [row.source_identifier for row in rows]

    def delete(self, project_id: str, identifiers: Sequence[str], *, actor: str) -> list[str]:
        """Take sources out of the registry, all or none; their names.

        Their metadata, signatures, executions and story are kept. A source that is registered again begins
        afresh: it is looked at, and its current signature is executed.

        Raises
        ------
        InputError
            ``source_not_registered``: some of the names are unknown; nothing is deleted.
        ConflictError
            ``source_busy``: an execution or a discovery holds some of them; nothing is deleted.
        """
        now = self._clock.now()
        with self._ledger.begin() as conn:
            rows = self._all_of(conn, project_id, identifiers)
            names = [row.source_identifier for row in rows]
            busy: dict[str, str] = {
                name: f"execution {execution}"
                for name, execution in registration.in_executions(conn, project_id, names).items()
            }
            busy |= {row.source_identifier: "a discovery" for row in rows if row.discovery_claim_token}
            if busy:
                raise ConflictError(
                    f"in use: {_few(f'{name} by {holder}' for name, holder in sorted(busy.items()))}",
                    code="source_busy",
                    hint="disable them, wait until that has ended, and delete them then; nothing was deleted",
                    details={"busy": busy},
                )
            registration.delete(conn, [row.id for row in rows])
            told: list[tuple[str, dict[str, JsonValue]]] = [
                (row.source_identifier, _last_seen(row)) for row in rows
            ]
            self._record(conn, project_id, "source.deleted", told, actor, now)
            self._tell(conn, project_id, {"deleted_now": len(names)}, now)
        return names

    def _all_of(self, conn: Connection, project_id: str, identifiers: Sequence[str]) -> list[Source]:
        """The rows of all these sources, locked."""
        projects.active(conn, project_id)
        wanted = list(dict.fromkeys(identifiers))
        if not wanted:
            raise InputError("no sources were given", code="no_sources", hint="name at least one source")
        rows = registration.locked(conn, project_id, wanted)
        _refuse_unknown(project_id, wanted, {row.source_identifier for row in rows})
        return rows

    def _record(
        self,
        conn: Connection,
        project_id: str,
        event_type: str,
        told: Iterable[tuple[str | None, dict[str, JsonValue]]],
        actor: str,
        now: datetime,
    ) -> None:
        events = [
            provenance.Event(
                event_type=event_type,
                project_module=project_id,
                source_identifier=name,
                actor=actor,
                payload=payload,
            )
            for name, payload in told
        ]
        provenance.record(conn, events, ids=self._ids, now=now)

    def _tell(self, conn: Connection, project_id: str, numbers: dict[str, int], now: datetime) -> None:
        """What Dagster shows about the registry, with what was done now."""
        message = outbox.Message(
            kind="observation",
            project_module=project_id,
            asset=REGISTRY_ASSET,
            payload={**sources.counts(conn, project_id), **numbers},
        )
        outbox.put(conn, [message], now=now, available_at=now)

    def mark_for_discovery(self, project_id: str, identifiers: Sequence[str] | None, *, actor: str) -> int:
        """Ask for a look at these sources (all enabled ones when none are named) at the next tick; their number.

        Quarantine and back-off end.

        Raises
        ------
        InputError
            ``source_not_registered``: some of the names are unknown; nothing is marked.
        """
        now = self._clock.now()
        with self._ledger.begin() as conn:
            projects.active(conn, project_id)
            if identifiers is not None:
                known = sources.registered_names(conn, project_id, identifiers)
                _refuse_unknown(project_id, identifiers, known)
            marked = sources.mark_for_discovery(conn, project_id, identifiers, now=now)
            many = identifiers is None or len(identifiers) > TOLD_ONE_BY_ONE
            names: Sequence[str | None] = [None] if many or identifiers is None else identifiers
            told: list[tuple[str | None, dict[str, JsonValue]]] = [
                (name, {"sources": marked}) for name in names
            ]
            self._record(conn, project_id, "discovery.requested", told, actor, now)
        return marked


def _refuse_unknown(project_id: str, wanted: Sequence[str], known: set[str]) -> None:
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise InputError(
            f"not registered in {project_id!r}: {_few(unknown)}",
            code="source_not_registered",
            hint="register them first, or correct the names; nothing was changed",
            details={"unknown": unknown},
        )


def _few(words: Iterable[str]) -> str:
    every = list(words)
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + more


def _last_seen(row: Source) -> dict[str, JsonValue]:
    """What the registry knew about a source, for the story."""
    return {
        "discovery_signature": row.discovery_signature,
        "last_executed_discovery_signature": row.last_executed_discovery_signature,
        "ra_deg": row.ra_deg,
        "dec_deg": row.dec_deg,
    }


def _sorted_out(new: Sequence[NewSource]) -> tuple[list[NewSource], dict[str, InputError]]:
    """The sources that can be registered, and why the others cannot."""
    good: dict[str, NewSource] = {}
    refused: dict[str, InputError] = {}
    for source in new:
        name = source.source_identifier
        error = _problem(source, again=name in good)
        if error is None:
            good[name] = source
        else:
            refused.setdefault(name, error)
    return list(good.values()), refused


def _problem(source: NewSource, *, again: bool) -> InputError | None:
    name = source.source_identifier
    if not IDENTIFIER.fullmatch(name):
        return InputError(
            f"{name!r} cannot be a source identifier",
            code="invalid_identifier",
            hint="letters, digits, space and + . _ : - only, at most 100, beginning with a letter or digit,"
            " no three dots in a row",
        )
    if again:
        return InputError(f"{name!r} is given twice", code="duplicate_source", hint="give each source once")
    ra_fits = source.ra_deg is None or 0 <= source.ra_deg < 360
    dec_fits = source.dec_deg is None or -90 <= source.dec_deg <= 90
    if not (ra_fits and dec_fits):
        return InputError(
            f"{name!r} has the position ({source.ra_deg}, {source.dec_deg})",
            code="invalid_position",
            hint="right ascension is 0 to 360 degrees, declination -90 to 90",
        )
    if not _staleness_fits(source.stale_after_hours):
        return _invalid_staleness(repr(name), source.stale_after_hours)
    return None


def _staleness_fits(hours: int | None) -> bool:
    return hours is None or 0 < hours <= LONGEST_HOURS


def _invalid_staleness(whose: str, hours: int | None) -> InputError:
    return InputError(
        f"{whose} is to be stale after {hours} hours",
        code="invalid_staleness",
        hint=f"give 1 to {LONGEST_HOURS} hours, or nothing for the survey's own",
    )
