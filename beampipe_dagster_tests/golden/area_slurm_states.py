"""Slurm's state words, exit codes, and the text that holds a job's id with its session."""

from __future__ import annotations

from typing import Any, cast

from beampipe_dagster.backends.slurm.lookup import composed, parsed
from beampipe_dagster.backends.slurm.states import JobState, exit_status, job_state, scheduler_state
from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.errors import BeampipeError
from beampipe_dagster_tests.golden.runner import Case, Deviation


def _raw(value: JsonValue) -> str:
    return str(cast("dict[str, JsonValue]", value)["raw"])


def compose_id(value: JsonValue) -> JsonValue:
    """``{session, job, dir}`` -> the text, or an error."""
    given = cast("dict[str, str]", value)
    try:
        return {"ok": composed(given["session"], given["job"], given.get("dir"))}
    except BeampipeError:
        return {"error": True}


def parse_id(value: JsonValue) -> JsonValue:
    """``{raw}`` -> the parts."""
    found = parsed(_raw(value))
    return {"session_id": found.session, "slurm_job_id": found.job, "session_dir": found.directory}


def _is_word_of_slurm(case: Case) -> bool:
    return (
        case.fn == "scheduler_axis"
        and case.expected == "unknown"
        and job_state(_raw(case.input)) is not JobState.UNKNOWN
    )


FUNCTIONS: dict[str, Any] = {
    "normalize_state": lambda value: job_state(_raw(value)).value,
    "scheduler_axis": lambda value: scheduler_state(_raw(value)).value,
    "sacct_exit": lambda value: exit_status(_raw(value)).code,
    "compose_id": compose_id,
    "parse_id": parse_id,
}
DEVIATIONS = [
    Deviation(
        name="every word of Slurm",
        reason="a job that ran out of memory or lost its node has ended; as unknown it would be asked for ever",
        applies=_is_word_of_slurm,
        agrees=lambda case, got: (
            got in {"failed", "running", "pending", "cancelled"} and case.expected != got
        ),
    ),
]
