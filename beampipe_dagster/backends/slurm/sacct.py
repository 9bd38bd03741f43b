"""``sacct``: the second witness, for jobs that have left the queue.

It lags behind the queue, and for some seconds says that a requeued job has ended: an answer of ``squeue``
always wins over it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from beampipe_dagster.backends.slurm.squeue import SEPARATOR, malformed, rows
from beampipe_dagster.backends.slurm.states import (
    Job,
    Source,
    exit_status,
    job_state,
    seconds_or_none,
    state_word,
    text_or_none,
)

FIELDS: Final = (
    "JobIDRaw",
    "State",
    "ExitCode",
    "Reason",
    "Partition",
    "NodeList",
    "Submit",
    "Start",
    "End",
    "JobName",
    "Comment",
)
CLOCK_MARGIN: Final = timedelta(days=1)
"""How far the cluster's clock may be behind ours before a search by time misses a job."""
_BY: Final = re.compile(r"CANCELLED by (\d+)", re.IGNORECASE)
_ID: Final = re.compile(r"[0-9]+(\.[A-Za-z0-9_+]+)?")


class Accounting(StrEnum):
    """What became of the question."""

    ANSWERED = "answered"
    NOT_ASKED = "not_asked"
    DISABLED = "disabled"
    """The site keeps no accounts: a job that left the queue leaves no trace."""

    UNAVAILABLE = "unavailable"


def sacct_words(*, seconds: int = 20) -> list[str]:
    """The command without its selection of jobs.

    ``-p`` ends every field with the separator, the last one too, and cuts no state short.
    """
    words = ["timeout", "-k", "2", str(seconds), "sacct", "-n", "-X", "-p", f"--delimiter={SEPARATOR}"]
    return [*words, "-o", ",".join(FIELDS)]


def sacct_by_name(name: str, *, since: datetime, seconds: int = 20) -> str:
    """The command for the jobs of a name, for a POSIX shell.

    Parameters
    ----------
    since
        When the intent to submit was written, UTC; :data:`CLOCK_MARGIN` is taken off.
    """
    start = (since - CLOCK_MARGIN).strftime("%Y-%m-%dT%H:%M:%S")
    return shlex.join([*sacct_words(seconds=seconds), f"--name={name}", f"--starttime={start}"])


def parse_sacct(text: str) -> dict[str, Job]:
    """The jobs of an answer, by id.

    Raises
    ------
    BackendUnavailableError
        ``malformed_sacct``.
    """
    found, _ = rows(text, fields=len(FIELDS))
    jobs: list[Job] = []
    for values in found:
        if len(values) != len(FIELDS) or not _ID.fullmatch(values[0].strip()):
            raise malformed("sacct", values)
        jobs.append(_job(dict(zip(FIELDS, values, strict=True))))
    return authoritative(jobs)


def authoritative(jobs: Iterable[Job]) -> dict[str, Job]:
    """One row for each job: the job's own, else of its steps (``42.batch``) the one of the highest rank."""
    chosen: dict[str, Job] = {}
    for job in jobs:
        root = job.id.partition(".")[0]
        known = chosen.get(root)
        if known is None or _weight(job) > _weight(known):
            chosen[root] = job
    return chosen


def _weight(job: Job) -> tuple[bool, int]:
    return "." not in job.id, job.state.rank


def accounting_of(code: int, errors: str) -> Accounting:
    """What an exit code and what was said beside it mean."""
    if "accounting storage is disabled" in errors.lower():
        return Accounting.DISABLED
    return Accounting.ANSWERED if code == 0 else Accounting.UNAVAILABLE


def _job(row: dict[str, str]) -> Job:
    raw = row["State"].strip()
    by = _BY.match(raw)
    ended = job_state(raw).is_terminal
    return Job(
        id=row["JobIDRaw"].strip(),
        raw_state=state_word(raw),
        source=Source.SACCT,
        reason=text_or_none(row["Reason"]),
        exit=exit_status(row["ExitCode"]) if ended else None,
        name=row["JobName"],
        comment=row["Comment"],
        partition=row["Partition"].strip(),
        nodes=text_or_none(row["NodeList"]) or "",
        submitted=seconds_or_none(row["Submit"]),
        started=seconds_or_none(row["Start"]),
        ended=seconds_or_none(row["End"]) if ended else None,
        cancelled_by=int(by[1]) if by else None,
    )
