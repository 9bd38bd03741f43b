"""Job documents of a Universal Worker Service (IVOA UWS 1.1): what a job says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit, urlunsplit

from beampipe_dagster.discovery.xml import XmlError, attribute, child_text, children, local, parse_xml

if TYPE_CHECKING:
    from lxml.etree import _Element

SHOWN: Final = 500
"""Characters of a job's own message that are kept."""

PENDING: Final = "PENDING"
COMPLETED: Final = "COMPLETED"
UNKNOWN: Final = "UNKNOWN"
RUNNING: Final = frozenset({PENDING, "QUEUED", "EXECUTING", "SUSPENDED", "HELD", UNKNOWN})
"""Phases in which a job may yet give a result (UWS 1.1 section 2.1.3); UNKNOWN is the service's not knowing."""
ENDED: Final = frozenset({COMPLETED, "ERROR", "ABORTED", "ARCHIVED"})
"""Phases that a job does not leave."""


class JobDocumentError(Exception):
    """A document that describes no job; translated by the module that runs jobs."""


@dataclass(frozen=True, slots=True)
class JobDocument:
    """What a job's document says.

    Parameters
    ----------
    job_id
        The service's identifier; ``""`` when it gives none.
    phase
        In capitals; a word that UWS does not have is :data:`UNKNOWN`.
    waits
        Whether the service speaks UWS 1.1, of which long polling (``WAIT``) is a part.
    results
        Identifier and place of each result, as the document has them.
    message
        The error's message in one line; ``""`` when there is none.
    destruction
        When the service will drop the job, if it says so.
    """

    job_id: str
    phase: str
    waits: bool
    results: tuple[tuple[str, str], ...]
    message: str
    destruction: datetime | None

    @property
    def result(self) -> str | None:
        """Where the table is: the result of that name (TAP 1.1 section 2.3), or the first there is."""
        return next((place for name, place in self.results if name == "result"), None) or next(
            (place for _, place in self.results), None
        )


def read_job(body: bytes) -> JobDocument:
    """Read a job's document.

    Raises
    ------
    JobDocumentError
        It is no XML, or no job with a phase.
    """
    try:
        root = parse_xml(body)
    except XmlError as error:
        raise JobDocumentError(str(error)) from error
    if local(root) != "job":
        raise JobDocumentError(f"the document is a {local(root) or 'nothing'!r} and not a job")
    phase = child_text(root, "phase").upper()
    if not phase:
        raise JobDocumentError("the job has no phase")
    return JobDocument(
        job_id=child_text(root, "jobId"),
        phase=phase if phase in RUNNING | ENDED else UNKNOWN,
        waits=(attribute(root, "version") or "").startswith("1.1"),
        results=tuple(_results(root)),
        message=one_line(child_text(root, "errorSummary", "message") or child_text(root, "errorSummary")),
        destruction=moment(child_text(root, "destruction")),
    )


def moment(text: str) -> datetime | None:
    """An ISO 8601 time in UTC; one without a zone is in UTC (UWS 1.1 section 2.2.3). ``None`` for no time."""
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def public_url(url: str) -> str:
    """A URL without what may be secret in it: user, password, query string and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def one_line(message: str) -> str:
    """A message as one line of bounded length."""
    line = " ".join(message.split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"


def _results(root: _Element) -> list[tuple[str, str]]:
    """Places by ``xlink:href``, or, as services of UWS before 1.0 have them, as text."""
    found = []
    for results in children(root, "results"):
        for result in children(results, "result"):
            place = attribute(result, "href") or child_text(result)
            if place:
                found.append((attribute(result, "id") or "", place))
    return found
