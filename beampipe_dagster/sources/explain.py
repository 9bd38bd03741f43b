"""Why a source is not running: an answer from what the ledger holds, with what happens next.

Everything that is true of the source is found, in the order in which it matters; the first is the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy.engine import Connection

from beampipe_dagster.clock import rfc3339
from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.config.project import DiscoveryAutomation, ExecutionAutomation, ProjectConfig
from beampipe_dagster.errors import BeampipeError
from beampipe_dagster.ledger import (
    archive,
    circuits,
    decisions,
    executions,
    gates,
    pending,
    profiles,
    projects,
    sources,
)
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.sources import Source
from beampipe_dagster.sources.queue import decision_facts
from beampipe_dagster.sources.readiness import blocker, failed_flags
from beampipe_dagster.sources.status import latest_executions, stage

_FAILED_LOOKS: Final = frozenset({"error", "timeout"})
_LOOK: Final = "ask for a look now: beampipe source discover -p {project} {name}"
FAIR_SHARE: Final = "fair_share"
_RECENT: Final = timedelta(minutes=10)
"""How long the decision of a tick counts as the present one."""
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
        found += self._archives()
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
        decided = decision_facts(self.conn, source.project_module, name)
        if source.failed_now and source.retry_at is not None and source.retry_at > self.now:
            hold = source.hold or {}
            yield Reason(
                "retry_waiting",
                f"its last execution failed, and it is tried again at {rfc3339(source.retry_at)}: "
                f"{hold.get('message') or 'see the execution'}",
                str(hold.get("hint") or "the first execution tick after that time admits it"),
                self._command("run it now: beampipe source release -p {project} {name}"),
                {"retry_at": rfc3339(source.retry_at), "hold": source.hold, **decided},
            )
            return
        rows = archive.metadata_of(self.conn, source.project_module, [name]).get(name, {})
        why = blocker(source, rows)
        if why is not None:
            if why.code != "discovery_in_progress":
                failed: list[JsonValue] = list(failed_flags(rows))
                facts: dict[str, JsonValue] = {"hold": source.hold, **decided}
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
        queue: dict[str, JsonValue] = {
            "position": pending.ahead(self.conn, source, now=self.now) + 1,
            "since": rfc3339(since) if since else None,
            "priority": source.priority,
            **decided,
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
        tick = decisions.newest(self.conn, self.source.project_module)
        if tick is not None and tick.reason == FAIR_SHARE and tick.last_seen_at > self.now - _RECENT:
            return Reason(
                FAIR_SHARE,
                f"{head}; it is the turn of other surveys, since {rfc3339(tick.decided_at)}",
                "it is admitted when the survey's turn has come: surveys that want the same room take turns",
                "wait, or give the survey a higher automation.execution.weight",
                facts,
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

    def _archives(self) -> Iterator[Reason]:
        """Archives that are left alone: no look is complete without them."""
        if not self.source.enabled or self.source.quarantined_at is not None:
            return
        queries = (*self.config.discovery.queries, *self.config.discovery.enrichments)
        asked = {*(query.adapter for query in queries), *self.config.adapters.required}
        for adapter, row in gates.of_project(self.conn, self.source.project_module).items():
            circuit = row.circuit
            if adapter not in asked or not circuit.shut_off(self.now):
                continue
            until = rfc3339(circuit.open_until) if circuit.open_until else None
            yield Reason(
                "archive_circuit_open",
                f"archive {adapter}: {circuits.in_words(circuit, now=self.now)}",
                "no look is made until then; the first request after it finds out whether the archive is back"
                if until
                else "no look is made until the circuit is closed",
                f"ask the archive now: beampipe archive probe {adapter}",
                {
                    "archive": row.key,
                    "state": circuit.state.value,
                    "since": rfc3339(circuit.opened_at) if circuit.opened_at else None,
                    "until": until,
                    "by_hand": circuit.by_hand,
                    "last_error": row.last_error,
                },
            )

    def _last_look(self) -> Iterator[Reason]:
        source = self.source
        yield from self._vanishing()
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
        elif source.last_outcome == "no_datasets" and source.vanish_first_at is None:
            checked = f" ({rfc3339(source.last_checked_at)})" if source.last_checked_at else ""
            yield Reason(
                "no_datasets",
                f"the archives answered completely and have nothing for it{checked}",
                self._next_look(),
                f"check the name and the survey's first query, or {self._command(_LOOK)}",
            )

    def _vanishing(self) -> Iterator[Reason]:
        source = self.source
        since, again = source.vanish_first_at, source.next_attempt_at
        if since is None:
            return
        looks = "once" if source.vanish_count == 1 else f"{source.vanish_count} times"
        yield Reason(
            "datasets_vanishing",
            f"datasets that are stored were missing in complete answers of the archives since {rfc3339(since)}"
            f" (seen {looks}); until that is confirmed its data and its signature are kept",
            (f"it is looked at again after {rfc3339(again)}" if again else self._next_look())
            + "; when that look says the same it is believed, when the datasets are back nothing has happened",
            self._command("nothing, or see what was missing: beampipe timeline source -p {project} {name}"),
            {
                "since": rfc3339(since),
                "looks": source.vanish_count,
                "candidate_signature": source.vanish_signature,
                "signature": source.discovery_signature,
                "next": rfc3339(again) if again else None,
            },
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
            used_up = (source.hold or {}).get("code") == "retry_budget_exhausted"
            yield Reason(
                "retry_budget_exhausted" if used_up else f"execution_{run.status.value}",
                f"execution {run.id} of its current signature ended as {run.status.value}"
                + (", and its retries are used up" if used_up else "")
                + (f": {run.last_error}" if run.last_error else ""),
                "nothing for this signature: it runs again when the archives give it a new one, or the survey has"
                " a new revision",
                f"read what failed: beampipe execution show {run.id}; "
                + self._command("then let it run again: beampipe source release -p {project} {name}"),
                {"execution_id": run.id, "error": run.last_error, "error_code": run.last_error_code},
            )


def _is_of(run: Execution, source: Source) -> bool:
    """Whether an execution was of the source's current signature."""
    return any(
        item.get("source_identifier") == source.source_identifier
        and item.get("discovery_signature") == source.discovery_signature
        for item in run.sources
    )
