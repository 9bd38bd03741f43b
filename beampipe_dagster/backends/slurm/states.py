"""What Slurm's state words mean, and one job as ``squeue`` or ``sacct`` tells it.

The words are those of squeue(1), "JOB STATE CODES". Several words joined by ``+`` are a state with flags; a
word that ends in ``+`` was cut to a column's width and can be anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from beampipe_dagster.backends.slurm.reasons import Waiting, waiting
from beampipe_dagster.ledger.states import SchedulerState


class JobState(StrEnum):
    """A job's state, in the order of rank: of several words for one job the highest one counts."""

    UNKNOWN = "UNKNOWN"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    CANCELLED = "CANCELLED"
    TIMEOUT = "TIMEOUT"
    FAILED = "FAILED"

    @property
    def rank(self) -> int:
        """Place in the order, from 0."""
        return _ORDER[self]

    @property
    def is_terminal(self) -> bool:
        """Whether a job in this state has ended."""
        return self.rank >= JobState.COMPLETED.rank


class Cause(StrEnum):
    """Why a job did not end well, as far as Slurm knows."""

    PROGRAM = "program"
    """The job's own exit code or signal, or a directory that is not there."""

    RESOURCES = "resources"
    """More time or memory than it asked for: the same request fails again."""

    INFRASTRUCTURE = "infrastructure"
    """A node, a boot, a preemption: the same request may succeed."""

    CANCELLED = "cancelled"
    """Somebody ended it."""


class Source(StrEnum):
    """Who told it."""

    SQUEUE = "squeue"
    SACCT = "sacct"
    NONE = "none"


_ORDER: Final = {state: number for number, state in enumerate(JobState)}
_PENDING: Final = "PENDING RESV_DEL_HOLD REQUEUE_HOLD SPECIAL_EXIT STOPPED SUSPENDED"
_RUNNING: Final = (
    "RUNNING COMPLETING CONFIGURING EXPEDITING POWER_UP_NODE REQUEUED REQUEUE_FED RESIZING SIGNALING"
    " STAGE_OUT UPDATE_DB"
)
_FAILED: Final = "FAILED BOOT_FAIL DEADLINE LAUNCH_FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED RECONFIG_FAIL"
_WORDS: Final[dict[str, JobState]] = {
    **dict.fromkeys(_PENDING.split(), JobState.PENDING),
    **dict.fromkeys(_RUNNING.split(), JobState.RUNNING),
    **dict.fromkeys(_FAILED.split(), JobState.FAILED),
    "COMPLETED": JobState.COMPLETED,
    "REVOKED": JobState.CANCELLED,
    "TIMEOUT": JobState.TIMEOUT,
}
_AXIS: Final[dict[JobState, SchedulerState]] = {
    JobState.UNKNOWN: SchedulerState.UNKNOWN,
    JobState.PENDING: SchedulerState.PENDING,
    JobState.RUNNING: SchedulerState.RUNNING,
    JobState.COMPLETED: SchedulerState.SUCCEEDED,
    JobState.CANCELLED: SchedulerState.CANCELLED,
    JobState.TIMEOUT: SchedulerState.TIMED_OUT,
    JobState.FAILED: SchedulerState.FAILED,
}
_CAUSES: Final[dict[str, Cause]] = {
    **dict.fromkeys(("TIMEOUT", "OUT_OF_MEMORY", "DEADLINE"), Cause.RESOURCES),
    **dict.fromkeys(
        ("BOOT_FAIL", "NODE_FAIL", "PREEMPTED", "RECONFIG_FAIL", "LAUNCH_FAILED"), Cause.INFRASTRUCTURE
    ),
    **dict.fromkeys(("CANCELLED", "REVOKED"), Cause.CANCELLED),
    "FAILED": Cause.PROGRAM,
}


def state_word(raw: str) -> str:
    """The word itself, in capitals, without what follows it (``CANCELLED by 1000`` -> ``CANCELLED``)."""
    words = raw.split()
    return words[0].upper() if words else ""


