"""Records made into the payload that is signed, and into the rows that are stored.

The two are different on purpose. The *signed payload* is a projection: volatile fields (access
URLs, sizes) are left out, so that they cannot make a source look changed. The *stored rows* keep
every field, since staging and manifests need them later. :func:`sign_stored` signs stored rows
again, so that a ledger can always be checked against its signatures.

The payload's form is fixed, because digests are compared across releases::

    {sbid: {"datasets": [record, ...], "discovery_flags": {...}}}

Records are grouped by the text of their ``sbid``, lose the excluded fields at every depth, and are
sorted by dataset, visibility file and canonical JSON. The digest is the SHA-256 of the payload's
canonical JSON; it does not depend on the order of rows or of fields.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from operator import add
from typing import TYPE_CHECKING, Any

from beampipe_dagster.config.canonical import canonical_json, digest, utf8
from beampipe_dagster.errors import DataError, InputError
from beampipe_dagster.signature.rows import AT_ONCE, projected, without

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from beampipe_dagster.config.canonical import JsonValue

PARTITION_DIGITS = 12
"""Hex digits of the signature in a partition key: 48 bits, enough to tell a source's own apart."""

NO_DATASETS_SBID = "0"
"""The SBID under which "the archive has nothing" is stored."""

NO_DATASETS_PAYLOAD: dict[str, JsonValue] = {
    NO_DATASETS_SBID: {"datasets": [], "discovery_status": "no_datasets"}
}
"""The payload of a source about which a complete answer had no rows. Do not change it in place."""

NO_DATASETS_DIGEST = "f57cea7a8b79823abac81f1f90b3f9e594f21ae40faff4ad4935e8b149771c5f"
"""Digest of :data:`NO_DATASETS_PAYLOAD`."""

_SEPARATOR = "\x1f"
_NO_IDENTITY = _SEPARATOR * 2
# Dagster refuses these inside a partition key.
_NOT_IN_PARTITION_KEYS = ("...", *"\a\b\f\n\r\t\v\0")


@dataclass(frozen=True, slots=True)
class Signature:
    """A signed payload.

    Parameters
    ----------
    digest
        SHA-256 of the payload's canonical JSON, 64 lower-case hex digits.
    payload
        ``{sbid: {"datasets": [...], "discovery_flags": {...}}}`` without the excluded fields.
    """

    digest: str
    payload: dict[str, JsonValue]


def sign(
    records: Sequence[JsonValue],
    flags: JsonValue = None,
    *,
    exclude_fields: Iterable[str] = (),
    include_flags: bool = False,
) -> Signature:
    """Sign a source's records.

    Parameters
    ----------
    records
        Metadata records in any order. What is not an object, or has no ``sbid``, is not signed
        (:func:`validate_records` refuses such records before they get here).
    flags
        The source's discovery flags. ``None`` and ``{}`` are the same as none at all.
    exclude_fields
        Keys that are left out of the records at every depth. Flags keep all of theirs.
    include_flags
        Whether the flags are signed too.

    Raises
    ------
    ConfigError
        ``invalid_json``: a value that JSON cannot hold.
    """
    payload, hexdigest = _payload(records, flags if include_flags else None, frozenset(exclude_fields))
    return Signature(hexdigest, payload)


def group_by_sbid(records: Sequence[JsonValue], flags: JsonValue = None) -> dict[str, JsonValue]:
    """The rows to store for a source: SBID to its metadata, with every field and the flags.

    Parameters
    ----------
    records, flags
        As for :func:`sign`.
    """
    payload, _ = _payload(records, flags, frozenset())
    return payload


def sign_stored(
    stored: Mapping[str, JsonValue],
    *,
    exclude_fields: Iterable[str] = (),
    include_flags: bool = False,
) -> Signature:
    """Sign stored rows again, under the options that hold now.

    For rows of :func:`group_by_sbid` this is the signature that :func:`sign` gave to their records.

    Parameters
    ----------
    stored
        SBID to stored metadata, e.g. ``{"72962": {"datasets": [...], "discovery_flags": {...}}}``.
    exclude_fields, include_flags
        As for :func:`sign`.
    """
    excluded = frozenset(exclude_fields)
    payload: dict[str, JsonValue] = {}
    hashed = _PayloadHash()
    for sbid in sorted(stored):
        payload[sbid], text = _projected(stored[sbid], excluded, include_flags=include_flags)
        hashed.add(sbid, text)
    return Signature(hashed.hexdigest(), payload)


