"""New rows found for all sources of a survey at once: the archive is asked what there is beyond a watermark.

A sweep asks for looks and never takes any itself: which source a new row belongs to is found by the comparison that
the survey's template makes, and a look at that source then goes the usual way. What a sweep cannot see (rows that
change in place, or that go) is found by the survey's ``stale_after_hours``, which stays in force.

The watermark moves only when all looks that were asked for are committed, and never beyond the present. Rows up to
``lag_hours`` before it are looked at again and again, since archives may ingest late; those that were seen are
remembered, so that none of them asks twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from beampipe_dagster.clock import Clock
from beampipe_dagster.config.canonical import JsonValue, sha256_hex
from beampipe_dagster.config.project import ProjectConfig, Query
from beampipe_dagster.config.queries import Watermark as WatermarkRules
from beampipe_dagster.discovery.archive import Archive
from beampipe_dagster.discovery.archives import ArchiveProvider
from beampipe_dagster.discovery.attribution import owner_finder
from beampipe_dagster.discovery.complete import complete_answer
from beampipe_dagster.discovery.declarative import text_of
from beampipe_dagster.discovery.look import failure_of
from beampipe_dagster.discovery.marks import Mark
from beampipe_dagster.discovery.rewrite import BatchPlan, NotBatchable, plan_batch
from beampipe_dagster.discovery.templates import template_context
from beampipe_dagster.errors import ArchiveError, BeampipeError, ConfigError, ConflictError, Retry
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger import leases, projects, provenance, watermarks
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.watermarks import Watermark

LEASE_SECONDS: Final = 900.0
"""How long a sweep may take before another process may take over."""
SEEN_LIMIT: Final = 20_000
"""Rows from the overlap on that are remembered; of more, the overlap is too long."""
NAMES_TOLD: Final = 50
"""Sources that the story of a sweep names."""
_MARK: Final = "bp_mark"
_OVERFLOW: Final = "archive_overflow"


@dataclass(frozen=True, slots=True)
class QuerySweep:
    """What a sweep of one query found.

    Parameters
    ----------
    query
        The query's name.
    everything
        Whether all sources are asked for: at the first sweep, or when there were too many new rows.
    rows, new_rows
        Rows from the overlap on, and those among them that were not seen before.
    unknown_rows
        New rows that belong to no source of the survey.
    marked
        Sources that a look was asked for.
    waiting
        Sources whose look was asked for before, and is still to come.
    position
        Up to where all looks are committed.
    error
        Why nothing was changed.
    """

    query: str
    everything: bool = False
    rows: int = 0
    new_rows: int = 0
    unknown_rows: int = 0
    marked: int = 0
    waiting: int = 0
    position: str | None = None
    error: BeampipeError | None = None

    def as_dict(self) -> dict[str, Any]:
        """The sweep as JSON."""
        return {
            "query": self.query,
            "everything": self.everything,
            "rows": self.rows,
            "new_rows": self.new_rows,
            "unknown_rows": self.unknown_rows,
            "marked": self.marked,
            "waiting": self.waiting,
            "position": self.position,
            "error": self.error.as_dict() if self.error else None,
        }


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What a sweep of a survey found; errors are part of it."""

    project_id: str
    sweeps: tuple[QuerySweep, ...] = ()
    skip_reason: str | None = None

    @property
    def errors(self) -> tuple[BeampipeError, ...]:
        """Why queries were not swept."""
        return tuple(one.error for one in self.sweeps if one.error is not None)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON."""
        return {
            "project_id": self.project_id,
            "skip_reason": self.skip_reason,
            "sweeps": [one.as_dict() for one in self.sweeps],
        }


@dataclass(frozen=True, slots=True)
class _Found:
    """Rows from the overlap on: the keys and the mark of each."""

    keys: list[tuple[str, ...]] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    everything: bool = False


class WatermarkService:
    """Sweeps surveys.

    Parameters
    ----------
    ledger, clock, ids, archives
        As for discovery.
    lease_seconds
        How long a sweep may take.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        clock: Clock,
        ids: Ids,
        archives: ArchiveProvider,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._ids = ids
        self._archives = archives
        self._lease_seconds = lease_seconds

    def due(self, project_id: str) -> list[str]:
        """The names of the queries whose time has come."""
        now = self._clock.now()
        with self._ledger.read() as conn:
            config = ProjectConfig.from_json(projects.active(conn, project_id).spec)
            found = []
            for query in config.discovery.queries:
                mark = watermarks.get(conn, project_id, query.name) if query.watermark else None
                every = timedelta(minutes=query.watermark.every_minutes if query.watermark else 0)
                if query.watermark and (mark is None or mark.swept_at + every <= now):
                    found.append(query.name)
        return found

    def sweep(self, project_id: str, *, only: Sequence[str] | None = None) -> SweepReport:
        """Ask the archives what is new, and ask for looks at the sources that it belongs to.

        Parameters
        ----------
        project_id
            The survey.
        only
            Names of queries; all that have a watermark unless given.

        Raises
        ------
        NotFoundError
            ``project_not_found``.
        """
        with self._ledger.read() as conn:
            config = ProjectConfig.from_json(projects.active(conn, project_id).spec)
        queries = [
            (index, query)
            for index, query in enumerate(config.discovery.queries)
            if query.watermark is not None and (only is None or query.name in only)
        ]
        if not queries:
            return SweepReport(project_id, skip_reason="no_watermark")
        token = self._ids.new()
        with self._leased(project_id, token) as held:
            if not held:
                return SweepReport(project_id, skip_reason="sweep_running")
            return SweepReport(
                project_id, tuple(self._one(config, query, index, token) for index, query in queries)
            )

    @contextmanager
    def _leased(self, project_id: str, token: str) -> Iterator[bool]:
        name = f"watermark:{project_id}"
        with self._ledger.begin() as conn:
            held = leases.acquire(conn, name, token, now=self._clock.now(), seconds=self._lease_seconds)
        try:
            yield held
        finally:
            if held:
                with self._ledger.begin() as conn:
                    leases.release(conn, name, token)

    def _one(self, config: ProjectConfig, query: Query, index: int, token: str) -> QuerySweep:
        try:
            return self._swept(config, query, index, token)
        except Exception as error:  # noqa: BLE001  # one query's trouble; nothing of it was written
            return QuerySweep(query.name, error=failure_of(error))

    def _swept(self, config: ProjectConfig, query: Query, index: int, token: str) -> QuerySweep:
        project_id, rules = config.metadata.id, query.watermark
        if rules is None:
            return QuerySweep(query.name)
        with self._ledger.read() as conn:
            before = watermarks.get(conn, project_id, query.name)
            names = watermarks.identifiers(conn, project_id)
            waiting = 0
            if before is not None and before.candidate_at is not None:
                waiting = watermarks.waiting(conn, project_id, before.candidate_at)
        contexts = _contexts(config, names, index)
        plan = planned(query, config)
        digest = sha256_hex(f"{query.adapter}\0{plan.template}\0{rules.column}")
        expected = None if before is None else before.sweeps
        if before is not None and before.query_sha256 != digest:
            before = None  # another question: its watermark begins afresh
        step = _Step(project_id, query.name, digest, before, expected, waiting, token)
        found = self._ask(self._archives.get(config, query.adapter), plan, rules, step.since)
        return self._commit(step, found, contexts, plan, rules)

    def _ask(self, archive: Archive, plan: BatchPlan, rules: WatermarkRules, position: str | None) -> _Found:
        """The rows from the overlap on; where nobody knows from where on, from the newest row on."""
        if position is not None:
            try:
                return self._rows(archive, plan, rules, Mark.of(position, column=rules.column))
            except ArchiveError as error:
                if error.code not in {_OVERFLOW, "watermark_overlap_too_long"}:
                    raise
        adql = plan.sweep(f"MAX({rules.column}) AS {_MARK}", f"{rules.column} IS NOT NULL")
        answer = complete_answer(archive, adql)
        cell = _cell(answer.rows[0], _MARK) if answer.rows else ""
        if not cell.strip():
            return _Found()
        newest = Mark.of(cell, column=rules.column).not_after(self._clock.now())
        rows = self._rows(archive, plan, rules, newest)
        return _Found(rows.keys, [*rows.marks, newest], everything=True)

    @staticmethod
    def _rows(archive: Archive, plan: BatchPlan, rules: WatermarkRules, since: Mark) -> _Found:
        columns = [f"{one.written} AS bp_key{number}" for number, one in enumerate(plan.comparisons, start=1)]
        condition = since.condition(rules.column, lag_hours=rules.lag_hours)
        adql = plan.sweep(", ".join([*columns, f"{rules.column} AS {_MARK}"]), condition)
        answer = complete_answer(archive, adql)
        if len(answer.rows) > SEEN_LIMIT:
            raise ArchiveError(
                f"{len(answer.rows):,} rows lie within {rules.lag_hours} h before the watermark and after it, and "
                f"{SEEN_LIMIT:,} are the most",
                code="watermark_overlap_too_long",
                hint="shorten watermark.lag_hours; until then sources are found by stale_after_hours alone",
                retry=Retry.NEVER,
            )
        keys, marks = [], []
        for row in answer.rows:
            cell = _cell(row, _MARK)
            if cell.strip():
                marks.append(Mark.of(cell, column=rules.column))
                keys.append(
                    tuple(_cell(row, f"bp_key{number}") for number in range(1, len(plan.comparisons) + 1))
                )
        return _Found(keys, marks)

    def _commit(
        self,
        step: _Step,
        found: _Found,
        contexts: dict[str, dict[str, JsonValue]],
        plan: BatchPlan,
        rules: WatermarkRules,
    ) -> QuerySweep:
        before = step.before
        digests = _digests(found)
        seen = set() if before is None else {str(one) for one in before.seen}
        new = [number for number, digest in enumerate(digests) if digest not in seen]
        owners = owner_finder(plan.comparisons, list(contexts.values()))
        names = list(contexts)
        owned = [owners(found.keys[number]) for number in new]
        touched = sorted({names[owner] for some in owned for owner in some})
        unknown = sum(not some for some in owned)
        now = self._clock.now()
        newest = _newest(step.since, found.marks, now, rules.column)
        with self._ledger.begin() as conn:
            lease = f"watermark:{step.project_id}"
            if not leases.acquire(conn, lease, step.token, now=now, seconds=self._lease_seconds):
                raise _overtaken(step)
            marked = 0
            if found.everything or touched:
                whom = None if found.everything else touched
                marked = watermarks.request_looks(conn, step.project_id, whom, now=now)
            mark = step.moved(newest, marked, digests, now, everything=found.everything)
            if not watermarks.put(conn, mark, expected_sweeps=step.expected):
                raise _overtaken(step)
            if marked:
                event = provenance.Event(
                    event_type="discovery.swept",
                    project_module=step.project_id,
                    payload={
                        "query": step.query,
                        "everything": found.everything,
                        "new_rows": len(new),
                        "sources": marked,
                        "names": [*touched[:NAMES_TOLD]],
                        "candidate": mark.candidate,
                    },
                )
                provenance.record(conn, [event], ids=self._ids, now=now)
        return QuerySweep(
            step.query,
            everything=found.everything,
            rows=len(found.keys),
            new_rows=len(new),
            unknown_rows=unknown,
            marked=marked,
            waiting=step.waiting,
            position=mark.position,
        )


