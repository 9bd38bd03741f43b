"""From a project file's bytes to a report: is it YAML, is it a project, does it make sense.

Structure comes first: as long as a field is unknown, missing or of the wrong type, its meaning is not
looked at. The order of the rules is part of the report's format.
"""

from __future__ import annotations

import math
import re
from itertools import islice
from typing import TYPE_CHECKING

from pydantic import ValidationError

from beampipe_dagster.config.advice import project_warnings, survey_advice
from beampipe_dagster.config.canonical import sha256_hex
from beampipe_dagster.config.diagnostics import (
    Diagnostic,
    Severity,
    ValidationReport,
    nearest,
    structure_problems,
)
from beampipe_dagster.config.diagnostics import located as _diagnostic
from beampipe_dagster.config.expressions import FUNCTIONS
from beampipe_dagster.config.own_rules import (
    Problem,
    adapter_advice,
    kind_hint,
    match_problems,
    own_problems,
)
from beampipe_dagster.config.patterns import compile_pattern
from beampipe_dagster.config.project import (
    API_VERSION,
    HOOKS,
    INVENTORY_SCHEMA,
    KIND,
    MATCH_KINDS,
    TRANSFORM_KINDS,
    UNKNOWN,
    FieldMapping,
    ProjectConfig,
    Transform,
)
from beampipe_dagster.config.query_rules import query_problems
from beampipe_dagster.config.yaml_loader import YamlDocument, load_yaml
from beampipe_dagster.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from beampipe_dagster.config.canonical import JsonValue
    from beampipe_dagster.config.yaml_loader import Path

LEGACY_VERSION = "beampipe.dev/v1"
"""The version before; its files are read with the present structure and never valid."""
MAX_DIAGNOSTICS = 200
"""Most errors, and most warnings, of one report."""

_SHA256 = re.compile(r"[0-9A-Fa-f]{64}")
_DISCOVERY_LIMITS = (
    "batch_size",
    "tick_discovery_source_limit",
    "stale_after_hours",
    "claim_ttl_minutes",
    "queue_max_depth",
    "tick_discovery_batch_limit",
    "concurrent_discovery_batch_limit",
)
_EXECUTION_LIMITS = (
    "max_sources_per_execution",
    "tick_execution_run_limit",
    "tick_execution_source_limit",
    "min_sources_to_trigger",
    "max_wait_minutes",
    "claim_ttl_minutes",
    "concurrent_execution_run_limit",
    "weight",
    "execution_slurm_remote_poll_max_rounds",
    "execution_rest_remote_poll_max_rounds",
    "execution_rest_remote_poll_interval_seconds",
    "execution_slurm_remote_poll_interval_seconds",
)
_NEEDED = {
    "replace": "from_",
    "add_prefix": "prefix",
    "strip_prefix": "prefix",
    "add_suffix": "suffix",
    "default_if_empty": "default",
    "split_last": "separators",
    "regex_extract": "pattern",
    "chain": "steps",
}
"""By the kind of a transform, the parameter that it cannot do without."""


def validate_project(
    text: str | bytes, *, name: str = "<text>", active: ProjectConfig | None = None
) -> ValidationReport:
    """Check a project file.

    Parameters
    ----------
    text
        The file.
    name
        What messages call it.
    active
        The revision in use; changes against it that make signatures differ are warned of.

    Returns
    -------
    ValidationReport
        Never raises for what is in the file.
    """
    return _checked(text, name, active)[0]


def project_advice(text: str | bytes, *, name: str = "<text>") -> tuple[Diagnostic, ...]:
    """What is worth knowing about a valid file, whatever the active revision says; else nothing."""
    report, config = _checked(text, name, None)
    if config is None or not report.valid:
        return ()
    document, severity = load_yaml(text, name=name), Severity.WARNING
    return tuple(
        _diagnostic(document, item.path, item.code, item.message, hint=item.hint, severity=severity)
        for item in (*adapter_advice(config), *survey_advice(config))
    )


def load_project(text: str | bytes, *, name: str = "<text>") -> ProjectConfig:
    """Read a project file that must be valid.

    Raises
    ------
    ConfigError
        ``invalid_project``: counts the errors and shows the first one with its line and column;
        ``details["diagnostics"]`` has them all.
    """
    report, config = _checked(text, name, None)
    if config is not None and report.valid:
        return config
    first = report.errors[0]
    where = name if first.line is None else f"{name}:{first.line}:{first.column}"
    count = len(report.errors)
    errors = "1 error" if count == 1 else f"{count} errors, the first"
    raise ConfigError(
        f"{where}: the project file has {errors}: {first.path}: {first.message}",
        code="invalid_project",
        hint=first.hint or "Correct the file; `beampipe project validate` lists all errors.",
        details={"diagnostics": [diagnostic.as_dict() for diagnostic in report.errors]},
    )