def signature_of_payload(payload: Mapping[str, JsonValue]) -> str:
    """Digest of a payload: SHA-256 of its canonical JSON."""
    return digest(dict(payload))


def combined_signature(signatures: Mapping[str, str]) -> str:
    """One signature for an execution over several sources.

    Parameters
    ----------
    signatures
        Source identifier to the digest that was discovered for it.
    """
    return digest(dict(signatures))


def partition_key(source_identifier: str, signature: str) -> str:
    """The partition key of a discovered signature, e.g. ``HIPASSJ1318-21@3f9a0c21be77``.

    Parameters
    ----------
    source_identifier
        The source; it leads, for the reader.
    signature
        The whole digest; its first :data:`PARTITION_DIGITS` digits are used.

    Raises
    ------
    InputError
        ``invalid_partition_key``: no digest, or an identifier that a partition key cannot hold.
    """
    head = signature[:PARTITION_DIGITS]
    if len(head) < PARTITION_DIGITS or set(head) - set("0123456789abcdef"):
        raise InputError(
            f"{signature!r} is not a signature",
            code="invalid_partition_key",
            hint="Give the lower-case hex digest of a payload.",
        )
    bad = [text for text in _NOT_IN_PARTITION_KEYS if text in source_identifier]
    if bad or not source_identifier:
        raise InputError(
            f"source identifier {source_identifier!r} cannot be part of a partition key",
            code="invalid_partition_key",
            hint="An identifier must not be empty nor hold '...' or control characters.",
        )
    return f"{source_identifier}@{head}"


def validate_records(records: Sequence[JsonValue]) -> None:
    """Refuse records that could not be stored and found again.

    Every record is an object with an ``sbid``, and with a ``dataset_id`` or a
    ``visibility_filename``. Empty texts pass: archives use them for NULL.

    Raises
    ------
    DataError
        ``not_object``, ``missing_sbid`` or ``missing_dataset_identity``, with ``details["index"]``.
    """
    for index, record in enumerate(records):
        if not isinstance(record, dict):
            raise _bad_record(index, "not_object", f"is a {type(record).__name__}, not an object", "a row")
        if record.get("sbid") is None:
            raise _bad_record(index, "missing_sbid", "has no sbid", "`sbid`")
        if record.get("dataset_id") is None and record.get("visibility_filename") is None:
            raise _bad_record(
                index,
                "missing_dataset_identity",
                "has neither dataset_id nor visibility_filename",
                "`dataset_id` or `visibility_filename`",
            )


