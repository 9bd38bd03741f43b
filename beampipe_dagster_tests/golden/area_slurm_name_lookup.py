"""Jobs of a name, by rows of squeue and sacct."""

from __future__ import annotations

from typing import Any, cast

from beampipe_dagster.backends.slurm.lookup import named_jobs, union
from beampipe_dagster.backends.slurm.states import Job, Source
from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.errors import BeampipeError


def _jobs(text: str, name: str, source: str) -> list[Job]:
    return named_jobs([line.split("|") for line in text.splitlines() if line.strip()], name, Source(source))


def _shown(jobs: list[Job]) -> JsonValue:
    return [
        {
            "external_job_id": job.id,
            "raw_state": job.raw_state,
            "reason": job.reason,
            "source": job.source.value,
            "state": job.scheduler.value,
        }
        for job in jobs
    ]


def named(value: JsonValue) -> JsonValue:
    """``{output, name, source}`` -> the jobs, or the error's code."""
    given = cast("dict[str, str]", value)
    try:
        return {"ok": _shown(_jobs(given["output"], given["name"], given["source"]))}
    except BeampipeError as error:
        return {"error_code": error.code}


def lookup(value: JsonValue) -> JsonValue:
    """``{name, squeue, sacct}`` -> the jobs of both, by id."""
    given = cast("dict[str, str]", value)
    try:
        queue = _jobs(given["squeue"], given["name"], "squeue")
        accounts = _jobs(given["sacct"], given["name"], "sacct")
    except BeampipeError as error:
        return {"error_code": error.code}
    both = union(queue, accounts)
    return {"ok": _shown([both[number] for number in sorted(both, key=int)])}


FUNCTIONS: dict[str, Any] = {"named_jobs": named, "named_lookup": lookup}
