"""The archive port: ask an ADQL query, get a complete answer or an error.

Only a complete answer may change what the ledger says about a source. So a query has two outcomes:
an :class:`Answer`, which is known to be whole, or an
:class:`~beampipe_dagster.errors.ArchiveError` whose code is ``archive_`` and the
:class:`AnswerClass`. Both carry the :class:`Evidence`: what was asked, of whom, when, and what came
back.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from beampipe_dagster.clock import rfc3339
from beampipe_dagster.errors import ArchiveError, Retry

if TYPE_CHECKING:
    from datetime import datetime

    from beampipe_dagster.config.canonical import JsonValue

DEFAULT_MAXREC = 20_000
"""Rows that one query may give; more is an overflow, never a part that looks like the whole."""


class AnswerClass(StrEnum):
    """What kind of answer a query got."""

    COMPLETE = "complete"
    """All rows, and the service says so."""

    OVERFLOW = "overflow"
    """There are more rows than the service or MAXREC let through."""

    ERROR = "error"
    """The service says that the query failed."""

    MALFORMED = "malformed"
    """Something came, but it is not the whole document that a query is answered with."""

    TIMEOUT = "timeout"
    """The answer did not come, or not to its end, in time."""

    REFUSED = "refused"
    """The service is there and does not serve us: too busy, too many requests, not allowed."""

    UNAVAILABLE = "unavailable"
    """No answer at all: no connection, or the service itself is broken (HTTP 5xx)."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was asked and what came back.

    Parameters
    ----------
    adapter
        Name of the archive in the project file.
    url
        Where the query was sent.
    query_sha256
        SHA-256 of the ADQL text.
    started_at
        When the attempt that this is about began (UTC).
    seconds
        How long it took.
    rows
        Rows received; 0 when none could be read.
    http_status, query_status, bytes
        HTTP status, the document's QUERY_STATUS and the body's length, where there are any.
    answer
        The class of the answer.
    attempts
        How many times the query was sent.
    """

    adapter: str
    url: str
    query_sha256: str
    started_at: datetime
    seconds: float
    rows: int
    http_status: int | None = None
    query_status: str | None = None
    bytes: int | None = None
    answer: AnswerClass = AnswerClass.COMPLETE
    attempts: int = 1

    def as_dict(self) -> dict[str, JsonValue]:
        """The evidence as JSON; the time in RFC 3339, the seconds in milliseconds' precision."""
        return {
            "adapter": self.adapter,
            "url": self.url,
            "query_sha256": self.query_sha256,
            "started_at": rfc3339(self.started_at),
            "seconds": round(self.seconds, 3),
            "rows": self.rows,
            "answer": self.answer.value,
            "attempts": self.attempts,
            "http_status": self.http_status,
            "query_status": self.query_status,
            "bytes": self.bytes,
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer.

    Parameters
    ----------
    rows
        Column name (as the archive spells it) to the cell's text; ``""`` for NULL.
    evidence
        What was asked and what came back.
    """

    rows: list[dict[str, JsonValue]]
    evidence: Evidence


class Archive(Protocol):
    """An archive that answers ADQL."""

    def query(self, adql: str, *, maxrec: int = DEFAULT_MAXREC) -> Answer:
        """Ask a query.

        Parameters
        ----------
        adql
            The query.
        maxrec
            Rows to let through at most. As many rows as that count as an overflow.

        Raises
        ------
        ArchiveError
            ``archive_overflow``, ``archive_error``, ``archive_malformed``, ``archive_timeout``,
            ``archive_refused`` or ``archive_unavailable``; ``details`` is the evidence.
        """
        ...

    def availability(self) -> tuple[bool, str]:
        """Whether the archive takes queries now, and a sentence about it. Never raises."""
        ...


_RETRY = {
    # The same query would overflow again.
    AnswerClass.OVERFLOW: Retry.NEVER,
}
_HINTS = {
    AnswerClass.OVERFLOW: "Ask for less at once: narrow the query, or split the batch.",
    AnswerClass.ERROR: "Read the archive's message; try the query in TOPCAT or with pyvo.",
    AnswerClass.MALFORMED: "It is tried again later. If it stays, open the URL and see what answers.",
    AnswerClass.TIMEOUT: "It is tried again later. If it stays, raise adapters.tap.timeout_seconds.",
    AnswerClass.REFUSED: "It is tried again later. If it stays, query less often or ask the archive.",
    AnswerClass.UNAVAILABLE: "It is tried again later. If it stays, check the URL and the network.",
}


def archive_error(
    message: str, evidence: Evidence, *, retry: Retry | None = None, hint: str | None = None
) -> ArchiveError:
    """The error for an answer that is not complete.

    Parameters
    ----------
    message
        What came instead of a complete answer.
    evidence
        Its ``answer`` decides the code.
    retry, hint
        Instead of those that the class of the answer usually has.
    """
    return ArchiveError(
        f"{evidence.adapter} ({evidence.url}): {message}",
        code=f"archive_{evidence.answer.value}",
        hint=_HINTS.get(evidence.answer, "") if hint is None else hint,
        retry=retry or _RETRY.get(evidence.answer, Retry.LATER),
        details=dict(evidence.as_dict()),
    )
