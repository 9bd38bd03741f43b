"""Which files of an execution are to be staged, and where their URLs go in its records.

A record's visibility is found again by its scan, the calibration archive of its scheduling block (SBID) by its
file name. Everything that can be wrong with the records is found here, before anybody is asked for anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from typing import Final
from urllib.parse import quote, unquote

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.discovery.staging.results import StagedUrls, scan_of
from beampipe_dagster.errors import ArchiveError, DataError

IDS_PER_JOB: Final = 50
"""Most files in one job: their tokens, of about 70 bytes each, stand in the URL of its creation."""

SCHEME: Final = "beampipe-staged://"
_PLACEHOLDER: Final = re.compile(re.escape(SCHEME) + r"[a-z-]+/[\w.~%-]+/[\w.~%-]+", re.ASCII)
_CALIBRATION: Final = "calibration-metadata-processing-logs-SB"

Placeholders = dict[str, JsonValue]
"""``staged_url``, ``checksum_url`` and so on of one record, each with the placeholder of its URL."""


class Kind(StrEnum):
    """What a file is."""

    VISIBILITY = "visibility"
    EVALUATION = "evaluation"


@dataclass(frozen=True, slots=True)
class Item:
    """One file to be staged.

    Attributes
    ----------
    key
        Its scan, or the name of the calibration archive.
    name
        The name of its file, for messages and to check its checksum's URL by.
    access_url
        Its DataLink document.
    """

    kind: Kind
    sbid: str
    key: str
    name: str
    access_url: str

    @property
    def id(self) -> str:
        """What it is called in the ledger: ``visibility/72962/105172``."""
        return f"{self.kind.value}/{quote(self.sbid, safe='')}/{quote(self.key, safe='')}"

    @property
    def placeholder(self) -> str:
        """What stands for its URL in every document that is kept."""
        return SCHEME + self.id

    @property
    def checksum_placeholder(self) -> str:
        """What stands for its checksum's URL."""
        return f"{SCHEME}{self.kind.value}-checksum/{self.id.partition('/')[2]}"


@dataclass(frozen=True, slots=True)
class Group:
    """The files of one staging job."""

    key: str
    kind: Kind
    items: tuple[Item, ...]

    @property
    def sbids(self) -> list[str]:
        """Their scheduling blocks, in numeric order."""
        return sorted({item.sbid for item in self.items}, key=_numeric)


@dataclass(frozen=True, slots=True)
class Plan:
    """All files of an execution, and for each record what it gets; in the order of the records."""

    items: tuple[Item, ...]
    fields: tuple[Placeholders, ...]


def make_plan(records: Sequence[Mapping[str, JsonValue]], *, evaluation: bool) -> Plan:
    """What is to be staged for these records.

    Parameters
    ----------
    records
        Whole metadata records, with the fields that the signature leaves out: ``access_url``,
        ``evaluation_file`` and ``evaluation_file_access_url``.
    evaluation
        Whether the calibration archive of each scheduling block is staged too.

    Raises
    ------
    DataError
        ``staging_record_incomplete``, ``staging_scan_twice`` or ``staging_evaluation_file``; each names the
        scheduling blocks and what is wrong with them.
    """
    faults: dict[str, str] = {}
    visibilities: list[Item] = []
    for record in records:
        found = _visibility(record)
        if isinstance(found, Item):
            visibilities.append(found)
        else:
            faults.setdefault(_text(record, "sbid") or "(none)", found)
    _refuse(faults, "staging_record_incomplete", "let the field_map keep what is missing")
    scans = [item.key for item in visibilities]
    twice = {item.sbid: f"scan {item.key} comes twice" for item in visibilities if scans.count(item.key) > 1}
    _refuse(twice, "staging_scan_twice", "the archive's results could not be told apart")
    archives = _evaluations(records) if evaluation else {}
    return Plan(
        items=(*sorted(visibilities, key=_order), *sorted(archives.values(), key=_order)),
        fields=tuple(_fields(item, archives.get(item.sbid)) for item in visibilities),
    )


def grouped(items: Iterable[Item], *, by_sbid: bool) -> list[Group]:
    """The jobs for these files: visibilities by scheduling block or together, calibration archives together.

    Blocks come in numeric order; a job has at most :data:`IDS_PER_JOB` files.
    """
    ordered = sorted(items, key=_order)
    visibilities = [item for item in ordered if item.kind is Kind.VISIBILITY]
    evaluations = [item for item in ordered if item.kind is Kind.EVALUATION]
    block: Callable[[Item], str] = (lambda item: item.sbid) if by_sbid else (lambda _: "all")
    groups: list[Group] = []
    for key, members in groupby(visibilities, key=block):
        groups.extend(_parts(f"{Kind.VISIBILITY.value}/{key}", Kind.VISIBILITY, [*members]))
    groups.extend(_parts(Kind.EVALUATION.value, Kind.EVALUATION, evaluations))
    return groups


def urls_of(items: Iterable[Item], urls: StagedUrls) -> dict[str, str]:
    """By placeholder: the URL of each file and of its checksum.

    Raises
    ------
    ArchiveError
        ``staging_result_missing``: the job did not give all of them, or gave what is not asked for.
    """
    found: dict[str, str] = {}
    faults: dict[str, str] = {}
    for item in items:
        is_visibility = item.kind is Kind.VISIBILITY
        url = (urls.data if is_visibility else urls.evaluation).get(item.key)
        checksum = (urls.checksum if is_visibility else urls.evaluation_checksum).get(item.key)
        fault = _missing(item, url, checksum)
        if fault:
            faults.setdefault(item.sbid, fault)
        elif url and checksum:
            found |= {item.placeholder: _sent(url), item.checksum_placeholder: _sent(checksum)}
    if faults:
        raise ArchiveError(
            "; ".join(f"SBID {sbid}: {fault}" for sbid, fault in sorted(faults.items())[:5]),
            code="staging_result_missing",
            hint="the archive ended the job without all of its files; it is asked again",
            details={"sbids": sorted(faults, key=_numeric)},
        )
    return found


