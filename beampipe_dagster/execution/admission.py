"""Which pending sources run now: readiness, caps and grouping, decided in one transaction.

Locks on the sources, the executions and the cleared pending flags commit together, so that a source never runs
twice at once, whoever asks: two daemons, a sensor and an operator, or a tick that was killed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy.engine import Connection

from beampipe_dagster.clock import Clock
from beampipe_dagster.config.project import ExecutionAutomation, ProjectConfig
from beampipe_dagster.errors import BeampipeError, ConflictError
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger import archive, executions, profiles, projects, provenance, sources
from beampipe_dagster.ledger.engine import Ledger, queue
from beampipe_dagster.ledger.execution_values import Execution, NewExecution
from beampipe_dagster.ledger.profiles import StoredProfile
from beampipe_dagster.ledger.projects import ProjectRevision
from beampipe_dagster.ledger.sources import Source
from beampipe_dagster.signature.payload import combined_signature, partition_key
from beampipe_dagster.sources.readiness import Blocker, blocker

AUTOMATION: Final = "automation"
QUEUE: Final = "admission"
"""Where admissions of all processes queue: caps are kept by counting, which two may not do at once."""


@dataclass(frozen=True, slots=True)
class AdmissionReport:
    """What a tick decided, for the sensor's page and the log."""

    project_id: str
    admitted: list[Execution] = field(default_factory=list)
    skip_reason: str | None = None
    message: str | None = None
    held: dict[str, str] = field(default_factory=dict)
    waiting: int = 0


