"""Canonical JSON of many records of one form, written column by column.

The rows of an archive are objects with the same keys and nearly nothing but texts. To write each of them
through a general encoder means to sort and quote the same keys again for every row. Here the keys are sorted
and quoted once for a form (the set of keys and what is under them); rows are then filled into a template.

The text is that of :func:`~beampipe_dagster.config.canonical.canonical_json`, to the byte. A template takes
texts that need no escape and nothing else: each batch is checked for that as a whole, and a column in which
there is anything else is written cell by cell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from operator import add, itemgetter
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from beampipe_dagster.config.canonical import INT_MAX, INT_MIN, canonical_json

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from beampipe_dagster.config.canonical import JsonValue

_Object: TypeAlias = "dict[str, JsonValue]"
_Cells: TypeAlias = tuple[str, ...]

_FEW: Final = 2
"""Fewer rows than this are written by the general encoder; a form would cost more than it saves."""
AT_ONCE: Final = 256
"""Rows whose texts are made together: as many as a processor's cache has room for."""
_CONTROLS: Final = bytes(range(0x20))


@dataclass(frozen=True, slots=True)
class _Form:
    """What rows have in common.

    Parameters
    ----------
    keys
        All keys, in the order of the first row that was seen.
    texts
        Those under which there are texts without escapes.
    inner
        Those under which there are objects, with the keys of these; all of their values are such texts.
    """

    keys: tuple[str, ...]
    texts: frozenset[str]
    inner: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class _Part:
    """Some cells of a row that stand together in its canonical text.

    Parameters
    ----------
    names
        The keys of the cells.
    cells
        Gives the cells of an object; ``None`` for one cell that is written by the general encoder.
    inside
        Key of the object that the cells are in; ``None`` for the row itself.
    keys
        How many keys that object has.
    left_out
        Those of them that are excluded.
    """

    names: tuple[str, ...]
    cells: Callable[[_Object], _Cells] | None
    inside: str | None = None
    keys: int = 0
    left_out: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class _Template:
    """The canonical text of a form's rows: ``%s`` for each cell, parts in the order of the text."""

    text: str
    length: int
    parts: tuple[_Part, ...]


class _UnfitError(Exception):
    """A column holds what a template cannot take; never leaves this module."""

    def __init__(self, names: AbstractSet[str]) -> None:
        super().__init__()
        self.names = names


def projected(records: Sequence[JsonValue], excluded: AbstractSet[str]) -> tuple[list[JsonValue], list[str]]:
    """Copies of records without the excluded keys at any depth, and the canonical JSON of each copy.

    An object inside a record of which nothing is left out may be the record's own: do not change it in place.

    Parameters
    ----------
    records
        Any JSON values.
    excluded
        Keys to leave out, compared exactly.

    Raises
    ------
    ConfigError
        ``invalid_json``: a value that JSON cannot hold.
    """
    first = records[0] if len(records) >= _FEW else None
    if isinstance(first, dict) and _alike(records, first):
        form = _form_of(first, excluded)
        if form is not None:
            rows = cast("Sequence[_Object]", records)
            try:
                return _projected(rows, form, frozenset(excluded))
            except KeyError:  # as many keys as the first row, but others
                pass
    return _by_form(records, excluded)


def without(value: JsonValue, excluded: AbstractSet[str]) -> JsonValue:
    """A copy of a value without the excluded keys, at every depth.

    Parameters
    ----------
    value
        Any JSON value; objects inside lists are searched too.
    excluded
        Keys to leave out, compared exactly.
    """
    if isinstance(value, dict):
        return {key: without(item, excluded) for key, item in value.items() if key not in excluded}
    if isinstance(value, list):
        return [without(item, excluded) for item in value]
    return value


def _alike(records: Sequence[JsonValue], first: _Object) -> bool:
    """Whether all are objects with as many keys; that the keys are the same is found when they are looked up."""
    if set(map(type, records)) != {dict}:
        return False
    return set(map(len, cast("Sequence[_Object]", records))) == {len(first)}


def _by_form(records: Sequence[JsonValue], excluded: AbstractSet[str]) -> tuple[list[JsonValue], list[str]]:
    """As :func:`projected`, for records that differ in their keys."""
    numbers: dict[frozenset[str] | None, list[int]] = {}
    for number, record in enumerate(records):
        numbers.setdefault(frozenset(record) if type(record) is dict else None, []).append(number)
    copies: list[JsonValue] = [None] * len(records)
    texts = [""] * len(records)
    for keys, own in numbers.items():
        some = [records[number] for number in own]
        form = None if keys is None or len(own) < _FEW else _form_of(cast("_Object", some[0]), excluded)
        if form is None:
            made = [without(record, excluded) for record in some]
            written = [canonical_json(record) for record in made]
        else:
            made, written = _projected(cast("list[_Object]", some), form, frozenset(excluded))
        for number, copy, text in zip(own, made, written, strict=True):
            copies[number], texts[number] = copy, text
    return copies, texts


def _form_of(record: _Object, excluded: AbstractSet[str]) -> _Form | None:
    """The form of a row; ``None`` when it is no row at all (keys that are no texts)."""
    if set(map(type, record)) != {str}:
        return None
    texts: list[str] = []
    inner: list[tuple[str, tuple[str, ...]]] = []
    for key, value in record.items():
        kind = type(value)
        if key in excluded:
            continue
        if kind is str:
            texts.append(key)
        elif kind is dict and value:
            object_ = cast("_Object", value)
            if set(map(type, chain(object_, object_.values()))) == {str} and not object_.keys() <= excluded:
                inner.append((key, tuple(object_)))
    return _Form(tuple(record), frozenset(texts), tuple(inner))


