"""Registration of sources and requests to look at them now."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from beampipe_dagster.clock import Clock
from beampipe_dagster.errors import InputError
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger import outbox, projects, provenance, sources
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.sources import NewSource

IDENTIFIER: Final = re.compile(r"(?!.*\.\.\.)[A-Za-z0-9][A-Za-z0-9 +._:-]{0,99}")
"""What an identifier may look like. It goes into ADQL literals and LIKE patterns, where no escape is portable:
a backslash or a percent sign would change the query. It also leads the keys of Dagster's partitions, which
cannot hold three dots in a row."""

REGISTRY_ASSET: Final = "source_registry"


@dataclass(frozen=True, slots=True)
class Registered:
    """What a registration did."""

    added: list[str]
    updated: list[str]


class SourceRegistry:
    """Use cases around the registry."""

    def __init__(self, *, ledger: Ledger, clock: Clock, ids: Ids) -> None:
        self._ledger = ledger
        self._clock = clock
        self._ids = ids

    def register(self, project_id: str, new: Sequence[NewSource], *, actor: str) -> Registered:
        """Register sources with an existing survey, all or none.

        Raises
        ------
        InputError
            ``invalid_identifier``, ``duplicate_source``, ``invalid_position``, ``no_sources``.
        NotFoundError
            ``project_not_found``.
        """
        _check(new)
        now = self._clock.now()
        with self._ledger.begin() as conn:
            projects.active(conn, project_id)
            added, updated = sources.upsert(conn, project_id, new, ids=self._ids, now=now)
            fresh = set(added)
            enabled = {source.source_identifier: source.enabled for source in new}
            provenance.record(
                conn,
                [
                    provenance.Event(
                        event_type="source.registered" if name in fresh else "source.updated",
                        project_module=project_id,
                        source_identifier=name,
                        actor=actor,
                        payload={"enabled": enabled[name]},
                    )
                    for name in [*added, *updated]
                ],
                ids=self._ids,
                now=now,
            )
            message = outbox.Message(
                kind="observation",
                project_module=project_id,
                asset=REGISTRY_ASSET,
                payload={
                    **sources.counts(conn, project_id),
                    "added_now": len(added),
                    "updated_now": len(updated),
                },
            )
            outbox.put(conn, [message], now=now, available_at=now)
        return Registered(added, updated)

    def mark_for_discovery(self, project_id: str, identifiers: Sequence[str] | None, *, actor: str) -> int:
        """Ask for a look at these sources (all enabled ones when none are named) at the next tick; their number.

        Raises
        ------
        InputError
            ``source_not_registered``: some of the names are unknown; nothing is marked.
        """
        now = self._clock.now()
        with self._ledger.begin() as conn:
            projects.active(conn, project_id)
            if identifiers is not None:
                known = {s.source_identifier for s in sources.by_identifiers(conn, project_id, identifiers)}
                unknown = [name for name in identifiers if name not in known]
                if unknown:
                    raise InputError(
                        f"not registered in {project_id!r}: {', '.join(unknown[:10])}",
                        code="source_not_registered",
                        hint="register them first; nothing was marked",
                        details={"unknown": list(unknown)},
                    )
            marked = sources.mark_for_discovery(conn, project_id, identifiers, now=now)
            provenance.record(
                conn,
                [
                    provenance.Event(
                        event_type="discovery.requested",
                        project_module=project_id,
                        source_identifier=name,
                        actor=actor,
                        payload={"sources": marked},
                    )
                    for name in (identifiers if identifiers is not None else [None])
                ],
                ids=self._ids,
                now=now,
            )
        return marked


def _check(new: Sequence[NewSource]) -> None:
    if not new:
        raise InputError("no sources were given", code="no_sources", hint="name at least one source")
    seen: set[str] = set()
    for source in new:
        name = source.source_identifier
        if not IDENTIFIER.fullmatch(name):
            raise InputError(
                f"{name!r} cannot be a source identifier",
                code="invalid_identifier",
                hint="letters, digits, space and + . _ : - only, at most 100, beginning with a letter or digit,"
                " no three dots in a row",
            )
        if name in seen:
            raise InputError(
                f"{name!r} is given twice", code="duplicate_source", hint="give each source once"
            )
        seen.add(name)
        ra_fits = source.ra_deg is None or 0 <= source.ra_deg < 360
        dec_fits = source.dec_deg is None or -90 <= source.dec_deg <= 90
        if not (ra_fits and dec_fits):
            raise InputError(
                f"{name!r} has the position ({source.ra_deg}, {source.dec_deg})",
                code="invalid_position",
                hint="right ascension is 0 to 360 degrees, declination -90 to 90",
            )
