"""A survey in plain words: what it asks, what it makes of the answers, and what it then runs where.

A survey's file is read by people who did not write it. Here it is said as sentences, with the queries as
they are sent for one source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from beampipe_dagster.config.canonical import JsonValue, canonical_json
from beampipe_dagster.config.expressions import is_expression
from beampipe_dagster.config.profile import DeploymentProfile, RestRemote
from beampipe_dagster.config.project import (
    OWN_MATCH_FIELDS,
    AdapterDefinition,
    FieldMapping,
    GraphPatch,
    PrepareMetadata,
    ProjectConfig,
    Query,
)
from beampipe_dagster.discovery.prepare import FLAG_SOURCES, RECORD_FIELDS, ROW_CHOICES
from beampipe_dagster.discovery.rewrite_report import QueryReport, report
from beampipe_dagster.discovery.templates import render, template_context
from beampipe_dagster.errors import BeampipeError
from beampipe_dagster.execution.manifest import DEFAULT_SCATTER, match_json
from beampipe_dagster.execution.patches import described
from beampipe_dagster.execution.staged import survey_stages

EXAMPLE_SOURCE: Final = "HIPASSJ1318-21"
"""The source whose queries are shown when no other is named."""
_SBID: Final = "72962"


@dataclass(frozen=True, slots=True)
class Section:
    """A part of an explanation: a title, and sentences. A query is a line of its own, indented."""

    title: str
    lines: tuple[str, ...]

    def as_dict(self) -> dict[str, JsonValue]:
        """The section as JSON."""
        return {"title": self.title, "lines": [*self.lines]}


@dataclass(frozen=True, slots=True)
class Explanation:
    """A survey in words."""

    project_id: str
    source_identifier: str
    sections: tuple[Section, ...]

    def as_dict(self) -> dict[str, JsonValue]:
        """The explanation as JSON."""
        return {
            "project_id": self.project_id,
            "source_identifier": self.source_identifier,
            "sections": [section.as_dict() for section in self.sections],
        }


@dataclass(frozen=True, slots=True)
class Expected:
    """How many datasets the sources have that were found to have any.

    Parameters
    ----------
    sources
        How many sources have datasets.
    without
        How many were looked at and have none.
    low, median, high
        Datasets of the source with the fewest, of the one in the middle, and of the one with the most.
    """

    sources: int
    without: int
    low: int
    median: float
    high: int

    @classmethod
    def of(cls, counts: Sequence[int]) -> Expected | None:
        """From the datasets of each source that was looked at; ``None`` when there is none."""
        some = [count for count in counts if count]
        if not counts:
            return None
        if not some:
            return cls(0, len(counts), 0, 0, 0)
        return cls(len(some), len(counts) - len(some), min(some), median(some), max(some))


def explain(
    config: ProjectConfig,
    profile: DeploymentProfile | None = None,
    *,
    source_identifier: str = EXAMPLE_SOURCE,
    expected: Expected | None = None,
) -> Explanation:
    """Say what a survey does.

    Parameters
    ----------
    config
        The survey.
    profile
        Where it runs; without one only the profile's name is said.
    source_identifier
        The source that is filled into the queries.
    expected
        What stored metadata say about the number of datasets; ``None`` when nothing is stored.
    """
    parts = (
        ("Archives", _archives(config)),
        ("Queries", _queries(config, source_identifier)),
        ("Datasets", _datasets(config, expected)),
        ("Readiness", _readiness(config)),
        ("Signature", _signature(config)),
        ("Graph", _graph(config)),
        ("When", _when(config)),
        ("Where", _where(config, profile)),
    )
    sections = tuple(Section(title, tuple(lines)) for title, lines in parts)
    return Explanation(config.metadata.id, source_identifier, sections)


def _archives(config: ProjectConfig) -> Iterator[str]:
    adapters = config.adapters
    names = dict.fromkeys((*adapters.required, *(query.adapter for query in _all_queries(config))))
    for name in names:
        needed = "must answer before anything is looked for" if name in adapters.required else "is asked too"
        yield f"{name} {needed}; {_service(config, name)}."
    tap = adapters.tap
    yield (
        f"A query may take {tap.timeout_seconds} s and is sent again {_times(tap.retries)} when it fails in "
        "passing. An answer that is not complete changes nothing."
    )


def _service(config: ProjectConfig, name: str) -> str:
    defined = config.adapters.definitions.get(name)
    if defined is not None:
        return f"it is {defined.tap_url}{_with_auth(defined)}"
    own = getattr(config.adapters, f"{name}_tap_url", None)
    return f"it is {own}" if own else f"its URL is what BEAMPIPE_{name.upper()}_TAP_URL says"


def _with_auth(defined: AdapterDefinition) -> str:
    auth = defined.auth_env
    limits = "".join(
        f", {value} {words}"
        for value, words in ((defined.maxrec, "rows at most"), (defined.timeout_seconds, "s a query"))
        if value is not None
    )
    if auth is None:
        return limits
    names = [name for name in (auth.user, auth.password, auth.token) if name]
    return f"{limits}, with the credentials in the environment's {' and '.join(names)}"


def _all_queries(config: ProjectConfig) -> tuple[Query, ...]:
    return (*config.discovery.queries, *config.discovery.enrichments)


def _queries(config: ProjectConfig, source: str) -> Iterator[str]:
    queries = config.discovery.queries
    asked = {one.name: one for one in report(config, source_identifier=source)}
    if not queries:
        yield "There is no query: nothing is discovered."
    for index, query in enumerate(queries):
        role = "lists the datasets" if index == 0 else "adds to the source"
        yield f"{query.name} ({query.adapter}) {role}; for {source}:"
        yield from _filled(config, query, source, index)
        yield from _for_many(query, asked[query.name])
    for query in config.discovery.enrichments:
        yield f"{query.name} ({query.adapter}) is asked for each scheduling block, such as {_SBID}:"
        yield from _filled(config, query, source, len(queries), sbid=_SBID)
        yield from _for_many(query, asked[query.name])
        if query.name in ROW_CHOICES:
            yield "The row that is kept is chosen by this survey's built-in rule; without one the look fails."


def _for_many(query: Query, asked: QueryReport) -> Iterator[str]:
    yield asked.sentence
    keep, mark = query.keep, query.watermark
    if keep is not None and keep.where:
        kept = " and ".join(f"{name} is {' or '.join(values)}" for name, values in sorted(keep.where.items()))
        yield f"Of its rows those are kept whose {kept}."
    if keep is not None and keep.latest is not None:
        each = f" for each {' and '.join(keep.per)}" if keep.per else ""
        yield f"Of its rows those with the greatest {keep.latest} are kept{each}."
    if mark is not None:
        yield (
            f"New rows are found for all sources at once by {mark.column}, every {mark.every_minutes} min, "
            f"{mark.lag_hours} h of overlap included."
        )


def _filled(config: ProjectConfig, query: Query, source: str, index: int, **more: JsonValue) -> Iterator[str]:
    try:
        text = render(query.adql_template, {**template_context(config, source, index), **more})
    except BeampipeError as error:
        yield f"    cannot be filled in: {error.message}"
        return
    for line in text.strip().splitlines():
        yield f"    {line.strip()}"


def _datasets(config: ProjectConfig, expected: Expected | None) -> Iterator[str]:
    prepare = _prepare(config)
    primary = config.discovery.queries[0].name if config.discovery.queries else "the first query"
    yield (
        f"Each row of {primary} is a dataset. It needs a scheduling block (sbid), and a dataset_id or a "
        "visibility_filename."
    )
    yield _how_many(expected)
    for target, mapping in sorted(prepare.field_map.items()):
        yield f"{target} is {_origin(mapping)}."
    yield "All other columns are kept under their own names, in lower case."
    for query in config.discovery.enrichments:
        extra = ", with its URL and name as the evaluation file" if query.name in RECORD_FIELDS else ""
        yield f"The row of {query.name} joins each dataset of its scheduling block{extra}."
    for query in config.discovery.queries[1:]:
        if query.name in FLAG_SOURCES:
            yield f"{query.name} gives ra_string, dec_string and vsys, from its first row."
    yield from _plugins(config)


def _how_many(expected: Expected | None) -> str:
    if expected is None:
        return "How many rows to expect is not known yet: no source has stored metadata."
    sources = "1 source" if expected.without == 1 else f"{expected.without:,} sources"
    none = f"; {sources} had none" if expected.without else ""
    if not expected.sources:
        return f"No source had a row so far{none}."
    sources = "1 source" if expected.sources == 1 else f"{expected.sources:,} sources"
    if expected.low == expected.high:
        return f"Expect {expected.low:,} rows a source: so many had each of {sources}{none}."
    return (
        f"Expect {expected.low:,} to {expected.high:,} rows a source, in the median {expected.median:,g}, as "
        f"{sources} had{none}."
    )


def _plugins(config: ProjectConfig) -> Iterator[str]:
    for plugin in config.plugins:
        yield f"The plug-in {plugin.name} {plugin.version} may change records, the manifest and the patches."


def _origin(mapping: FieldMapping) -> str:
    names = mapping.transform_names
    through = f", through {' then '.join(names)}" if names else ""
    if mapping.from_ == "source_identifier":
        return f"the source's identifier{through}"
    return f"{mapping.from_!r}{through}"


def _readiness(config: ProjectConfig) -> Iterator[str]:
    flags = _prepare(config).discovery_flags
    yield "A source runs only when it is enabled, was discovered, and has at least one dataset."
    for name, mapping in sorted(flags.items()):
        yield f"The flag {name} must pass: {_origin(mapping)}; empty, 0 and false do not pass."
    if not flags:
        yield "There are no readiness flags."


def _signature(config: ProjectConfig) -> Iterator[str]:
    options = config.signature_options
    yield "A source runs again when its signature changes: when a dataset comes, goes, or differs in a field."
    if options.exclude_fields:
        yield f"Left out, so that they may change freely: {', '.join(options.exclude_fields)}."
    else:
        yield "No field is left out, access URLs included: links that expire would make sources run again."
    yield f"The flags are {'part of it' if options.include_discovery_flags else 'not part of it'}."


def _graph(config: ProjectConfig) -> Iterator[str]:
    graph = config.graph
    if graph is None:
        yield "There is no graph: nothing can be executed."
        return
    place = graph.path or graph.url
    yield f"{place}, which must have the SHA-256 {(graph.sha256 or 'none')[:12].lower()}…"
    manifest = config.manifest
    grouping = " and ".join(manifest.group_by) if manifest else "source and scheduling block"
    yield f"It gets a manifest with an entry for each {grouping or 'execution'}."
    if not config.graph_patches:
        yield f"num_of_copies of {DEFAULT_SCATTER} becomes the number of datasets, as no patch is given."
    for patch in config.graph_patches:
        yield from _patch(patch)


def _patch(patch: GraphPatch) -> Iterator[str]:
    many = "Every node with" if patch.match.may_be_many else "The node with"
    values = ", ".join(f"{name} = {_value(value)}" for name, value in sorted(patch.set_.items()))
    own = patch.match.kind in OWN_MATCH_FIELDS or patch.match.equals.strip()
    if own:
        yield f"{many} {described(match_json(patch.match))} gets {values}."


def _value(value: JsonValue) -> str:
    if isinstance(value, str):
        return f"{value} over the manifest" if is_expression(value) else repr(value)
    return canonical_json(value)


def _when(config: ProjectConfig) -> Iterator[str]:
    discovery, execution = config.automation.discovery, config.automation.execution
    if discovery is None or not discovery.enabled:
        yield "Discovery runs only when it is asked for."
    else:
        yield (
            f"A source is looked at again {discovery.stale_after_hours} h after its last look, "
            f"{discovery.batch_size} sources to a run, at most {discovery.tick_discovery_source_limit} a tick."
        )
    if execution is None or not execution.enabled:
        yield "Nothing is executed without being asked."
        return
    cap = execution.concurrent_execution_run_limit
    yield (
        f"What changed is executed, {execution.max_sources_per_execution} sources to an execution at most, "
        + (f"{cap} executions at a time" if cap is not None else "as many at a time as the platform allows")
        + f", at most {execution.tick_execution_run_limit} new ones a tick."
    )
    if execution.min_sources_to_trigger > 1:
        yield (
            f"It waits for {execution.min_sources_to_trigger} ready sources, but not longer than "
            f"{execution.max_wait_minutes} min."
        )


def _where(config: ProjectConfig, profile: DeploymentProfile | None) -> Iterator[str]:
    execution = config.automation.execution
    named = execution.deployment_profile_name if execution is not None else None
    if profile is None:
        yield f"Where the profile {named!r} says." if named else "Where the default profile says."
    else:
        yield f"By the profile {profile.name!r}: {_place(profile)}."
        cap = profile.max_concurrent_executions
        if cap is not None:
            yield f"At most {cap} executions at a time there."
        translation = profile.translation
        yield f"The graph is translated with {translation.algo} for {translation.num_par} partitions."
    if survey_stages(config):
        yield "Before that, the archive brings its data online (CASDA data staging)."
    if config.output_verification.required:
        yield "An execution is done only when its products were verified."


def _place(profile: DeploymentProfile) -> str:
    deployment = profile.deployment
    if isinstance(deployment, RestRemote):
        return f"a DALiuGE island manager at {deployment.deploy_host}:{deployment.deploy_port}"
    return f"Slurm jobs of {deployment.account} on {deployment.login_node}"


def _prepare(config: ProjectConfig) -> PrepareMetadata:
    return config.discovery.prepare_metadata or PrepareMetadata()


def _times(count: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count} times")
