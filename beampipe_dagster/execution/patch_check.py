"""What is wrong with a survey's patches, found with the graph at hand and before anything is submitted.

Applying patches stops at the first one that cannot be applied, lets a later one win over an earlier one,
and writes whatever value it is given. Here all patches are looked at together, and every finding is told
at once: patches that reach nothing, or several nodes where one is meant, fields that are not there, values
that are not of the field's type, and patches that contradict each other.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from beampipe_dagster.config.canonical import JsonValue, canonical_json
from beampipe_dagster.config.expressions import is_expression
from beampipe_dagster.errors import GraphError
from beampipe_dagster.execution.graph import INGEST_FIELD, find_ingest
from beampipe_dagster.execution.graph_lint import Finding, Severity
from beampipe_dagster.execution.manifest import DEFAULT_SCATTER, match_json
from beampipe_dagster.execution.patches import (
    NODES,
    JsonObject,
    choose,
    described,
    field_not_found,
    objects,
    own_kind,
    place_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from beampipe_dagster.config.project import GraphPatch

_INTEGER: Final = re.compile(r"\s*[+-]?[0-9]+\s*")
_NUMBER: Final = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*")
_SHOWN: Final = 60
_LISTED: Final = 5


@dataclass(frozen=True, slots=True)
class _Patch:
    """A patch in one form, wherever it comes from; ``computed`` holds the fields of expressions."""

    label: str
    match: JsonValue
    values: JsonObject
    computed: frozenset[str] = frozenset()


def check_patches(graph: JsonObject, patches: Sequence[GraphPatch]) -> list[Finding]:
    """Look at the patches of a project file.

    Parameters
    ----------
    graph
        The survey's logical graph.
    patches
        ``graph_patches``; expressions count as integers, since their values are not known yet.

    Returns
    -------
    list of Finding
        Errors first. ``graph_patch_node_not_found``, ``graph_patch_ambiguous``,
        ``graph_patch_field_not_found``, ``graph_patch_type_mismatch`` and ``graph_patch_conflict`` are
        errors; a value that only has to be read as the field's type, a name that several nodes share, a
        field that only some of them have, and the default patch without its node are warnings.
    """
    if not patches:
        return list(_about_default(graph))
    made = [
        _Patch(
            f"graph_patches[{index}]",
            match,
            dict(sorted(patch.set_.items())),
            frozenset(k for k, v in patch.set_.items() if isinstance(v, str) and is_expression(v)),
        )
        for index, patch in enumerate(patches)
        if (match := match_json(patch.match)) is not None
    ]
    return _check(graph, made)


def check_overrides(graph: JsonObject, overrides: JsonValue) -> list[Finding]:
    """Look at a manifest's ``graph_overrides``, whose expressions are computed; as :func:`check_patches`."""
    patches = overrides.get("patches") if isinstance(overrides, dict) else None
    made = [
        _Patch(
            f"graph_overrides.patches[{index}]",
            patch.get("match"),
            {str(entry.get("name")): entry.get("value") for entry in objects(patch.get("fields"))},
        )
        for index, patch in enumerate(objects(patches))
    ]
    return _check(graph, made)


def refuse_errors(findings: Sequence[Finding], *, name: str) -> None:
    """Raise the first error of a list, with all findings in its details.

    Parameters
    ----------
    findings
        What was found.
    name
        Whose graph it is, for the message.

    Raises
    ------
    GraphError
        With the first error's own code.
    """
    errors = [finding for finding in findings if finding.severity is Severity.ERROR]
    if not errors:
        return
    first = errors[0]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    raise GraphError(
        f"{name}: {first.message}{more}",
        code=first.code,
        hint=first.hint or "Correct graph_patches or the graph, then add the project again.",
        details={
            "candidates": [*first.candidates],
            "findings": [finding.as_dict() for finding in findings],
        },
    )