def _checked(
    text: str | bytes, name: str, active: ProjectConfig | None
) -> tuple[ValidationReport, ProjectConfig | None]:
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    try:
        document = load_yaml(text, name=name)
    except ConfigError as error:
        return ValidationReport("", (_unreadable(error),), (), sha256_hex(raw)), None
    try:
        config = ProjectConfig.model_validate(document.value)
    except ValidationError as error:
        errors = _structure_errors(error, document)
        return ValidationReport(_project_id(document.value), errors, (), sha256_hex(raw)), None
    report = ValidationReport(
        config.metadata.id,
        _bounded(_Rules(config, document).errors()),
        _bounded(project_warnings(config, document, active)),
        config.spec_sha256,
    )
    return report, config


def _bounded(found: Iterable[Diagnostic]) -> tuple[Diagnostic, ...]:
    """At most :data:`MAX_DIAGNOSTICS`: who made more mistakes corrects these first."""
    return tuple(islice(found, MAX_DIAGNOSTICS))


def _unreadable(error: ConfigError) -> Diagnostic:
    line, column = error.details.get("line"), error.details.get("column")
    located = error.code == "invalid_yaml" and line is not None
    whole = not located or bool(error.details.get("whole_document"))
    return Diagnostic(
        path="$" if whole else f"line {line}, column {column}",
        severity=Severity.ERROR,
        code=error.code,
        message=str(error.details.get("reason", error.message)),
        hint=error.hint,
        line=line,
        column=column,
    )


def _structure_errors(error: ValidationError, document: YamlDocument) -> tuple[Diagnostic, ...]:
    problems = structure_problems(error, ProjectConfig, document.value, limit=MAX_DIAGNOSTICS)
    found = [
        _diagnostic(document, problem.path, "invalid_config_structure", problem.message, hint=problem.hint)
        for problem in problems
    ]
    return tuple(sorted(found, key=lambda item: (item.line or 0, item.column or 0)))


def _project_id(value: JsonValue) -> str:
    metadata = value.get("metadata") if isinstance(value, dict) else None
    project_id = metadata.get("id") if isinstance(metadata, dict) else None
    return project_id if isinstance(project_id, str) else ""