@dataclass(frozen=True, slots=True)
class _Step:
    """What was known before the archive was asked."""

    project_id: str
    query: str
    digest: str
    before: Watermark | None
    expected: int | None
    waiting: int
    token: str

    @property
    def since(self) -> str | None:
        """From where on rows are new: up to here looks were asked for, in the ledger, if not taken."""
        return None if self.before is None else self.before.candidate or self.before.position

    @property
    def position(self) -> str | None:
        """Up to where all looks are committed."""
        if self.before is None:
            return None
        return self.before.position if self.waiting else self.since

    def moved(
        self, newest: str | None, marked: int, seen: Sequence[str], now: datetime, *, everything: bool
    ) -> Watermark:
        """The watermark after a sweep."""
        position, candidate, candidate_at = self.position, newest, now
        if self.before is not None and self.waiting and not everything:
            # It stays until the looks are committed that it waits for; what is new now is remembered as seen.
            candidate, candidate_at = self.before.candidate, self.before.candidate_at or now
        elif not marked:
            position = newest
        settled = candidate == position
        return Watermark(
            project_module=self.project_id,
            query_name=self.query,
            query_sha256=self.digest,
            position=position,
            candidate=None if settled else candidate,
            candidate_at=None if settled else candidate_at,
            seen=[*seen],
            swept_at=now,
            sweeps=(self.expected or 0) + 1,
        )


