"""Cancellations that were asked for and are not over: the poll goes on with them, a few a tick."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import sqlalchemy as sa

from beampipe_dagster.clock import Clock
from beampipe_dagster.errors import BeampipeError
from beampipe_dagster.execution.cancel import UNKNOWN, Cancelling
from beampipe_dagster.ledger import executions
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.states import ACTIVE
from beampipe_dagster.ledger.tables import batch_execution_record as record

AT_A_TIME: Final = 20


def requested(ledger: Ledger, clock: Clock) -> list[Execution]:
    """Executions that are to be cancelled and can be now: it is known whether they have a session."""
    now = clock.now()
    with ledger.read() as conn:
        return executions.select(
            conn,
            record.c.cancel_requested_at.is_not(None),
            record.c.status.in_([status.value for status in ACTIVE]),
            record.c.submission_state.not_in([state.value for state in UNKNOWN]),
            sa.or_(record.c.cancel_next_at.is_(None), record.c.cancel_next_at <= now),
            limit=AT_A_TIME,
            light=True,
        )


def go_on(*, ledger: Ledger, clock: Clock, cancelling: Cancelling, deadline: float) -> list[str]:
    """Go on with what is due until the clock's ``monotonic`` reaches ``deadline``; the executions that ended."""
    ended: list[str] = []
    for execution in requested(ledger, clock):
        if clock.monotonic() >= deadline:
            break
        with suppress(BeampipeError):  # a backend that is away, or a row that moved: it is still due
            if cancelling.attempt(execution).terminal:
                ended.append(execution.id)
    return ended
