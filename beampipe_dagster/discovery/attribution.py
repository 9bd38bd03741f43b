"""Which rows of an answer for many sources belong to whom: by the comparison that the archive made.

A row that fits two sources goes to both, as each would have got it alone. One that fits none shows that the archive
compares in another way than this does (without regard to case, say), so that nothing of the answer can be believed.
Texts are compared as they are, byte for byte: an archive that takes ``'a '`` and ``'a'`` for equal gives rows that
fit none, and its queries are asked source by source.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import partial

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.discovery.rewrite import BatchPlan, Comparison
from beampipe_dagster.errors import ArchiveError, Retry

Row = dict[str, JsonValue]

_WILDCARD = re.compile("[%_]")


def attribute(
    plan: BatchPlan, contexts: Sequence[Mapping[str, JsonValue]], rows: Sequence[Mapping[str, JsonValue]]
) -> list[list[Row]]:
    """The rows of each source, in the order of the answer.

    Parameters
    ----------
    plan
        By which the query was made.
    contexts
        What it was made for.
    rows
        The complete answer.

    Returns
    -------
    list of list of dict
        For each context, copies of its rows.

    Raises
    ------
    ArchiveError
        ``row_not_attributable``: a row fits no context, or has not the columns that tell.
        ``value_not_comparable``: the latest rows are wanted, and a value is no number.
    """
    if not rows:
        return [[] for _ in contexts]
    names = [_column_of(rows[0], one.column) for one in plan.comparisons]
    index = _Index([_wanted(plan.comparisons, context) for context in contexts])
    out: list[list[Row]] = [[] for _ in contexts]
    for row in rows:
        owners = index.owners([_cell(row, name) for name in names])
        if not owners:
            raise _unbelievable(
                "row_not_attributable",
                f"a row fits none of the sources that were asked for: {_shown(row, names)}",
            )
        for owner in owners:
            out[owner].append(dict(row))
    if plan.keep_max is None:
        return out
    latest = _column_of(rows[0], plan.keep_max)
    return [_with_greatest(own, latest) for own in out]


def owner_finder(
    comparisons: Sequence[Comparison], contexts: Sequence[Mapping[str, JsonValue]]
) -> Callable[[Sequence[str]], list[int]]:
    """Finds out whom a row belongs to, by the cells that the comparisons are about, in their order.

    Parameters
    ----------
    comparisons
        Those that tell the sources apart.
    contexts
        What the placeholders mean for each source; numbers of these are what is found, none or several.
    """
    return _Index([_wanted(comparisons, context) for context in contexts]).owners


@dataclass(frozen=True, slots=True)
class _Pattern:
    """What a cell is compared with."""

    text: str
    like: bool

    @property
    def beginning(self) -> str:
        """What the cell begins with for sure."""
        found = _WILDCARD.search(self.text) if self.like else None
        return self.text if found is None else self.text[: found.start()]

    def test(self) -> Callable[[str], object]:
        """Whether a whole cell fits; in the simplest way that does."""
        if not self.like or self.text == self.beginning:
            return self.text.__eq__
        if self.text == f"{self.beginning}%":
            return partial(_begins, self.beginning)
        return partial(_fits, [_Segment.of(text) for text in self.text.split("%")])


@dataclass(frozen=True, slots=True)
class _Segment:
    """Part of a pattern between two ``%``: literal texts at their offsets, and any one character elsewhere."""

    length: int
    literals: tuple[tuple[int, str], ...]

    @classmethod
    def of(cls, text: str) -> _Segment:
        """The segment of a text in which ``_`` stands for any one character."""
        literals: list[tuple[int, str]] = []
        offset = 0
        for literal in text.split("_"):
            if literal:
                literals.append((offset, literal))
            offset += len(literal) + 1
        return cls(len(text), tuple(literals))

    def is_at(self, cell: str, place: int) -> bool:
        """Whether the segment stands at a place of a cell that is long enough for it."""
        for offset, literal in self.literals:  # noqa: SIM110  # all() over a generator takes three times as long
            if not cell.startswith(literal, place + offset):
                return False
        return True


def _fits(segments: Sequence[_Segment], cell: str) -> bool:
    """Whether a cell is like a pattern of these segments with anything between them.

    Not by a regular expression: there is a pattern for each source, and to compile one takes longer than to compare
    thousands of cells.
    """
    first, last = segments[0], segments[-1]
    end = len(cell) - last.length
    if len(segments) == 1:
        return end == 0 and first.is_at(cell, 0)
    place = first.length
    if place > end or not first.is_at(cell, 0) or not last.is_at(cell, end):
        return False
    for segment in segments[1:-1]:
        while place + segment.length <= end and not segment.is_at(cell, place):
            place += 1
        if place + segment.length > end:
            return False
        place += segment.length
    return True


def _begins(beginning: str, cell: str) -> bool:
    return cell.startswith(beginning)


class _Index:
    """Finds whom a row fits without comparing it with everybody: by what the first cell begins with."""

    def __init__(self, wanted: Sequence[Sequence[_Pattern]]) -> None:
        self._tests = [[pattern.test() for pattern in patterns] for patterns in wanted]
        self._by_beginning: dict[str, list[int]] = defaultdict(list)
        for number, patterns in enumerate(wanted):
            self._by_beginning[patterns[0].beginning].append(number)
        self._lengths = sorted({len(beginning) for beginning in self._by_beginning})

    def owners(self, cells: Sequence[str]) -> list[int]:
        """The numbers of those whom a row with these cells fits."""
        first = cells[0]
        candidates = [
            number
            for length in self._lengths
            if length <= len(first)
            for number in self._by_beginning.get(first[:length], ())
        ]
        return [
            number
            for number in candidates
            if all(test(cell) for test, cell in zip(self._tests[number], cells, strict=True))
        ]


def _wanted(comparisons: Sequence[Comparison], context: Mapping[str, JsonValue]) -> list[_Pattern]:
    return [_Pattern(one.value(context), one.like) for one in comparisons]


def _column_of(row: Mapping[str, JsonValue], name: str) -> str:
    """How the archive spells a column; ADQL does not care about case."""
    if name in row:
        return name
    found = [key for key in row if key.lower() == name.lower()]
    if len(found) != 1:
        raise _unbelievable(
            "row_not_attributable",
            f"the answer has {len(found) or 'no'} columns {name!r}, so that its rows belong to nobody for sure",
        )
    return found[0]


def _cell(row: Mapping[str, JsonValue], name: str) -> str:
    value = row.get(name)
    return value if isinstance(value, str) else "" if value is None else str(value)


def _with_greatest(rows: list[Row], name: str) -> list[Row]:
    """The rows whose value is the greatest; NULL never is, and without any value there is none."""
    values = [_number(row, name) for row in rows]
    greatest = max((value for value in values if value is not None), default=None)
    return [row for row, value in zip(rows, values, strict=True) if value is not None and value == greatest]


def _number(row: Row, name: str) -> Decimal | None:
    cell = _cell(row, name).strip()
    if not cell:
        return None
    try:
        value = Decimal(cell)
    except InvalidOperation:
        value = Decimal("NaN")
    if not value.is_finite():
        raise _unbelievable(
            "value_not_comparable", f"{name!r} holds {cell!r}, which only the archive can say the greatest of"
        )
    return value


def _shown(row: Mapping[str, JsonValue], names: Sequence[str]) -> str:
    return ", ".join(f"{name} = {_cell(row, name)[:80]!r}" for name in names)


def _unbelievable(code: str, message: str) -> ArchiveError:
    return ArchiveError(
        f"answer for several sources: {message}",
        code=code,
        hint="The query is asked source by source instead; BEAMPIPE_DISCOVERY_BATCHING=false does so for all.",
        retry=Retry.LATER,
    )
