"""What is wrong with a file: where, what, how bad, and what to do about it."""

from __future__ import annotations

import difflib
import types
import typing
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

    from beampipe_dagster.config.canonical import JsonValue
    from beampipe_dagster.config.yaml_loader import Path, YamlDocument

_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "tuple_type": "a list",
}
_SHOWN = 60
_COMPARED = 100
_LISTED = 20


class Severity(StrEnum):
    """Whether a file with it can be used."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One thing that is wrong, or worth knowing.

    Parameters
    ----------
    path
        Dotted path of the value, with ``[i]`` for list elements; ``.`` is the whole document. For
        text that could not be read: ``line L, column C``, or ``$``.
    severity
        An error makes the file unusable.
    code
        Stable identifier.
    message
        What is wrong, in a sentence.
    hint
        What to do, where the message alone does not say it.
    line, column
        From 1, in the text that was read, where they are known.
    """

    path: str
    severity: Severity
    code: str
    message: str
    hint: str | None = None
    line: int | None = None
    column: int | None = None

    def as_dict(self) -> dict[str, JsonValue]:
        """The diagnostic as JSON; what is not known is left out."""
        out: dict[str, JsonValue] = {
            "path": self.path,
            "severity": self.severity.value,
            "code": self.code,
            "message": self.message,
        }
        if self.hint is not None:
            out["hint"] = self.hint
        if self.line is not None and self.column is not None:
            out["line"], out["column"] = self.line, self.column
        return out

    def text(self, name: str) -> str:
        """One line for a terminal, beginning with ``name:line:column`` as compilers do."""
        where = name if self.line is None else f"{name}:{self.line}:{self.column}"
        hint = f" ({self.hint})" if self.hint else ""
        return f"{where}: {self.severity} [{self.code}] {self.path}: {self.message}{hint}"


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """What validation has to say about a project file.

    Parameters
    ----------
    project_id
        ``metadata.id``, or ``""`` when it cannot be read.
    errors, warnings
        In the order of the rules; structure errors in the order of the text.
    spec_sha256
        Digest of the project; for a file that is no project, of its bytes.
    """

    project_id: str
    errors: tuple[Diagnostic, ...]
    warnings: tuple[Diagnostic, ...]
    spec_sha256: str

    @property
    def valid(self) -> bool:
        """Whether there are no errors."""
        return not self.errors

    def as_dict(self) -> dict[str, JsonValue]:
        """The report as JSON; ``warnings`` only when there are any."""
        out: dict[str, JsonValue] = {
            "project_id": self.project_id,
            "valid": self.valid,
            "errors": [diagnostic.as_dict() for diagnostic in self.errors],
            "spec_sha256": self.spec_sha256,
        }
        if self.warnings:
            out["warnings"] = [diagnostic.as_dict() for diagnostic in self.warnings]
        return out


class Mismatch(StrEnum):
    """How a value does not fit its model."""

    UNKNOWN_FIELD = "unknown_field"
    MISSING_FIELD = "missing_field"
    UNKNOWN_VARIANT = "unknown_variant"
    WRONG_VALUE = "wrong_value"


@dataclass(frozen=True, slots=True)
class StructureProblem:
    """A value that does not fit its model.

    Parameters
    ----------
    kind
        How it does not fit.
    path
        The unknown field, the parent of a missing one, or the value.
    subject
        The field's name; the variant that is not known; else ``""``.
    message, hint
        For people.
    """

    kind: Mismatch
    path: Path
    subject: str
    message: str
    hint: str


