"""Jobs by their name, for submissions of which nobody knows whether they happened; and ids of jobs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from beampipe_dagster.backends.slurm.frames import PRELUDE, framed, the_frame
from beampipe_dagster.backends.slurm.sacct import Accounting, accounting_of, parse_sacct, sacct_by_name
from beampipe_dagster.backends.slurm.squeue import parse_squeue, squeue_line
from beampipe_dagster.backends.slurm.states import Job, Source, state_word, text_or_none
from beampipe_dagster.errors import BackendUnavailableError, InputError

_ID: Final = re.compile(r"[0-9]{1,20}")
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_LONGEST_COMPOSED: Final = 512
_NAMED_FIELDS: Final = 4


@dataclass(frozen=True, slots=True)
class Named:
    """The jobs of a name.

    Parameters
    ----------
    jobs
        By id; the queue wins over the accounts.
    is_complete
        Whether both were heard, so that finding nothing is evidence. Accounts find a job by name only some
        seconds after it was submitted.
    """

    jobs: Mapping[str, Job]
    is_complete: bool
    accounting: Accounting


@dataclass(frozen=True, slots=True)
class SchedulerId:
    """A job, its session and the session's directory, as one text holds them."""

    session: str
    job: str
    directory: str | None


def is_job_id(text: str) -> bool:
    """Whether it is the number of a job; elements of arrays and of heterogeneous jobs are not."""
    return _ID.fullmatch(text) is not None


def checked_job_id(text: str) -> str:
    """The number of a job.

    Raises
    ------
    InputError
        ``invalid_job_id``.
    """
    if not is_job_id(text):
        raise InputError(
            f"{text!r} is not the id of a Slurm job",
            code="invalid_job_id",
            hint="An id is a number; elements of arrays and of heterogeneous jobs are not supported.",
        )
    return text


def is_job_name(text: str) -> bool:
    """Whether jobs can be looked for by that name: 1 to 128 of the characters A-Z a-z 0-9 . _ -."""
    return _NAME.fullmatch(text) is not None


def checked_job_name(text: str) -> str:
    """A name that jobs can be looked for by.

    Raises
    ------
    InputError
        ``invalid_job_name``.
    """
    if not is_job_name(text):
        raise InputError(
            f"{text!r} cannot be the name of a job",
            code="invalid_job_name",
            hint="A name has 1 to 128 of the characters A-Z a-z 0-9 . _ -.",
        )
    return text


def lookup_command(name: str, *, since: datetime, nonce: str, seconds: int = 20) -> str:
    """The script that looks for the jobs of a name, for a POSIX shell.

    Parameters
    ----------
    name
        The job's name.
    since
        When the intent to submit was written, UTC.
    nonce
        Letters and digits that mark the answer.

    Raises
    ------
    InputError
        ``invalid_job_name``, ``invalid_nonce``.
    """
    checked_job_name(name)
    return (
        f"{PRELUDE}"
        f"bp_out=$({squeue_line(name=name, seconds=seconds)} 2>&1); bp_rc=$?\n{framed('squeue', nonce)}"
        f"bp_out=$({sacct_by_name(name, since=since, seconds=seconds)} 2>&1); bp_rc=$?\n"
        f"{framed('sacct', nonce)}"
    )


def read_lookup(output: str, name: str, *, nonce: str) -> Named:
    """The answer to :func:`lookup_command`.

    Raises
    ------
    BackendUnavailableError
        The answer is cut, cannot be read, or the queue could not be asked.
    """
    queue, accounts = the_frame(output, nonce, "squeue"), the_frame(output, nonce, "sacct")
    if queue.code != 0:
        raise BackendUnavailableError(
            f"squeue on the login node ended with {queue.code}: {queue.text.strip()[-200:]}",
            code="scheduler_unavailable",
            hint=f"Whether there is a job {name} is not known; look again later.",
        )
    state = accounting_of(accounts.code, accounts.text)
    told = parse_sacct(accounts.text) if state is Accounting.ANSWERED else {}
    both = union(parse_squeue(queue.text).values(), told.values())
    found = {one: job for one, job in both.items() if job.name == name}
    return Named(found, state is Accounting.ANSWERED, state)


def union(queue: Iterable[Job], accounts: Iterable[Job]) -> dict[str, Job]:
    """Jobs by id; the queue wins."""
    return {job.id: job for job in accounts} | {job.id: job for job in queue}


def named_jobs(rows: Iterable[Sequence[str]], name: str, source: Source) -> list[Job]:
    """The jobs of exactly that name, of rows ``id, name, state, reason``.

    Raises
    ------
    BackendUnavailableError
        ``wrong_field_count``, ``empty_name``, ``invalid_job_id``, ``empty_state``: nothing of an answer is
        believed in which one row cannot be read.
    """
    found: list[Job] = []
    for row in rows:
        if len(row) != _NAMED_FIELDS:
            raise _unreadable("wrong_field_count", row)
        number, called, state, reason = (value.strip() for value in row)
        if not called:
            raise _unreadable("empty_name", row)
        if called != name:
            continue
        if not is_job_id(number):
            raise _unreadable("invalid_job_id", row)
        if not state:
            raise _unreadable("empty_state", row)
        found.append(Job(number, state_word(state), source, reason=text_or_none(reason), name=called))
    return found


def _unreadable(code: str, row: Sequence[str]) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"the scheduler printed a row that cannot be read: {'|'.join(row)[:200]!r}",
        code=code,
        hint="Whether the job is there is not known; look again later.",
    )


def composed(session: str, job: str, directory: str | None = None) -> str:
    """``session:job|directory``, the text of a run record.

    Raises
    ------
    InputError
        ``scheduler_id_too_long``: more than 512 characters.
    """
    place = (directory or "").strip()
    text = f"{session}:{job}|{place}" if place else f"{session}:{job}"
    if len(text) > _LONGEST_COMPOSED:
        raise InputError(
            f"the id of job {job} has {len(text)} characters",
            code="scheduler_id_too_long",
            hint=f"At most {_LONGEST_COMPOSED}: give dlg_root a shorter path.",
        )
    return text


def parsed(text: str) -> SchedulerId:
    """The parts of :func:`composed`; a text without a colon is the job alone."""
    left, _, place = text.strip().partition("|")
    session, colon, job = left.partition(":")
    if not colon:
        session, job = "", left
    return SchedulerId(session, job.strip(), place.strip() or None)
