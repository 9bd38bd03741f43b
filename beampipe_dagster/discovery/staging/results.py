"""Jobs and results of a staging service (IVOA UWS 1.1), and what their URLs say.

A result is ``<uws:result id="visibility-105366" xlink:href="..."/>``: UWS 1.1 gives its place as ``xlink:href``;
services that followed a draft give it in a child ``reference``. CASDA percent-quotes the whole URL once more.
Results of visibilities are ``visibility-<scan>``, of calibration archives ``evaluation-<number>``; each has one
with ``.checksum`` at its end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from lxml import etree

from beampipe_dagster.discovery.staging import xml
from beampipe_dagster.discovery.staging.redaction import hidden
from beampipe_dagster.errors import ArchiveError

CHECKSUM: Final = ".checksum"
ENDED: Final = frozenset({"COMPLETED", "ERROR", "ABORTED", "ARCHIVED"})
"""Phases after which nothing happens any more; every other phase, also an unknown one, is a job at work."""

_QUOTED: Final = re.compile(r"https?%3A%2F%2F", re.IGNORECASE)
_FILENAME: Final = re.compile(r"filename\*?\s*=\s*(?:UTF-8'')?\"?([^\";]+)", re.IGNORECASE)
_AMZ_TIME: Final = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True, slots=True)
class JobResult:
    """One result; its URL may be signed and is not shown."""

    result_id: str
    url: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Job:
    """A job as its document says it.

    Attributes
    ----------
    phase
        In capitals; ``UNKNOWN`` when the document has none.
    error
        Its ``errorSummary``, without the queries of URLs.
    identifiers
        Values of its parameter ``ID``; secret.
    created_at
        Where the service tells (UWS 1.1).
    """

    job_id: str
    phase: str
    error: str | None
    identifiers: frozenset[str] = field(repr=False)
    results: tuple[JobResult, ...] = ()
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class JobRef:
    """A job in a list of jobs."""

    job_id: str
    url: str | None
    created_at: datetime | None


@dataclass(frozen=True, slots=True)
class StagedUrls:
    """URLs by what they are of: visibilities by scan, calibration archives by file name. All are secret."""

    data: dict[str, str] = field(default_factory=dict, repr=False)
    checksum: dict[str, str] = field(default_factory=dict, repr=False)
    evaluation: dict[str, str] = field(default_factory=dict, repr=False)
    evaluation_checksum: dict[str, str] = field(default_factory=dict, repr=False)


def read_job(body: bytes, *, name: str) -> Job:
    """A job's document.

    Raises
    ------
    ArchiveError
        ``staging_answer_unreadable``.
    """
    root = next(xml.all_of(_parsed(body, name), "job"), None)
    if root is None:
        raise _unreadable(name, "it is no UWS job")
    parameters = xml.child(root, "parameters")
    identifiers = [
        part
        for one in ([] if parameters is None else parameters)
        if xml.local(one) == "parameter" and str(one.get("id")).lower() == "id"
        for part in re.split(r"[\s,]+", xml.text_of(one))
        if part
    ]
    error = hidden(xml.text_of(xml.child(root, "errorSummary")))[:500]
    return Job(
        job_id=xml.text_of(xml.child(root, "jobId")),
        phase=xml.text_of(xml.child(root, "phase")).upper() or "UNKNOWN",
        error=error or None,
        identifiers=frozenset(identifiers),
        results=_results(root),
        created_at=_moment(xml.text_of(xml.child(root, "creationTime"))),
    )


def read_results(body: bytes, *, name: str) -> tuple[JobResult, ...]:
    """The results in a job's document, or in its list of results.

    Raises
    ------
    ArchiveError
        ``staging_answer_unreadable``.
    """
    return _results(_parsed(body, name))


def read_jobs(body: bytes, *, name: str) -> tuple[JobRef, ...]:
    """A list of jobs (UWS 1.1 section 2.2.2.1).

    Raises
    ------
    ArchiveError
        ``staging_answer_unreadable``: also for a document that is no list of jobs.
    """
    root = _parsed(body, name)
    if xml.local(root) != "jobs":
        raise _unreadable(name, "it is no UWS list of jobs")
    return tuple(
        JobRef(
            job_id=str(one.get("id") or "").strip(),
            url=xml.href_of(one) or None,
            created_at=_moment(xml.text_of(xml.child(one, "creationTime"))),
        )
        for one in xml.all_of(root, "jobref")
    )


def sorted_urls(results: Iterable[JobResult]) -> StagedUrls:
    """Results by what they are of; those of other kinds (cubes, catalogues) are left out."""
    found = StagedUrls()
    for one in results:
        subject, is_checksum = _without_checksum(one.result_id)
        kind, _, key = subject.partition("-")
        if kind == "visibility" and key:
            (found.checksum if is_checksum else found.data)[key] = one.url
        elif kind == "evaluation":
            name, _ = _without_checksum(file_name(one.url))
            (found.evaluation_checksum if is_checksum else found.evaluation)[name] = one.url
    return found


def file_name(url: str) -> str:
    """The name under which a URL's file is to be saved: as the URL's own query says, else its path's end."""
    parts = urlsplit(url)
    for key, value in parse_qsl(parts.query):
        if key.lower() == "response-content-disposition":
            given = _FILENAME.search(unquote(value))
            if given and (name := given[1].strip()):
                return name.rpartition("/")[2]
    return unquote(parts.path).rpartition("/")[2]


