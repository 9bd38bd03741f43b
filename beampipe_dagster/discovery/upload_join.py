"""A query for many sources by a table that goes with it, and which form of query is the cheapest.

A query with an upload (TAP 1.1 section 2.7.5) is as long for ten thousand sources as it is for one. The template's
comparisons become "is among the uploaded ones": a semi-join, ``column IN (SELECT ...)`` or ``EXISTS``, which gives
each row once however often a value is uploaded, and leaves the columns of ``*`` as they are, both of which a JOIN
would not.

Only an equality of plain columns can be joined in less time than all pairs: ``o.filename LIKE u.prefix`` can use no
index, so that its cost is the number of sources times the size of the archive. Such a template is never uploaded.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from beampipe_dagster.clock import Clock, SystemClock
from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.discovery.archive import Upload
from beampipe_dagster.discovery.rewrite import BatchPlan

UPLOAD_NAME: Final = "beampipe_sources"
UPLOAD_CHUNK: Final = 1000
"""Rows of one upload, unless the archive takes fewer: an answer must stay below MAXREC."""
COST_SECONDS: Final = 3600.0
"""How long a measured cost counts; then the form is tried again."""
_ALIAS: Final = "bp_u"


class Form(StrEnum):
    """How a query is put for many sources."""

    IN = "in"
    OR = "or"
    UPLOAD = "upload"


class Trap(StrEnum):
    """Why a template that could be asked for many is not asked with an upload."""

    LIKE = "like"
    VALUE = "value_not_uploadable"


TRAPS: Final[dict[Trap, str]] = {
    Trap.LIKE: "a LIKE against an uploaded table can use no index: its cost is the number of sources times the size "
    "of the archive",
    Trap.VALUE: "an empty text, or one with blanks around it, may arrive as another one",
}
"""A sentence for each."""


def upload_trap(plan: BatchPlan) -> Trap | None:
    """Why a plan is not asked with an upload; ``None`` when it can be."""
    return Trap.LIKE if any(one.like for one in plan.comparisons) else None


def upload_request(plan: BatchPlan, contexts: Sequence[Mapping[str, JsonValue]]) -> tuple[str, Upload] | Trap:
    """The query and the table that goes with it.

    Parameters
    ----------
    plan
        A plan without a trap (:func:`upload_trap`).
    contexts
        What the placeholders mean for each source, at least one.

    Raises
    ------
    InputError
        ``unsafe_identifier``, see :func:`~beampipe_dagster.discovery.templates.render`.
    """
    rows = sorted({tuple(one.value(context) for one in plan.comparisons) for context in contexts})
    if any(not value or value != value.strip() for row in rows for value in row):
        return Trap.VALUE
    columns = tuple(f"bp_key{number}" for number in range(1, len(plan.comparisons) + 1))
    table = f"TAP_UPLOAD.{UPLOAD_NAME}"
    if len(columns) == 1:
        condition = f"{plan.comparisons[0].written} IN (SELECT {columns[0]} FROM {table})"  # noqa: S608  # constants, and the author's column
    else:
        pairs = " AND ".join(
            f"{_ALIAS}.{column} = {one.written}"
            for column, one in zip(columns, plan.comparisons, strict=True)
        )
        condition = f"EXISTS (SELECT {_ALIAS}.{columns[0]} FROM {table} AS {_ALIAS} WHERE {pairs})"  # noqa: S608  # as above
    return plan.with_condition(condition), Upload(UPLOAD_NAME, columns, tuple(rows))


@dataclass(frozen=True, slots=True)
class _Cost:
    """Seconds a source, measured at a time."""

    seconds: float
    measured: float


class Costs:
    """What queries for many sources cost, by archive, template and form; safe to use from several threads.

    Parameters
    ----------
    clock
        Measured costs are forgotten after :data:`COST_SECONDS`, since archives change.
    """

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str, Form], _Cost] = {}

    def measured(self, adapter: str, template: str, form: Form, *, seconds: float, sources: int) -> None:
        """Keep what it took to ask for some sources."""
        cost = _Cost(seconds / max(1, sources), self._clock.monotonic())
        with self._lock:
            self._known[adapter, template, form] = cost

    def failed(self, adapter: str, template: str, form: Form) -> None:
        """The archive does not answer this form: it is not tried again for a while."""
        self.measured(adapter, template, form, seconds=float("inf"), sources=1)

    def seconds(self, adapter: str, template: str, form: Form) -> float | None:
        """Seconds a source; ``None`` where it is not known any more, infinite where the form fails."""
        with self._lock:
            cost = self._known.get((adapter, template, form))
        if cost is None or self._clock.monotonic() - cost.measured > COST_SECONDS:
            return None
        return cost.seconds

    def cheapest_first(self, adapter: str, template: str, forms: Sequence[Form]) -> list[Form]:
        """The forms in the order in which to try them.

        A form whose cost nobody knows comes first, in the order that is given; then the cheapest. One that
        failed is left out, unless it is the only one.
        """
        costs = {form: self.seconds(adapter, template, form) for form in forms}
        order = sorted(forms, key=lambda form: -1.0 if (cost := costs[form]) is None else cost)
        able = [form for form in order if costs[form] != float("inf")]
        return able or order[:1]


PROCESS_COSTS: Final = Costs(clock=SystemClock())
"""The costs that this process has measured."""
