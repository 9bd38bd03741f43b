"""Which pending sources run now: readiness, caps, turns and grouping, decided in one transaction.

Locks on the sources, the executions and the cleared pending flags commit together, so that a source never runs
twice at once, whoever asks: two daemons, a sensor and an operator, or a tick that was killed. What was decided,
and why, commits with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy.engine import Connection

from beampipe_dagster.clock import Clock, rfc3339
from beampipe_dagster.config.project import ExecutionAutomation, ProjectConfig
from beampipe_dagster.errors import BeampipeError, ConflictError, InputError
from beampipe_dagster.execution import request as asked
from beampipe_dagster.execution.creation import AUTOMATION, Order, create, create_all, groups_of
from beampipe_dagster.execution.decisions import Cap, as_json, room
from beampipe_dagster.execution.holds import HELD, delayed, has_failed, hold_words, operator_hold
from beampipe_dagster.execution.options import AS_USUAL, LaunchOptions
from beampipe_dagster.execution.request import LaunchRequest, Problem
from beampipe_dagster.execution.retry_policy import RetryPolicy
from beampipe_dagster.execution.room import caps_of, share_of
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger import (
    archive,
    decisions,
    executions,
    holds,
    pending,
    profiles,
    projects,
    provenance,
    registration,
    sources,
)
from beampipe_dagster.ledger.decisions import Held, TickDecision
from beampipe_dagster.ledger.engine import Ledger, queue
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.profiles import StoredProfile
from beampipe_dagster.ledger.projects import ProjectRevision
from beampipe_dagster.ledger.sources import Source
from beampipe_dagster.signature.payload import partition_key
from beampipe_dagster.sources.readiness import Blocker, blocker

QUEUE: Final = "admission"
"""Where admissions of all processes queue: caps are kept by counting, which two may not do at once."""

LIVE_TICKS: Final = 5
"""A survey without a tick for so many intervals has no turn that others would wait for."""

QUIET: Final = frozenset({"discovery_in_progress"})
"""What passes by itself within seconds, and is no hold."""


@dataclass(frozen=True, slots=True)
class AdmissionReport:
    """What a tick decided, for the sensor's page and the log."""

    project_id: str
    admitted: list[Execution] = field(default_factory=list)
    skip_reason: str | None = None
    message: str | None = None
    held: dict[str, str] = field(default_factory=dict)
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class Launched:
    """What came of a request: a new execution, or the one that the same request had created before."""

    execution: Execution
    replayed: bool = False