def placeholders_in(value: JsonValue) -> set[str]:
    """All placeholders in a document."""
    found: set[str] = set()
    pending: list[JsonValue] = [value]
    while pending:
        here = pending.pop()
        if isinstance(here, str):
            if SCHEME in here:
                found.update(_PLACEHOLDER.findall(here))
        elif isinstance(here, dict):
            pending.extend(here.values())
        elif isinstance(here, list):
            pending.extend(here)
    return found


def filled(value: JsonValue, urls: Mapping[str, str]) -> JsonValue:
    """A copy of a document with URLs in the place of their placeholders; what has none is not copied.

    A text that holds JSON stays JSON: the URLs have no character that JSON would quote.
    """
    if isinstance(value, str):
        return _PLACEHOLDER.sub(lambda match: urls[match[0]], value) if SCHEME in value else value
    if isinstance(value, dict):
        return {key: filled(inner, urls) for key, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner, urls) for inner in value]
    return value


def _visibility(record: Mapping[str, JsonValue]) -> Item | str:
    """The record's visibility, or what it lacks."""
    sbid = _text(record, "sbid")
    name = _text(record, "dataset_id") or _text(record, "visibility_filename")
    access_url = _text(record, "access_url")
    if not sbid or not name:
        return "a record lacks its sbid or its dataset_id"
    scan = next(
        (found for field in ("scan_id", "obs_publisher_did") if (found := scan_of(_text(record, field)))),
        None,
    )
    if not scan:
        return f"{name} has no scan in its scan_id or obs_publisher_did"
    if not _is_http(access_url):
        return f"{name} has no access_url"
    return Item(Kind.VISIBILITY, sbid, scan, name, access_url)


def _evaluations(records: Iterable[Mapping[str, JsonValue]]) -> dict[str, Item]:
    """The calibration archive of each scheduling block."""
    found: dict[str, Item] = {}
    faults: dict[str, str] = {}
    for record in records:
        sbid, name = _text(record, "sbid"), _text(record, "evaluation_file")
        item = Item(Kind.EVALUATION, sbid, name, name, _text(record, "evaluation_file_access_url"))
        if not name:
            faults.setdefault(sbid, "it has no evaluation_file")
        elif not (name.startswith(f"{_CALIBRATION}{sbid}_") and name.endswith(".tar")):
            faults.setdefault(sbid, f"{name[:120]!r} is not called {_CALIBRATION}{sbid}_....tar")
        elif not _is_http(item.access_url):
            faults.setdefault(sbid, "it has no evaluation_file_access_url")
        elif found.setdefault(sbid, item) != item:
            faults.setdefault(sbid, "its records name different evaluation files")
    _refuse(
        faults,
        "staging_evaluation_file",
        "the calibration archive is chosen by the enrichment sbid_to_eval_file; discover the sources again",
    )
    return found


def _fields(item: Item, archive: Item | None) -> Placeholders:
    fields: Placeholders = {"staged_url": item.placeholder, "checksum_url": item.checksum_placeholder}
    if archive is not None:
        fields["evaluation_file_url"] = archive.placeholder
        fields["evaluation_file_checksum_url"] = archive.checksum_placeholder
    return fields


def _missing(item: Item, url: str | None, checksum: str | None) -> str | None:
    if item.kind is Kind.EVALUATION:
        if url is None or checksum is None:
            what = "result" if url is None else "checksum"
            return f"CASDA evaluation staging {what} is missing for {item.name}"
        return None
    if url is None:
        return f"CASDA visibility result is missing for {item.name} (scan {item.key})"
    if checksum is None:
        return f"CASDA visibility checksum is missing for {item.name} (scan {item.key})"
    if item.name not in unquote(checksum):
        return f"CASDA visibility checksum of scan {item.key} is not one of {item.name}"
    return None


def _sent(url: str) -> str:
    """The URL in characters that need no quoting in JSON, however deep it stands."""
    return quote(url, safe="!#$%&'()*+,/:;=?@[]~-._")


def _parts(key: str, kind: Kind, items: list[Item]) -> list[Group]:
    pieces = [items[start : start + IDS_PER_JOB] for start in range(0, len(items), IDS_PER_JOB)]
    return [
        Group(f"{key}+{number}" if number else key, kind, tuple(piece)) for number, piece in enumerate(pieces)
    ]


def _refuse(faults: Mapping[str, str], code: str, hint: str) -> None:
    if faults:
        named = sorted(faults.items(), key=lambda fault: _numeric(fault[0]))
        more = f"; and {len(named) - 5} more" if len(named) > 5 else ""
        raise DataError(
            "cannot be staged: " + "; ".join(f"SBID {sbid}: {why}" for sbid, why in named[:5]) + more,
            code=code,
            hint=hint,
            details={"sbids": [sbid for sbid, _ in named]},
        )


def _order(item: Item) -> tuple[tuple[int, str], str]:
    return _numeric(item.sbid), item.key


def _numeric(sbid: str) -> tuple[int, str]:
    """Numbers by value, before everything else."""
    return (int(sbid), sbid) if re.fullmatch(r"[0-9]{1,18}", sbid) else (10**18, sbid)


def _text(record: Mapping[str, JsonValue], name: str) -> str:
    value = record.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value.strip() if isinstance(value, str) else ""


def _is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))