class AdmissionService:
    """Turns pending sources into executions."""

    def __init__(self, *, ledger: Ledger, clock: Clock, ids: Ids, max_in_flight: int) -> None:
        self._ledger = ledger
        self._clock = clock
        self._ids = ids
        self._max_in_flight = max_in_flight

    def tick(self, project_id: str) -> AdmissionReport:
        """Admit what may run now."""
        now = self._clock.now()
        with self._ledger.begin() as conn:
            queue(conn, QUEUE)
            revision = projects.active(conn, project_id)
            config = ProjectConfig.from_json(revision.spec)
            rules = config.automation.execution
            if rules is None or not rules.enabled:
                return AdmissionReport(project_id, skip_reason="disabled")
            try:
                profile = profiles.resolve(
                    conn, name=rules.deployment_profile_name, project_module=project_id
                )
            except BeampipeError as error:
                return AdmissionReport(project_id, skip_reason=error.code, message=str(error))
            runs, reason = self._room(conn, project_id, rules, profile)
            if not runs:
                return AdmissionReport(project_id, skip_reason=reason)
            return self._admit(conn, revision, config, profile, runs, now)

    def admit_one(self, project_id: str, key: str, *, actor: str) -> Execution:
        """Create an execution for one source's current signature because an operator asked for it.

        Raises
        ------
        ConflictError
            ``partition_unknown``, ``signature_superseded``, or the code of what blocks the source.
        """
        now = self._clock.now()
        with self._ledger.begin() as conn:
            queue(conn, QUEUE)
            revision = projects.active(conn, project_id)
            config = ProjectConfig.from_json(revision.spec)
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
            held = blocker(
                source,
                archive.metadata_of(conn, project_id, [source.source_identifier]).get(
                    source.source_identifier, {}
                ),
            )
            if held is not None:
                raise ConflictError(held.message, code=held.code, hint=held.hint)
            rules = config.automation.execution or ExecutionAutomation()
            profile = profiles.resolve(conn, name=rules.deployment_profile_name, project_module=project_id)
            return self._create(conn, revision, config, profile, [source], actor=actor, now=now)

    def _room(
        self, conn: Connection, project_id: str, rules: ExecutionAutomation, profile: StoredProfile
    ) -> tuple[int, str | None]:
        """How many executions may be added, and which cap allows none."""
        total, by_project, by_profile = executions.active_counts(conn)
        room = [(rules.tick_execution_run_limit, "rate_limited")]
        if rules.concurrent_execution_run_limit is not None:
            room.append(
                (
                    rules.concurrent_execution_run_limit - by_project.get(project_id, 0),
                    "project_in_flight_cap",
                )
            )
        room.append((self._max_in_flight - total, "in_flight_cap"))
        if profile.max_concurrent_executions is not None:
            room.append(
                (profile.max_concurrent_executions - by_profile.get(profile.id, 0), "profile_in_flight_cap")
            )
        runs, reason = min(room, key=lambda item: item[0])
        return (runs, None) if runs > 0 else (0, reason)

    def _admit(
        self,
        conn: Connection,
        revision: ProjectRevision,
        config: ProjectConfig,
        profile: StoredProfile,
        runs: int,
        now: datetime,
    ) -> AdmissionReport:
        project_id = revision.project_id
        rules = config.automation.execution or ExecutionAutomation()
        waiting = sources.pending(conn, project_id, limit=rules.tick_execution_source_limit)
        if not waiting:
            return AdmissionReport(project_id, skip_reason="no_pending_sources")
        ready, held = self._sort(conn, project_id, waiting, now)
        if ready and len(ready) < rules.min_sources_to_trigger:
            oldest = min((source.workflow_run_pending_at or now) for source in ready)
            if now - oldest < timedelta(minutes=rules.max_wait_minutes):
                return AdmissionReport(
                    project_id, skip_reason="threshold_not_met", held=held, waiting=len(ready)
                )
        size = rules.max_sources_per_execution
        groups = [ready[start : start + size] for start in range(0, len(ready), size)][:runs]
        admitted = [
            self._create(conn, revision, config, profile, group, actor=AUTOMATION, now=now)
            for group in groups
        ]
        left = len(ready) - sum(len(group) for group in groups)
        reason = None if admitted else "sources_skipped_not_ready"
        return AdmissionReport(project_id, admitted, reason, held=held, waiting=left)

    def _sort(
        self, conn: Connection, project_id: str, waiting: Sequence[Source], now: datetime
    ) -> tuple[list[Source], dict[str, str]]:
        """Split pending sources into those that may run and those that are held, and keep the reasons."""
        busy = executions.active_sources(conn, project_id)
        rows = archive.metadata_of(conn, project_id, [source.source_identifier for source in waiting])
        ready: list[Source] = []
        held: dict[str, str] = {}
        for source in waiting:
            if source.source_identifier in busy:
                held[source.source_identifier] = "source_already_executing"
                continue
            if source.discovery_signature == source.last_executed_discovery_signature:
                sources.update(conn, [source.id], {"workflow_run_pending": False, "hold": None}, now=now)
                continue
            why = blocker(source, rows.get(source.source_identifier, {}))
            if why is None:
                ready.append(source)
                continue
            held[source.source_identifier] = why.code
            self._hold(conn, source, why, now)
        return ready, held

    def _hold(self, conn: Connection, source: Source, why: Blocker, now: datetime) -> None:
        """Keep why a pending source does not run; told once for each reason."""
        if why.code == "discovery_in_progress" or (source.hold or {}).get("message") == why.message:
            return
        sources.update(conn, [source.id], {"hold": why.as_dict()}, now=now)
        event = provenance.Event(
            event_type="execution.held",
            project_module=source.project_module,
            source_identifier=source.source_identifier,
            payload=why.as_dict(),
        )
        provenance.record(conn, [event], ids=self._ids, now=now)

    def _create(
        self,
        conn: Connection,
        revision: ProjectRevision,
        config: ProjectConfig,
        profile: StoredProfile,
        group: Sequence[Source],
        *,
        actor: str,
        now: datetime,
    ) -> Execution:
        signatures = {source.source_identifier: source.discovery_signature or "" for source in group}
        new = self._new_execution(revision, config, profile, signatures, actor)
        execution = executions.create(conn, new, now=now)
        sources.update(
            conn,
            [source.id for source in group],
            {"workflow_run_pending": False, "hold": None},
            now=now,
        )
        payload: dict[str, Any] = {
            "partition_key": execution.partition_key,
            "profile": f"{profile.name} r{profile.revision}",
            "project_version": revision.version,
        }
        provenance.record(
            conn,
            [
                provenance.Event(
                    event_type=kind,
                    project_module=execution.project_module,
                    source_identifier=name,
                    execution_id=execution.id,
                    actor=actor,
                    correlation_id=execution.claim_token,
                    payload=payload,
                )
                for name in signatures
                for kind in (
                    ("execution.created", "execution.automated_admitted")
                    if actor == AUTOMATION
                    else ("execution.created",)
                )
            ],
            ids=self._ids,
            now=now,
        )
        return execution

    def _new_execution(
        self,
        revision: ProjectRevision,
        config: ProjectConfig,
        profile: StoredProfile,
        signatures: dict[str, str],
        actor: str,
    ) -> NewExecution:
        combined = combined_signature(signatures)
        name, signature = next(iter(signatures.items()))
        key = (
            partition_key(name, signature)
            if len(signatures) == 1
            else partition_key(f"{len(signatures)}-sources", combined)
        )
        rules = config.automation.execution or ExecutionAutomation()
        policy = config.output_verification
        return NewExecution(
            id=self._ids.new(),
            project_module=revision.project_id,
            partition_key=key,
            claim_token=self._ids.new(),
            sources=[
                {"source_identifier": source, "discovery_signature": value}
                for source, value in signatures.items()
            ],
            signatures=signatures,
            archive_name=rules.archive_name,
            discovery_signature=combined,
            project_config_id=revision.id,
            deployment_profile_id=profile.id,
            deployment_profile_revision=profile.revision,
            deployment_profile_snapshot={
                **profile.spec,
                "id": profile.id,
                "revision": profile.revision,
                "spec_sha256": profile.spec_sha256,
            },
            output_verification_required=policy.required,
            output_verification_policy={
                "required": policy.required,
                "inventory_schema": policy.inventory_schema,
            },
            created_by=actor,
        )
