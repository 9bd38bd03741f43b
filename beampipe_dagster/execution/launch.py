"""Which executions need a Dagster run now, and what a hand-made materialization means.

A launch is counted in the ledger before Dagster is asked for it. When the request is lost, or its run dies, the
execution is due again after a while, under a new run key; the lease keeps two runs from working at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from beampipe_dagster.clock import Clock
from beampipe_dagster.errors import ConflictError
from beampipe_dagster.execution.admission import AdmissionService
from beampipe_dagster.execution.options import LaunchOptions
from beampipe_dagster.ledger import executions, holds, sources
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.states import ACTIVE, Status, SubmissionState
from beampipe_dagster.ledger.tables import batch_execution_record as record


@dataclass(frozen=True, slots=True)
class Launch:
    """A run to be asked for; ``run_key`` is the same for the same launch."""

    execution: Execution
    run_key: str


class Launcher:
    """Finds executions whose next step has nobody to do it.

    Parameters
    ----------
    relaunch_seconds
        How long a launch may take to begin its work before it counts as lost.
    """

    def __init__(
        self, *, ledger: Ledger, clock: Clock, admission: AdmissionService, relaunch_seconds: float
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._admission = admission
        self._relaunch = timedelta(seconds=relaunch_seconds)

    def due(self, project_id: str, *, limit: int = 100) -> list[Launch]:
        """Count and give the launches that are due, the oldest execution first."""
        now = self._clock.now()
        with self._ledger.begin() as conn:
            waiting = executions.select(
                conn,
                record.c.project_module == project_id,
                record.c.status.in_([status.value for status in ACTIVE]),
                record.c.submission_state.in_(
                    [SubmissionState.NOT_STARTED.value, SubmissionState.PREPARING.value]
                ),
                record.c.next_launch_at <= now,
                record.c.cancel_requested_at.is_(None),
                holds.may_launch(now),
                sa.or_(record.c.lease_token.is_(None), record.c.lease_expires_at <= now),
                limit=limit,
                lock=True,
                light=True,
            )
            launched = [
                executions.move(
                    conn,
                    execution,
                    now=now,
                    values={
                        "launch_count": execution.launch_count + 1,
                        "next_launch_at": now + self._relaunch,
                    },
                )
                for execution in waiting
            ]
        return [Launch(execution, f"{execution.id}:{execution.launch_count}") for execution in launched]

    def for_partition(
        self,
        project_id: str,
        partition_key: str,
        *,
        actor: str,
        again: bool = False,
        options: LaunchOptions | None = None,
    ) -> Execution:
        """The execution that a materialization of this partition is about.

        An active one is resumed. Where there is none yet, and the key is the source's current signature, one is
        created as admission would. Everything else is refused with its reason; nothing is ever submitted twice.

        Parameters
        ----------
        again
            An operator asks for it, with the first of the steps: one that is over is followed by a new one, unless
            its results stand. A later step never does that, and nor does a run that the clock has asked for: they
            are about an execution that has failed meanwhile.
        options
            For an execution that is created.

        Raises
        ------
        ConflictError
            ``execution_completed``, ``execution_failed`` and so on for a terminal one; ``partition_unknown``,
            ``signature_superseded``, or what blocks the source.
        """
        with self._ledger.read() as conn:
            known = executions.by_partition(conn, project_id, partition_key)
            stands = known is not None and known.status is Status.COMPLETED and _stands(conn, known)
        if known is None or (again and known.terminal and not stands):
            return self._admission.admit_one(project_id, partition_key, actor=actor, options=options)
        if not known.terminal:
            return known
        raise ConflictError(
            f"execution {known.id} of {partition_key!r} is {known.status.value} already",
            code=f"execution_{known.status.value}",
            hint=_HINTS.get(
                known.status, "it is over; materialize workflow_manifest by hand to run it again"
            ),
        )


_HINTS: Final = {
    Status.COMPLETED: "its results stand; a new deposit gives the source a new partition",
    Status.FAILED: "see its outcome for the reason; materialize workflow_manifest by hand to try it again, or wait "
    "for a new deposit, which gives the source a new partition",
}


def _stands(conn: Connection, execution: Execution) -> bool:
    """Whether a completed execution is still the last word about one of its sources."""
    signatures = {item["source_identifier"]: item["discovery_signature"] for item in execution.sources}
    rows = sources.by_identifiers(conn, execution.project_module, execution.source_identifiers)
    return not rows or any(
        row.last_executed_discovery_signature == signatures[row.source_identifier] for row in rows
    )
