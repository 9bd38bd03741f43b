"""What a pending job waits for, by Slurm's reason (squeue(1), "JOB REASON CODES"), and whether waiting helps.

A site accepts requests that it can never fulfil unless it has ``EnforcePartLimits`` set: such a job looks as
healthy as any other, and waits for ever.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Wait(StrEnum):
    """Whose turn it is."""

    QUEUE = "queue"
    """Its turn comes by itself."""

    SITE = "site"
    """The cluster's people have to bring something back."""

    HELD = "held"
    """Somebody holds it and has to release it."""

    NEVER = "never"
    """No time will start it: cancel it and correct the request."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a pending job waits for.

    Parameters
    ----------
    kind
        Whose turn it is.
    reason
        Slurm's word, without what follows it; empty when it gives none.
    hint
        What to do; empty where nothing is to be done.
    """

    kind: Wait
    reason: str
    hint: str = ""

    @property
    def is_stuck(self) -> bool:
        """Whether nothing but a person can make it start."""
        return self.kind in {Wait.HELD, Wait.NEVER}


_HINTS: Final[dict[str, str]] = {
    "DependencyNeverSatisfied": "The job that it depends on failed: cancel it and submit again.",
    "PartitionTimeLimit": "It asks for more time than its partition allows: lower wall_time_minutes.",
    "PartitionNodeLimit": "It asks for more nodes than its partition allows: lower nodes.",
    "PartitionConfig": "Its partition cannot give what it asks for: correct nodes, cpus_per_task or memory.",
    "BadConstraints": "No node fulfils its constraint: correct it in the deployment profile.",
    "InvalidAccount": "Its account is not valid: correct account in the deployment profile.",
    "InvalidQOS": "Its quality of service is not valid: correct it in the deployment profile.",
    "AccountNotAllowed": "Its partition does not take its account: correct account or partition.",
    "QOSNotAllowed": "Its partition does not take its quality of service: correct one of them.",
    "AccountingPolicy": "The account's rules do not allow it: ask the site about the account.",
}
_PER_JOB: Final = re.compile(
    r"(Assoc|QOS)(Max|Min)\w*(PerJob|MinCPU|MinNode)\w*|QOSMin\w+|QOSTimeLimit|AssociationTimeLimit|AssociationJobLimit"
)
_HELD: Final = frozenset(
    {"JobHeldUser", "JobHeldAdmin", "JobHoldMaxRequeue", "JobLaunchFailure", "launch_failed_requeued_held"}
)
_HELD_TEXT: Final = re.compile(r"held|hold", re.IGNORECASE)
_SITE: Final = frozenset(
    {
        "PartitionDown",
        "PartitionInactive",
        "NodeDown",
        "ReqNodeNotAvail",
        "FrontEndDown",
        "ReservationDeleted",
    }
)


def waiting(reason: str | None) -> Waiting:
    """What Slurm's reason means for a pending job."""
    word = (reason or "").partition(",")[0].strip()
    if word in _HINTS:
        return Waiting(Wait.NEVER, word, _HINTS[word])
    if _PER_JOB.fullmatch(word):
        return Waiting(
            Wait.NEVER, word, "It asks for more than one job of its account may have: ask for less."
        )
    if word in _HELD or _HELD_TEXT.search(word):
        return Waiting(Wait.HELD, word, "Release it with scontrol release, or cancel it.")
    if word in _SITE:
        return Waiting(Wait.SITE, word, "The site has taken nodes or the partition out of service.")
    return Waiting(Wait.QUEUE, word)
