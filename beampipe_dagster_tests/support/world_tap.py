"""An archive with datasets of its own, over a real socket: it reads the names in a query and answers with their rows.

What it holds is the truth; a fault stands between the truth and the answer, and can be taken away again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

from beampipe_dagster_tests.support.fake_tap import Asked, FakeTap, Reply, rows

Row: TypeAlias = dict[str, str | None]
Fault: TypeAlias = Callable[[list[str], list[Row]], Reply | None]
"""From the names that were asked for and their rows to an answer; None leaves the true one."""

_NAMES = re.compile(r"'((?:[^']|'')*)'")


class WorldTap(FakeTap):
    """A TAP service that knows about sources.

    Parameters
    ----------
    columns
        Those of its only table; ``column`` is the one that holds the source's name.
    """

    def __init__(self, columns: Sequence[str], *, column: str) -> None:
        super().__init__(Reply())
        self.columns = list(columns)
        self.column = column
        self.table: list[Row] = []
        self.fault: Fault | None = None

    def add(self, **values: str) -> None:
        """One more row; columns that are not given are NULL."""
        self.table.append({name: values.get(name) for name in self.columns})

    def of(self, names: Sequence[str]) -> list[Row]:
        """The rows of these sources, in the order of the table."""
        return [row for row in self.table if row[self.column] in set(names)]

    def reply_to(self, asked: Asked) -> Reply:
        """The answer to a request."""
        if not asked.path.endswith("/sync"):
            return super().reply_to(asked)
        with self._lock:
            self.asked.append(asked)
        names = [name.replace("''", "'") for name in _NAMES.findall(asked.parameters["QUERY"])]
        true = self.of(names)
        broken = self.fault(names, true) if self.fault is not None else None
        return broken or self.answer(true)

    def answer(self, table: Sequence[Row]) -> Reply:
        """These rows as a complete answer."""
        kinds = dict.fromkeys(self.columns, "char")
        return rows([dict(row) for row in table], types=kinds)
