"""The run record's part about a Slurm job: its submission, what was seen of it, and its end.

The composite id ``session:job|directory`` names a submission. A stored one is kept whatever later observations carry,
and the end of a submission is frozen: later looks may add the ledger's status where it is missing, nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from beampipe_dagster.clock import rfc3339
from beampipe_dagster.execution.run_record import bounded, section


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSeen:
    """What one look at a job saw.

    Attributes
    ----------
    composite
        ``session:job|directory``, or what is known of it.
    job_id
        Slurm's id.
    state, source
        The state's word, and who said it: ``squeue``, ``sacct``, ``scontrol`` or ``marker``.
    at
        When, aware.
    raw
        The line itself.
    exit_code
        Of a job that ended.
    directory
        The session's directory on the cluster.
    """

    composite: str
    job_id: str
    state: str
    source: str
    at: datetime
    raw: str | None = None
    exit_code: int | None = None
    directory: str | None = None


def with_job(
    record: Mapping[str, Any],
    *,
    session_id: str,
    job_id: str,
    composite: str,
    at: datetime,
    login_node: str | None = None,
    remote_user: str | None = None,
    paths: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """A job was submitted; what was seen of an earlier one stays until there is something to see of this."""
    slurm = section(record, "slurm")
    made: dict[str, Any] = {
        **slurm,
        "session_id": session_id,
        "slurm_job_id": job_id,
        "composite_scheduler_job_id": composite,
        "submitted_at": rfc3339(at),
    }
    for name, value in (("login_node", login_node), ("remote_user", remote_user)):
        if (text := bounded(value)) is not None:
            made[name] = text
    if paths:
        made["paths"] = {**section(slurm, "paths"), **paths}
    return {**record, "slurm": made}


def with_job_seen(record: Mapping[str, Any], seen: JobSeen) -> dict[str, Any]:
    """The job was seen."""
    slurm = section(record, "slurm")
    made: dict[str, Any] = {
        **slurm,
        "composite_scheduler_job_id": slurm.get("composite_scheduler_job_id") or seen.composite,
        "slurm_job_id": seen.job_id,
        "last_observation": _observation(seen),
    }
    if seen.directory:
        made["paths"] = {**section(slurm, "paths"), "session_dir": seen.directory}
    return {**record, "slurm": made}


def with_job_ended(
    record: Mapping[str, Any],
    seen: JobSeen,
    *,
    ledger_status: str | None = None,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The job was seen, and has ended.

    Parameters
    ----------
    ledger_status
        The execution's status, once that is terminal.
    more
        Reason and diagnostics.
    """
    kept = with_job_seen(record, seen)
    slurm = section(kept, "slurm")
    composite = slurm["composite_scheduler_job_id"]
    status = {"ledger_status": ledger_status} if ledger_status else {}
    known = section(slurm, "terminal")
    if known and known.get("composite_scheduler_job_id") == composite:
        return {**kept, "slurm": {**slurm, "terminal": {**status, **known}}}
    terminal = {
        **_observation(seen),
        "composite_scheduler_job_id": composite,
        "slurm_job_id_ref": seen.job_id,
        **(more or {}),
        **status,
    }
    return {**kept, "slurm": {**slurm, "terminal": terminal}}


def with_job_round(record: Mapping[str, Any], *, at: datetime, round_number: int) -> dict[str, Any]:
    """One more round of looking; the first one's time stays."""
    poll = section(record, "slurm_poll")
    return {**record, "slurm_poll": {"started_at": rfc3339(at), **poll, "round": round_number}}


def _observation(seen: JobSeen) -> dict[str, Any]:
    observation: dict[str, Any] = {
        "state": seen.state,
        "source": seen.source,
        "observed_at": rfc3339(seen.at),
    }
    if seen.exit_code is not None:
        observation["exit_code"] = seen.exit_code
    if (raw := bounded(seen.raw)) is not None:
        observation["raw"] = raw
    return observation