def job_state(raw: str) -> JobState:
    """The state that a word of Slurm means; :attr:`JobState.UNKNOWN` for any other word."""
    word = state_word(raw)
    parts = [part for part in word.split("+") if part]
    if len(parts) > 1:
        return max((_one(part) for part in parts), key=lambda state: state.rank)
    return _one(word)


def _one(word: str) -> JobState:
    # Slurm appends to this word alone: who did it, or a mark that it was cut.
    return JobState.CANCELLED if word.startswith("CANCELLED") else _WORDS.get(word, JobState.UNKNOWN)


def scheduler_state(raw: str) -> SchedulerState:
    """The ledger's word for a word of Slurm, or for one of the ledger's own words in any case."""
    state = job_state(raw)
    if state is not JobState.UNKNOWN:
        return _AXIS[state]
    word = raw.strip().lower()
    return next((one for one in SchedulerState if one.value == word), SchedulerState.UNKNOWN)


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a job's script ended.

    Parameters
    ----------
    code
        Its exit code; None when it cannot be read.
    signal
        The signal that ended it; 0 for none.
    """

    code: int | None
    signal: int = 0


def exit_status(raw: str) -> ExitStatus:
    """``code:signal``, as ``sacct`` writes it; a code alone is one without a signal."""
    code, _, signal = raw.partition(":")
    return ExitStatus(_number(code), _number(signal) or 0)


def wait_status(raw: str) -> ExitStatus:
    """A wait status, as ``squeue`` writes it (wait(2): the code above, the signal in the low seven bits)."""
    if ":" in raw:
        return exit_status(raw)
    number = _number(raw)
    return ExitStatus(None) if number is None else ExitStatus(number >> 8, number & 0x7F)


def _number(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() else None


@dataclass(frozen=True, slots=True)
class Job:
    """One job at one time.

    Parameters
    ----------
    id
        Its number.
    raw_state
        Slurm's word.
    source
        Who told it.
    reason
        Slurm's reason for waiting or for its end; None where there is none.
    exit
        How its script ended; None while it has not.
    name, comment, partition, nodes
        As submitted and as placed; empty where not known.
    submitted, started, ended
        Seconds since 1970 UTC; None where not known. A running job's ``ended`` is None.
    restarts
        How often it was requeued; None where not known. Its first run may still be going on then: a lost
        node's processes end only when the node comes back.
    is_part
        Whether it is an element of an array or of a heterogeneous job, which are never submitted here.
    cancelled_by
        The user number that cancelled it, where told.
    """

    id: str
    raw_state: str
    source: Source
    reason: str | None = None
    exit: ExitStatus | None = None
    name: str = ""
    comment: str = ""
    partition: str = ""
    nodes: str = ""
    submitted: int | None = None
    started: int | None = None
    ended: int | None = None
    restarts: int | None = None
    is_part: bool = False
    cancelled_by: int | None = None

    @property
    def state(self) -> JobState:
        """What the word means."""
        return job_state(self.raw_state)

    @property
    def scheduler(self) -> SchedulerState:
        """The ledger's word for it."""
        return _AXIS[self.state]

    @property
    def waiting(self) -> Waiting | None:
        """What a pending job waits for; None for any other."""
        return waiting(self.reason) if self.state is JobState.PENDING else None

    @property
    def cause(self) -> Cause | None:
        """Why it did not end well; None when it did or has not ended."""
        if not self.state.is_terminal:
            return None
        parts = [part for part in state_word(self.raw_state).split("+") if part]
        return next((_CAUSES[part] for part in parts if part in _CAUSES), None)


def text_or_none(raw: str) -> str | None:
    """A field's text; None for the ways in which Slurm says that there is none."""
    text = raw.strip()
    return None if text in {"", "None", "(null)", "N/A", "None assigned", "Unknown"} else text


def seconds_or_none(raw: str) -> int | None:
    """A time that was asked for with ``SLURM_TIME_FORMAT=%s``; None where Slurm has none."""
    return _number(raw) or None
