"""Holding and releasing: what must not begin, whose word that is, and until when.

A hold stops nothing that was submitted. It keeps a source, or everything of a survey or a profile, from being
admitted, and executions that have not been submitted from being launched.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from sqlalchemy.engine import Connection

from beampipe_dagster.clock import Clock, rfc3339
from beampipe_dagster.errors import ConflictError, InputError
from beampipe_dagster.execution.cancel import checked_reason
from beampipe_dagster.execution.outcome import CANCELLED_HOLD
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger import executions, holds, profiles, projects, provenance, sources
from beampipe_dagster.ledger.decisions import Held
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.holds import Hold, Scope
from beampipe_dagster.ledger.sources import Source
from beampipe_dagster.ledger.states import SubmissionState
from beampipe_dagster.sources.readiness import Blocker
from beampipe_dagster.sources.status import FAILED_HOLDS

HELD: Final = "held_by_operator"
"""Code of everything that waits because an operator holds it."""


class Holds:
    """The operator's holds."""

    def __init__(self, *, ledger: Ledger, clock: Clock, ids: Ids) -> None:
        self._ledger = ledger
        self._clock = clock
        self._ids = ids

    def hold(
        self,
        scope: Scope,
        subject: str,
        *,
        reason: str,
        actor: str,
        project_id: str = "",
        hours: float | None = None,
    ) -> Hold:
        """Hold a source (of ``project_id``), an execution, a survey or a profile, by its name or id.

        Parameters
        ----------
        hours
            After which it is over by itself; ``None`` for never.

        Raises
        ------
        InputError
            ``hold_reason_required``, ``hold_reason_too_long``, ``invalid_hold_time``.
        NotFoundError
            There is no such thing.
        ConflictError
            ``already_held``; ``execution_submitted``: a hold stops nothing that may run.
        """
        reason = checked_reason(reason, prefix="hold")
        if hours is not None and not 0 < hours <= _LONGEST_HOURS:
            raise InputError(
                f"{hours} h cannot be the time of a hold",
                code="invalid_hold_time",
                hint=f"give more than 0 and at most {_LONGEST_HOURS:,} hours, or none for an open end",
            )
        now = self._clock.now()
        with self._ledger.begin() as conn:
            module, identity, told = self._named(conn, scope, project_id, subject, beginning=True)
            until = now + timedelta(hours=hours) if hours is not None else None
            hold = Hold(scope.value, module, identity, HELD, reason, actor, now, until)
            if not holds.put(conn, hold):
                raise ConflictError(
                    f"{scope.value} {subject} is held already",
                    code="already_held",
                    hint="release it first, to hold it for another reason or time",
                )
            self._tell(conn, hold, told, _EVENTS[scope][0], now)
        return hold

    def release(self, scope: Scope, subject: str, *, reason: str, actor: str, project_id: str = "") -> Hold:
        """Take a hold away; what it was.

        Raises
        ------
        InputError
            ``hold_reason_required``, ``hold_reason_too_long``.
        NotFoundError
            There is no such thing.
        ConflictError
            ``not_held``.
        """
        reason = checked_reason(reason, prefix="hold")
        now = self._clock.now()
        with self._ledger.begin() as conn:
            module, identity, told = self._named(conn, scope, project_id, subject, beginning=False)
            before = holds.find(conn, scope.value, module, identity, now=now)
            if before is None:
                raise ConflictError(
                    f"{scope.value} {subject} is not held",
                    code="not_held",
                    hint="there is nothing to release",
                )
            holds.remove(conn, scope.value, module, identity)
            if scope is Scope.SOURCE:
                row = sources.get(conn, module, identity, lock=True)
                if (row.hold or {}).get("code") == HELD:
                    sources.update(conn, [row.id], {"hold": None}, now=now)
            released = Hold(scope.value, module, identity, before.code, reason, actor, now)
            self._tell(conn, released, told, _EVENTS[scope][1], now)
        return before

    def _named(
        self, conn: Connection, scope: Scope, project_id: str, subject: str, *, beginning: bool
    ) -> tuple[str, str, tuple[str, str | None]]:
        """The survey and the identity that a hold is kept under; in whose story, and about which execution."""
        if scope is Scope.SOURCE:
            return project_id, sources.get(conn, project_id, subject).source_identifier, (project_id, None)
        if scope is Scope.PROJECT:
            projects.active(conn, subject)
            return subject, subject, (subject, None)
        if scope is Scope.PROFILE:
            profile = profiles.by_name(conn, subject)
            return "", profile.id, (profile.project_module or "", None)
        execution = executions.get(conn, subject, lock=True, light=True)
        before = {SubmissionState.NOT_STARTED, SubmissionState.PREPARING}
        if beginning and (execution.terminal or execution.submission_state not in before):
            raise ConflictError(
                f"execution {subject} is {execution.status} ({execution.submission_state})",
                code="execution_submitted",
                hint="only what has not been submitted can be held; a running one can be cancelled",
            )
        return execution.project_module, execution.id, (execution.project_module, execution.id)

    def _tell(
        self,
        conn: Connection,
        hold: Hold,
        told: tuple[str, str | None],
        event_type: str,
        now: datetime,
    ) -> None:
        event = provenance.Event(
            event_type=event_type,
            project_module=told[0],
            source_identifier=hold.subject if hold.scope == Scope.SOURCE.value else None,
            execution_id=told[1],
            actor=hold.actor,
            payload={
                "subject": hold.subject,
                "reason": hold.reason,
                "until": rfc3339(hold.expires_at) if hold.expires_at else None,
            },
        )
        provenance.record(conn, [event], ids=self._ids, now=now)


_EVENTS: Final = {
    Scope.SOURCE: ("source.held", "source.released"),
    Scope.EXECUTION: ("execution.launch_held", "execution.launch_released"),
    Scope.PROJECT: ("project.held", "project.released"),
    Scope.PROFILE: ("profile.paused", "profile.resumed"),
}
_LONGEST_HOURS: Final = 24 * 366


def hold_words(hold: Hold) -> str:
    """A hold in words: ``held by ada: maintenance, until 2026-…``."""
    until = f", until {rfc3339(hold.expires_at)}" if hold.expires_at else ""
    return f"the {hold.scope} is held by {hold.actor}: {hold.reason}{until}"


def operator_hold(hold: Hold) -> Blocker:
    """Why a source that is held does not run."""
    return Blocker(HELD, hold_words(hold), "it runs again when it is released: beampipe source unhold")


def has_failed(source: Source) -> bool:
    """Whether an execution of the source's current signature failed or was cancelled, and nothing is newer."""
    if source.failed_now:
        return True
    code = (source.hold or {}).get("code")
    return not source.workflow_run_pending and code in {*FAILED_HOLDS, CANCELLED_HOLD}


def delayed(source: Source) -> Held:
    """Why a source waits whose last execution failed and is tried again."""
    at = source.retry_at
    when = f" at {rfc3339(at)}" if at else ""
    return Held("retry_waiting", f"its last execution failed; it is tried again{when}", at)
