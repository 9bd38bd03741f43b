"""When a source is set aside: its looks keep failing, and not because an archive is away.

A quarantined source is not asked about again by the clock, until an operator asks for a look at it or enables it,
or the survey has a new revision: the fault may have been the old one's, in its queries or in the versions of its
plug-ins. A complete answer before that begins the count afresh.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from sqlalchemy.engine import Connection

from beampipe_dagster.discovery.archive import AnswerClass
from beampipe_dagster.errors import (
    ArchiveError,
    BackendError,
    BeampipeError,
    ConfigError,
    LedgerError,
    Retry,
)
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger import provenance, sources
from beampipe_dagster.ledger.projects import ProjectRevision

DEFAULT_AFTER: Final = 8
"""Failed looks in a row after which a source is quarantined: with the back-off, after about two hours."""

_NOT_ITS_FAULT: Final = (ConfigError, LedgerError, BackendError)
"""What is wrong with the survey, the ledger or a service is wrong for every source."""

_REFUSED: Final = f"archive_{AnswerClass.REFUSED.value}"


def is_own_failure(error: BeampipeError) -> bool:
    """Whether a failed look says something about the source, rather than about the world around it.

    That is so for rows that cannot be made into metadata, and for queries that the archive answers with an error
    for good (retry class ``never``). It is not so for an archive that is away, busy or refuses this machine, nor
    for a survey that is not configured.
    """
    if isinstance(error, _NOT_ITS_FAULT) or error.retry is not Retry.NEVER:
        return False
    return not (isinstance(error, ArchiveError) and error.code == _REFUSED)


def release_failing(
    conn: Connection, revision: ProjectRevision, *, actor: str, ids: Ids, now: datetime
) -> tuple[int, list[str]]:
    """Let go of a survey's failing sources, since the survey is another one now.

    Quarantine and back-off end; the story tells of each quarantined source, and of the others together.

    Parameters
    ----------
    revision
        The revision that has just become the active one.

    Returns
    -------
    tuple
        How many sources were let go, and the names of those that were quarantined.
    """
    released, quarantined = sources.release_failing(conn, revision.project_id, now=now)
    if released:
        why = f"revision {revision.version} is active now"
        names: list[str | None] = [None, *quarantined]
        events = [
            provenance.Event(
                event_type="discovery.released",
                project_module=revision.project_id,
                source_identifier=name,
                actor=actor,
                payload={"why": why}
                if name
                else {"why": why, "released": released, "quarantined": len(quarantined)},
            )
            for name in names
        ]
        provenance.record(conn, events, ids=ids, now=now)
    return released, quarantined
