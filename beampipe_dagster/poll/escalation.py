"""What an operator is told, once, about an execution that goes on all the same.

Nothing here fails anything: a session that runs for long is no failed session, and only its own end, or a person,
ends its execution.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy.engine import Connection

from beampipe_dagster.clock import rfc3339
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger import observations, provenance
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.observations import Observation

BUDGET: Final = "poll_budget_escalation"
STUCK: Final = "no_progress_escalation"
UNRESOLVED: Final = "submission_unresolved"


@dataclass(frozen=True, slots=True)
class Escalation:
    """Something for an operator.

    Attributes
    ----------
    kind
        What it is about; told once for each kind, until it is over.
    reason
        One sentence with the figures in it.
    hint
        What can be done.
    """

    kind: str
    reason: str
    hint: str

    def as_dict(self, now: datetime) -> dict[str, str]:
        """As it is kept with the execution."""
        return {"reason": self.reason, "hint": self.hint, "at": rfc3339(now)}


def of_rounds(round_number: int, max_rounds: int | None, told: dict[str, Any]) -> Escalation | None:
    """A session that still runs after as many looks as the survey allows."""
    if max_rounds is None or round_number < max_rounds or BUDGET in told:
        return None
    return Escalation(
        BUDGET,
        f"the session still runs after {round_number} looks (the survey allows {max_rounds})",
        "see whether it gets on (beampipe execution show), and cancel it if it does not; "
        "it is looked at further and ends by itself",
    )


def of_progress(
    progress_at: datetime | None, *, now: datetime, limit: timedelta, told: dict[str, Any]
) -> Escalation | None:
    """A session that runs, and whose drops have not moved for long."""
    if progress_at is None or now - progress_at < limit or STUCK in told:
        return None
    hours = (now - progress_at).total_seconds() / 3600
    return Escalation(
        STUCK,
        f"no drop has changed for {hours:.1f} h (since {rfc3339(progress_at)})",
        "a long task moves no drop either; if it hangs, cancel the execution and look at the node manager's log",
    )


def tell(
    conn: Connection, execution: Execution, raised: list[Escalation], *, ids: Ids, now: datetime
) -> dict[str, Any]:
    """Keep what is raised, as evidence and in the story, in the caller's transaction.

    Returns
    -------
    dict
        What the caller adds to the execution's escalations, by kind.
    """
    if not raised:
        return {}
    observations.record(
        conn,
        [
            Observation(execution.id, "operator", one.kind, reason=one.reason, payload={"hint": one.hint})
            for one in raised
        ],
        ids=ids,
        now=now,
    )
    provenance.record(
        conn,
        [
            provenance.Event(
                event_type=f"execution.{one.kind}",
                project_module=execution.project_module,
                source_identifier=execution.source_identifiers[0],
                execution_id=execution.id,
                correlation_id=execution.claim_token,
                payload={
                    "reason": one.reason,
                    "hint": one.hint,
                    "session_id": execution.daliuge_session_id,
                    "round": execution.poll_count,
                    "terminalized": False,
                },
            )
            for one in raised
        ],
        ids=ids,
        now=now,
    )
    return {one.kind: one.as_dict(now) for one in raised}
