"""What two payloads of a source differ in, short enough to show beside a signature.

A dataset is the same dataset when its SBID and its ``dataset_id`` (or, without one, its
``visibility_filename``) are equal. The flags of a scheduling block are no dataset: where they differ
is listed apart, since a signature can change by them alone.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from beampipe_dagster.config.canonical import canonical_json
from beampipe_dagster.signature.payload import text_form

if TYPE_CHECKING:
    from collections.abc import Mapping

    from beampipe_dagster.config.canonical import JsonValue

DEFAULT_LIMIT = 50
"""Entries of each kind that a diff lists."""
FIELD_LIMIT = 20
"""Fields that one changed dataset lists."""
TEXT_LIMIT = 200
"""Characters of one old or new value; a longer text or container is cut."""

_Identity = tuple[str, str]


@dataclass(frozen=True, slots=True)
class DatasetRef:
    """A dataset, named.

    Parameters
    ----------
    sbid
        Text of the scheduling block's number.
    dataset
        Its ``dataset_id``, else its ``visibility_filename``, else ``""``.
    """

    sbid: str
    dataset: str

    def as_dict(self) -> dict[str, JsonValue]:
        """``{"sbid": ..., "dataset": ...}``."""
        return {"sbid": self.sbid, "dataset": self.dataset}


@dataclass(frozen=True, slots=True)
class DatasetChange:
    """A dataset whose fields changed.

    Parameters
    ----------
    ref
        Which dataset.
    fields
        Field name to ``(old, new)``; ``None`` for a field that is not there. At most
        :data:`FIELD_LIMIT` fields, each value at most :data:`TEXT_LIMIT` characters.
    more_fields
        How many changed fields were left out.
    """

    ref: DatasetRef
    fields: dict[str, tuple[JsonValue, JsonValue]]
    more_fields: int = 0

    def as_dict(self) -> dict[str, JsonValue]:
        """``{"sbid", "dataset", "fields": {name: {"old", "new"}}}``, and ``more_fields`` if any."""
        fields: dict[str, JsonValue] = {
            name: {"old": old, "new": new} for name, (old, new) in self.fields.items()
        }
        out: dict[str, JsonValue] = {**self.ref.as_dict(), "fields": fields}
        if self.more_fields:
            out["more_fields"] = self.more_fields
        return out


@dataclass(frozen=True, slots=True)
class FlagsChange:
    """A scheduling block whose flags changed.

    Parameters
    ----------
    sbid
        Which scheduling block.
    fields
        Flag to ``(old, new)``, as in :class:`DatasetChange`; ``None`` for a flag that is not there.
    more_fields
        How many changed flags were left out.
    """

    sbid: str
    fields: dict[str, tuple[JsonValue, JsonValue]]
    more_fields: int = 0

    def as_dict(self) -> dict[str, JsonValue]:
        """``{"sbid", "fields": {name: {"old", "new"}}}``, and ``more_fields`` if any."""
        out: dict[str, JsonValue] = {
            "sbid": self.sbid,
            "fields": {name: {"old": old, "new": new} for name, (old, new) in self.fields.items()},
        }
        if self.more_fields:
            out["more_fields"] = self.more_fields
        return out


@dataclass(frozen=True, slots=True)
class PayloadDiff:
    """What a new payload has, lacks and has otherwise.

    Parameters
    ----------
    added, removed, changed
        At most ``limit`` entries each, sorted by SBID and dataset.
    counts
        ``{"added": n, "removed": n, "changed": n}`` datasets over everything, listed or not.
    flags
        At most ``limit`` scheduling blocks whose flags differ, by SBID. A block that came or went with
        its datasets is not among them.
    flags_count
        How many scheduling blocks have other flags.
    """

    added: tuple[DatasetRef, ...] = ()
    removed: tuple[DatasetRef, ...] = ()
    changed: tuple[DatasetChange, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    flags: tuple[FlagsChange, ...] = ()
    flags_count: int = 0

    @property
    def empty(self) -> bool:
        """Whether the payloads are the same."""
        return not any(self.counts.values()) and not self.flags_count

    @property
    def truncated(self) -> bool:
        """Whether more differs than is listed."""
        listed = len(self.added) + len(self.removed) + len(self.changed)
        return sum(self.counts.values()) > listed or self.flags_count > len(self.flags)

    def as_dict(self) -> dict[str, JsonValue]:
        """The diff as JSON, each attribute under its name, and whether it is ``truncated``."""
        return {
            "added": [ref.as_dict() for ref in self.added],
            "removed": [ref.as_dict() for ref in self.removed],
            "changed": [change.as_dict() for change in self.changed],
            "counts": dict(self.counts),
            "flags": [change.as_dict() for change in self.flags],
            "flags_count": self.flags_count,
            "truncated": self.truncated,
        }


def diff_payloads(
    old: Mapping[str, JsonValue], new: Mapping[str, JsonValue], *, limit: int = DEFAULT_LIMIT
) -> PayloadDiff:
    """Compare two payloads (or two sets of stored rows) of one source.

    Parameters
    ----------
    old, new
        ``{sbid: {"datasets": [...], ...}}``.
    limit
        Entries of each kind to list; the counts are always whole.
    """
    before, after = _index(old), _index(new)
    added: list[_Identity] = []
    removed: list[_Identity] = []
    changed: list[DatasetChange] = []
    changes = 0
    for identity in sorted(before.keys() | after.keys()):
        olds, news = _unequal(before.get(identity, []), after.get(identity, []))
        pairs = min(len(olds), len(news))
        changes += pairs
        for was, now in zip(olds[:pairs], news[:pairs], strict=True):
            if len(changed) < limit:
                changed.append(_change(identity, was, now))
        removed.extend([identity] * (len(olds) - pairs))
        added.extend([identity] * (len(news) - pairs))
    flags = _flags_changes(old, new)
    return PayloadDiff(
        added=tuple(DatasetRef(*identity) for identity in added[:limit]),
        removed=tuple(DatasetRef(*identity) for identity in removed[:limit]),
        changed=tuple(changed),
        counts={"added": len(added), "removed": len(removed), "changed": changes},
        flags=tuple(flags[:limit]),
        flags_count=len(flags),
    )


def lost_datasets(old: Mapping[str, JsonValue], new: Mapping[str, JsonValue]) -> list[DatasetRef]:
    """Datasets that the old payload has and the new one lacks, sorted; one that changed is not lost.

    Parameters
    ----------
    old, new
        ``{sbid: {"datasets": [...], ...}}``.
    """
    before, after = _index(old), _index(new)
    return [
        DatasetRef(*identity)
        for identity in sorted(before)
        for _ in range(len(before[identity]) - len(after.get(identity, [])))
    ]


def _flags_changes(old: Mapping[str, JsonValue], new: Mapping[str, JsonValue]) -> list[FlagsChange]:
    """Scheduling blocks with datasets on both sides whose flags differ, or without any and flags all the same."""
    found: list[FlagsChange] = []
    for sbid in sorted(old.keys() | new.keys()):
        was, now = _flags(old.get(sbid)), _flags(new.get(sbid))
        if canonical_json(was) == canonical_json(now):
            continue
        if _has_datasets(old.get(sbid)) != _has_datasets(new.get(sbid)):
            continue  # they came or went with the datasets, which say so
        fields, more = _fields(was, now)
        found.append(FlagsChange(sbid, fields, more))
    return found


def _flags(metadata: JsonValue) -> dict[str, JsonValue]:
    flags = metadata.get("discovery_flags") if isinstance(metadata, dict) else None
    return flags if isinstance(flags, dict) else {}


def _has_datasets(metadata: JsonValue) -> bool:
    datasets = metadata.get("datasets") if isinstance(metadata, dict) else None
    return isinstance(datasets, list) and bool(datasets)


def _index(payload: Mapping[str, JsonValue]) -> dict[_Identity, list[dict[str, JsonValue]]]:
    index: dict[_Identity, list[dict[str, JsonValue]]] = defaultdict(list)
    for sbid, metadata in payload.items():
        entry = metadata if isinstance(metadata, dict) else {}
        datasets = entry.get("datasets")
        for record in datasets if isinstance(datasets, list) else []:
            fields: dict[str, JsonValue] = record if isinstance(record, dict) else {"value": record}
            name = text_form(fields.get("dataset_id")) or text_form(fields.get("visibility_filename"))
            index[sbid, name].append(fields)
    return index


def _unequal(
    olds: list[dict[str, JsonValue]], news: list[dict[str, JsonValue]]
) -> tuple[list[dict[str, JsonValue]], list[dict[str, JsonValue]]]:
    """What is left of two lists of records with one identity when equal ones are struck out."""
    left = [(canonical_json(record), record) for record in news]
    gone: list[dict[str, JsonValue]] = []
    for record in olds:
        text = canonical_json(record)
        position = next((i for i, (other, _) in enumerate(left) if other == text), None)
        if position is None:
            gone.append(record)
        else:
            del left[position]
    return gone, [record for _, record in left]


def _change(identity: _Identity, old: dict[str, JsonValue], new: dict[str, JsonValue]) -> DatasetChange:
    fields, more = _fields(old, new)
    return DatasetChange(ref=DatasetRef(*identity), fields=fields, more_fields=more)


def _fields(
    old: dict[str, JsonValue], new: dict[str, JsonValue]
) -> tuple[dict[str, tuple[JsonValue, JsonValue]], int]:
    """The fields that differ, at most :data:`FIELD_LIMIT`, and how many more there are."""
    names = [
        name
        for name in sorted(old.keys() | new.keys())
        if name not in old or name not in new or canonical_json(old[name]) != canonical_json(new[name])
    ]
    shown = {name: (_short(old.get(name)), _short(new.get(name))) for name in names[:FIELD_LIMIT]}
    return shown, max(0, len(names) - FIELD_LIMIT)


def _short(value: JsonValue) -> JsonValue:
    if not isinstance(value, str | list | dict):
        return value
    text = text_form(value)
    if len(text) <= TEXT_LIMIT:
        return value
    return f"{text[: TEXT_LIMIT - 1]}…"
