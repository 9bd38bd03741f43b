"""The plug-ins' part in an execution: its manifest, and the values that are set on its graph.

How plug-ins are found, pinned and called is in :mod:`beampipe_dagster.discovery.plugins`, since discovery
calls them too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.discovery.plugins import (
    GROUP,
    GraphPatchesHook,
    ManifestHook,
    Plugin,
    Plugins,
    PrepareMetadataHook,
    RulesHook,
)
from beampipe_dagster.execution.manifest import OVERRIDES, overrides_of

__all__ = [
    "GROUP",
    "GraphPatchesHook",
    "ManifestHook",
    "Plugin",
    "Plugins",
    "PrepareMetadataHook",
    "RulesHook",
    "through_plugins",
]

JsonObject = dict[str, JsonValue]


def through_plugins(
    config: ProjectConfig,
    records: Sequence[JsonObject],
    manifest: JsonObject,
    plugins: Sequence[Plugin],
) -> JsonObject:
    """The manifest of one execution, after the survey's plug-ins have gone over it.

    Parameters
    ----------
    config
        The survey.
    records
        Dataset records in signed order.
    manifest
        As :func:`~beampipe_dagster.execution.manifest.build_manifest` made it; it is not changed.
    plugins
        The survey's, in the order of use. Expressions in patches are computed from the manifest that all
        ``manifest`` hooks have gone over; then come the ``graph_patches`` hooks.

    Raises
    ------
    DataError
        ``plugin_failed``, or a plug-in's own error.
    """
    changed = False
    for plugin in plugins:
        if isinstance(plugin.code, ManifestHook):
            manifest, changed = _manifest(plugin, plugin.code, config, records, manifest), True
    if changed:
        sources: Any = manifest["sources"]
        manifest[OVERRIDES] = overrides_of(config.graph_patches, sources)
    for plugin in plugins:
        if isinstance(plugin.code, GraphPatchesHook):
            manifest = {**manifest, OVERRIDES: _patches(plugin, plugin.code, config, manifest)}
    return manifest


def _manifest(
    plugin: Plugin,
    code: ManifestHook,
    config: ProjectConfig,
    records: Sequence[JsonObject],
    manifest: JsonObject,
) -> JsonObject:
    hook = "manifest"
    plain = {key: value for key, value in manifest.items() if key != OVERRIDES}
    given, copied = plugin.json(hook, plain), plugin.json(hook, list(records))
    made = plugin.json(hook, plugin.call(hook, lambda: code.manifest(config, copied, given)))
    if not isinstance(made, dict):
        raise plugin.failed(hook, f"it gave a {type(made).__name__} instead of an object")
    sources = made.get("sources")
    entries = sources if isinstance(sources, list) else []
    whole = all(
        isinstance(one, dict)
        and isinstance(one.get("source_identifier"), str)
        and isinstance(one.get("sbids"), list)
        for one in entries
    )
    if not entries or not whole:
        raise plugin.failed(hook, "its sources are no list of objects with source_identifier and sbids")
    before: Any = plain["sources"]
    strangers = {one["source_identifier"] for one in entries} - {one["source_identifier"] for one in before}
    if strangers:
        raise plugin.failed(
            hook, f"it added sources that the execution does not hold: {', '.join(sorted(strangers))}"
        )
    return {"inputs": {}, **{key: value for key, value in made.items() if key != OVERRIDES}}


def _patches(
    plugin: Plugin, code: GraphPatchesHook, config: ProjectConfig, manifest: JsonObject
) -> JsonObject:
    hook = "graph_patches"
    overrides: Any = manifest[OVERRIDES]
    plain = plugin.json(hook, {key: value for key, value in manifest.items() if key != OVERRIDES})
    given = plugin.json(hook, overrides["patches"])
    made = plugin.json(hook, plugin.call(hook, lambda: code.graph_patches(config, plain, given)))
    if not isinstance(made, list) or not all(_is_patch(one) for one in made):
        raise plugin.failed(
            hook, 'it gave no list of {"match": {...}, "fields": [{"name": ..., "value": ...}]}'
        )
    return {"patches": made}


def _is_patch(value: JsonValue) -> bool:
    """Whether a patch says which nodes, and which fields; without a match it would reach every node."""
    if not isinstance(value, dict):
        return False
    match, fields = value.get("match"), value.get("fields")
    named = isinstance(match, dict) and any(key not in {"kind", "count"} for key in match)
    return (
        named
        and isinstance(fields, list)
        and all(
            isinstance(one, dict) and isinstance(one.get("name"), str) and "value" in one for one in fields
        )
    )
