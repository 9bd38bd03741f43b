"""What a revision would change for the sources that are known, from the ledger's rows alone.

Stored rows keep every column of the archive's answer and every mapped field, so that most of what a new
``field_map`` or new signature options do can be computed again without asking an archive. What cannot is
said: a query that changed gives other rows, a flag is made from answers that are not kept, and a column
that a mapped field of the same name hides is lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Final

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.config.project import PrepareMetadata, ProjectConfig
from beampipe_dagster.discovery.transforms import NONE, Transformed, apply, column
from beampipe_dagster.errors import BeampipeError
from beampipe_dagster.ledger import archive, sources
from beampipe_dagster.ledger.sources import Source
from beampipe_dagster.signature.payload import group_by_sbid, sign_stored
from beampipe_dagster.sources.readiness import blocker

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

JsonObject = dict[str, JsonValue]

PAGE: Final = 500
"""Sources that are looked at together."""
EXAMPLES: Final = 50
"""Sources that a report names."""
_ENRICHMENT: Final = ("enrichments.", "enrichment.")


@dataclass(frozen=True, slots=True)
class SourceImpact:
    """A source that would get another signature.

    Parameters
    ----------
    source_identifier
        The source.
    old_signature, new_signature
        What it has, and what it would get from the rows that are stored.
    blocker
        Why it would not run with it; ``None`` when it would.
    """

    source_identifier: str
    old_signature: str
    new_signature: str
    blocker: str | None

    def as_dict(self) -> JsonObject:
        """The source as JSON."""
        return {
            "source_identifier": self.source_identifier,
            "old_signature": self.old_signature,
            "new_signature": self.new_signature,
            "would_run": self.blocker is None,
            "blocker": self.blocker,
        }


@dataclass(frozen=True, slots=True)
class Impact:
    """What a revision would change.

    Parameters
    ----------
    project_id
        The survey.
    sources
        How many are registered.
    compared
        How many have a signature and rows, and could be compared.
    changed
        How many would get another signature.
    would_run
        How many of those would run.
    blocked
        How many of those would not, by the code of what blocks them.
    failed
        How many could not be computed (a transform that fails, for example), by code.
    automatic
        Whether the revision runs them without being asked.
    examples
        The first of the changed ones, by name.
    unknown
        What cannot be told from stored rows, in sentences; empty when the result is exact.
    """

    project_id: str
    sources: int
    compared: int
    changed: int
    would_run: int
    blocked: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    automatic: bool = False
    examples: tuple[SourceImpact, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether nothing that matters had to be left out."""
        return not self.unknown and not self.failed

    def as_dict(self) -> JsonObject:
        """The impact as JSON."""
        return {
            "project_id": self.project_id,
            "sources": self.sources,
            "compared": self.compared,
            "changed": self.changed,
            "would_run": self.would_run,
            "blocked": dict(self.blocked),
            "failed": dict(self.failed),
            "automatic": self.automatic,
            "exact": self.exact,
            "unknown": [*self.unknown],
            "examples": [example.as_dict() for example in self.examples],
        }


def impact_of(
    conn: Connection, new: ProjectConfig, *, old: ProjectConfig, since: datetime | None = None
) -> Impact:
    """Compute what a revision would change, from what the ledger holds.

    Parameters
    ----------
    conn
        A reading transaction.
    new
        The revision that is thought of.
    old
        The revision that the rows were made with.
    since
        When that revision became the active one: rows of sources that were not looked at since then come
        from an earlier one.
    """
    project_id = old.metadata.id
    recipe = Recipe(old, new)
    total = compared = changed = earlier = 0
    blocked: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    examples: list[SourceImpact] = []
    for source, stored in _rows(conn, project_id):
        total += 1
        if not stored or not source.discovery_signature:
            continue
        compared += 1
        if since is not None and source.last_checked_at is not None and source.last_checked_at < since:
            earlier += 1
        try:
            found = _compare(source, stored, recipe)
        except BeampipeError as error:
            failed[error.code] += 1
            continue
        if found is None:
            continue
        changed += 1
        if found.blocker is not None:
            blocked[found.blocker] += 1
        if len(examples) < EXAMPLES:
            examples.append(found)
    rules = new.automation.execution
    unknown = list(recipe.unknown)
    if earlier:
        unknown.append(
            f"{earlier} of the sources were not looked at since the active revision was activated: their rows, "
            "and their signatures, are of an earlier one"
        )
    return Impact(
        project_id=project_id,
        sources=total,
        compared=compared,
        changed=changed,
        would_run=changed - sum(blocked.values()),
        blocked=dict(sorted(blocked.items())),
        failed=dict(sorted(failed.items())),
        automatic=rules is not None and rules.enabled,
        examples=tuple(examples),
        unknown=tuple(unknown),
    )


