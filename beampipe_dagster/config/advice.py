"""Warnings about a project file: it is valid, and yet something about it deserves a second look."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from beampipe_dagster.config.diagnostics import Diagnostic, Severity, located, nearest
from beampipe_dagster.config.own_rules import Problem
from beampipe_dagster.config.secrets import find_secrets

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from beampipe_dagster.config.project import FieldMapping, ProjectConfig, Query
    from beampipe_dagster.config.yaml_loader import Path, YamlDocument

_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
# What a template is made of, as far as quoting goes: a string literal, a delimited identifier, a comment,
# or a placeholder outside of them. A literal without its end reaches to the end of the template.
_PIECE: Final = re.compile(
    r"(?P<literal>'(?:[^']|'')*'?)"
    r'|(?P<identifier>"(?:[^"]|"")*"?)'
    r"|(?P<comment>--[^\n]*|/\*(?:[^*]|\*(?!/))*(?:\*/)?)"
    r"|(?P<open>\{[^{}]*\})"
)
_INTEGER: Final = re.compile(r"-?[0-9]{1,18}")
_KEEPS_DIGITS: Final = frozenset({"identity", "trim", "lowercase", "uppercase"})
_ROUNDS: Final = 64


def project_warnings(
    config: ProjectConfig, document: YamlDocument, active: ProjectConfig | None
) -> Iterator[Diagnostic]:
    """The warnings about a valid project.

    Parameters
    ----------
    config
        The project.
    document
        The document that it was read from.
    active
        The revision in use; what makes signatures differ from it comes first.

    Yields
    ------
    Diagnostic
        ``signature_changed``, ``field_map_changed``, ``definitions_changed``; ``unquoted_placeholder``,
        ``unknown_placeholder``; ``inline_secret``.
    """
    if active is not None:
        yield from _changes(config, active, document)
    yield from _about_templates(config, document)
    for path, kind in find_secrets(document.value, keys=False):
        yield located(
            document,
            path,
            "inline_secret",
            f"looks like {kind}; project files are stored, shown and shared",
            hint="Take it out, and change it where it is used: it has been written down.",
            severity=Severity.WARNING,
        )


def survey_advice(config: ProjectConfig) -> Iterator[Problem]:
    """Parts of a valid project that cannot do what they seem to be there for.

    Yields
    ------
    Problem
        ``sbid_not_mapped``: datasets may have no scheduling block, and a dataset without one is refused.
        ``flag_on_primary_query``, ``flag_without_origin``: a flag that is ``null`` before its transform,
        whatever the archive says. ``dataset_template_without_identity``: manifests that cannot be checked.
    """
    prepare = config.discovery.prepare_metadata
    queries, enrichments = config.discovery.queries, config.discovery.enrichments
    if queries and (prepare is None or "sbid" not in prepare.field_map):
        path: Path = ("discovery",) if prepare is None else ("discovery", "prepare_metadata", "field_map")
        lost = ", and no enrichment is ever asked for" if enrichments else ""
        yield Problem(
            path,
            "sbid_not_mapped",
            "no field is mapped to sbid: unless the archive's rows have a column of that name, every look at a "
            f"source fails, since a dataset must have a scheduling block{lost}",
            "Add for example  sbid: {from: obs_id, transform: digits}  with a transform of kind extract_digits.",
        )
    origins = [query.name for query in (*queries[1:], *enrichments)]
    for name, mapping in sorted((prepare.discovery_flags if prepare else {}).items()):
        origin = mapping.from_
        if not any(_below(origin, f"enrichments.{query}") for query in origins):
            yield _lost_flag(name, origin, queries[0].name if queries else None, origins)

    manifest = config.manifest
    template = manifest.dataset_template if manifest and manifest.expand_from == "metadata" else None
    if template is not None and not _identifies(template.keys()):
        yield Problem(
            ("manifest", "dataset_template"),
            "dataset_template_without_identity",
            "it leaves out what tells datasets apart, so that a manifest cannot be compared with what was selected",
            "Keep source_identifier, sbid, and dataset_id or visibility_filename.",
        )


def _identifies(names: Collection[str]) -> bool:
    return {"source_identifier", "sbid"} <= set(names) and not {
        "dataset_id",
        "visibility_filename",
    }.isdisjoint(names)


def _below(path: str, root: str) -> bool:
    return path == root or path.startswith(f"{root}.")


def _lost_flag(name: str, origin: str, primary: str | None, origins: list[str]) -> Problem:
    path: Path = ("discovery", "prepare_metadata", "discovery_flags", name, "from")
    known = " or ".join(f"enrichments.{query}" for query in origins)
    hint = f"Take it from {known}." if known else "Add a query for it, or take the flag out."
    if primary is not None and _below(origin, f"enrichments.{primary}"):
        return Problem(
            path,
            "flag_on_primary_query",
            f"{primary} is the first query, whose rows are the datasets; it is not among the enrichments, so that "
            "the flag is always null before its transform, and a source may never be ready",
            f"{hint} A source without datasets does not run anyway.",
        )
    return Problem(
        path,
        "flag_without_origin",
        f"there is nothing at {origin!r}: the flag is always null before its transform, and a source may never be "
        "ready",
        hint,
    )


def _changes(config: ProjectConfig, active: ProjectConfig, document: YamlDocument) -> Iterator[Diagnostic]:
    new, old = config.discovery.prepare_metadata, active.discovery.prepare_metadata
    changes: list[tuple[Path, str, bool]] = [
        (
            ("discovery", "prepare_metadata", "signature"),
            "signature_changed",
            config.signature_options != active.signature_options,
        ),
        (
            ("discovery", "prepare_metadata", "field_map"),
            "field_map_changed",
            (new.field_map if new else {}) != (old.field_map if old else {}),
        ),
        (("definitions", "transforms"), "definitions_changed", config.transforms != active.transforms),
    ]
    for path, code, changed in changes:
        if changed:
            yield located(
                document,
                path,
                code,
                "differs from the active revision: sources may get new signatures and run again",
                severity=Severity.WARNING,
            )


def _about_templates(config: ProjectConfig, document: YamlDocument) -> Iterator[Diagnostic]:
    identity = config.source_identity
    names = {"source_identifier", *(("source_name",) if identity is None else identity.template_vars)}
    integers = set(_integer_variables(config))
    for part, queries in (
        ("queries", config.discovery.queries),
        ("enrichments", config.discovery.enrichments),
    ):
        known = names | ({"sbid"} if part == "enrichments" else set())
        for index, query in enumerate(queries):
            path: Path = ("discovery", part, index, "template")
            yield from _about_template(query, path, document, known, integers)


def _about_template(
    query: Query, path: Path, document: YamlDocument, known: set[str], integers: set[str]
) -> Iterator[Diagnostic]:
    unquoted = set(unquoted_names(query.adql_template))
    for name in sorted(unquoted & known - integers):
        yield located(
            document,
            path,
            "unquoted_placeholder",
            f"{{{name}}} stands outside of a quoted text, where an identifier could change the query itself",
            hint=f"Write '{{{name}}}' in single quotes. Only a value that can be nothing but an integer may do "
            "without: an {sbid} that extract_digits makes, or a variable with a literal integer.",
            severity=Severity.WARNING,
        )
    for name in sorted(set(_PLACEHOLDER.findall(query.adql_template)) - known):
        yield located(
            document,
            path,
            "unknown_placeholder",
            f"{{{name}}} is no variable of this query and stays as it is",
            hint=nearest(name, sorted(known)),
            severity=Severity.WARNING,
        )


def unquoted_names(template: str) -> Iterator[str]:
    """The names of placeholders that stand neither in a string literal nor in a comment.

    Inside a delimited identifier (``"..."``) counts as unquoted: only single quotes are doubled when a
    value is filled in.
    """
    for piece in _PIECE.finditer(template):
        if piece.lastgroup in {"open", "identifier"}:
            yield from _PLACEHOLDER.findall(piece[0])


def _integer_variables(config: ProjectConfig) -> Iterator[str]:
    """The variables that cannot be anything but an integer.

    A variable that is made of the identifier is never one of them: when its transform gives nothing, it
    is the identifier itself. An SBID without digits is no SBID at all, and is not asked for.
    """
    prepare = config.discovery.prepare_metadata
    mapping = prepare.field_map.get("sbid") if prepare else None
    if mapping is not None and _gives_digits(config, mapping):
        yield "sbid"
    for name, variable in (config.source_identity.template_vars if config.source_identity else {}).items():
        if variable.transform is None and _INTEGER.fullmatch(variable.from_ or ""):
            yield name


def _gives_digits(config: ProjectConfig, mapping: FieldMapping) -> bool:
    """Whether the last step that changes more than case and white space is ``extract_digits``."""
    pending = list(mapping.transform_names)
    for _ in range(_ROUNDS):
        step = config.transforms.get(pending.pop()) if pending else None
        if step is None:
            return False
        if step.kind == "extract_digits":
            return True
        if step.kind == "chain":
            pending.extend(step.steps or ())
        elif step.kind not in _KEEPS_DIGITS:
            return False
    return False
