"""Code of a survey's own: found as entry points, pinned by version, called by name.

A project file names plug-ins under ``plugins``, each with the version that was meant. A plug-in is an entry
point of the group ``beampipe_dagster.plugins`` of an installed package; its object has one or more of the
hooks below. Only plug-ins that a project names are ever imported. The version is the package's, and must be
exactly the pinned one: another version could give the same data another signature.

What WALLABY needs (the choice of a calibration archive, position and velocity from a catalogue) is the
plug-in ``wallaby`` of this package itself. It needs no entry in a project file, since it does nothing to a
survey without queries of its names.

Whatever goes wrong inside a plug-in is told with the plug-in's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

from beampipe_dagster.config.canonical import JsonValue, canonical_json, parse_json
from beampipe_dagster.config.project import PluginRef, ProjectConfig
from beampipe_dagster.discovery.prepare import BUILT_IN, PreparedMetadata, Rules
from beampipe_dagster.errors import BeampipeError, ConfigError, DataError, Retry

GROUP: Final = "beampipe_dagster.plugins"
"""The entry-point group."""

JsonObject = dict[str, JsonValue]
T = TypeVar("T")


@runtime_checkable
class PrepareMetadataHook(Protocol):
    """Changes a source's records and flags after the project file's own rules, and before they are signed."""

    def prepare_metadata(
        self,
        config: ProjectConfig,
        source_identifier: str,
        rows: Sequence[Mapping[str, JsonValue]],
        enrichments: Mapping[str, JsonValue],
        prepared: PreparedMetadata,
    ) -> PreparedMetadata:
        """The records and flags to sign; ``prepared`` may be given back as it is."""
        ...


@runtime_checkable
class ManifestHook(Protocol):
    """Changes what an execution is told to process."""

    def manifest(
        self, config: ProjectConfig, records: Sequence[JsonObject], manifest: JsonObject
    ) -> JsonObject:
        """The manifest, ``inputs`` and ``sources``; it gets a copy. Patches are computed from the result."""
        ...


@runtime_checkable
class GraphPatchesHook(Protocol):
    """Changes the values that are set on the graph."""

    def graph_patches(
        self, config: ProjectConfig, manifest: JsonObject, patches: list[JsonObject]
    ) -> list[JsonObject]:
        """The patches ``{"match": {...}, "fields": [{"name", "value"}]}``; it gets copies."""
        ...


@runtime_checkable
class RulesHook(Protocol):
    """Brings rules for queries and enrichments of particular names."""

    rules: Rules


HOOKS: Final[dict[str, type[Any]]] = {
    "prepare_metadata": PrepareMetadataHook,
    "manifest": ManifestHook,
    "graph_patches": GraphPatchesHook,
    "rules": RulesHook,
}
"""By name: the hooks that a plug-in may have."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plug-in that is there.

    Parameters
    ----------
    name, version
        As a project file names it.
    code
        Its object.
    """

    name: str
    version: str
    code: object

    @property
    def hooks(self) -> tuple[str, ...]:
        """The names of the hooks that it has."""
        return tuple(name for name, kind in HOOKS.items() if isinstance(self.code, kind))

    def call(self, hook: str, action: Callable[[], T]) -> T:
        """Do something inside the plug-in.

        Raises
        ------
        DataError
            ``plugin_failed``, or the code of the plug-in's own error; always with the plug-in's name.
        """
        where = f"plug-in {self.name!r} {self.version}, {hook}"
        try:
            return action()
        except BeampipeError as error:
            raise DataError(
                f"{where}: {error.message}",
                code=error.code,
                hint=error.hint,
                retry=error.retry,
                details={**error.details, "plugin": self.name},
            ) from error
        except Exception as error:  # whatever it is, it is the plug-in's
            raise self.failed(hook, f"{type(error).__name__}: {error}") from error

    def failed(self, hook: str, reason: str) -> DataError:
        """The error for a plug-in that did not do what its hook promises."""
        return DataError(
            f"plug-in {self.name!r} {self.version}, {hook}: {reason}",
            code="plugin_failed",
            hint="this is for the author of the plug-in; take it out of the project's plugins to do without",
            details={"plugin": self.name, "version": self.version, "hook": hook},
        )

    def json(self, hook: str, value: object) -> Any:  # noqa: ANN401  # JSON of the caller's shape
        """A copy of what a hook gave or gets, which is JSON and nothing else.

        Raises
        ------
        DataError
            ``plugin_failed``.
        """
        try:
            return parse_json(canonical_json(value), name=hook)  # type: ignore[arg-type]  # checked by it
        except (BeampipeError, TypeError, ValueError, RecursionError) as error:
            raise self.failed(hook, f"what it gave is no JSON: {error}") from error


class Wallaby:
    """The built-in plug-in: what surveys of WALLABY need of CASDA and of the HIPASS catalogue."""

    rules = BUILT_IN


WALLABY: Final = Plugin("wallaby", "1", Wallaby())
"""The built-in plug-in; every survey has it."""


class Plugins:
    """The plug-ins that are installed.

    Parameters
    ----------
    found
        Entry points; by default those of :data:`GROUP` in this environment.
    """

    def __init__(self, found: Iterable[EntryPoint] | None = None) -> None:
        self._given = None if found is None else list(found)
        self._loaded: dict[str, Plugin] = {}

    @cached_property
    def _found(self) -> list[EntryPoint]:
        """Looked for only when a survey names a plug-in: it reads the metadata of every installed package."""
        return list(entry_points(group=GROUP)) if self._given is None else self._given

    def of(self, config: ProjectConfig) -> tuple[Plugin, ...]:
        """The plug-ins of a survey in the order of use, the built-in one first.

        Raises
        ------
        ConfigError
            ``plugin_missing``, ``plugin_version``, ``plugin_ambiguous``, ``plugin_unusable``. The environment
            can be put right, so that it may be tried again later.
        """
        named = tuple(
            self._named(reference) for reference in config.plugins if reference.name != WALLABY.name
        )
        for reference in config.plugins:
            if reference.name == WALLABY.name and reference.version != WALLABY.version:
                raise _other_version(reference, WALLABY.version)
        return (WALLABY, *named)

    def _named(self, reference: PluginRef) -> Plugin:
        matching = [entry for entry in self._found if entry.name == reference.name]
        if not matching:
            names = sorted({WALLABY.name, *(entry.name for entry in self._found)})
            raise ConfigError(
                f"the plug-in {reference.name!r} is not installed",
                code="plugin_missing",
                hint=f"install its package at version {reference.version}; installed are: {', '.join(names)}",
                retry=Retry.LATER,
            )
        if len({entry.value for entry in matching}) > 1:
            raise ConfigError(
                f"several packages bring a plug-in {reference.name!r}",
                code="plugin_ambiguous",
                hint="uninstall all but one of: "
                + ", ".join(sorted(_package(entry) or entry.value for entry in matching)),
                retry=Retry.LATER,
            )
        entry = matching[0]
        version = entry.dist.version if entry.dist is not None else "unknown"
        if version != reference.version:
            raise _other_version(reference, version)
        if reference.name not in self._loaded:
            self._loaded[reference.name] = _load(entry, version)
        return self._loaded[reference.name]


def rules_of(plugins: Iterable[Plugin]) -> Rules:
    """The rules of plug-ins together; a later one's count for the same name, with its name on its errors."""
    rules = Rules({}, {}, {})
    for plugin in plugins:
        if not isinstance(plugin.code, RulesHook):
            continue
        brought = plugin.code.rules
        rules = rules.with_more(brought if plugin is WALLABY else _guarded(plugin, brought))
    return rules