def dotted(path: Path) -> str:
    """``("a", 0, "b")`` as ``a[0].b``, and the root as ``.``."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return text.removeprefix(".") if text not in {"", "."} else "."


def located(
    document: YamlDocument,
    path: Path,
    code: str,
    message: str,
    *,
    hint: str | None = None,
    severity: Severity = Severity.ERROR,
) -> Diagnostic:
    """A diagnostic with the place of the value, or of what is nearest around it."""
    place = next(
        (p for end in range(len(path), -1, -1) if (p := document.position(path[:end]))), (None, None)
    )
    return Diagnostic(dotted(path), severity, code, message, hint, place[0], place[1])


@lru_cache(maxsize=256)
def _close(name: str, known: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(difflib.get_close_matches(name, known, n=2, cutoff=0.6))


def nearest(name: str, known: Sequence[str]) -> str:
    """A sentence that names the known words that are nearest to one, or some of them.

    The comparison is quadratic in the length of the words, so only as many short ones are compared as
    a person would write.
    """
    if not known:
        return "Nothing is known here."
    if len(known) <= _COMPARED and len(name) <= _SHOWN:
        close = _close(name, tuple(word for word in known if len(word) <= _SHOWN))
        if close:
            return f"Did you mean {' or '.join(close)}?"
    listed = ", ".join(_cut(word) for word in known[:_LISTED])
    return f"Known here: {listed}{', ...' if len(known) > _LISTED else '.'}"


def structure_problems(
    error: ValidationError, model: type[BaseModel], value: JsonValue, *, limit: int | None = None
) -> list[StructureProblem]:
    """All the ways in which a value does not fit a model.

    Parameters
    ----------
    error
        What pydantic says.
    model
        The model of the whole value.
    value
        The whole value; union tags that pydantic puts into its paths are not in it, and are dropped.
    limit
        How many to say; all of them unless given.
    """
    found = error.errors(include_url=False, include_context=True)
    return [_problem(details, model, value) for details in found[:limit]]


def _problem(details: ErrorDetails, model: type[BaseModel], value: JsonValue) -> StructureProblem:
    kind = details["type"]
    missing = kind == "missing"
    loc = details["loc"][:-1] if missing else details["loc"]
    unknown = kind == "extra_forbidden"
    path = _real_path(loc[:-1] if unknown else loc, value)
    last = str(details["loc"][-1]) if details["loc"] else ""
    if unknown:
        hint = nearest(last, _field_names(model, loc[:-1]))
        return StructureProblem(
            Mismatch.UNKNOWN_FIELD, (*path, last), last, f"the field {_shown(last)} is not known", hint
        )
    if missing:
        hint = f"Add {last} under {dotted(path)}." if path else f"Add {last} at the top level."
        return StructureProblem(Mismatch.MISSING_FIELD, path, last, f"the field {last!r} is missing", hint)
    context = details.get("ctx", {})
    if kind in {"union_tag_invalid", "literal_error"}:
        given = str(context.get("tag", details["input"]))
        allowed = str(context.get("expected_tags") or context.get("expected"))
        return StructureProblem(
            Mismatch.UNKNOWN_VARIANT, path, given, f"{given!r} is not known", f"Use {allowed}."
        )
    if kind == "union_tag_not_found":
        tag = str(context.get("discriminator", "kind")).strip("'")
        return StructureProblem(
            Mismatch.MISSING_FIELD, path, tag, f"the field {tag!r} is missing", f"Add {tag}."
        )
    expected = _EXPECTED.get(kind) or _bounds(kind, context) or details["msg"]
    return StructureProblem(
        Mismatch.WRONG_VALUE,
        path,
        "",
        f"{_shown(details['input'])} is not {expected}",
        f"Give {expected}.",
    )


def _bounds(kind: str, context: dict[str, Any]) -> str | None:
    words = {"greater_than_equal": ("ge", "at least"), "less_than_equal": ("le", "at most")}
    if kind not in words:
        return None
    key, word = words[kind]
    return f"a whole number of {word} {context.get(key)}"


def _real_path(loc: tuple[int | str, ...], value: JsonValue) -> Path:
    """A pydantic location without the steps that are not in the value."""
    path: list[str | int] = []
    for step in loc:
        here = value
        if isinstance(here, list):
            if isinstance(step, int) and step < len(here):
                value = here[step]
                path.append(step)
        elif isinstance(here, dict) and isinstance(step, str) and step in here:
            value = here[step]
            path.append(step)
    return tuple(path)


def _field_names(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The field names of the model at a location."""
    current: Any = model
    for step in loc:
        following = None
        for option in _options(current):
            if isinstance(option, type) and issubclass(option, BaseModel):
                fields = {f.alias or n: f.annotation for n, f in option.model_fields.items()}
                tag = option.model_fields.get("kind")
                if step in fields:
                    following = fields[str(step)]
                elif tag is not None and step == tag.default:
                    following = option
            elif typing.get_origin(option) is tuple:
                following = typing.get_args(option)[0]
            elif typing.get_origin(option) is dict:
                following = typing.get_args(option)[1]
        if following is None:
            return []
        current = following
    return [
        field.alias or name
        for option in _options(current)
        if isinstance(option, type) and issubclass(option, BaseModel)
        for name, field in option.model_fields.items()
    ]


def _options(annotation: Any) -> Iterator[Any]:  # noqa: ANN401  # any type annotation
    """The members of a union without their metadata, or the annotation itself."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from _options(typing.get_args(annotation)[0])
    elif origin in {typing.Union, types.UnionType}:
        for member in typing.get_args(annotation):
            yield from _options(member)
    else:
        yield annotation


def _shown(value: object) -> str:
    names = {dict: "a mapping", list: "a list", type(None): "null", bool: str(value).lower()}
    if type(value) in names:
        return names[type(value)]
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
