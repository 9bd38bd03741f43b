"""Being the one process that works on an execution, for as long as it takes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from beampipe_dagster.clock import Clock
from beampipe_dagster.errors import BeampipeError, ConflictError, Retry
from beampipe_dagster.ledger import executions
from beampipe_dagster.ledger.engine import Ledger

CANCEL_REQUESTED: Final = "cancel_requested"


@dataclass(frozen=True, slots=True)
class Holder:
    """A lease on one execution.

    ``confirm`` renews it and raises when it went to somebody else: call it before anything that cannot be undone.
    """

    ledger: Ledger
    clock: Clock
    execution_id: str
    token: str
    seconds: float

    def confirm(self) -> None:
        """Renew the lease, or stop here.

        Raises
        ------
        ConflictError
            ``lease_lost``; ``cancel_requested``: it is to be cancelled.
        """
        with self.ledger.begin() as conn:
            cancelled = executions.cancel_requested(conn, self.execution_id)
            kept = executions.renew_lease(
                conn, self.execution_id, self.token, now=self.clock.now(), seconds=self.seconds
            )
        if not kept:
            raise ConflictError(
                f"another process took over execution {self.execution_id}",
                code="lease_lost",
                hint="nothing more was done here; the other process goes on",
            )
        if cancelled:
            raise to_be_cancelled(self.execution_id)


def to_be_cancelled(execution_id: str) -> ConflictError:
    """Why a step begins nothing more."""
    return ConflictError(
        f"execution {execution_id} is to be cancelled",
        code=CANCEL_REQUESTED,
        hint="nothing more is begun; it ends by itself: beampipe execution show " + execution_id,
    )


@contextmanager
def holding(
    *, ledger: Ledger, clock: Clock, execution_id: str, token: str, seconds: float
) -> Iterator[Holder]:
    """Hold the execution's lease and renew it in the background until the block ends.

    The lease stays for the rest of its time after the block, so that the next step of the same holder finds it;
    a process that dies loses it after ``seconds``.

    Raises
    ------
    NotFoundError
        ``execution_not_found``.
    ConflictError
        ``execution_busy``: another live process works on it.
    """
    with ledger.begin() as conn:
        executions.get(conn, execution_id)
        if not executions.acquire_lease(conn, execution_id, token, now=clock.now(), seconds=seconds):
            raise ConflictError(
                f"another process works on execution {execution_id}",
                code="execution_busy",
                hint="wait for it; a process that died lets go by itself after a while",
                retry=Retry.LATER,
            )
    holder = Holder(ledger, clock, execution_id, token, seconds)
    stop = threading.Event()
    keeper = threading.Thread(
        target=_keep, args=(holder, stop), name=f"lease-{execution_id[:8]}", daemon=True
    )
    keeper.start()
    try:
        yield holder
    finally:
        stop.set()
        keeper.join(timeout=5)


def _keep(holder: Holder, stop: threading.Event) -> None:
    """Renew at a third of the lease's time; a loss is found by the worker's own ``confirm``."""
    while not stop.wait(holder.seconds / 3):
        try:
            holder.confirm()
        except ConflictError as error:
            if error.code != CANCEL_REQUESTED:
                return  # while it is to be cancelled, it is still ours
        except BeampipeError:
            continue  # the ledger is away for a moment: the next renewal may find it again
