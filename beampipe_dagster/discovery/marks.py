"""Places in a column that grows with new rows: times (ISO 8601) or days (Modified Julian Date).

VO archives give times without a zone, in UTC (DALI 1.1 section 3.3.3); ObsCore gives those of observations as MJD.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

from beampipe_dagster.discovery.declarative import comparable
from beampipe_dagster.errors import DataError

_MJD_EPOCH: Final = datetime(1858, 11, 17, tzinfo=UTC)
_DATE: Final = len("2026-01-01")
_HOURS_A_DAY: Final = 24


@dataclass(frozen=True, slots=True)
class Mark:
    """A place, with the text that the archive gave for it."""

    text: str
    value: Decimal | datetime

    @classmethod
    def of(cls, text: str, *, column: str) -> Mark:
        """A cell as a place.

        Raises
        ------
        DataError
            ``watermark_not_comparable``: it is neither a number nor a time.
        """
        value = comparable(text)
        if value is None:
            raise DataError(
                f"the watermark's column {column!r} holds {text[:80]!r}, which is neither a time nor a number",
                code="watermark_not_comparable",
                hint="name a column of ISO 8601 times or of days (MJD) under watermark.column",
            )
        return cls(text.strip(), value)

    def is_beyond(self, other: Mark, *, column: str) -> bool:
        """Whether it is later.

        Raises
        ------
        DataError
            ``watermark_not_comparable``: one is a time and the other a number.
        """
        if isinstance(self.value, Decimal) and isinstance(other.value, Decimal):
            return self.value > other.value
        if isinstance(self.value, datetime) and isinstance(other.value, datetime):
            return self.value > other.value
        raise DataError(
            f"the watermark's column {column!r} holds both times and numbers: {self.text[:40]!r} and "
            f"{other.text[:40]!r}",
            code="watermark_not_comparable",
            hint="name a column of one kind under watermark.column",
        )

    def not_after(self, now: datetime) -> Mark:
        """The place, or the present where it lies in the future, as release dates may: rows still come before it."""
        present = Mark(self._written(now), self._like(now))
        return present if self.is_beyond(present, column="") else self

    def condition(self, column: str, *, lag_hours: int) -> str:
        """ADQL for the rows from here on, and some hours before."""
        lag = timedelta(hours=lag_hours)
        if isinstance(self.value, Decimal):
            return f"{column} >= {self.value - Decimal(lag_hours) / _HOURS_A_DAY:f}"
        return f"{column} >= '{self._written(self.value - lag)}'"

    def _like(self, moment: datetime) -> Decimal | datetime:
        if isinstance(self.value, datetime):
            return moment
        return Decimal((moment - _MJD_EPOCH) // timedelta(microseconds=1)) / Decimal(86_400_000_000)

    def _written(self, moment: datetime) -> str:
        """A moment as the archive writes its times, down to the second and without a zone.

        So it sorts before all that begin with it, where an archive compares times as text.
        """
        if isinstance(self.value, Decimal):
            return f"{self._like(moment):f}"
        plain = moment.astimezone(UTC).replace(microsecond=0, tzinfo=None)
        if len(self.text) == _DATE:
            return plain.date().isoformat()
        return plain.isoformat(sep="T" if "T" in self.text.upper() else " ")
