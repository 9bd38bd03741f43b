"""Many jobs at a time: rows of squeue and sacct, which of them wins, and what may be asked for."""

from __future__ import annotations

from typing import Any, cast

from beampipe_dagster.backends.slurm.lookup import is_job_id, is_job_name, union
from beampipe_dagster.backends.slurm.sacct import authoritative
from beampipe_dagster.backends.slurm.squeue import is_missing_job
from beampipe_dagster.backends.slurm.states import ExitStatus, Job, Source, exit_status, state_word
from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster_tests.golden.runner import Case, Deviation

_FEWEST, _MOST = 2, 3


def _given(value: JsonValue) -> dict[str, Any]:
    return cast("dict[str, Any]", value)


def _rows(text: str) -> list[list[str]]:
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.strip()]
    return [row for row in rows if _FEWEST <= len(row) <= _MOST]


def _accounted(text: str) -> dict[str, tuple[Job, str]]:
    lines = {(row[0], row[1]): "|".join(row) for row in _rows(text)}
    jobs = [
        Job(row[0], state_word(row[1]), Source.SACCT, exit=exit_status((row[2:] or [""])[0]), comment=row[1])
        for row in _rows(text)
    ]
    return {root: (job, lines[job.id, job.comment]) for root, job in authoritative(jobs).items()}


def _queued(text: str) -> dict[str, tuple[Job, str]]:
    return {
        row[0]: (Job(row[0], state_word(row[1]), Source.SQUEUE), "|".join(row[1:])) for row in _rows(text)
    }


def _shown(jobs: dict[str, tuple[Job, str]]) -> JsonValue:
    return {
        number: {
            "raw_state": job.raw_state,
            "normalized_state": job.state.value,
            "exit_code": (job.exit or ExitStatus(None)).code,
            "raw_line": line,
            "source": job.source.value,
        }
        for number, (job, line) in jobs.items()
    }


def merge(value: JsonValue) -> JsonValue:
    """``{ids, squeue, sacct}`` -> state and witness of each."""
    given = _given(value)
    accounted = {number: job for number, (job, _) in _accounted(given["sacct"]).items()}
    both = accounted | union([job for job, _ in _queued(given["squeue"]).values()], [])
    nothing: JsonValue = {"normalized_state": "UNKNOWN", "source": Source.NONE.value}
    return {
        number: {"normalized_state": both[number].state.value, "source": both[number].source.value}
        if number in both
        else nothing
        for number in given["ids"]
    }


def _is_part(case: Case) -> bool:
    return case.fn == "job_id_ok" and case.expected is True and not str(_given(case.input)["id"]).isdigit()


FUNCTIONS: dict[str, Any] = {
    "sacct": lambda value: _shown(_accounted(_given(value)["stdout"])),
    "squeue": lambda value: _shown(_queued(_given(value)["stdout"])),
    "merge_slurm": merge,
    "missing_squeue": lambda value: is_missing_job(_given(value)["stderr"]),
    "job_id_ok": lambda value: is_job_id(_given(value)["id"]),
    "job_name_ok": lambda value: is_job_name(_given(value)["name"]),
}
DEVIATIONS = [
    Deviation(
        name="no parts of jobs",
        reason="sbatch answers with a number; arrays and heterogeneous jobs are never submitted",
        applies=_is_part,
        agrees=lambda _, got: got is False,
    ),
]