def text_form(value: JsonValue) -> str:
    """A value as text: a string is itself, ``None`` is empty, anything else its canonical JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else canonical_json(value)


def _grouped(records: Sequence[JsonValue]) -> dict[str, list[JsonValue]]:
    groups: dict[str, list[JsonValue]] = {}
    for record in records:
        sbid = record.get("sbid") if isinstance(record, dict) else None
        if sbid is None:
            continue
        if type(sbid) is not str:
            sbid = text_form(sbid)
        if sbid in groups:
            groups[sbid].append(record)
        else:
            groups[sbid] = [record]
    return groups


def _payload(
    records: Sequence[JsonValue], flags: JsonValue, excluded: AbstractSet[str]
) -> tuple[dict[str, JsonValue], str]:
    """The payload of records, and its digest."""
    groups = _grouped(records)
    shown: dict[str, JsonValue] = {} if flags is None or flags == {} else {"discovery_flags": flags}
    rest = "".join(f',"{name}":{canonical_json(value)}' for name, value in shown.items())
    payload: dict[str, JsonValue] = {}
    hashed = _PayloadHash()
    for some in _pieces(groups):
        copies, texts = projected([record for sbid in some for record in groups[sbid]], excluded)
        start = 0
        for sbid in some:
            end = start + len(groups[sbid])
            datasets, text = _in_order(copies[start:end], texts[start:end])
            start = end
            payload[sbid] = {"datasets": datasets, **_copied(shown)}
            hashed.add(sbid, f'{{"datasets":{text}{rest}}}')
    return payload, hashed.hexdigest()


def _pieces(groups: Mapping[str, list[JsonValue]]) -> Iterator[list[str]]:
    """The SBIDs in order, as many at once as make up for the cost of a call."""
    piece: list[str] = []
    rows = 0
    for sbid in sorted(groups):
        piece.append(sbid)
        rows += len(groups[sbid])
        if rows >= AT_ONCE:
            yield piece
            piece, rows = [], 0
    if piece:
        yield piece


def _projected(
    metadata: JsonValue, excluded: AbstractSet[str], *, include_flags: bool
) -> tuple[JsonValue, str]:
    """Stored metadata as they are signed, and their canonical JSON."""
    stored = metadata.get("datasets") if isinstance(metadata, dict) else None
    if not isinstance(metadata, dict) or not isinstance(stored, list):
        other = without(metadata, excluded)
        return other, canonical_json(other)
    datasets, text = _in_order(*projected(stored, excluded))
    out: dict[str, JsonValue] = {"datasets": datasets}
    members = {"datasets": text}
    for key, value in metadata.items():
        if key == "datasets" or (key == "discovery_flags" and not include_flags):
            continue
        if key == "discovery_flags" or key not in excluded:
            out[key] = value if key == "discovery_flags" else without(value, excluded)
            members[key] = canonical_json(out[key])
    return out, f"{{{','.join([f'{_key(key)}:{members[key]}' for key in sorted(members)])}}}"


def _in_order(records: list[JsonValue], texts: list[str]) -> tuple[list[JsonValue], str]:
    """Projected records in the order in which they are signed, and the canonical JSON of their list.

    The order is made after the projection: an excluded field must not decide it.
    """
    keys = list(map(_identity, records))
    # A record's text ends its sort key. It is looked at only where the rest cannot decide: in records of
    # the same dataset, or where an identity could be the beginning of another one.
    if len(set(keys)) < len(keys) or "".join(keys).count(_SEPARATOR) > 2 * len(keys):
        keys = list(map(add, keys, texts))
    if keys != sorted(keys):
        numbers = sorted(range(len(keys)), key=keys.__getitem__)
        records = [records[number] for number in numbers]
        texts = [texts[number] for number in numbers]
    return records, f"[{','.join(texts)}]"


def _identity(record: JsonValue) -> str:
    if not isinstance(record, dict):
        return _NO_IDENTITY
    dataset, file = record.get("dataset_id"), record.get("visibility_filename")
    if type(dataset) is not str:
        dataset = text_form(dataset)
    if type(file) is not str:
        file = text_form(file)
    return f"{dataset}{_SEPARATOR}{file}{_SEPARATOR}"


def _copied(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    return {key: without(item, frozenset()) for key, item in value.items()}


class _PayloadHash:
    """SHA-256 of a payload's canonical JSON, which is never held as a whole; entries come in order."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._before = "{"

    def add(self, sbid: str, text: str) -> None:
        """The next entry's canonical JSON."""
        self._hash.update(utf8(f"{self._before}{_key(sbid)}:{text}"))
        self._before = ","

    def hexdigest(self) -> str:
        """64 lower-case hex digits, when all entries are there."""
        self._hash.update(b"}" if self._before == "," else b"{}")
        return self._hash.hexdigest()


@lru_cache(maxsize=1024)
def _key(key: str) -> str:
    return canonical_json(key)


def _bad_record(index: int, code: str, fault: str, wanted: str) -> DataError:
    details: dict[str, Any] = {"index": index}
    return DataError(
        f"record {index} {fault}",
        code=code,
        hint=f"Let discovery.prepare_metadata.field_map give {wanted} for every row of the primary query.",
        details=details,
    )
