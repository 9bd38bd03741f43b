"""When a source is set aside: its looks keep failing, and not because an archive is away.

A quarantined source is not asked about again by the clock, until an operator asks for a look at it or enables it.
A complete answer before that begins the count afresh.
"""

from __future__ import annotations

from typing import Final

from beampipe_dagster.discovery.archive import AnswerClass
from beampipe_dagster.errors import (
    ArchiveError,
    BackendError,
    BeampipeError,
    ConfigError,
    LedgerError,
    Retry,
)

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