def _check(graph: JsonObject, patches: Sequence[_Patch]) -> list[Finding]:
    nodes = graph.get(NODES)
    known: list[JsonValue] = nodes if isinstance(nodes, list) else []
    findings: list[Finding] = []
    writes: dict[tuple[int, str], tuple[_Patch, JsonValue]] = {}
    for patch in patches:
        try:
            chosen = choose(known, patch.match)
        except GraphError as error:
            findings.append(_as_finding(patch, error))
            continue
        findings.extend(_about_namesakes(patch, [node for _, node in chosen]))
        findings.extend(_about_fields(patch, [node for _, node in chosen]))
        findings.extend(_about_conflicts(patch, known, [index for index, _ in chosen], writes))
    findings.extend(_about_ingest(graph, known, writes))
    order = list(Severity)
    return sorted(dict.fromkeys(findings), key=lambda finding: order.index(finding.severity))


def _as_finding(patch: _Patch, error: GraphError) -> Finding:
    message = f"{patch.label}: {error.message.removeprefix('graph_patches: ')}"
    candidates = tuple(str(one) for one in error.details.get("candidates", ()))
    return Finding(error.code, Severity.ERROR, message, None, error.hint, candidates)


def _about_namesakes(patch: _Patch, chosen: Sequence[JsonObject]) -> Iterator[Finding]:
    asked = patch.match if isinstance(patch.match, dict) else {}
    if len(chosen) > 1 and own_kind(patch.match) is None and "count" not in asked:
        yield Finding(
            "duplicate_node_name",
            Severity.WARNING,
            f"{patch.label}: {len(chosen)} nodes have {described(patch.match)}; all are patched.",
            _name(chosen[0]),
            "Say count: many if that is meant, or name one of them by node_name_index or node_id.",
        )


def _about_fields(patch: _Patch, chosen: Sequence[JsonObject]) -> Iterator[Finding]:
    for name, value in patch.values.items():
        fields = [
            (node, field)
            for node in chosen
            for field in objects(node.get("fields"))
            if field.get("name") == name
        ]
        if not fields:
            yield _as_finding(patch, field_not_found(patch.match, name, chosen))
            continue
        having = {id(node) for node, _ in fields}
        lacking = [_name(node) for node in chosen if id(node) not in having]
        if lacking:
            message = f"{patch.label}: {len(lacking)} of {len(chosen)} matching nodes have no field {name!r}."
            yield Finding("graph_patch_field_on_some", Severity.WARNING, message, lacking[0])
        for node, field in fields:
            yield from _about_type(patch, name, value, node, field)


def _about_type(
    patch: _Patch, name: str, value: JsonValue, node: JsonObject, field: JsonObject
) -> Iterator[Finding]:
    kind = str(field.get("type"))
    options = field.get("options")
    if name in patch.computed:
        value = 1
    where = f"{patch.label}: {_name(node)}.{name} is of type {kind}"
    shown = "an expression's integer" if name in patch.computed else _shown(value)
    verdict = _fits(kind, value)
    if verdict is None:
        if kind == "Select" and isinstance(options, list) and options and value not in options:
            listed = tuple(str(one) for one in options)
            yield Finding(
                "graph_patch_not_an_option",
                Severity.WARNING,
                f"{where}, and {shown} is none of its options.",
                _name(node),
                f"Its options: {', '.join(listed[:_LISTED])}{', ...' if len(listed) > _LISTED else '.'}",
                listed,
            )
        return
    severity, wanted = verdict
    fault = f"cannot take {shown}" if severity is Severity.ERROR else f"{shown} has to be read as one"
    yield Finding("graph_patch_type_mismatch", severity, f"{where}; {fault}.", _name(node), f"Give {wanted}.")


def _fits(kind: str, value: JsonValue) -> tuple[Severity, str] | None:
    """How a value does not fit a field's type, and what would; ``None`` when it fits.

    The types are EAGLE's. A text that reads as the type is what EAGLE itself often saves, so it is only
    a warning. Objects, events and types that are not known take anything.
    """
    rule = _TYPES.get(kind)
    if rule is None:
        return None
    fits, readable, wanted = rule
    if fits(value):
        return None
    return (Severity.WARNING if readable(value) else Severity.ERROR), wanted