class AdmissionService:
    """Turns pending sources, and what operators ask for, into executions.

    Parameters
    ----------
    max_in_flight
        Executions at a time, over all surveys.
    retry
        The budget of retries where a survey has none of its own.
    tick_seconds
        Between two ticks of a survey.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        clock: Clock,
        ids: Ids,
        max_in_flight: int,
        retry: RetryPolicy | None = None,
        tick_seconds: float = 60.0,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._ids = ids
        self._max_in_flight = max_in_flight
        self._retry = retry or RetryPolicy()
        self._live = timedelta(seconds=tick_seconds * LIVE_TICKS)

    # -- by itself ----------------------------------------------------------------------------------------

    def tick(self, project_id: str) -> AdmissionReport:
        """Admit what may run now, and keep what was decided.

        Raises
        ------
        NotFoundError
            ``project_not_found``.
        """
        now = self._clock.now()
        with self._ledger.begin() as conn:
            queue(conn, QUEUE)
            tick = _Tick(conn, projects.active(conn, project_id), now)
            report = self._decide(tick)
            held = {**tick.held, **{source: tick.left for source in tick.waiting if tick.left}}
            decision = TickDecision(
                project_module=project_id,
                reason=report.skip_reason or (tick.left.code if tick.left and tick.waiting else None),
                message=report.message,
                admitted=len(report.admitted),
                waiting=report.waiting,
                held=len(tick.held),
                caps=as_json(tick.caps),
                profile=f"{tick.profile.name} r{tick.profile.revision}" if tick.profile else None,
                project_config_id=tick.revision.id,
            )
            decisions.record_tick(conn, decision, ids=self._ids, now=now)
            decisions.record_sources(conn, project_id, held, now=now)
        return report

    def _decide(self, tick: _Tick) -> AdmissionReport:
        project_id, rules = tick.revision.project_id, tick.config.automation.execution
        if rules is None or not rules.enabled:
            return AdmissionReport(project_id, skip_reason="disabled", waiting=tick.count())
        self._release_for(tick)
        try:
            tick.profile = profiles.resolve(
                tick.conn, name=rules.deployment_profile_name, project_module=project_id
            )
        except BeampipeError as error:
            return AdmissionReport(
                project_id, skip_reason=error.code, message=str(error), waiting=tick.count()
            )
        against = holds.against(tick.conn, project_id, tick.profile.id, now=tick.now)
        if against:
            return AdmissionReport(
                project_id,
                skip_reason=f"{against[0].scope}_held",
                message=hold_words(against[0]),
                waiting=tick.count(),
            )
        tick.caps = self._caps(tick.conn, project_id, rules, tick.profile)
        runs, reason = room(tick.caps, tick_limit=rules.tick_execution_run_limit)
        if not runs:
            words = ", ".join(cap.words() for cap in tick.caps if cap.full)
            return AdmissionReport(project_id, skip_reason=reason, message=words, waiting=tick.count())
        return self._admit(tick, rules, tick.profile)

    def _caps(
        self, conn: Connection, project_id: str, rules: ExecutionAutomation, profile: StoredProfile
    ) -> list[Cap]:
        counts = executions.active_counts(conn)
        return caps_of(project_id, rules, profile, max_in_flight=self._max_in_flight, counts=counts)

    def _release_for(self, tick: _Tick) -> None:
        """A new revision may have mended what failed: its sources get another chance, and a budget of their own."""
        failed = pending.failed_under_another(tick.conn, tick.revision.project_id, tick.revision.id)
        if failed:
            self._release(tick.conn, failed, AUTOMATION, f"revision {tick.revision.version}", tick.now)

    def _admit(self, tick: _Tick, rules: ExecutionAutomation, profile: StoredProfile) -> AdmissionReport:
        conn, now, project_id = tick.conn, tick.now, tick.revision.project_id
        limit = rules.tick_execution_source_limit
        candidates = pending.take(conn, project_id, limit=limit, now=now)
        for source in pending.delayed(conn, project_id, limit=limit, now=now):
            tick.held[source.source_identifier] = delayed(source)
        if not candidates:
            return AdmissionReport(project_id, skip_reason="no_pending_sources", held=tick.codes())
        ready = self._sort(tick, candidates)
        tick.waiting = [source.source_identifier for source in ready]
        if not ready:
            return AdmissionReport(project_id, skip_reason="sources_skipped_not_ready", held=tick.codes())
        short = _too_few(ready, rules, now)
        if short is not None:
            tick.left = short
            return AdmissionReport(
                project_id, [], short.code, short.message, held=tick.codes(), waiting=len(ready)
            )
        groups = groups_of(ready, rules.max_sources_per_execution)
        share = share_of(
            conn,
            project_id,
            rules,
            tick.caps,
            profile_id=profile.id,
            wanted=len(groups),
            max_in_flight=self._max_in_flight,
            live=self._live,
            now=now,
        )
        order = Order(tick.revision, tick.config, profile, AUTOMATION, self._retry)
        admitted = create_all(conn, order, groups[: share.runs], ids=self._ids, now=now)
        if admitted:
            weight = float(rules.weight or 1)
            decisions.serve(conn, project_id, share.served + len(admitted) / weight, now=now)
        gone = {name for execution in admitted for name in execution.source_identifiers}
        tick.waiting = [name for name in tick.waiting if name not in gone]
        tick.left = Held(share.reason, _WORDS.get(share.reason, "there is no room for it now"))
        reason, message = (None, None) if admitted else (share.reason, tick.left.message)
        return AdmissionReport(
            project_id, admitted, reason, message, held=tick.codes(), waiting=len(tick.waiting)
        )

    def _sort(self, tick: _Tick, candidates: Sequence[Source]) -> list[Source]:
        """Those that may run; the reasons of the others are kept."""
        conn, project_id = tick.conn, tick.revision.project_id
        busy = executions.active_sources(conn, project_id)
        rows = archive.metadata_of(conn, project_id, [source.source_identifier for source in candidates])
        kept = holds.of_sources(conn, project_id, now=tick.now)
        ready: list[Source] = []
        done: list[str] = []
        for source in candidates:
            name = source.source_identifier
            if name in kept:
                tick.held[name] = Held(HELD, hold_words(kept[name]), kept[name].expires_at)
                self._hold(conn, source, operator_hold(kept[name]), tick.now)
                continue
            if name in busy:
                tick.held[name] = Held("source_already_executing", "an active execution has it")
                continue
            if source.discovery_signature == source.last_executed_discovery_signature:
                done.append(source.id)
                continue
            why = blocker(source, rows.get(name, {}))
            if why is None:
                ready.append(source)
                continue
            tick.held[name] = Held(why.code, why.message)
            self._hold(conn, source, why, tick.now)
        if done:
            sources.update(conn, done, {"workflow_run_pending": False, "hold": None}, now=tick.now)
        return ready

    def _hold(self, conn: Connection, source: Source, why: Blocker, now: datetime) -> None:
        """Keep why a pending source does not run; told once for each reason."""
        if why.code in QUIET or (source.hold or {}).get("message") == why.message:
            return
        sources.update(conn, [source.id], {"hold": why.as_dict()}, now=now)
        event = provenance.Event(
            event_type="execution.held",
            project_module=source.project_module,
            source_identifier=source.source_identifier,
            payload=why.as_dict(),
        )
        provenance.record(conn, [event], ids=self._ids, now=now)

    # -- by hand ------------------------------------------------------------------------------------------

    def launch(self, request: LaunchRequest) -> Launched:
        """Create the execution that an operator asks for; the same request under the same key gives it again.

        It counts in every cap, clears the pending flags and locks the sources as any other. Everything that
        speaks against it is found at once.

        Raises
        ------
        InputError
            ``no_sources``, ``invalid_idempotency_key``.
        NotFoundError
            ``project_not_found``.
        ConflictError
            ``idempotency_key_reused``; the code of what speaks against it, or ``launch_refused`` for several.
        """
        request = request.checked()
        with self._ledger.begin() as conn:
            queue(conn, QUEUE)
            before = asked.replayed(conn, request)
            if before is not None:
                return Launched(before, replayed=True)
            return Launched(self._by_hand(conn, request))

    def admit_one(
        self, project_id: str, key: str, *, actor: str, options: LaunchOptions | None = None
    ) -> Execution:
        """Create an execution for one source's current signature because an operator materialized its partition.

        Raises
        ------
        ConflictError
            ``partition_unknown``, ``signature_superseded``, or the code of what speaks against it.
        """
        with self._ledger.begin() as conn:
            queue(conn, QUEUE)
            change = archive.latest_change(conn, project_id, key)
            if change is None:
                raise ConflictError(
                    f"the ledger knows no signature behind the partition {key!r}",
                    code="partition_unknown",
                    hint="partitions come from discovery; a key cannot be invented in the UI",
                )
            # Held, so that no discovery makes it pending between this look and the cleared flag.
            source = sources.get(conn, project_id, change.source_identifier, lock=True)
            if source.discovery_signature != change.signature:
                raise ConflictError(
                    f"{source.source_identifier} has a newer signature than {key!r}",
                    code="signature_superseded",
                    hint="materialize its current partition "
                    + repr(partition_key(source.source_identifier, source.discovery_signature or "none")),
                )
            request = LaunchRequest(
                project_id, (source.source_identifier,), actor, options=options or AS_USUAL
            )
            return self._by_hand(conn, request)

    def _by_hand(self, conn: Connection, request: LaunchRequest) -> Execution:
        revision = projects.active(conn, request.project_id)
        config = ProjectConfig.from_json(revision.spec)
        rules = config.automation.execution or ExecutionAutomation()
        rows = registration.locked(conn, request.project_id, sorted(set(request.sources)))
        problems: list[Problem] = [*asked.about_survey(config, request.sources)]
        profile: StoredProfile | None = None
        try:
            profile = profiles.resolve(
                conn,
                name=request.profile or rules.deployment_profile_name,
                project_module=request.project_id,
            )
        except BeampipeError as error:
            problems.append(asked.of_error(error))
        problems += asked.about_sources(conn, request.project_id, request.sources, rows)
        if profile is not None:
            caps = self._caps(conn, request.project_id, rules, profile)
            problems += asked.about_caps(caps, force=request.force)
        asked.refuse(problems)
        if profile is None:
            raise AssertionError("a profile that is not there was refused")
        order = Order(
            revision,
            config,
            profile,
            request.actor,
            self._retry,
            request.options,
            request.key,
            request.sha256,
        )
        by_name = {row.source_identifier: row for row in rows}
        group = [by_name[name] for name in request.sources]
        return create(conn, order, group, ids=self._ids, now=self._clock.now())

    def release(self, project_id: str, identifiers: Sequence[str], *, actor: str) -> list[str]:
        """Let sources run again whose execution failed, with a new budget of retries; their names.

        Also those that wait for their retry. Sources of which nothing failed are left as they are.

        Raises
        ------
        InputError
            ``source_not_registered``: some of the names are unknown; nothing is changed.
        """
        now = self._clock.now()
        with self._ledger.begin() as conn:
            queue(conn, QUEUE)
            projects.active(conn, project_id)
            rows = self._registered(conn, project_id, identifiers)
            failed = [row for row in rows if has_failed(row)]
            if failed:
                self._release(conn, failed, actor, "released", now)
        return [row.source_identifier for row in failed]

    def prioritize(
        self, project_id: str, identifiers: Sequence[str], priority: int, *, actor: str
    ) -> list[str]:
        """Give sources a priority: the higher ones get their turn first; the names of those that had another.

        Raises
        ------
        InputError
            ``invalid_priority``; ``source_not_registered``: some of the names are unknown; nothing is changed.
        """
        if not -PRIORITIES <= priority <= PRIORITIES:
            raise InputError(
                f"{priority} cannot be a priority",
                code="invalid_priority",
                hint=f"give a whole number from {-PRIORITIES} to {PRIORITIES}; 0 is what every source begins with",
            )
        now = self._clock.now()
        with self._ledger.begin() as conn:
            projects.active(conn, project_id)
            rows = self._registered(conn, project_id, identifiers)
            changed = [row for row in rows if row.priority != priority]
            sources.update(conn, [row.id for row in changed], {"priority": priority}, now=now)
            told = [
                provenance.Event(
                    event_type="source.prioritized",
                    project_module=project_id,
                    source_identifier=row.source_identifier,
                    actor=actor,
                    payload={"priority": priority, "before": row.priority},
                )
                for row in changed
            ]
            provenance.record(conn, told, ids=self._ids, now=now)
        return [row.source_identifier for row in changed]

    def _registered(self, conn: Connection, project_id: str, identifiers: Sequence[str]) -> list[Source]:
        wanted = sorted(set(identifiers))
        rows = registration.locked(conn, project_id, wanted)
        unknown = sorted(set(wanted) - {row.source_identifier for row in rows})
        if unknown:
            raise InputError(
                f"not registered in {project_id!r}: {', '.join(unknown[:10])}",
                code="source_not_registered",
                hint="register them first, or correct the names; nothing was changed",
                details={"unknown": [*unknown]},
            )
        return rows

    def _release(self, conn: Connection, rows: Sequence[Source], actor: str, why: str, now: datetime) -> None:
        pending.release(conn, [row.id for row in rows], now=now)
        told = [
            provenance.Event(
                event_type="execution.released",
                project_module=row.project_module,
                source_identifier=row.source_identifier,
                execution_id=row.failed_execution_id,
                actor=actor,
                payload={"why": why, "hold": row.hold},
            )
            for row in rows
        ]
        provenance.record(conn, told, ids=self._ids, now=now)


PRIORITIES: Final = 1_000_000
"""Priorities go from minus to plus this."""

_WORDS: Final = {
    "fair_share": "it is the turn of other surveys",
    "rate_limited": "this tick has begun as many executions as it may",
}


@dataclass(slots=True)
class _Tick:
    """What a tick knows so far."""

    conn: Connection
    revision: ProjectRevision
    now: datetime
    profile: StoredProfile | None = None
    caps: list[Cap] = field(default_factory=list)
    held: dict[str, Held] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)
    left: Held | None = None

    @property
    def config(self) -> ProjectConfig:
        return ProjectConfig.from_json(self.revision.spec)

    def codes(self) -> dict[str, str]:
        return {name: why.code for name, why in self.held.items()}

    def count(self) -> int:
        return pending.count(self.conn, self.revision.project_id)


def _too_few(ready: Sequence[Source], rules: ExecutionAutomation, now: datetime) -> Held | None:
    """Why a group is waited for, when it is."""
    if len(ready) >= rules.min_sources_to_trigger:
        return None
    oldest = min((source.workflow_run_pending_at or now) for source in ready)
    until = oldest + timedelta(minutes=rules.max_wait_minutes)
    if now >= until:
        return None
    words = f"{len(ready)} of {rules.min_sources_to_trigger} sources that begin an execution wait"
    return Held("threshold_not_met", f"{words}; it begins at {rfc3339(until)} at the latest", until)