def planned(query: Query, config: ProjectConfig) -> BatchPlan:
    """How a query can be asked for all sources at once.

    Raises
    ------
    ConfigError
        ``watermark_not_possible``.
    """
    names = set(template_context(config, "x"))
    plan = plan_batch(query.adql_template, names)
    if isinstance(plan, NotBatchable):
        raise ConfigError(
            f"the query {query.name!r} of {config.metadata.id!r} has a watermark, and cannot be asked for all "
            f"sources at once: {plan}",
            code="watermark_not_possible",
            hint="write it so that its sources can be told apart (docs/survey.md), or take the watermark out",
        )
    return plan


def _contexts(config: ProjectConfig, names: Sequence[str], index: int) -> dict[str, dict[str, JsonValue]]:
    """What the placeholders mean for each source; those whose names cannot be asked for are left out."""
    found = {}
    for name in names:
        try:
            found[name] = template_context(config, name, index)
        except BeampipeError:
            continue  # a look at it says what is wrong
    return found


def _cell(row: dict[str, JsonValue], name: str) -> str:
    for key, value in row.items():
        if key.lower() == name:
            return text_of(value)
    raise ArchiveError(
        f"the archive's answer has no column {name!r}, which the sweep asked for",
        code="watermark_answer_unreadable",
        hint="look at the archive's answer; sources are found by stale_after_hours meanwhile",
    )


def _digests(found: _Found) -> list[str]:
    """A short name for each row; equal rows get names of their own, in turn."""
    counts: Counter[str] = Counter()
    out = []
    for keys, mark in zip(found.keys, found.marks, strict=False):
        text = "\0".join([*keys, mark.text])
        counts[text] += 1
        out.append(sha256_hex(f"{text}\0{counts[text]}")[:20])
    return out


def _newest(position: str | None, marks: Sequence[Mark], now: datetime, column: str) -> str | None:
    best = None if position is None else Mark.of(position, column=column)
    for mark in marks:
        capped = mark.not_after(now)
        if best is None or capped.is_beyond(best, column=column):
            best = capped
    return None if best is None else best.text


def _overtaken(step: _Step) -> ConflictError:
    return ConflictError(
        f"another process swept {step.query!r} of {step.project_id!r} meanwhile; nothing was changed",
        code="sweep_overtaken",
        hint="nothing has to be done: the next sweep goes on from there",
        retry=Retry.LATER,
    )
