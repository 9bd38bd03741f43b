"""The transforms of a project file: small named functions from a JSON value to a JSON value.

A transform gives a value or :data:`NONE`, which is not JSON's ``null``: it says that there is
nothing to give. It ends a chain; a ``field_map`` target is then left out, a discovery flag keeps
its raw value, a template variable its base.

Transforms work on a value's *text*: a string without the white space around it, a number or a
boolean as JSON writes it. Blank strings, ``null``, lists and objects have no text.

Names mean what ``definitions.transforms`` says. The kinds themselves are not names: a step called
``trim`` must be defined.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Final, TypeAlias

from beampipe_dagster.config.canonical import INT_MAX, INT_MIN, canonical_json
from beampipe_dagster.config.patterns import compile_pattern
from beampipe_dagster.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from beampipe_dagster.config.canonical import JsonValue
    from beampipe_dagster.config.project import Transform

MAX_STEPS: Final = 1_000
"""Transforms that one value may go through; nested chains can multiply without being cyclic."""

CALIBRATION_PREFIX: Final = "calibration-metadata-processing-logs-SB"
"""How CASDA names a scheduling block's calibration archive, before the SBID."""
CALIBRATION_SUFFIX: Final = ".tar"
"""How CASDA names a calibration archive, at the end."""

# Unicode's White_Space; str.strip() would also take U+001C to U+001F.
_BLANKS = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009"
_BLANKS += "\u200a\u2028\u2029\u202f\u205f\u3000"
_LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")
_UPPER = str.maketrans("abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_DEFAULT_SEPARATORS = ("/", ":", "#")
_INTEGER = re.compile(r"[+-]?[0-9]{1,20}")
_SIZE_COLUMNS = ("filesize", "file_size", "access_estsize", "size")


class _Nothing(Enum):
    NONE = "nothing"


NONE: Final = _Nothing.NONE
"""A transform's "there is nothing to give"."""

Transformed: TypeAlias = "JsonValue | _Nothing"
"""What a transform gives: a JSON value, or :data:`NONE`."""


def apply(
    spec: Transform | str | Sequence[str] | None,
    value: JsonValue,
    definitions: Mapping[str, Transform],
) -> Transformed:
    """Transform a value.

    Parameters
    ----------
    spec
        A transform, the name of one, a list of names (a chain), or ``None`` (the value as it is).
    value
        Any JSON value.
    definitions
        The project's named transforms.

    Returns
    -------
    JsonValue or NONE
        :data:`NONE` too for a name that is not defined, an unknown kind, a missing parameter or a
        pattern that is none: validation reports those, and data must not stop because of them.

    Raises
    ------
    ConfigError
        ``transform_cycle``: a chain that comes back to itself. ``transform_too_long``: a value that
        would go through more than :data:`MAX_STEPS` transforms.
    """
    if spec is None:
        return value
    # A transform alone, which is nearly all of them, has nothing to keep track of.
    alone = definitions.get(spec) if isinstance(spec, str) else None if isinstance(spec, Sequence) else spec
    if alone is not None and alone.kind != "chain":
        return _apply_one(alone, value)
    current: JsonValue = value
    # A stack of its own: the depth of a project's chains is not limited by the interpreter's.
    pending = _Pending(definitions)
    pending.push(spec)
    while (step := pending.next_step()) is not None:
        if step is NONE:
            return NONE
        result = _apply_one(step, current)
        if result is NONE:
            return NONE
        current = result
    return current


class _Pending:
    """The steps that are still to be done: chains are opened when their turn comes."""

    def __init__(self, definitions: Mapping[str, Transform]) -> None:
        self._definitions = definitions
        # A step to do and the chains that it stands in, outermost first.
        self._stack: list[tuple[Transform | str, tuple[str, ...]]] = []
        self._done = 0

    def push(self, spec: Transform | str | Sequence[str]) -> None:
        """Put a transform, a name or a list of names in front."""
        if isinstance(spec, Sequence) and not isinstance(spec, str):
            self._stack.extend((name, ()) for name in reversed(spec))
        else:
            self._stack.append((spec, ()))

    def next_step(self) -> Transform | _Nothing | None:
        """The next transform that is not a chain; ``NONE`` for a bad one, ``None`` at the end."""
        while self._stack:
            item, within = self._stack.pop()
            self._done += 1
            if self._done > MAX_STEPS:
                raise ConfigError(
                    f"a value would go through more than {MAX_STEPS} transforms",
                    code="transform_too_long",
                    hint="Shorten the chains in definitions.transforms.",
                )
            path = within
            if isinstance(item, str):
                if item in within:
                    raise _cycle(within, item)
                path = (*within, item)
            spec = self._definitions.get(item) if isinstance(item, str) else item
            if spec is None:
                return NONE
            if spec.kind != "chain":
                return spec
            if spec.steps is None:
                return NONE
            self._stack.extend((name, path) for name in reversed(spec.steps))
        return None


def text(value: JsonValue) -> str | None:
    """A value's text, trimmed; ``None`` for ``null``, blank strings, lists and objects."""
    if isinstance(value, str):
        return value.strip(_BLANKS) or None
    if value is None or isinstance(value, list | dict):
        return None
    return canonical_json(value)


def is_empty(value: JsonValue) -> bool:
    """Whether a value is ``null``, a blank string, ``[]`` or ``{}``; never a number or boolean."""
    if isinstance(value, str):
        return text(value) is None
    return value is None or value in ([], {})


def column(row: Mapping[str, JsonValue], name: str) -> Transformed:
    """A row's column by its name, else by the lower-case, else by the upper-case name.

    Archives disagree about the case of column names, and ADQL does not care. :data:`NONE` when the
    row has none of them.
    """
    for key in (name, name.lower(), name.upper()):
        if key in row:
            return row[key]
    return NONE


def column_text(row: Mapping[str, JsonValue], name: str) -> str | None:
    """The text of a row's column; ``None`` without such a column or without text."""
    value = column(row, name)
    return None if value is NONE else text(value)


def calibration_archives(
    value: JsonValue,
) -> list[tuple[int, str, dict[str, JsonValue]]]:
    """The rows that describe a usable calibration archive of CASDA.

    Parameters
    ----------
    value
        One row, or a list of rows (``casda.observation_evaluation_file``).

    Returns
    -------
    list
        ``(size in bytes, filename, row)`` of every row with format ``calibration``, a calibration
        archive's filename, an access URL, and a size that is not negative.
    """
    rows = value if isinstance(value, list) else [value]
    found = []
    for row in rows:
        if isinstance(row, dict):
            name, size = _calibration_filename(row), _byte_size(row)
            if name is not None and size is not None:
                found.append((size, name, row))
    return found


def select_calibration_archive(value: JsonValue) -> dict[str, JsonValue] | None:
    """The row of the largest calibration archive; of equal sizes the last filename wins."""
    found = calibration_archives(value)
    return max(found, key=lambda item: item[:2])[2] if found else None


def _calibration_filename(row: dict[str, JsonValue]) -> str | None:
    name = column_text(row, "filename" if column(row, "filename") is not NONE else "file_name")
    usable = (
        (column_text(row, "format") or "").translate(_LOWER) == "calibration"
        and column_text(row, "access_url") is not None
        and name is not None
        and name.startswith(CALIBRATION_PREFIX)
        and name.endswith(CALIBRATION_SUFFIX)
    )
    return name if usable else None


def _byte_size(row: dict[str, JsonValue]) -> int | None:
    for name in _SIZE_COLUMNS:
        value = column(row, name)
        size: int | None = None
        if isinstance(value, str):
            digits = value.strip(_BLANKS)
            size = int(digits) if _INTEGER.fullmatch(digits) else None
        elif isinstance(value, int | float) and not isinstance(value, bool):
            size = int(value)
        if size is not None and INT_MIN <= size <= INT_MAX:
            return size if size >= 0 else None
    return None


def _identity(_spec: Transform, value: JsonValue) -> Transformed:
    return value


def _is_present(_spec: Transform, value: JsonValue) -> Transformed:
    return not is_empty(value)


def _default_if_empty(spec: Transform, value: JsonValue) -> Transformed:
    return spec.default if is_empty(value) else value


def _select_eval_file_by_size(_spec: Transform, value: JsonValue) -> Transformed:
    found = calibration_archives(value)
    return max(found, key=lambda item: item[:2])[1] if found else NONE


def _trim(_spec: Transform, value: str) -> Transformed:
    return value


def _lowercase(_spec: Transform, value: str) -> Transformed:
    return value.translate(_LOWER)


def _uppercase(_spec: Transform, value: str) -> Transformed:
    return value.translate(_UPPER)


def _replace(spec: Transform, value: str) -> Transformed:
    return value.replace(spec.from_, spec.to or "") if spec.from_ else NONE


def _add_prefix(spec: Transform, value: str) -> Transformed:
    return NONE if spec.prefix is None else spec.prefix + value


def _add_suffix(spec: Transform, value: str) -> Transformed:
    return NONE if spec.suffix is None else value + spec.suffix


def _strip_prefix(spec: Transform, value: str) -> Transformed:
    return NONE if spec.prefix is None else value.removeprefix(spec.prefix)


def _extract_digits(_spec: Transform, value: str) -> Transformed:
    return "".join(char for char in value if "0" <= char <= "9") or NONE


def _split_last(spec: Transform, value: str) -> Transformed:
    separators = _DEFAULT_SEPARATORS if spec.separators is None else spec.separators
    characters = set("".join(separators))
    last = max((index for index, char in enumerate(value) if char in characters), default=-1)
    return value[last + 1 :].strip(_BLANKS)


def _regex_extract(spec: Transform, value: str) -> Transformed:
    if spec.pattern is None:
        return NONE
    try:
        match = compile_pattern(spec.pattern).search(value)
    except ConfigError:
        return NONE
    group = 1 if spec.group is None else spec.group
    if match is None or not 0 <= group <= match.re.groups:
        return NONE
    found: str | None = match.group(group)
    return NONE if found is None else found


_ON_VALUES: Final[dict[str, Callable[[Transform, JsonValue], Transformed]]] = {
    "identity": _identity,
    "is_present": _is_present,
    "default_if_empty": _default_if_empty,
    "select_eval_file_by_size": _select_eval_file_by_size,
}
_ON_TEXTS: Final[dict[str, Callable[[Transform, str], Transformed]]] = {
    "trim": _trim,
    "lowercase": _lowercase,
    "uppercase": _uppercase,
    "replace": _replace,
    "add_prefix": _add_prefix,
    "add_suffix": _add_suffix,
    "strip_prefix": _strip_prefix,
    "extract_digits": _extract_digits,
    "split_last": _split_last,
    "regex_extract": _regex_extract,
}
KINDS: Final = frozenset(_ON_VALUES) | frozenset(_ON_TEXTS) | {"chain"}
"""Every kind of transform that there is."""


def _apply_one(spec: Transform, value: JsonValue) -> Transformed:
    on_value = _ON_VALUES.get(spec.kind)
    if on_value is not None:
        return on_value(spec, value)
    on_text = _ON_TEXTS.get(spec.kind)
    found = text(value)
    return NONE if on_text is None or found is None else on_text(spec, found)


def _cycle(within: tuple[str, ...], name: str) -> ConfigError:
    path = " -> ".join((*within[within.index(name) :], name))
    return ConfigError(
        f"definitions.transforms: the chain {path} comes back to itself",
        code="transform_cycle",
        hint="Take one of the steps out.",
        details={"cycle": [*within[within.index(name) :], name]},
    )