def expiry(url: str) -> datetime | None:
    """Until when a signed URL is good; ``None`` for one that does not say so.

    Known are ``X-Amz-Date`` with ``X-Amz-Expires`` (AWS signature version 4; also ``X-Goog-``), ``Expires`` in
    seconds of the Unix epoch (version 2), and ``se`` (Azure's shared access signatures).
    """
    query = {key.lower(): value for key, value in parse_qsl(urlsplit(url).query)}
    for prefix in ("x-amz", "x-goog"):
        start, seconds = query.get(f"{prefix}-date"), query.get(f"{prefix}-expires", "")
        if start and re.fullmatch(r"[0-9]{1,9}", seconds):
            try:
                begun = datetime.strptime(start, _AMZ_TIME).replace(tzinfo=UTC)
            except ValueError:
                continue
            return begun + timedelta(seconds=int(seconds))
    epoch = query.get("expires", "")
    if re.fullmatch(r"[0-9]{1,11}", epoch):
        return datetime.fromtimestamp(int(epoch), UTC)
    return _moment(query.get("se", ""))


def earliest(urls: Iterable[str]) -> datetime | None:
    """When the first of these URLs expires; ``None`` when none says so."""
    return min((moment for url in urls if (moment := expiry(url)) is not None), default=None)


def scan_of(identifier: str) -> str | None:
    """The scan in a publisher's identifier: what stands between ``scan-`` and the next ``-``.

    ``None`` when there is no ``scan-``; the text may be empty.
    """
    _, found, rest = identifier.partition("scan-")
    return rest.partition("-")[0] if found else None


def _without_checksum(name: str) -> tuple[str, bool]:
    return name.removesuffix(CHECKSUM), name.endswith(CHECKSUM)


def _results(root: etree._Element) -> tuple[JobResult, ...]:
    found = []
    for one in xml.all_of(root, "result"):
        reference = xml.child(one, "reference")
        inner = "" if reference is None else xml.href_of(reference) or xml.text_of(reference)
        url = xml.href_of(one) or inner
        result_id = str(one.get("id") or "").strip()
        if url and result_id:
            # Only a URL that is quoted as a whole is unquoted: any other has its own quoted characters.
            found.append(JobResult(result_id, unquote(url) if _QUOTED.match(url) else url))
    return tuple(found)


def _parsed(body: bytes, name: str) -> etree._Element:
    try:
        return xml.parse(body)
    except xml.UnreadableXmlError as error:
        raise _unreadable(name, f"it is no XML document ({hidden(str(error))[:120]})") from error


def _unreadable(name: str, why: str) -> ArchiveError:
    return ArchiveError(
        f"the answer of {name} cannot be read: {why}",
        code="staging_answer_unreadable",
        hint="the archive may be under maintenance; it is asked again later",
    )


def _moment(text: str) -> datetime | None:
    """An ISO 8601 time; one without a zone is in UTC, as UWS 1.1 section 2.2.1.1 wants it."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