@lru_cache(maxsize=256)
def _template(form: _Form, excluded: frozenset[str]) -> _Template:
    inner = dict(form.inner)
    parts: list[_Part] = []
    members: list[str] = []
    run: list[str] = []

    def end_run() -> None:
        if run:
            parts.append(_Part(tuple(run), _cells_of(tuple(run))))
            run.clear()

    for key in sorted(set(form.keys) - excluded):
        if key in form.texts:
            run.append(key)
            members.append(_member(key))
            continue
        end_run()
        cell = "%s"
        if key in inner:
            names = tuple(sorted(set(inner[key]) - excluded))
            cell = f"{{{','.join(_member(name) for name in names)}}}"
            left_out = excluded.intersection(inner[key])
            parts.append(_Part(names, _cells_of(names), key, len(inner[key]), left_out))
        else:
            parts.append(_Part((key,), None))
        members.append(f"{_literal(canonical_json(key))}:{cell}")
    end_run()
    text = f"{{{','.join(members)}}}"
    cells = sum(len(part.names) for part in parts)
    return _Template(text, len(text % (("",) * cells)), tuple(parts))


def _member(name: str) -> str:
    return f'{_literal(canonical_json(name))}:"%s"'


def _literal(text: str) -> str:
    return text.replace("%", "%%")


def _cells_of(names: tuple[str, ...]) -> Callable[[_Object], _Cells]:
    if len(names) > 1:
        return cast("Callable[[_Object], _Cells]", itemgetter(*names))
    (name,) = names
    return lambda row: cast("_Cells", (row[name],))


def _projected(
    rows: Sequence[_Object], form: _Form, excluded: frozenset[str]
) -> tuple[list[JsonValue], list[str]]:
    copies: list[JsonValue] = []
    texts: list[str] = []
    start = 0
    while start < len(rows):
        some = rows[start : start + AT_ONCE]
        try:
            texts += _texts(some, form, excluded)
        except _UnfitError as unfit:
            form = replace(
                form,
                texts=form.texts - unfit.names,
                inner=tuple(pair for pair in form.inner if pair[0] not in unfit.names),
            )
        else:
            copies += _copies(some, form, excluded)
            start += AT_ONCE
    return copies, texts


def _copies(rows: Sequence[_Object], form: _Form, excluded: frozenset[str]) -> list[JsonValue]:
    copies = [row.copy() for row in rows]
    kept = set(form.keys) - excluded
    for key in excluded.intersection(form.keys):
        for copy in copies:
            del copy[key]
    for key, names in form.inner:
        left_out = excluded.intersection(names)
        if not left_out:
            continue
        for copy in copies:
            object_ = cast("_Object", copy[key]).copy()
            for name in left_out:
                del object_[name]
            copy[key] = object_
    for key in kept.difference(form.texts, dict(form.inner)):
        for copy in copies:
            copy[key] = without(copy[key], excluded)
    return cast("list[JsonValue]", copies)


def _texts(rows: Sequence[_Object], form: _Form, excluded: frozenset[str]) -> list[str]:
    """The canonical text of each row.

    Raises
    ------
    _UnfitError
        With the keys under which there is something else than the form says.
    """
    template = _template(form, excluded)
    if not template.parts:
        return [template.text] * len(rows)
    length = template.length * len(rows)
    columns: list[Sequence[_Cells]] = []
    for part in template.parts:
        if part.cells is None:
            (key,) = part.names
            written = [_cell(row[key], excluded) for row in rows]
            columns.append([(text,) for text in written])
            length += sum(map(len, written))
        else:
            cells = _cells_in(rows, part)
            columns.append(cells)
            length += _checked(part, cells)
    cells_of_rows: Iterable[_Cells] = columns[0]
    for column in columns[1:]:
        cells_of_rows = map(add, cells_of_rows, column)
    text = template.text
    texts = [text % cells for cells in cells_of_rows]
    if sum(map(len, texts)) != length:  # a subclass of str that prints itself as something else than it holds
        raise _UnfitError(form.texts.union(dict(form.inner)))
    return texts


def _cells_in(rows: Sequence[_Object], part: _Part) -> list[_Cells]:
    cells = cast("Callable[[_Object], _Cells]", part.cells)
    if part.inside is None:
        return list(map(cells, rows))
    objects = [row[part.inside] for row in rows]
    own = cast("list[_Object]", objects)
    # As many keys, and below that none of them is missing: the same keys.
    if set(map(type, objects)) == {dict} and set(map(len, own)) == {part.keys}:
        with suppress(KeyError):
            if not part.left_out or all(part.left_out <= object_.keys() for object_ in own):
                return list(map(cells, own))
    raise _UnfitError({part.inside})


def _checked(part: _Part, cells: Sequence[_Cells]) -> int:
    """How many characters there are in the cells, all of them texts without escapes."""
    try:
        content = "".join(chain.from_iterable(cells))
    except TypeError:
        pass
    else:
        if not _needs_escapes(content):
            return len(content)
    raise _UnfitError(_unfit(part.names, cells) if part.inside is None else {part.inside})


def _unfit(names: tuple[str, ...], cells: Sequence[_Cells]) -> set[str]:
    """The columns that are to blame; all, if none is."""
    found = {
        name
        for name, column in zip(names, zip(*cells, strict=True), strict=True)
        if set(map(type, column)) != {str} or _needs_escapes("".join(column))
    }
    return found or set(names)


def _needs_escapes(content: str) -> bool:
    if '"' in content or "\\" in content:
        return True
    raw = content.encode("utf-8", "surrogatepass")
    return len(raw.translate(None, _CONTROLS)) != len(raw)


def _cell(value: JsonValue, excluded: frozenset[str]) -> str:
    if value is None:
        return "null"
    if type(value) is int and INT_MIN <= value <= INT_MAX:
        return repr(value)
    return canonical_json(without(value, excluded))