def _rows(conn: Connection, project_id: str) -> Iterator[tuple[Source, Mapping[str, JsonObject]]]:
    offset = 0
    while page := sources.listing(conn, project_id, limit=PAGE, offset=offset):
        names = [source.source_identifier for source in page]
        stored = archive.metadata_of(conn, project_id, names)
        for source in page:
            yield source, stored.get(source.source_identifier, {})
        offset += len(page)


def _compare(source: Source, stored: Mapping[str, JsonObject], recipe: Recipe) -> SourceImpact | None:
    made = recipe.remade(source.source_identifier, stored)
    options = recipe.new.signature_options
    signed = sign_stored(
        made, exclude_fields=options.exclude_fields, include_flags=options.include_discovery_flags
    )
    if signed.digest == source.discovery_signature:
        return None
    # A claim comes and goes; whether the source would run does not depend on it.
    then = replace(source, discovery_signature=signed.digest, discovery_claim_token=None)
    why = blocker(then, made)
    code = why.code if why is not None else None
    if code is None and signed.digest == source.last_executed_discovery_signature:
        code = "already_executed"
    return SourceImpact(source.source_identifier, source.discovery_signature or "", signed.digest, code)


class Recipe:
    """How stored rows are made again under another revision, and what of it cannot be done.

    Attributes
    ----------
    unknown
        Sentences about what stored rows cannot say.
    """

    def __init__(self, old: ProjectConfig, new: ProjectConfig) -> None:
        self.new = new
        self._old_map = _prepare(old).field_map
        self._new_map = _prepare(new).field_map
        self._old_transforms, self._new_transforms = old.transforms, new.transforms
        self._targets = sorted(
            target for target in self._old_map.keys() | self._new_map.keys() if self._differs(target)
        )
        self.unknown = list(dict.fromkeys(self._find_unknown(old, new)))

    def remade(self, source_identifier: str, stored: Mapping[str, JsonObject]) -> JsonObject:
        """A source's rows as the new revision would store them, as far as it can be told."""
        if not self._targets:
            return dict(stored)
        records: list[JsonValue] = []
        flags: JsonValue = None
        for document in stored.values():
            datasets = document.get("datasets")
            if not isinstance(datasets, list) or not datasets:
                return dict(stored)  # nothing was found: nothing is mapped
            flags = document.get("discovery_flags", flags)
            records.extend(
                self._record(source_identifier, record) for record in datasets if isinstance(record, dict)
            )
        return group_by_sbid(records, flags)

    def _record(self, source_identifier: str, record: JsonObject) -> JsonObject:
        made = dict(record)
        for target in self._targets:
            made.pop(target, None)
            mapping = self._new_map.get(target)
            if mapping is None:
                if (was := self._raw(target, record)) is not NONE:
                    made[target] = was
                continue
            raw = (
                source_identifier
                if mapping.from_ == "source_identifier"
                else self._raw(mapping.from_, record)
            )
            value = NONE if raw is NONE else apply(mapping.transform, raw, self._new_transforms)
            if value is not NONE:
                made[target] = value
            elif (shown := self._raw(target, record)) is not NONE:
                made[target] = shown
        made.setdefault("source_identifier", source_identifier)
        return made

    def _raw(self, name: str, record: JsonObject) -> Transformed:
        """A raw column of a stored record; :data:`NONE` for one that the old map hid or that is not there."""
        prefix = next((text for text in _ENRICHMENT if name.startswith(text)), None)
        if prefix is not None:
            return record.get(name.removeprefix(prefix))
        lowered = name.lower()
        hiding = self._old_map.get(lowered)
        if hiding is not None:
            plain = hiding.from_.lower() == lowered and hiding.transform is None
            return column(record, lowered) if plain else self._twin(lowered, record)
        return column(record, lowered)

    def _twin(self, lowered: str, record: JsonObject) -> Transformed:
        """A hidden column that another field of the old map carries as it is."""
        for target, mapping in self._old_map.items():
            if mapping.from_.lower() == lowered and mapping.transform is None and target in record:
                return record[target]
        return NONE

    def _differs(self, target: str) -> bool:
        old, new = self._old_map.get(target), self._new_map.get(target)
        if old != new:
            return True
        names = old.transform_names if old is not None else ()
        return _meaning(names, self._old_transforms) != _meaning(names, self._new_transforms)

    def _find_unknown(self, old: ProjectConfig, new: ProjectConfig) -> Iterator[str]:
        for part in ("queries", "enrichments"):
            if getattr(old.discovery, part) != getattr(new.discovery, part):
                yield (
                    f"discovery.{part} changed: what the archives answer to them is not known before they "
                    "are asked; the rows of the old ones were taken"
                )
        if old.source_identity != new.source_identity:
            yield "source_identity changed: the queries ask for other names; the rows of the old ones were taken"
        if old.adapters != new.adapters:
            yield "adapters changed: another service may answer otherwise"
        if old.plugins != new.plugins:
            yield "plugins changed: what they make of the answers is not known before they are asked"
        elif new.plugins and self._targets:
            yield "plugins change records after the field_map: they were not called again"
        yield from self._unknown_flags(old, new)
        for target in self._targets:
            yield from self._unknown_field(target)

    def _unknown_flags(self, old: ProjectConfig, new: ProjectConfig) -> Iterator[str]:
        was, now = _prepare(old).discovery_flags, _prepare(new).discovery_flags
        for name in sorted(was.keys() | now.keys()):
            names = now[name].transform_names if name in now else ()
            same = was.get(name) == now.get(name)
            if same and _meaning(names, old.transforms) == _meaning(names, new.transforms):
                continue
            yield (
                f"the flag {name!r} changed: it is made from answers that are not kept; the stored flags were "
                "taken"
                + (", though flags are signed" if new.signature_options.include_discovery_flags else "")
            )

    def _unknown_field(self, target: str) -> Iterator[str]:
        mapping = self._new_map.get(target)
        if mapping is None:
            if target == target.lower() and not self._recoverable(target):
                yield (
                    f"the field {target!r} is no longer mapped: whether the archive has a column of that name "
                    "is not known, and it was taken not to"
                )
            return
        if mapping.from_ == "source_identifier" or mapping.from_.startswith(_ENRICHMENT):
            return
        lowered = mapping.from_.lower()
        if lowered in self._old_map and not self._recoverable(lowered):
            yield (
                f"the column {mapping.from_!r} of the field {target!r} is hidden in stored rows by the mapped "
                f"field {lowered!r}; the field was taken to be absent"
            )

    def _recoverable(self, lowered: str) -> bool:
        return any(
            mapping.from_.lower() == lowered and mapping.transform is None
            for mapping in self._old_map.values()
        )


def _prepare(config: ProjectConfig) -> PrepareMetadata:
    return config.discovery.prepare_metadata or PrepareMetadata()


def _meaning(names: Sequence[str], transforms: Mapping[str, object]) -> list[object]:
    """The transforms that names lead to, chains followed; a circle ends where it closes."""
    found: list[object] = []
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop(0)
        if name in seen:
            continue
        seen.add(name)
        transform = transforms.get(name)
        found.append((name, transform))
        waiting.extend(getattr(transform, "steps", None) or ())
    return found
