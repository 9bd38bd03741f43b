"""What two revisions of a survey differ in, section by section, and what that means for its sources.

A text diff shows which lines changed; it does not say that one of them makes ten thousand sources run
again. So the typed projects are compared, and each change says what it has an effect on.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from beampipe_dagster.config.canonical import JsonValue, canonical_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from beampipe_dagster.config.project import ProjectConfig, Query

JsonObject = dict[str, JsonValue]

TEXT_LINES: Final = 2_000
"""Lines of the text diff that are kept."""
_SHOWN: Final = 80


class Effect(StrEnum):
    """What a change has an effect on."""

    SIGNATURES = "signatures"
    """Sources may get new signatures and run again, though their data are the same."""
    DATASETS = "datasets"
    """The archives are asked something else: other datasets may be found."""
    READINESS = "readiness"
    """Sources may become ready, or be held."""
    EXECUTIONS = "executions"
    """Executions that are admitted from now on process or run something else."""
    SCHEDULING = "scheduling"
    """When, how much and where is looked and run."""
    NONE = "none"
    """Nothing but words."""


MEANINGS: Final = {
    Effect.SIGNATURES: "sources may get new signatures at their next discovery, and run again",
    Effect.DATASETS: "the archives are asked something else at each source's next discovery",
    Effect.READINESS: "sources may become ready, or be held",
    Effect.EXECUTIONS: "executions that are admitted from now on are made in another way",
    Effect.SCHEDULING: "when, how much or where is looked and run",
    Effect.NONE: "words only",
}


@dataclass(frozen=True, slots=True)
class Change:
    """One change.

    Parameters
    ----------
    path
        Where, dotted, as in the project file.
    code
        Stable identifier of the kind of change.
    message
        What changed, in a sentence.
    effects
        What it has an effect on.
    """

    path: str
    code: str
    message: str
    effects: tuple[Effect, ...]

    def as_dict(self) -> JsonObject:
        """The change as JSON."""
        return {
            "path": self.path,
            "code": self.code,
            "message": self.message,
            "effects": [effect.value for effect in self.effects],
        }


@dataclass(frozen=True, slots=True)
class ConfigDiff:
    """What two projects differ in.

    Parameters
    ----------
    changes
        In the order of the file's sections.
    text
        Unified diff of the files; empty when only their meaning was compared.
    """

    changes: tuple[Change, ...]
    text: str = ""

    @property
    def effects(self) -> tuple[Effect, ...]:
        """Everything that some change has an effect on."""
        found = {effect for change in self.changes for effect in change.effects}
        return tuple(effect for effect in Effect if effect in found)

    def as_dict(self) -> JsonObject:
        """The diff as JSON."""
        return {
            "changes": [change.as_dict() for change in self.changes],
            "effects": [effect.value for effect in self.effects],
            "text": self.text,
        }


def diff_configs(
    old: ProjectConfig, new: ProjectConfig, *, old_text: str = "", new_text: str = "", names: tuple[str, str]
) -> ConfigDiff:
    """Compare two projects.

    Parameters
    ----------
    old, new
        The projects.
    old_text, new_text
        The files that they were read from.
    names
        What the text diff calls them.
    """
    changes = (
        *_about_header(old, new),
        *_about_adapters(old, new),
        *_about_graph(old, new),
        *_about_queries(old, new),
        *_about_metadata(old, new),
        *_about_execution(old, new),
        *_about_automation(old, new),
        *_about_names(old, new),
    )
    lines = list(
        difflib.unified_diff(
            old_text.splitlines(), new_text.splitlines(), names[0], names[1], lineterm="", n=3
        )
    )
    cut = (
        [*lines[:TEXT_LINES], f"… {len(lines) - TEXT_LINES} more lines"] if len(lines) > TEXT_LINES else lines
    )
    return ConfigDiff(changes, "\n".join(cut))


def _about_header(old: ProjectConfig, new: ProjectConfig) -> Iterator[Change]:
    if old.metadata.description != new.metadata.description:
        yield Change("metadata.description", "description_changed", "another description", (Effect.NONE,))


def _about_adapters(old: ProjectConfig, new: ProjectConfig) -> Iterator[Change]:
    was, now = old.adapters, new.adapters
    if was.required != now.required:
        message = _set_words("required archives", was.required, now.required)
        yield Change("adapters.required", "adapters_changed", message, (Effect.SCHEDULING,))
    for name in ("casda_tap_url", "vizier_tap_url"):
        before, after = getattr(was, name), getattr(now, name)
        if before != after:
            message = f"{before or 'the setting'} → {after or 'the setting'}"
            yield Change(f"adapters.{name}", "archive_url_changed", message, (Effect.DATASETS,))
    if was.tap != now.tap:
        message = _field_words(was.tap.as_json(), now.tap.as_json())
        yield Change("adapters.tap", "archive_limits_changed", message, (Effect.SCHEDULING,))
    if was.definitions != now.definitions:
        message = _map_words(
            {name: one.as_json() for name, one in was.definitions.items()},
            {name: one.as_json() for name, one in now.definitions.items()},
        )
        yield Change("adapters.definitions", "archive_definitions_changed", message, (Effect.DATASETS,))


def _about_graph(old: ProjectConfig, new: ProjectConfig) -> Iterator[Change]:
    was, now = old.graph, new.graph
    if was == now:
        return
    before, after = (was.sha256 if was else None), (now.sha256 if now else None)
    if (before or "").lower() == (after or "").lower():
        yield Change("graph", "graph_moved", "the same graph from another place", (Effect.NONE,))
        return
    message = f"graph {_digits(before)} → {_digits(after)}"
    yield Change("graph.sha256", "graph_changed", message, (Effect.EXECUTIONS,))


def _about_queries(old: ProjectConfig, new: ProjectConfig) -> Iterator[Change]:
    primary = (old.discovery.queries[:1], new.discovery.queries[:1])
    if all(primary) and primary[0][0].name != primary[1][0].name:
        message = f"the first query, which lists the datasets, is {primary[1][0].name!r} instead of "
        message += repr(primary[0][0].name)
        yield Change("discovery.queries[0]", "primary_query_changed", message, (Effect.DATASETS,))
    for part in ("queries", "enrichments"):
        was: Sequence[Query] = getattr(old.discovery, part)
        now: Sequence[Query] = getattr(new.discovery, part)
        if was == now:
            continue
        message = _map_words(
            {query.name: query.as_json() for query in was}, {query.name: query.as_json() for query in now}
        )
        message = message or "another order"
        yield Change(f"discovery.{part}", f"{part}_changed", message, (Effect.DATASETS, Effect.SIGNATURES))


def _about_metadata(old: ProjectConfig, new: ProjectConfig) -> Iterator[Change]:
    was, now = old.discovery.prepare_metadata, new.discovery.prepare_metadata
    path = "discovery.prepare_metadata"
    maps = [_mappings(one.field_map if one else {}) for one in (was, now)]
    if maps[0] != maps[1]:
        message = _map_words(maps[0], maps[1])
        yield Change(
            f"{path}.field_map", "field_map_changed", message, (Effect.SIGNATURES, Effect.EXECUTIONS)
        )
    flags = [_mappings(one.discovery_flags if one else {}) for one in (was, now)]
    signed = any(one.signature_options.include_discovery_flags for one in (old, new))
    if flags[0] != flags[1]:
        effects = (Effect.SIGNATURES, Effect.READINESS) if signed else (Effect.READINESS,)
        yield Change(f"{path}.discovery_flags", "flags_changed", _map_words(flags[0], flags[1]), effects)
    if old.signature_options != new.signature_options:
        left = _set_words(
            "fields left out",
            old.signature_options.exclude_fields,
            new.signature_options.exclude_fields,
        )
        included = new.signature_options.include_discovery_flags
        if included != old.signature_options.include_discovery_flags:
            left = "; ".join(filter(None, [left, f"flags are {'' if included else 'not '}signed now"]))
        yield Change(f"{path}.signature", "signature_changed", left, (Effect.SIGNATURES,))
    if old.transforms != new.transforms:
        message = _map_words(
            {name: one.as_json() for name, one in old.transforms.items()},
            {name: one.as_json() for name, one in new.transforms.items()},
        )
        yield Change("definitions.transforms", "definitions_changed", message, (Effect.SIGNATURES,))
    if old.source_identity != new.source_identity:
        message = "how a source's name becomes the variables of a query"
        yield Change("source_identity", "identity_changed", message, (Effect.DATASETS,))


def _about_execution(old: ProjectConfig, new: ProjectConfig) -> Iterator[Change]:
    if old.manifest != new.manifest:
        before = old.manifest.as_json() if old.manifest else {}
        after = new.manifest.as_json() if new.manifest else {}
        message = _field_words(before, after) or "the section came or went"
        yield Change("manifest", "manifest_changed", message, (Effect.EXECUTIONS,))
    if old.graph_patches != new.graph_patches:
        message = f"{len(old.graph_patches)} → {len(new.graph_patches)} patches: " + "; ".join(
            f"{_shown(patch.match.as_json())} sets {', '.join(sorted(patch.set_))}"
            for patch in new.graph_patches
            if patch not in old.graph_patches
        )
        yield Change("graph_patches", "patches_changed", message.removesuffix(": "), (Effect.EXECUTIONS,))
    if old.output_verification != new.output_verification:
        message = _field_words(old.output_verification.as_json(), new.output_verification.as_json())
        yield Change("output_verification", "verification_changed", message, (Effect.EXECUTIONS,))
    if old.plugins != new.plugins:
        message = _set_words(
            "plug-ins",
            [f"{one.name} {one.version}" for one in old.plugins],
            [f"{one.name} {one.version}" for one in new.plugins],
        )
        yield Change("plugins", "plugins_changed", message, (Effect.SIGNATURES, Effect.EXECUTIONS))
    if old.extension != new.extension:
        yield Change("extension", "extension_changed", "another extension", (Effect.EXECUTIONS,))


def _about_automation(old: ProjectConfig, new: ProjectConfig) -> Iterator[Change]:
    for part in ("discovery", "execution"):
        was, now = getattr(old.automation, part), getattr(new.automation, part)
        if was == now:
            continue
        message = _field_words(was.as_json() if was else {}, now.as_json() if now else {})
        yield Change(f"automation.{part}", "automation_changed", message, (Effect.SCHEDULING,))


def _about_names(old: ProjectConfig, new: ProjectConfig) -> Iterator[Change]:
    """What a later release adds to the file, and nothing above has looked at."""
    looked_at = {
        "apiVersion", "kind", "metadata", "adapters", "graph", "discovery", "manifest", "graph_patches",
        "output_verification", "automation", "extension", "definitions", "source_identity", "plugins",
    }  # fmt: skip  # one list
    before, after = old.as_json(), new.as_json()
    for name in sorted((before.keys() | after.keys()) - looked_at):
        if before.get(name) != after.get(name):
            message = f"{_shown(before.get(name))} → {_shown(after.get(name))}"
            yield Change(name, f"{name}_changed", message, (Effect.EXECUTIONS,))


def _mappings(mappings: Mapping[str, object]) -> dict[str, JsonValue]:
    return {name: one.as_json() for name, one in mappings.items() if hasattr(one, "as_json")}


def _map_words(old: Mapping[str, JsonValue], new: Mapping[str, JsonValue]) -> str:
    """Names that came, went, or mean something else."""
    parts = [
        ("added", sorted(new.keys() - old.keys())),
        ("removed", sorted(old.keys() - new.keys())),
        ("changed", sorted(name for name in old.keys() & new.keys() if not _same(old[name], new[name]))),
    ]
    return "; ".join(f"{word}: {', '.join(names)}" for word, names in parts if names)


def _field_words(old: Mapping[str, JsonValue], new: Mapping[str, JsonValue]) -> str:
    names = sorted(old.keys() | new.keys())
    return "; ".join(
        f"{name}: {_shown(old.get(name))} → {_shown(new.get(name))}"
        for name in names
        if not _same(old.get(name), new.get(name))
    )


def _set_words(what: str, old: Sequence[str], new: Sequence[str]) -> str:
    added = [name for name in new if name not in old]
    removed = [name for name in old if name not in new]
    parts = [
        f"{word} {', '.join(names)}" for word, names in (("added", added), ("removed", removed)) if names
    ]
    return f"{what}: {'; '.join(parts) or 'another order'}" if tuple(old) != tuple(new) else ""


def _same(old: JsonValue, new: JsonValue) -> bool:
    return canonical_json(old) == canonical_json(new)


def _shown(value: JsonValue) -> str:
    if value is None:
        return "nothing"
    text = value if isinstance(value, str) else canonical_json(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _digits(sha256: str | None) -> str:
    return sha256[:12].lower() if sha256 else "none"
