"""How much work waits for a process: claims that nobody has begun, and executions whose next step nobody does."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from beampipe_dagster.ledger.states import ACTIVE, SubmissionState
from beampipe_dagster.ledger.tables import batch_execution_record as record
from beampipe_dagster.ledger.tables import discovery_claims


def depth(conn: Connection, *, now: datetime) -> int:
    """Discovery claims and executions, over all surveys, that wait for a run to begin or to go on.

    An execution that is being submitted, or has a session, waits for nobody.
    """
    claims = sa.select(sa.func.count()).where(
        discovery_claims.c.state == "claimed", discovery_claims.c.expires_at > now
    )
    executions = sa.select(sa.func.count()).where(
        record.c.status.in_([status.value for status in ACTIVE]),
        record.c.submission_state.in_([SubmissionState.NOT_STARTED.value, SubmissionState.PREPARING.value]),
        sa.or_(record.c.lease_token.is_(None), record.c.lease_expires_at <= now),
    )
    return int(conn.execute(sa.select(claims.scalar_subquery() + executions.scalar_subquery())).scalar_one())