def prepared_by(
    plugins: Iterable[Plugin],
    config: ProjectConfig,
    source_identifier: str,
    rows: Sequence[Mapping[str, JsonValue]],
    enrichments: Mapping[str, JsonValue],
    prepared: PreparedMetadata,
) -> PreparedMetadata:
    """What the plug-ins' ``prepare_metadata`` make of a source's records and flags, one after the other.

    Raises
    ------
    DataError
        As :meth:`Plugin.call`.
    """
    hook = "prepare_metadata"
    for plugin in plugins:
        code = plugin.code
        if not isinstance(code, PrepareMetadataHook):
            continue
        given = PreparedMetadata(plugin.json(hook, prepared.records), plugin.json(hook, prepared.flags))
        made = plugin.call(hook, _bound(code, config, source_identifier, rows, enrichments, given))
        if not isinstance(made, PreparedMetadata):
            raise plugin.failed(hook, f"it gave a {type(made).__name__} instead of PreparedMetadata")
        records, flags = plugin.json(hook, made.records), plugin.json(hook, made.flags)
        if not (isinstance(records, list) and all(isinstance(one, dict) for one in records)):
            raise plugin.failed(hook, "its records are no list of objects")
        if not isinstance(flags, dict):
            raise plugin.failed(hook, "its flags are no object")
        prepared = PreparedMetadata(records, flags)
    return prepared


def _bound(code: PrepareMetadataHook, *arguments: Any) -> Callable[[], PreparedMetadata]:  # noqa: ANN401  # the hook's
    return lambda: code.prepare_metadata(*arguments)


def _guarded(plugin: Plugin, rules: Rules) -> Rules:
    def guard(part: str, name: str, rule: Callable[..., T]) -> Callable[..., T]:
        return lambda *arguments: plugin.call(f"{part} of {name!r}", lambda: rule(*arguments))

    return Rules(
        {name: guard("row_choices", name, rule) for name, rule in rules.row_choices.items()},
        {name: guard("flag_sources", name, rule) for name, rule in rules.flag_sources.items()},
        {name: guard("record_fields", name, rule) for name, rule in rules.record_fields.items()},
    )


def _load(entry: EntryPoint, version: str) -> Plugin:
    try:
        loaded = entry.load()
        code = loaded() if isinstance(loaded, type) else loaded
    except Exception as error:
        raise ConfigError(
            f"the plug-in {entry.name!r} {version} cannot be loaded from {entry.value}: "
            f"{type(error).__name__}: {error}",
            code="plugin_unusable",
            hint="this is for the author of the plug-in",
            retry=Retry.LATER,
        ) from error
    plugin = Plugin(entry.name, version, code)
    if not plugin.hooks:
        raise ConfigError(
            f"the plug-in {entry.name!r} {version} has none of the hooks {', '.join(HOOKS)}",
            code="plugin_unusable",
            hint="this is for the author of the plug-in",
            retry=Retry.LATER,
        )
    return plugin


def _other_version(reference: PluginRef, version: str) -> ConfigError:
    return ConfigError(
        f"the project pins version {reference.version} of the plug-in {reference.name!r}, but {version} is installed",
        code="plugin_version",
        hint=f"install version {reference.version}, or add the project again with version {version}",
        retry=Retry.LATER,
        details={"plugin": reference.name, "pinned": reference.version, "installed": version},
    )


def _package(entry: EntryPoint) -> str | None:
    return entry.dist.name if entry.dist is not None else None
