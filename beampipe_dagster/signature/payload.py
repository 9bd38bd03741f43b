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

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from beampipe_dagster.config.canonical import canonical_json, digest
from beampipe_dagster.errors import DataError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
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
    payload = _payload(_grouped(records), flags if include_flags else None, frozenset(exclude_fields))
    return Signature(signature_of_payload(payload), payload)


def group_by_sbid(records: Sequence[JsonValue], flags: JsonValue = None) -> dict[str, JsonValue]:
    """The rows to store for a source: SBID to its metadata, with every field and the flags.

    Parameters
    ----------
    records, flags
        As for :func:`sign`.
    """
    return _payload(_grouped(records), flags, frozenset())


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
    payload = {
        sbid: _projected(metadata, excluded, include_flags=include_flags) for sbid, metadata in stored.items()
    }
    return Signature(signature_of_payload(payload), payload)


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


def without(value: JsonValue, excluded: AbstractSet[str]) -> JsonValue:
    """A copy of a value without the excluded keys, at every depth.

    Parameters
    ----------
    value
        Any JSON value; objects inside lists are searched too.
    excluded
        Keys to leave out, compared exactly.
    """
    if isinstance(value, dict):
        return {key: without(item, excluded) for key, item in value.items() if key not in excluded}
    if isinstance(value, list):
        return [without(item, excluded) for item in value]
    return value


def _grouped(records: Sequence[JsonValue]) -> dict[str, list[JsonValue]]:
    groups: dict[str, list[JsonValue]] = {}
    for record in records:
        if isinstance(record, dict) and record.get("sbid") is not None:
            groups.setdefault(text_form(record["sbid"]), []).append(record)
    return groups


def _payload(
    groups: Mapping[str, list[JsonValue]], flags: JsonValue, excluded: AbstractSet[str]
) -> dict[str, JsonValue]:
    payload: dict[str, JsonValue] = {}
    for sbid, members in groups.items():
        entry: dict[str, JsonValue] = {"datasets": _datasets(members, excluded)}
        if flags is not None and flags != {}:
            entry["discovery_flags"] = without(flags, frozenset())
        payload[sbid] = entry
    return payload


def _projected(metadata: JsonValue, excluded: AbstractSet[str], *, include_flags: bool) -> JsonValue:
    if not isinstance(metadata, dict) or not isinstance(metadata.get("datasets"), list):
        return without(metadata, excluded)
    out: dict[str, JsonValue] = {}
    for key, value in metadata.items():
        if key == "datasets" and isinstance(value, list):
            out[key] = _datasets(value, excluded)
        elif key == "discovery_flags":
            if include_flags:
                out[key] = value
        elif key not in excluded:
            out[key] = without(value, excluded)
    return out


def _datasets(records: Sequence[JsonValue], excluded: AbstractSet[str]) -> list[JsonValue]:
    # The sort key is made after the projection: an excluded field must not decide the order.
    return sorted((without(record, excluded) for record in records), key=_order)


def _order(record: JsonValue) -> str:
    fields = record if isinstance(record, dict) else {}
    return _SEPARATOR.join(
        (
            text_form(fields.get("dataset_id")),
            text_form(fields.get("visibility_filename")),
            canonical_json(record),
        )
    )


def _bad_record(index: int, code: str, fault: str, wanted: str) -> DataError:
    details: dict[str, Any] = {"index": index}
    return DataError(
        f"record {index} {fault}",
        code=code,
        hint=f"Let discovery.prepare_metadata.field_map give {wanted} for every row of the primary query.",
        details=details,
    )
