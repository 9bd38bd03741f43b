"""``squeue``: the question and its answer.

One question a user: ``--me -t all`` is filtered by the controller, tells ended jobs for ``MinJobAge`` seconds,
and costs it far less than a list of ids, for which it would send the whole site's queue.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from typing import Final

from beampipe_dagster.backends.slurm.states import (
    Job,
    JobState,
    Source,
    job_state,
    seconds_or_none,
    text_or_none,
    wait_status,
)
from beampipe_dagster.errors import BackendUnavailableError

SEPARATOR: Final = "\x1f"
"""Ends every field: no shell, and no name that a person types, holds it."""
_ROW_END: Final = "\x1e"
"""Follows the last field, so that a name which begins with a line end is no end of a row."""
FIELDS: Final = (
    "JobID",
    "State",
    "Reason",
    "exit_code",
    "RestartCnt",
    "Partition",
    "NodeList",
    "SubmitTime",
    "StartTime",
    "EndTime",
    "ArrayTaskID",
    "HetJobID",
    "Name",
    "Comment",
)
_MISSING: Final = re.compile(
    r"(?:(?:slurm_load_jobs|squeue):?\s*(?:error:)?\s*)*invalid job id specified", re.IGNORECASE
)


def squeue_line(*, name: str | None = None, seconds: int = 20) -> str:
    """The command, for a POSIX shell.

    Parameters
    ----------
    name
        Only jobs of that name.
    seconds
        It is ended after that time, and then answers 124.
    """
    form = ",".join(f"{field}:{SEPARATOR}" for field in FIELDS) + _ROW_END
    words = ["timeout", "-k", "2", str(seconds), "squeue", "-h", "--me", "-t", "all", "-O", form]
    if name is not None:
        words.append(f"--name={name}")
    return shlex.join(words)


def rows(text: str, *, fields: int, end: str = "") -> tuple[list[list[str]], list[str]]:
    """Rows whose fields all end in :data:`SEPARATOR`, and the lines between them that are none.

    ``end`` is what follows a row's last field. Fields may hold line ends; what programs write to the same
    stream is told apart by lying before a row's first field.
    """
    found: list[list[str]] = []
    noise: list[str] = []
    for piece in text.split(f"{SEPARATOR}{end}\n"):
        values = piece.split(SEPARATOR)
        if len(values) == 1:
            noise += piece.splitlines()
            continue
        *before, values[0] = values[0].split("\n")
        noise += before
        # A separator within the last field belongs to it: it is what people write.
        found.append(
            values if len(values) < fields else [*values[: fields - 1], SEPARATOR.join(values[fields - 1 :])]
        )
    return found, [line for line in noise if line.strip()]


def parse_squeue(text: str) -> dict[str, Job]:
    """The jobs of an answer, by id.

    Raises
    ------
    BackendUnavailableError
        ``malformed_squeue``: a row has too few fields, or its id is not a number.
    """
    found, _ = rows(text, fields=len(FIELDS), end=_ROW_END)
    jobs: dict[str, Job] = {}
    for values in found:
        if len(values) != len(FIELDS) or not _is_number(values[0]):
            raise malformed("squeue", values)
        job = _job(dict(zip(FIELDS, values, strict=True)))
        jobs[job.id] = job
    return jobs


def malformed(program: str, values: Iterable[str]) -> BackendUnavailableError:
    """The error for a row that cannot be read: none of the answer is believed then."""
    shown = "|".join(values)[:200]
    return BackendUnavailableError(
        f"{program} printed a row that cannot be read: {shown!r}",
        code=f"malformed_{program}",
        hint=f"Run {program} on the login node; a wrapper around it may change what it prints.",
    )


def is_missing_job(stderr: str) -> bool:
    """Whether ``squeue -j`` failed only because no such job is in the queue."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return bool(lines) and all(_MISSING.fullmatch(line) for line in lines)


def _job(row: dict[str, str]) -> Job:
    state = row["State"].strip()
    ended = job_state(state).is_terminal
    return Job(
        id=row["JobID"].strip(),
        raw_state=state,
        source=Source.SQUEUE,
        reason=text_or_none(row["Reason"]),
        exit=wait_status(row["exit_code"]) if ended else None,
        name=row["Name"],
        comment=text_or_none(row["Comment"]) or "",
        partition=row["Partition"].strip(),
        nodes=text_or_none(row["NodeList"]) or "",
        submitted=seconds_or_none(row["SubmitTime"]),
        started=seconds_or_none(row["StartTime"]) if job_state(state) is not JobState.PENDING else None,
        ended=seconds_or_none(row["EndTime"]) if ended else None,
        restarts=int(row["RestartCnt"]) if _is_number(row["RestartCnt"]) else None,
        is_part=any(text_or_none(row[name]) not in {None, "0"} for name in ("HetJobID",))
        or text_or_none(row["ArrayTaskID"]) is not None,
    )


def _is_number(text: str) -> bool:
    return text.strip().isascii() and text.strip().isdigit()