def _is_integer(value: JsonValue) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: JsonValue) -> bool:
    return _is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def _reads_as_integer(value: JsonValue) -> bool:
    whole = isinstance(value, float) and value.is_integer()
    return whole or (isinstance(value, str) and bool(_INTEGER.fullmatch(value)))


def _reads_as_number(value: JsonValue) -> bool:
    return isinstance(value, str) and bool(_NUMBER.fullmatch(value))


def _reads_as_boolean(value: JsonValue) -> bool:
    return isinstance(value, str) and value.strip().lower() in {"true", "false"}


def _has_text(value: JsonValue) -> bool:
    return isinstance(value, bool | int | float)


_TYPES: Final = {
    "Integer": (_is_integer, _reads_as_integer, "a whole number, without quotes"),
    "Float": (_is_number, _reads_as_number, "a number, without quotes"),
    "Boolean": (lambda value: isinstance(value, bool), _reads_as_boolean, "true or false, without quotes"),
    "String": (lambda value: isinstance(value, str), _has_text, "text, in quotes"),
    "Select": (lambda value: isinstance(value, str), _has_text, "text, in quotes"),
    "Password": (lambda value: isinstance(value, str), _has_text, "text, in quotes"),
}


def _about_conflicts(
    patch: _Patch,
    nodes: Sequence[JsonValue],
    chosen: Sequence[int],
    writes: dict[tuple[int, str], tuple[_Patch, JsonValue]],
) -> Iterator[Finding]:
    for index in chosen:
        node = nodes[index]
        present = (
            {field.get("name") for field in objects(node.get("fields"))} if isinstance(node, dict) else ()
        )
        for name, value in patch.values.items():
            if name not in present:
                continue
            before = writes.get((index, name))
            writes[index, name] = (patch, value)
            if before is None or canonical_json(before[1]) == canonical_json(value):
                continue
            place = place_of(nodes, index)
            message = (
                f"{patch.label}: sets {name!r} of {place} to {_shown(value)}, but {before[0].label} sets it"
                f" to {_shown(before[1])}."
            )
            hint = "Only one can be meant: remove one, or let each match other nodes."
            yield Finding("graph_patch_conflict", Severity.ERROR, message, place, hint)


def _about_ingest(
    graph: JsonObject, nodes: Sequence[JsonValue], writes: dict[tuple[int, str], tuple[_Patch, JsonValue]]
) -> Iterator[Finding]:
    place = find_ingest(graph)
    for (index, name), (patch, _) in writes.items():
        node = nodes[index]
        mine = isinstance(node, dict) and place is not None and node.get("id") == place.node_id
        if mine and name == INGEST_FIELD:
            yield Finding(
                "graph_patch_without_effect",
                Severity.WARNING,
                f"{patch.label}: the manifest itself is put into {place_of(nodes, index)}.{name}.",
                place_of(nodes, index),
                "Remove the patch: its value never reaches the graph.",
            )


def _about_default(graph: JsonObject) -> Iterator[Finding]:
    """Without patches of its own a survey has the default one, which needs its node."""
    named = [node for node in objects(graph.get(NODES)) if node.get("name") == DEFAULT_SCATTER]
    if not named:
        yield Finding(
            "graph_patch_node_not_found",
            Severity.WARNING,
            f"There are no graph_patches, so that num_of_copies of {DEFAULT_SCATTER!r} is set, and the graph"
            " has no such node: no execution could be prepared.",
            None,
            "Give graph_patches for a node of the graph.",
        )


def _name(node: JsonObject) -> str:
    return str(node.get("name") or node.get("id"))


def _shown(value: JsonValue) -> str:
    text = canonical_json(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
