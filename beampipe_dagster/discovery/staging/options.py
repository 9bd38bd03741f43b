"""How patient data staging is, and how far it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from beampipe_dagster.ledger.staging import StagingJob

WAITING: Final = "staging_waiting"
FAILED: Final = "staging_failed"
LOGIN_PAUSE_SECONDS: Final = 900.0
"""After a refused login nobody tries again for so long: archives lock accounts after some wrong passwords."""
RETRY_SECONDS: Final = 60.0
"""A job that failed is made again after this time, after the second failure twice of it, and so on."""
LISTED_JOBS: Final = 50
"""How many of a service's newest jobs are looked at to find one again."""
Tell = Callable[[str, dict[str, Any]], None]
"""Gets what happened, by the type of the event; called outside of transactions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StagingOptions:
    """How patient, how often.

    Attributes
    ----------
    by_sbid
        A job for each scheduling block, or one for all visibilities.
    poll_seconds
        Between two looks at a job.
    patience_seconds
        How long one call of :meth:`StagingService.advance` waits for the archive.
    create_deadline_seconds
        How long a job of which the creation is not known is looked for.
    min_validity_seconds
        How long a URL must be good still when it is used.
    max_failures
        How many jobs for the same file may fail.
    """

    by_sbid: bool = True
    poll_seconds: float = 20.0
    patience_seconds: float = 120.0
    create_deadline_seconds: float = 900.0
    min_validity_seconds: float = 3600.0
    max_failures: int = 3

    @property
    def min_validity(self) -> timedelta:
        """How long a URL must be good still."""
        return timedelta(seconds=self.min_validity_seconds)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the staging of an execution is.

    Attributes
    ----------
    jobs
        The live ones.
    waiting_for
        Why it is not done, in words; empty when all files are there.
    """

    jobs: tuple[StagingJob, ...]
    waiting_for: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        """Whether all files are there."""
        return not self.waiting_for
