"""Named leases: one holder at a time, taken over when they expire."""

from __future__ import annotations

from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from beampipe_dagster.ledger.tables import leases


def acquire(conn: Connection, name: str, token: str, *, now: datetime, seconds: float) -> bool:
    """Take or renew the lease ``name`` for ``token``; ``False`` while somebody else holds it.

    Call it in a writing transaction of its own.
    """
    expires_at = now + timedelta(seconds=seconds)
    taken = conn.execute(
        sa.update(leases)
        .where(
            leases.c.name == name,
            sa.or_(leases.c.token == token, leases.c.expires_at <= now),
        )
        .values(token=token, expires_at=expires_at)
    )
    if taken.rowcount:
        return True
    try:
        with conn.begin_nested():
            conn.execute(sa.insert(leases).values(name=name, token=token, expires_at=expires_at))
    except IntegrityError:
        return False
    return True


def release(conn: Connection, name: str, token: str) -> None:
    """Give the lease back, if it is still ours."""
    conn.execute(sa.delete(leases).where(leases.c.name == name, leases.c.token == token))
