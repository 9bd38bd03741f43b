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
from typing import TYPE_CHECKING, Final, Literal, Protocol

from beampipe_dagster.clock import rfc3339
from beampipe_dagster.discovery.cells import typed_cell
from beampipe_dagster.errors import ArchiveError, Retry

if TYPE_CHECKING:
    from datetime import datetime

    from beampipe_dagster.config.canonical import JsonValue

DEFAULT_MAXREC = 20_000
"""Rows that one query may give; more is an overflow, never a part that looks like the whole."""

Mode = Literal["sync", "async"]
"""How a query was sent: answered at once, or run as a job (TAP 1.1 sections 2.2 and 2.3)."""


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
    mode
        Answered at once, or by a job.
    status_head, status_tail
        QUERY_STATUS before and after the table, where the document has them: a service that fails or
        overflows while it sends rows says so at the end.
    uploaded_rows
        Rows of the table that went with the query.
    job_url
        The job of an asynchronous query, without its query string.
    phases
        The phases that were seen of the job, each with the time at which it was first seen (UTC).
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
    mode: Mode = "sync"
    status_head: str | None = None
    status_tail: str | None = None
    uploaded_rows: int | None = None
    job_url: str | None = None
    phases: tuple[tuple[str, datetime], ...] = ()

    def as_dict(self) -> dict[str, JsonValue]:
        """The evidence as JSON; times in RFC 3339, the seconds in milliseconds' precision.

        What only jobs and uploads have is there for these only.
        """
        found: dict[str, JsonValue] = {
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
            "mode": self.mode,
            "query_status_head": self.status_head,
            "query_status_tail": self.status_tail,
        }
        if self.uploaded_rows is not None:
            found["uploaded_rows"] = self.uploaded_rows
        if self.job_url is not None:
            found["job_url"] = self.job_url
            found["phases"] = [[phase, rfc3339(seen)] for phase, seen in self.phases]
        return found


@dataclass(frozen=True, slots=True)
class AnswerColumn:
    """A column of an answer, as the document declares it (VOTable 1.4 section 4.1).

    Parameters
    ----------
    name
        As the archive spells it.
    datatype
        VOTable's name of the type, e.g. ``int`` or ``char``.
    arraysize
        ``None`` for a single value, else e.g. ``10``, ``*`` or ``2x3``.
    unit, ucd
        Where the document gives them, else ``""``.
    """

    name: str
    datatype: str
    arraysize: str | None = None
    unit: str = ""
    ucd: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer.

    Parameters
    ----------
    rows
        Column name (as the archive spells it) to the cell's text; ``""`` for NULL.
    evidence
        What was asked and what came back.
    columns
        What the document says about its columns; empty where nobody knows.
    """

    rows: list[dict[str, JsonValue]]
    evidence: Evidence
    columns: tuple[AnswerColumn, ...] = ()

    def typed(self) -> list[dict[str, JsonValue]]:
        """The rows with numbers and truth values where the document is typed, ``None`` for NULL.

        Made from the text of ``rows``, so that both always say the same. A cell of a column that is
        not described stays text. An infinite number stays a float, for which JSON has no form.
        """
        kinds = {column.name: (column.datatype, column.arraysize) for column in self.columns}
        return [
            {
                name: typed_cell(str(cell), *kinds[name]) if name in kinds else cell
                for name, cell in row.items()
            }
            for row in self.rows
        ]


@dataclass(frozen=True)
class Upload:
    """A table that goes with a query, which reads it as ``TAP_UPLOAD.<name>`` (TAP 1.1 section 2.7.5).

    Parameters
    ----------
    name
        Its name in the query: a letter, then letters, digits and ``_``.
    columns
        Names of its columns, all of them text.
    rows
        Its rows, a text for each column.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class TapCapabilities:
    """What a TAP service says that it can do (VOSI 1.1, TAPRegExt 1.0); by default, what any can.

    Parameters
    ----------
    upload
        Whether a table may go with a query, inside the request.
    upload_row_limit
        Rows of such a table at most, where the service limits them.
    async_
        Whether queries can be run as jobs.
    default_maxrec, hard_maxrec
        Rows of an answer when MAXREC is not given, and when it is as large as can be.
    formats
        Names and MIME types of the formats of answers.
    languages
        Names of query languages with versions, e.g. ``ADQL-2.0``.
    documented
        Whether the service has a document that says so.
    """

    upload: bool = False
    upload_row_limit: int | None = None
    async_: bool = False
    default_maxrec: int | None = None
    hard_maxrec: int | None = None
    formats: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    documented: bool = False


CONSERVATIVE: Final = TapCapabilities()
"""What is assumed of a service that says nothing about itself: synchronous queries, and no more."""


class Archive(Protocol):
    """An archive that answers ADQL."""

    def query(self, adql: str, *, maxrec: int = DEFAULT_MAXREC, upload: Upload | None = None) -> Answer:
        """Ask a query.

        Parameters
        ----------
        adql
            The query.
        maxrec
            Rows to let through at most. As many rows as that count as an overflow.
        upload
            A table that goes with it.

        Raises
        ------
        ArchiveError
            ``archive_overflow``, ``archive_error``, ``archive_malformed``, ``archive_timeout``,
            ``archive_refused`` or ``archive_unavailable``; ``details`` is the evidence.
        """
        ...

    def query_async(self, adql: str, *, maxrec: int = DEFAULT_MAXREC, upload: Upload | None = None) -> Answer:
        """Ask a query as a job, and wait for its end; see :meth:`query`.

        The job is kept in the ledger: the same query asked again, by whatever process, goes on with
        it.

        Raises
        ------
        ArchiveError
            As :meth:`query`; a job that the archive no longer knows is ``archive_unavailable``.
        """
        ...

    def capabilities(self) -> TapCapabilities:
        """What the archive can do; kept for an hour. Never raises: a silent archive can do little."""
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
