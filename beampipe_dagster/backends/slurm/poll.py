"""One command that tells the state of all jobs of a user: ``squeue``, and ``sacct`` for those it does not know."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from beampipe_dagster.backends.slurm.frames import PRELUDE, framed, frames, the_frame
from beampipe_dagster.backends.slurm.lookup import checked_job_id
from beampipe_dagster.backends.slurm.sacct import Accounting, accounting_of, parse_sacct, sacct_words
from beampipe_dagster.backends.slurm.squeue import SEPARATOR, parse_squeue, squeue_line
from beampipe_dagster.backends.slurm.states import Job
from beampipe_dagster.errors import BackendUnavailableError, InputError

MOST_IDS: Final = 900
"""Ids of one command: far below the length at which a shell refuses a line (128 KiB)."""
_SHOWN: Final = 200


@dataclass(frozen=True, slots=True)
class PollAnswer:
    """What one look tells.

    Parameters
    ----------
    jobs
        The jobs that were found, by id; those that the queue tells win.
    absent
        Ids that neither the queue nor the accounts know, both having answered. Never an end by itself:
        accounts lag behind by seconds.
    unknown
        Ids that the queue does not know, and about which the accounts could not be asked.
    accounting
        What became of the question to the accounts.
    note
        What they said instead, for people.
    """

    jobs: Mapping[str, Job]
    absent: frozenset[str]
    unknown: frozenset[str]
    accounting: Accounting
    note: str = ""


def poll_command(ids: Collection[str], *, nonce: str, seconds: int = 20) -> str:
    """The script, for a POSIX shell; run it with ``sh`` or ``bash``, whatever the login shell is.

    Parameters
    ----------
    ids
        Numbers of jobs, at most :data:`MOST_IDS`.
    nonce
        Letters and digits that mark the answer; another one each time.
    seconds
        Bound of each of the two programs.

    Raises
    ------
    InputError
        ``invalid_job_id``, ``too_many_jobs``, ``invalid_nonce``.
    """
    if len(ids) > MOST_IDS:
        raise InputError(
            f"{len(ids)} jobs in one question", code="too_many_jobs", hint=f"Ask for at most {MOST_IDS}."
        )
    wanted = " ".join(checked_job_id(one) for one in ids)
    accounts = shlex.join(sacct_words(seconds=seconds))
    return (
        f"{PRELUDE}"
        f"bp_out=$({squeue_line(seconds=seconds)} 2>&1); bp_rc=$?\n"
        f"{framed('squeue', nonce)}"
        # Where the queue cannot be asked its silence is no reason to ask the accounts.
        '[ "$bp_rc" -eq 0 ] || exit 0\n'
        f"bp_known=\" $(printf '%s\\n' \"$bp_out\" | cut -s -d '{SEPARATOR}' -f 1 | tr '\\n' ' ') \"\n"
        "bp_missing=\n"
        f"for bp_id in {wanted}; do\n"
        '  case "$bp_known" in *" $bp_id "*) ;; *) bp_missing="$bp_missing,$bp_id" ;; esac\n'
        "done\n"
        '[ -n "$bp_missing" ] || exit 0\n'
        f'bp_out=$({accounts} -j "${{bp_missing#,}}" 2>&1); bp_rc=$?\n'
        f"{framed('sacct', nonce)}"
    )


def read_poll(output: str, ids: Collection[str], *, nonce: str) -> PollAnswer:
    """The answer to :func:`poll_command`.

    Raises
    ------
    BackendUnavailableError
        ``incomplete_answer``, ``scheduler_unavailable``, ``malformed_squeue``, ``malformed_sacct``.
    """
    queue = the_frame(output, nonce, "squeue")
    if queue.code != 0:
        raise unavailable("squeue", queue.code, queue.text)
    queued = parse_squeue(queue.text)
    jobs = {one: queued[one] for one in ids if one in queued}
    missing = frozenset(ids) - jobs.keys()
    if not missing:
        return PollAnswer(jobs, frozenset(), frozenset(), Accounting.NOT_ASKED)
    accounts = the_frame(output, nonce, "sacct") if "sacct" in frames(output, nonce) else None
    if accounts is None:
        raise the_absence(output)
    state = accounting_of(accounts.code, accounts.text)
    if state is not Accounting.ANSWERED:
        return PollAnswer(jobs, frozenset(), missing, state, accounts.text.strip()[:_SHOWN])
    told = parse_sacct(accounts.text)
    jobs |= {one: told[one] for one in missing if one in told}
    return PollAnswer(jobs, missing - told.keys(), frozenset(), state)


def the_absence(output: str) -> BackendUnavailableError:
    """The error for an answer that ends after the queue's part."""
    return BackendUnavailableError(
        f"the login node's answer ends before the accounts' part: {output[-_SHOWN:]!r}",
        code="incomplete_answer",
        hint="The connection or the command was cut; the next tick asks again.",
    )


def unavailable(program: str, code: int, text: str) -> BackendUnavailableError:
    """The error for a program of Slurm that failed."""
    slow = " (it was ended because it took too long)" if code in {124, 137} else ""
    return BackendUnavailableError(
        f"{program} on the login node ended with {code}{slow}: {text.strip()[-_SHOWN:]}",
        code="scheduler_unavailable",
        hint="Nothing is concluded about any job; the next tick asks again. See scontrol ping.",
    )