class _Rules:
    """The rules over one project, in the order of the report."""

    def __init__(self, config: ProjectConfig, document: YamlDocument) -> None:
        self._config = config
        self._document = document
        self._names = config.transforms
        self._sorted_names = sorted(config.transforms)

    def errors(self) -> Iterator[Diagnostic]:
        yield from self._header()
        yield from self._adapters()
        yield from self._automation()
        yield from self._graph()
        yield from self._queries()
        yield from self._identity()
        yield from self._extension()
        yield from self._references()
        yield from self._mappings()
        yield from self._transforms()
        yield from self._patches()
        yield from self._signature()

    def _error(self, path: Path, code: str, message: str, *, hint: str | None = None) -> Diagnostic:
        return _diagnostic(self._document, path, code, message, hint=hint)

    def _problems(self, path: Path, problems: Iterable[Problem]) -> Iterator[Diagnostic]:
        for problem in problems:
            yield self._error((*path, *problem.path), problem.code, problem.message, hint=problem.hint)

    def _blank(self, path: Path, value: str) -> Iterator[Diagnostic]:
        if not value.strip():
            yield self._error(path, "required", "must not be blank")

    def _header(self) -> Iterator[Diagnostic]:
        version, kind = self._config.api_version, self._config.kind
        if version != API_VERSION:
            hint = None
            if version == LEGACY_VERSION:
                hint = f"Move the file to the structure of {API_VERSION} and set apiVersion to it."
            message = f"must be {API_VERSION}, not {version!r}"
            yield self._error(("apiVersion",), "legacy_api_version", message, hint=hint)
        if kind != KIND:
            yield self._error(("kind",), "invalid_kind", f"must be {KIND}, not {kind!r}")
        yield from self._blank(("metadata", "id"), self._config.metadata.id)

    def _adapters(self) -> Iterator[Diagnostic]:
        adapters = self._config.adapters
        if not adapters.required:
            yield self._error(("adapters", "required"), "required", "must name at least one archive")
        for index, name in enumerate(adapters.required):
            yield from self._blank(("adapters", "required", index), name)
        if adapters.tap.timeout_seconds == 0:
            path = ("adapters", "tap", "timeout_seconds")
            yield self._error(path, "invalid_limit", "must be at least 1")
        yield from self._problems((), own_problems(self._config))

    def _automation(self) -> Iterator[Diagnostic]:
        automation = self._config.automation
        if automation.discovery is not None:
            yield from self._limits("discovery", automation.discovery.as_json(), _DISCOVERY_LIMITS)
        if automation.execution is not None:
            yield from self._limits("execution", automation.execution.as_json(), _EXECUTION_LIMITS)
        schema = self._config.output_verification.inventory_schema
        if schema != INVENTORY_SCHEMA:
            yield self._error(
                ("output_verification", "inventory_schema"),
                "unsupported_output_inventory_schema",
                f"must be {INVENTORY_SCHEMA}, not {schema!r}",
            )

    def _limits(self, part: str, values: dict[str, JsonValue], names: Sequence[str]) -> Iterator[Diagnostic]:
        for name in names:
            value = values.get(name)
            if isinstance(value, int | float) and not (math.isfinite(value) and value > 0):
                path = ("automation", part, name)
                yield self._error(path, "invalid_limit", f"must be above 0, not {value}")

    def _graph(self) -> Iterator[Diagnostic]:
        graph = self._config.graph
        if graph is None:
            return
        if (graph.url is None) == (graph.path is None):
            yield self._error(("graph",), "mutually_exclusive", "needs exactly one of url and path")
        for name, value in (("url", graph.url), ("path", graph.path)):
            if value is not None:
                yield from self._blank(("graph", name), value)
        if graph.sha256 is None:
            message = "must be given: the SHA-256 of the graph file's bytes"
            yield self._error(("graph", "sha256"), "required", message)
        elif not _SHA256.fullmatch(graph.sha256):
            message = "must be 64 hex digits, as sha256sum prints them"
            yield self._error(("graph", "sha256"), "invalid_sha256", message)

    def _queries(self) -> Iterator[Diagnostic]:
        discovery = self._config.discovery
        for part, queries in (("queries", discovery.queries), ("enrichments", discovery.enrichments)):
            for index, query in enumerate(queries):
                for name in ("name", "adapter", "template"):
                    path = ("discovery", part, index, name)
                    yield from self._blank(path, getattr(query, name))
        yield from self._problems((), query_problems(self._config))

    def _identity(self) -> Iterator[Diagnostic]:
        identity = self._config.source_identity
        if identity is None:
            return
        yield from self._blank(("source_identity", "canonical"), identity.canonical)
        if any(not name.strip() for name in identity.template_vars):
            path = ("source_identity", "template_vars")
            yield self._error(path, "required", "the name of a variable must not be blank")

    def _extension(self) -> Iterator[Diagnostic]:
        extension = self._config.extension
        if extension is not None and extension.wasm_sha256 is not None:
            message = "WebAssembly modules are not supported"
            hint = "Take it out; what a module would do is done by a plug-in, a Python entry point."
            yield self._error(("extension", "wasm_sha256"), "wasm_unsupported", message, hint=hint)
        for index, hook in enumerate(extension.hooks if extension else ()):
            if hook == UNKNOWN:
                path: Path = ("extension", "hooks", index)
                yield self._error(
                    path,
                    "unknown_extension_hook",
                    f"{self._given(path)} is not a hook",
                    hint=f"Known here: {', '.join(HOOKS)}.",
                )

    def _references(self) -> Iterator[Diagnostic]:
        identity = self._config.source_identity
        for name, variable in sorted((identity.template_vars if identity else {}).items()):
            if variable.transform is not None:
                path: Path = ("source_identity", "template_vars", name, "transform")
                yield from self._known(path, variable.transform)
        for index, query in enumerate(self._config.discovery.queries):
            if query.source_id_transform is not None:
                path = ("discovery", "queries", index, "source_id_transform")
                yield from self._known(path, query.source_id_transform)

    def _known(self, path: Path, name: str) -> Iterator[Diagnostic]:
        if name not in self._names:
            near = nearest(name, self._sorted_names)
            message = f"{name!r} is not defined in definitions.transforms. {near}"
            yield self._error(path, "unknown_transform", message)

    def _mappings(self) -> Iterator[Diagnostic]:
        prepare = self._config.discovery.prepare_metadata
        if prepare is None:
            return
        for part, mappings in (
            ("field_map", prepare.field_map),
            ("discovery_flags", prepare.discovery_flags),
        ):
            for name, mapping in sorted(mappings.items()):
                path = ("discovery", "prepare_metadata", part, name)
                yield from self._mapping(path, mapping)

    def _mapping(self, path: Path, mapping: FieldMapping) -> Iterator[Diagnostic]:
        yield from self._blank((*path, "from"), mapping.from_)
        path = (*path, "transform")
        if isinstance(mapping.transform, str):
            yield from self._known(path, mapping.transform)
        elif mapping.transform is not None and not mapping.transform_names:
            message = "a chain of transforms must name at least one"
            yield self._error(path, "empty_transform_chain", message)
        else:
            for index, name in enumerate(mapping.transform_names):
                yield from self._known((*path, index), name)

    def _transforms(self) -> Iterator[Diagnostic]:
        endless = _endless(self._names)
        for name, transform in sorted(self._names.items()):
            path = ("definitions", "transforms", name)
            yield from self._transform(path, transform)
            if name in endless:
                message = "the chain leads into a circle and would never end"
                yield self._error((*path, "steps"), "cyclic_transform", message)

    def _transform(self, path: Path, transform: Transform) -> Iterator[Diagnostic]:
        if transform.kind == UNKNOWN:
            given = self._given((*path, "kind"))
            message = f"{given} is not a kind of transform; known are {', '.join(TRANSFORM_KINDS)}"
            yield self._error((*path, "kind"), "unknown_transform_kind", message)
        needed = _NEEDED.get(transform.kind)
        if needed and not getattr(transform, needed):
            field = needed.removesuffix("_")
            message = f"must be given, since the kind is {transform.kind}"
            yield self._error((*path, field), "required", message)
        for index, separator in enumerate(transform.separators or ()):
            if not separator:
                yield self._error((*path, "separators", index), "required", "must not be empty")
        if transform.kind == "regex_extract" and transform.pattern:
            try:
                compile_pattern(transform.pattern)
            except ConfigError as error:
                yield self._error((*path, "pattern"), "invalid_regex", error.message, hint=error.hint)
        for index, step in enumerate(transform.steps or () if transform.kind == "chain" else ()):
            yield from self._known((*path, "steps", index), step)

    def _patches(self) -> Iterator[Diagnostic]:
        for index, patch in enumerate(self._config.graph_patches):
            path: Path = ("graph_patches", index)
            if patch.match.kind == UNKNOWN:
                where = (*path, "match", "kind")
                given = self._given(where)
                known = f"Known here: {', '.join(MATCH_KINDS)}."
                yield self._error(
                    where,
                    "unknown_graph_patch_match_kind",
                    f"{given} is not a kind of match here",
                    hint=kind_hint(given.strip("'")) or known,
                )
            yield from self._problems((*path, "match"), match_problems(patch.match))
            if not patch.set_ or any(not name.strip() for name in patch.set_):
                message = "must set at least one field, and no field name may be blank"
                yield self._error((*path, "set"), "required", message)
            for name, value in sorted(patch.set_.items()):
                if isinstance(value, str) and value.startswith("$") and not _is_call(value):
                    message = f"{value!r} is neither $count(...) nor $sum(...)"
                    yield self._error((*path, "set", name), "invalid_expression", message)

    def _signature(self) -> Iterator[Diagnostic]:
        for index, name in enumerate(self._config.signature_options.exclude_fields):
            path = ("discovery", "prepare_metadata", "signature", "exclude_fields", index)
            yield from self._blank(path, name)

    def _given(self, path: Path) -> str:
        """What the file says at a path, where the model only keeps that it is unknown."""
        value: JsonValue = self._document.value
        for step in path:
            if isinstance(value, list) and isinstance(step, int):
                value = value[step]
            elif isinstance(value, dict) and isinstance(step, str):
                value = value.get(step)
        return "nothing" if value is None else repr(value)


def _is_call(text: str) -> bool:
    return text.endswith(")") and any(text.startswith(f"{name}(") for name in FUNCTIONS)


def _endless(transforms: dict[str, Transform]) -> set[str]:
    """The chains that lead into a circle: what is left when all that end are taken away."""
    users: dict[str, list[str]] = {name: [] for name in transforms}
    open_steps: dict[str, int] = {}
    for name, transform in transforms.items():
        steps = [s for s in transform.steps or () if s in transforms] if transform.kind == "chain" else []
        open_steps[name] = len(steps)
        for step in steps:
            users[step].append(name)
    ending = [name for name, count in open_steps.items() if count == 0]
    while ending:
        for user in users[ending.pop()]:
            open_steps[user] -= 1
            if open_steps[user] == 0:
                ending.append(user)
    return {name for name, count in open_steps.items() if count}
