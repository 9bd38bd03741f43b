"""A survey in numbers: what its sources are doing, how fresh the looks at them are, and where they are in the sky.

The counts are made by the database: one statement that reads each row of the survey once and gives a few hundred
groups, whatever the number of sources. Sources are drawn one by one only while a person could tell them apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from beampipe_dagster.config.canonical import digest
from beampipe_dagster.ledger.states import Status
from beampipe_dagster.ledger.tables import batch_execution_record as record
from beampipe_dagster.ledger.tables import execution_sources as locks
from beampipe_dagster.ledger.tables import source_registry as registry
from beampipe_dagster.observe.sky import CELL_DEG, Cell, Place
from beampipe_dagster.sources.status import FAILED_HOLDS, WORDS, Word

POINTS_SHOWN: Final = 5000
"""Up to so many sources are drawn one by one, more as a grid of densities."""

_FAILED_LOOKS: Final = ("error", "timeout")
_PLACE: Final = {word: WORDS.index(word) for word in Word}

_BANDS: Final = 180 // CELL_DEG + 1
"""Cells from pole to pole, and one for the north pole itself."""
_CELLS: Final = 10_000
"""More than there are cells."""
_NOWHERE: Final = _CELLS - 1
"""The cell of sources without coordinates."""


@dataclass(frozen=True, slots=True)
class Overview:
    """A survey at one moment.

    Attributes
    ----------
    project_id
        The survey.
    at
        When the ledger was read.
    words
        How many sources are doing what: each :class:`~beampipe_dagster.sources.status.Word` that occurs, in the
        order in which a source goes through them.
    stale
        Enabled sources whose last complete answer is older than the survey, or the source itself, allows.
    never_looked
        Sources about which no archive ever answered completely.
    oldest_look, newest_look
        Times of the oldest and the newest last complete answer of enabled sources; ``None`` without any.
    places
        The sources' places, when there are at most :data:`POINTS_SHOWN`; else empty.
    cells
        Numbers of sources by place in a grid and by word.
    without_place
        Sources that have no coordinates.
    """

    project_id: str
    at: datetime
    words: dict[str, int]
    stale: int
    never_looked: int
    oldest_look: datetime | None
    newest_look: datetime | None
    places: tuple[Place, ...]
    cells: tuple[Cell, ...]
    without_place: int

    @property
    def total(self) -> int:
        """Sources of the survey."""
        return sum(self.words.values())

    @property
    def numbers(self) -> dict[str, int]:
        """Everything that is worth a curve over time."""
        counted = {
            "total": self.total,
            "executing": self.words.get(Word.RUNNING, 0),
            "stale": self.stale,
            "never_looked": self.never_looked,
        }
        curves = (
            Word.PENDING,
            Word.HELD,
            Word.COMPLETED,
            Word.FAILED,
            Word.DISCOVERY_FAILED,
            Word.QUARANTINED,
            Word.VANISHING,
            Word.NO_DATASETS,
        )
        return counted | {word.value: self.words.get(word, 0) for word in curves}

    @property
    def fingerprint(self) -> str:
        """Equal as long as no number changes; times alone do not change it."""
        return digest({"words": dict(self.words), "stale": self.stale, "never_looked": self.never_looked})


def survey_overview(
    conn: Connection, *, project_id: str, stale_after_hours: int | None, now: datetime
) -> Overview:
    """The survey at this moment.

    Parameters
    ----------
    conn
        A reading connection to the ledger.
    project_id
        The survey.
    stale_after_hours
        Hours after which the survey looks again; ``None`` when it never does by itself. A source's own number of
        hours goes before it.
    now
        The time that decides what is stale.
    """
    columns = registry.c
    postgres = conn.dialect.name == "postgresql"
    cell = _cell(columns.ra_deg, postgres=postgres) * _BANDS + _cell(
        columns.dec_deg + 90.0, postgres=postgres
    )
    group = (_word(project_id) * _CELLS + sa.func.coalesce(cell, _NOWHERE)).label("group_key")
    stale = _stale(stale_after_hours, now, postgres=postgres)
    # One integer for word and cell: groups of texts and times would cost several times as much.
    groups = conn.execute(
        sa.select(
            group,
            sa.func.count().label("number"),
            sa.func.count(sa.case((stale, 1))).label("stale"),
            sa.func.count(columns.last_checked_at).label("checked"),
        )
        .where(columns.project_module == project_id)
        .group_by(group)
    ).all()
    looked = sa.case((columns.enabled, columns.last_checked_at))
    oldest, newest = conn.execute(
        sa.select(sa.func.min(looked), sa.func.max(looked)).where(columns.project_module == project_id)
    ).one()
    counted = [(WORDS[row.group_key // _CELLS], row.group_key % _CELLS, int(row.number)) for row in groups]
    words = {word: sum(number for other, _, number in counted if other == word) for word in WORDS}
    total = sum(words.values())
    cells = tuple(
        Cell(place // _BANDS, place % _BANDS, word, number)
        for word, place, number in counted
        if place != _NOWHERE
    )
    return Overview(
        project_id=project_id,
        at=now,
        words={word: number for word, number in words.items() if number},
        stale=sum(row.stale for row in groups),
        never_looked=total - sum(row.checked for row in groups),
        oldest_look=oldest,
        newest_look=newest,
        places=_places(conn, project_id) if 0 < total <= POINTS_SHOWN else (),
        cells=cells,
        without_place=total - sum(cell.number for cell in cells),
    )


def _places(conn: Connection, project_id: str) -> tuple[Place, ...]:
    columns = registry.c
    rows = conn.execute(
        sa.select(columns.ra_deg, columns.dec_deg, _word(project_id).label("word"))
        .where(
            columns.project_module == project_id, columns.ra_deg.is_not(None), columns.dec_deg.is_not(None)
        )
        .order_by(columns.source_identifier)
        .limit(POINTS_SHOWN)
    )
    return tuple(Place(row.ra_deg, row.dec_deg, WORDS[row.word]) for row in rows)


def _word(project_id: str) -> sa.ColumnElement[int]:
    """The place in :data:`WORDS` of the word that :func:`beampipe_dagster.sources.status.describe` gives.

    The questions are asked in the same order.
    """
    columns = registry.c
    # Not by source: the few that are locked are listed once.
    running = sa.select(locks.c.source_identifier).where(locks.c.project_module == project_id, locks.c.active)
    # Identifiers of executions are ordered by time. It is asked only where nothing before it decided.
    newest = (
        sa.select(sa.func.max(locks.c.execution_id))
        .where(
            locks.c.project_module == columns.project_module,
            locks.c.source_identifier == columns.source_identifier,
        )
        .correlate(registry)
        .scalar_subquery()
    )
    ended = sa.select(record.c.status).where(record.c.id == newest).correlate(registry).scalar_subquery()
    settled = sa.case(
        (ended == Status.CANCELLED.value, _PLACE[Word.CANCELLED]),
        (ended == Status.FAILED.value, _PLACE[Word.FAILED]),
        else_=_PLACE[Word.IDLE],
    )
    done = columns.discovery_signature.is_not_distinct_from(columns.last_executed_discovery_signature)
    held_failed = columns.hold["code"].as_string().in_(sorted(FAILED_HOLDS))
    return sa.case(
        (columns.source_identifier.in_(running), _PLACE[Word.RUNNING]),
        (columns.discovery_claim_token.is_not(None), _PLACE[Word.DISCOVERING]),
        (sa.not_(columns.enabled), _PLACE[Word.DISABLED]),
        (sa.and_(columns.hold.is_not(None), held_failed), _PLACE[Word.FAILED]),
        (columns.hold.is_not(None), _PLACE[Word.HELD]),
        (columns.workflow_run_pending, _PLACE[Word.PENDING]),
        (columns.quarantined_at.is_not(None), _PLACE[Word.QUARANTINED]),
        (columns.last_outcome.in_(_FAILED_LOOKS), _PLACE[Word.DISCOVERY_FAILED]),
        (columns.last_checked_at.is_(None), _PLACE[Word.UNCHECKED]),
        (columns.vanish_first_at.is_not(None), _PLACE[Word.VANISHING]),
        (columns.last_outcome == Word.NO_DATASETS.value, _PLACE[Word.NO_DATASETS]),
        (done, _PLACE[Word.COMPLETED]),
        else_=settled,
    )


def _cell(degrees: sa.ColumnElement[Any], *, postgres: bool) -> sa.ColumnElement[Any]:
    """The number of a cell of the grid; both kinds of degrees are from zero upwards."""
    cells = degrees / float(CELL_DEG)
    # A cast rounds in one database and cuts off in the other.
    return sa.cast(sa.func.floor(cells) if postgres else cells, sa.Integer)


def _stale(hours: int | None, now: datetime, *, postgres: bool) -> sa.ColumnElement[bool]:
    """Whether the last complete answer about an enabled source is too old."""
    columns = registry.c
    by_survey: sa.ColumnElement[bool] = sa.false()
    if hours is not None:
        by_survey = columns.last_checked_at <= now - timedelta(hours=hours)
    moment = sa.literal(now, columns.last_checked_at.type)
    age_hours = (
        (sa.extract("epoch", moment) - sa.extract("epoch", columns.last_checked_at)) / 3600.0
        if postgres
        else (sa.func.julianday(moment) - sa.func.julianday(columns.last_checked_at)) * 24.0
    )
    by_itself = age_hours >= columns.stale_after_hours
    return sa.and_(
        columns.enabled,
        columns.last_checked_at.is_not(None),
        sa.case((columns.stale_after_hours.is_not(None), by_itself), else_=by_survey),
    )
