"""Why a source is not running: an answer from what the ledger holds, with what happens next.

Everything that is true of the source is found, in the order in which it matters; the first is the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from beampipe_dagster.clock import rfc3339
from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.config.project import DiscoveryAutomation, ExecutionAutomation, ProjectConfig
from beampipe_dagster.errors import BeampipeError
from beampipe_dagster.ledger import archive, executions, profiles, projects, sources
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.sources import Source
from beampipe_dagster.ledger.states import Status
from beampipe_dagster.ledger.tables import source_registry
from beampipe_dagster.sources.readiness import blocker, failed_flags
from beampipe_dagster.sources.status import latest_executions, stage

_FAILED_LOOKS: Final = frozenset({"error", "timeout"})
_LOOK: Final = "ask for a look now: beampipe source discover -p {project} {name}"
_NOTHING: Final = "nothing needs to be done"


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that is true of a source.

    Attributes
    ----------
    code
        Stable word for machines.
    sentence
        What is so.
    next
        What happens by itself.
    operator
        What a person can do about it.
    facts
        What it rests on, as stored.
    """

    code: str
    sentence: str
    next: str
    operator: str
    facts: dict[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a source is not running: the answer, and what else is true of it."""

    project_id: str
    source_identifier: str
    answer: Reason
    also: tuple[Reason, ...] = ()


def explain(
    conn: Connection, project_id: str, name: str, *, now: datetime, max_in_flight: int
) -> Explanation:
    """Say why a source is not running.

    Parameters
    ----------
    max_in_flight
        Cap on active executions over all surveys, as the process has it.

    Raises
    ------
    NotFoundError
        ``project_not_found``.
    """
    config = ProjectConfig.from_json(projects.active(conn, project_id).spec)
    rows = sources.by_identifiers(conn, project_id, [name])
    if not rows:
        answer = Reason(
            "source_not_registered",
            f"{name!r} is not registered in {project_id}",
            "nothing: sources that are not registered are never looked at",
            f"register it: beampipe source register -p {project_id} {name}",
        )
        return Explanation(project_id, name, answer)
    newest = latest_executions(conn, project_id, [name]).get(name)
    found = _Finder(conn, config, rows[0], newest, now, max_in_flight).reasons()
    first, *others = found
    return Explanation(project_id, name, first, tuple(others))


@dataclass(frozen=True)
class _Finder:
    conn: Connection
    config: ProjectConfig
    source: Source
    newest: Execution | None
    now: datetime
    max_in_flight: int

    def reasons(self) -> list[Reason]:
        """All of them, the decisive one first."""
        found = [*self._executing(), *self._switched_off(), *self._claimed(), *self._pending()]
        found += [*self._last_look(), *self._history()]
        return found or [
            Reason(
                "nothing_pending",
                "no execution is asked for: its current signature was never marked as new",
                self._next_look(),
                self._command(_LOOK),
            )
        ]

    def _command(self, text: str) -> str:
        return text.format(project=self.source.project_module, name=self.source.source_identifier)

    def _executing(self) -> Iterator[Reason]:
        run = self.newest
        if run is None or run.terminal:
            return
        yield Reason(
            "executing",
            f"it is running: execution {run.id} since {rfc3339(run.created_at)}, {stage(run)}",
            "the poll looks at it until it ends",
            f"follow it: beampipe execution show {run.id}",
            {
                "execution_id": run.id,
                "status": run.status.value,
                "phase": run.control_phase.value,
                "waits_for": run.last_error,
                "waits_for_code": run.last_error_code,
                "session": run.daliuge_session_id,
            },
        )

    def _switched_off(self) -> Iterator[Reason]:
        source = self.source
        if not source.enabled:
            yield Reason(
                "source_disabled",
                "it is disabled: neither discovery nor execution touches it",
                "nothing, until it is enabled",
                self._command("enable it: beampipe source enable -p {project} {name}"),
            )
        if source.quarantined_at is not None:
            error = source.last_error or {}
            yield Reason(
                "quarantined",
                f"it is quarantined since {rfc3339(source.quarantined_at)}, after {source.own_failure_count} failed"
                f" looks in a row: {error.get('message')}",
                "nothing: the clock does not ask about it again",
                self._command(
                    "correct the cause, then let it go: beampipe source discover -p {project} {name}"
                ),
                {
                    "since": rfc3339(source.quarantined_at),
                    "failures": source.own_failure_count,
                    "error": error,
                },
            )

    def _claimed(self) -> Iterator[Reason]:
        token, until = self.source.discovery_claim_token, self.source.discovery_claim_expires_at
        if token is None:
            return
        since = self.source.last_attempted_at
        words = f" since {rfc3339(since)}" if since else ""
        words += f", until {rfc3339(until)} at the latest" if until else ""
        yield Reason(
            "discovery_in_progress",
            f"a discovery batch has it{words}",
            "it goes on when the batch has ended; a batch that died loses it at that time",
            _NOTHING,
            {
                "claim": token,
                "since": rfc3339(since) if since else None,
                "until": rfc3339(until) if until else None,
            },
        )

    def _pending(self) -> Iterator[Reason]:
        source = self.source
        if not source.workflow_run_pending or not source.enabled:
            return
        name = source.source_identifier
        rows = archive.metadata_of(self.conn, source.project_module, [name]).get(name, {})
        why = blocker(source, rows)
        if why is not None:
            if why.code != "discovery_in_progress":
                failed: list[JsonValue] = list(failed_flags(rows))
                facts: dict[str, JsonValue] = {"hold": source.hold}
                if why.code == "discovery_flags_failed":
                    facts["failed_flags"] = failed
                yield Reason(
                    why.code,
                    f"it is held: {why.message}",
                    f"{why.hint}; {self._next_look()}",
                    self._command(_LOOK),
                    facts,
                )
            return
        since = source.workflow_run_pending_at
        ahead = _ahead(self.conn, source)
        queue: dict[str, JsonValue] = {
            "position": ahead + 1,
            "since": rfc3339(since) if since else None,
        }
        yield self._admission(queue)

    def _admission(self, queue: dict[str, JsonValue]) -> Reason:
        """What keeps a ready source from being admitted."""
        head = f"it is ready and waits for admission, number {queue['position']} in the queue"
        rules = self.config.automation.execution
        if rules is None or not rules.enabled:
            return Reason(
                "automation_off",
                f"{head}, and the survey executes nothing by itself",
                "nothing, until somebody starts it",
                "materialize its partition, or set automation.execution.enabled in the survey",
                queue,
            )
        try:
            caps = self._caps(rules)
        except BeampipeError as error:
            return Reason(error.code, f"{head}: {error.message}", "every tick tries again", error.hint, queue)
        facts: dict[str, JsonValue] = {**queue, "caps": {cap: list(pair) for cap, pair in caps.items()}}
        full = [cap for cap, (active, limit) in caps.items() if limit is not None and active >= limit]
        if full:
            words = ", ".join(f"{cap}: {caps[cap][0]} of {caps[cap][1]} are active" for cap in full)
            return Reason(
                full[0],
                f"{head}; there is no room ({words})",
                "it is admitted when an execution has ended and its turn has come",
                "raise the cap, or wait",
                facts,
            )
        short = self._threshold(rules)
        if short is not None:
            return Reason(
                "threshold_not_met", f"{head}; {short}", "it is admitted then", "lower the threshold", facts
            )
        return Reason(
            "pending", head, "the next execution tick admits it when its turn has come", _NOTHING, facts
        )

    def _caps(self, rules: ExecutionAutomation) -> dict[str, tuple[int, int | None]]:
        """Active executions and limit of each cap, by the code with which admission names it."""
        profile = profiles.resolve(
            self.conn, name=rules.deployment_profile_name, project_module=self.source.project_module
        )
        total, by_project, by_profile = executions.active_counts(self.conn)
        return {
            "project_in_flight_cap": (
                by_project.get(self.source.project_module, 0),
                rules.concurrent_execution_run_limit,
            ),
            "in_flight_cap": (total, self.max_in_flight),
            "profile_in_flight_cap": (by_profile.get(profile.id, 0), profile.max_concurrent_executions),
        }

    def _threshold(self, rules: ExecutionAutomation) -> str | None:
        since = self.source.workflow_run_pending_at or self.now
        until = since + timedelta(minutes=rules.max_wait_minutes)
        if rules.min_sources_to_trigger <= 1 or self.now >= until:
            return None
        counts = sources.counts(self.conn, self.source.project_module)
        waiting = counts["pending"] - counts["held"]
        if waiting >= rules.min_sources_to_trigger:
            return None
        return (
            f"an execution begins with {rules.min_sources_to_trigger} waiting sources ({waiting} wait), or at"
            f" {rfc3339(until)}"
        )

    def _last_look(self) -> Iterator[Reason]:
        source = self.source
        if source.last_outcome in _FAILED_LOOKS and source.quarantined_at is None:
            error = source.last_error or {}
            again = source.next_attempt_at
            yield Reason(
                "discovery_failed",
                f"its last look failed ({source.failure_count} in a row): {error.get('message')}",
                f"it is looked at again after {rfc3339(again)}" if again else self._next_look(),
                str(error.get("hint") or "") or self._command(_LOOK),
                {"error": error, "failures": source.failure_count, "next": rfc3339(again) if again else None},
            )
        elif source.last_checked_at is None and source.last_outcome is None:
            yield Reason(
                "discovery_never_ran",
                "the archives were never asked about it",
                self._next_look(),
                self._command(
                    "nothing; if it stays so, see whether the survey's scheduler tick runs: beampipe timeline source"
                    " -p {project} {name}"
                ),
            )
        elif source.last_outcome == "no_datasets":
            checked = f" ({rfc3339(source.last_checked_at)})" if source.last_checked_at else ""
            yield Reason(
                "no_datasets",
                f"the archives answered completely and have nothing for it{checked}",
                self._next_look(),
                f"check the name and the survey's first query, or {self._command(_LOOK)}",
            )

    def _next_look(self) -> str:
        """When it is looked at by itself."""
        rules = self.config.automation.discovery
        if not self.source.enabled or self.source.quarantined_at is not None:
            return "it is not looked at by itself"
        if rules is None or not rules.enabled:
            return "it is not looked at by itself: the survey's discovery is off"
        return f"it is looked at {self._due(rules)}"

    def _due(self, rules: DiscoveryAutomation) -> str:
        source = self.source
        asked, checked = source.discovery_requested_at, source.last_checked_at
        if checked is None or (asked is not None and asked > checked):
            return "at the next discovery tick with room"
        hours = source.stale_after_hours or rules.stale_after_hours
        return f"again after {rfc3339(checked + timedelta(hours=hours))}"

    def _history(self) -> Iterator[Reason]:
        run, source = self.newest, self.source
        signature = source.discovery_signature
        if signature and signature == source.last_executed_discovery_signature:
            yield Reason(
                "signature_already_executed",
                "an execution of its current signature was completed: there is nothing new to run",
                self._next_look(),
                _NOTHING,
                {"signature": signature},
            )
        elif run is not None and run.terminal and not source.workflow_run_pending and _is_of(run, source):
            failed = run.status is Status.FAILED
            yield Reason(
                "execution_failed" if failed else f"execution_{run.status.value}",
                f"execution {run.id} of its current signature ended as {run.status.value}"
                + (f": {run.last_error}" if run.last_error else ""),
                "nothing for this signature: it runs again when the archives give it a new one",
                f"read what failed: beampipe execution show {run.id}",
                {"execution_id": run.id, "error": run.last_error, "error_code": run.last_error_code},
            )


def _is_of(run: Execution, source: Source) -> bool:
    """Whether an execution was of the source's current signature."""
    return any(
        item.get("source_identifier") == source.source_identifier
        and item.get("discovery_signature") == source.discovery_signature
        for item in run.sources
    )


def _ahead(conn: Connection, source: Source) -> int:
    """Enabled pending sources of the survey that admission takes before this one."""
    columns = source_registry.c
    mine = source.workflow_run_pending_at
    earlier: sa.ColumnElement[bool] = sa.false()
    if mine is not None:
        same = sa.and_(columns.workflow_run_pending_at == mine, columns.created_at < source.created_at)
        earlier = sa.or_(columns.workflow_run_pending_at < mine, same)
    return int(
        conn.execute(
            sa.select(sa.func.count()).where(
                columns.project_module == source.project_module,
                columns.enabled,
                columns.workflow_run_pending,
                columns.hold.is_(None),
                earlier,
            )
        ).scalar_one()
    )
