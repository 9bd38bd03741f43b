"""The workflow manifest: what one execution is to process, built from the archived records.

A manifest is ``{"inputs": {}, "sources": [...], "graph_overrides": {...}}``. Each entry of ``sources``
has a ``source_identifier`` and ``sbids: [{"sbid", "datasets": [...]}]``. The same records give the same
manifest and the same hash, whatever they were queried with.

Two entries may be about the same source: a survey that groups by source *and* scheduling block gets
one entry for each block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from beampipe_dagster.config.canonical import JsonValue, canonical_json, digest
from beampipe_dagster.config.expressions import evaluate, is_expression
from beampipe_dagster.config.project import OWN_MATCH_FIELDS
from beampipe_dagster.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from beampipe_dagster.config.project import GraphPatch, GraphPatchMatch, Manifest, ProjectConfig

JsonObject: TypeAlias = dict[str, JsonValue]
Blocks: TypeAlias = "dict[str, list[JsonObject]]"

RUN_RECORD = "beampipe_run_record"
"""Key of the run record, which later joins the manifest and never counts for its hash."""
OVERRIDES = "graph_overrides"
"""Key of the values to set on the graph; the graph itself never sees them."""
DEFAULT_SCATTER = "Scatter/GenericScatterApp/Beam"
"""The node that gets one copy a dataset when a survey names no patches."""

_UNKNOWN = "unknown"
_HEADER = ("ra_string", "dec_string", "vsys")
# Field of a record -> map of the staging context. The second name is what CASDA's staging writes.
_STAGED = {
    "data_url_by_scan_id": ("scan_id", ("data_url", "staged_url")),
    "checksum_url_by_scan_id": ("scan_id", ("checksum_url",)),
    "eval_url_by_sbid": ("sbid", ("eval_url", "evaluation_file_url")),
}


def build_manifest(
    config: ProjectConfig,
    records: Sequence[JsonObject],
    *,
    exclude_sbids: Collection[str] = (),
    staging: Mapping[str, JsonValue] | None = None,
) -> JsonObject:
    """Build the manifest of one execution.

    Parameters
    ----------
    config
        The survey. Without its ``manifest`` section records are grouped by source and scheduling
        block, and the entries carry ``ra_string``, ``dec_string`` and ``vsys``.
    records
        Archived dataset records in their persisted order, which stays. They become part of the
        manifest without being copied.
    exclude_sbids
        Scheduling blocks to leave out. A survey without a ``manifest`` section keeps them all.
    staging
        What ``{staging.a.b}`` of a template looks in; by default what the records themselves say
        about staged files.

    Returns
    -------
    dict
        ``{"inputs", "sources", "graph_overrides"}``. A record without a usable ``sbid`` (missing,
        empty or 0) is not part of it.

    Raises
    ------
    DataError
        ``no_usable_datasets``: no record is left.
    """
    section = config.manifest
    sources: list[JsonValue]
    if section is None:
        sources = [*_plain_sources(records)]
    else:
        context = staging_context(records) if staging is None else dict(staging)
        sources = [*_grouped_sources(section, records, set(exclude_sbids), context)]
    if not sources:
        raise DataError(
            f"none of the {len(records)} records has a scheduling block (sbid) that can be used",
            code="no_usable_datasets",
            hint="Look at the field_map's sbid, and at the SBIDs that are excluded.",
            details={"records": len(records), "exclude_sbids": sorted(exclude_sbids)},
        )
    manifest: JsonObject = {"inputs": {}, "sources": sources}
    manifest[OVERRIDES] = overrides_of(config.graph_patches, sources)
    return manifest


def manifest_sha256(manifest: JsonObject) -> str:
    """SHA-256 of the manifest's canonical JSON with its overrides and without a run record."""
    return digest({key: value for key, value in manifest.items() if key != RUN_RECORD})


def embedded_text(manifest: JsonValue) -> str:
    """The text that a graph is given: canonical JSON without the overrides.

    Anything but an object gives ``{}``.
    """
    if not isinstance(manifest, dict):
        return "{}"
    return canonical_json({key: value for key, value in manifest.items() if key != OVERRIDES})


def dataset_count(sources: Iterable[JsonValue]) -> int:
    """How many datasets a manifest's entries hold altogether."""
    return sum(_count(entry) for entry in sources)


def _count(source: JsonValue) -> int:
    value = evaluate("$count(sbids[].datasets[])", source)
    return value if isinstance(value, int) else 0


def staging_context(records: Iterable[JsonObject]) -> JsonObject:
    """What the records say about staged files.

    Returns
    -------
    dict
        ``data_url_by_scan_id``, ``checksum_url_by_scan_id`` and ``eval_url_by_sbid``: maps of the
        identifier's text to a URL. Only URLs that are strings count.
    """
    context: dict[str, JsonObject] = {name: {} for name in _STAGED}
    for record in records:
        for name, (key, candidates) in _STAGED.items():
            identifier = record.get(key)
            url = next((u for c in candidates if isinstance(u := record.get(c), str)), None)
            if identifier not in (None, "") and url is not None:
                context[name][_text(identifier)] = url
    return {**context}


def _plain_sources(records: Iterable[JsonObject]) -> list[JsonObject]:
    groups: dict[str, Blocks] = {}
    for record in records:
        sbid = _usable_sbid(record)
        if sbid is not None:
            blocks = groups.setdefault(_source_identifier(record), {})
            blocks.setdefault(sbid, []).append(record)
    return [
        {
            "source_identifier": identifier,
            **{name: _first(blocks).get(name) for name in _HEADER},
            "sbids": [_block(sbid, [*blocks[sbid]]) for sbid in sorted(blocks)],
        }
        for identifier, blocks in sorted(groups.items())
    ]


def _grouped_sources(
    section: Manifest,
    records: Iterable[JsonObject],
    excluded: Collection[str],
    staging: JsonObject,
) -> list[JsonObject]:
    groups: dict[str, Blocks] = {}
    for record in records:
        sbid = _usable_sbid(record)
        if sbid is not None and sbid not in excluded:
            key = "\0".join(_group_text(record, name) for name in section.group_by)
            groups.setdefault(key, {}).setdefault(sbid, []).append(record)
    template = section.dataset_template if section.expand_from == "metadata" else None
    return [_source_entry(section, template, blocks, staging) for _, blocks in sorted(groups.items())]


def _source_entry(
    section: Manifest, template: JsonObject | None, blocks: Blocks, staging: JsonObject
) -> JsonObject:
    first = _first(blocks)
    entry: JsonObject = {
        key: _rendered(value, first, staging) for key, value in section.source_template.items()
    }
    entry["source_identifier"] = _source_identifier(first)
    entry["sbids"] = [
        _block(
            sbid,
            [record if template is None else _rendered(template, record, staging) for record in blocks[sbid]],
        )
        for sbid in sorted(blocks)
    ]
    return entry


def _block(sbid: str, datasets: list[JsonValue]) -> JsonObject:
    return {"sbid": sbid, "datasets": datasets}


def _first(blocks: Blocks) -> JsonObject:
    return blocks[min(blocks)][0]


def _text(value: JsonValue) -> str:
    return value if isinstance(value, str) else canonical_json(value)


def _group_text(record: JsonObject, name: str) -> str:
    return (_text(record[name]) if name in record else "") or _UNKNOWN


def _source_identifier(record: JsonObject) -> str:
    identifier = record.get("source_identifier")
    return identifier if isinstance(identifier, str) else _UNKNOWN


def _usable_sbid(record: JsonObject) -> str | None:
    if "sbid" not in record:
        return None
    sbid = _text(record["sbid"])
    return None if sbid in ("", "0") else sbid


def _rendered(template: JsonValue, record: JsonObject, staging: JsonObject) -> JsonValue:
    """A template's value: a string that is wholly ``{key}`` is replaced, all else is literal."""
    if isinstance(template, dict):
        return {key: _rendered(value, record, staging) for key, value in template.items()}
    if isinstance(template, list):
        return [_rendered(value, record, staging) for value in template]
    if isinstance(template, str) and template.startswith("{") and template.endswith("}"):
        return _looked_up(template, record, staging)
    return template


def _looked_up(template: str, record: JsonObject, staging: JsonObject) -> JsonValue:
    key = template[1:-1]
    if key.startswith("flags."):
        name = key.removeprefix("flags.")
        flags = record.get("discovery_flags")
        for place in (flags, record, staging):
            if isinstance(place, dict) and name in place:
                return place[name]
        return template
    if key.startswith("staging."):
        found: JsonValue = staging
        for part in key.removeprefix("staging.").split("."):
            if not isinstance(found, dict) or part not in found:
                return template
            found = found[part]
        return found
    return record.get(key, template)


def overrides_of(patches: Sequence[GraphPatch], sources: Sequence[JsonValue]) -> JsonObject:
    """The values to set on the graph: a survey's patches, computed over the entries of its manifest.

    Without any patch, :data:`DEFAULT_SCATTER` gets the number of datasets as its ``num_of_copies``.
    """
    if not patches:
        return {"patches": [_patch({"equals": DEFAULT_SCATTER}, {"num_of_copies": dataset_count(sources)})]}
    return {
        "patches": [
            _patch(match, {name: _value(value, sources) for name, value in patch.set_.items()})
            for patch in patches
            if (match := match_json(patch.match)) is not None
        ]
    }


def match_json(match: GraphPatchMatch) -> JsonObject | None:
    """A match as ``graph_overrides`` has it; ``None`` for one that looks for a blank name.

    A name is ``{"equals": NAME}`` alone; the other kinds say what they are. ``count`` is there when the
    project gives it.
    """
    if match.kind in OWN_MATCH_FIELDS:
        return match.as_json()
    if not match.equals.strip():
        return None
    return {"equals": match.equals, **({"count": match.count} if match.count else {})}


def _patch(match: JsonObject, values: JsonObject) -> JsonObject:
    return {
        "match": match,
        "fields": [{"name": name, "value": values[name]} for name in sorted(values)],
    }


def _value(value: JsonValue, sources: Sequence[JsonValue]) -> JsonValue:
    """A patch's value; an expression adds up over all entries, since a graph serves them all."""
    if not isinstance(value, str) or not is_expression(value):
        return value
    results = [evaluate(value, source) for source in sources]
    return sum(result for result in results if isinstance(result, int))
