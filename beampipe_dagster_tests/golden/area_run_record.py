"""Replays merges into the run record."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from beampipe_dagster.execution import run_record, run_record_slurm

_NOW = datetime(2026, 1, 1, tzinfo=UTC)
_TIMES = frozenset({"deployed_at", "observed_at", "started_at", "submitted_at", "verified_at"})


def _merged(record: dict[str, Any], op: dict[str, Any]) -> dict[str, Any]:
    done = _OPS[op["op"]](record, op)
    assert isinstance(done, dict)
    return done


def _job(record: dict[str, Any], op: dict[str, Any]) -> dict[str, Any]:
    return run_record_slurm.with_job(
        record,
        session_id=op["session_id"],
        job_id=op["slurm_job_id"],
        composite=op["composite"],
        at=_NOW,
        login_node=op.get("login_node"),
        remote_user=op.get("remote_user"),
    )


def _job_seen(record: dict[str, Any], op: dict[str, Any]) -> dict[str, Any]:
    seen = run_record_slurm.JobSeen(
        composite=op["composite"],
        job_id=op["slurm_job_id"],
        state=op["state"],
        source=op["source"],
        at=_NOW,
        raw=op.get("raw"),
        exit_code=op.get("exit_code"),
        directory=op.get("dir"),
    )
    if op.get("terminal"):
        return run_record_slurm.with_job_ended(record, seen, ledger_status=op.get("ledger_status"))
    return run_record_slurm.with_job_seen(record, seen)


def _deployed(record: dict[str, Any], op: dict[str, Any]) -> dict[str, Any]:
    return run_record.with_deploy(
        record,
        session_id=op["session_id"],
        manager_url=op["base"],
        verify_ssl=op["verify_ssl"],
        at=_NOW,
        urls=op.get("urls"),
    )


def _session_seen(record: dict[str, Any], op: dict[str, Any]) -> dict[str, Any]:
    seen = run_record.with_observation(record, session_state=op["state"], at=_NOW, drops=None, round_number=1)
    seen.pop("dim_poll")  # rounds are told by an operation of their own
    if not op.get("terminal"):
        return seen
    return run_record.with_terminal(
        seen,
        session_id=op["session_id"],
        session_state=op["state"],
        at=_NOW,
        ledger_status=op["ledger_status"],
        error=op.get("error"),
        error_drops_count=op.get("error_drops_count", 0),
    )


def _round(record: dict[str, Any], op: dict[str, Any]) -> dict[str, Any]:
    seen = run_record.with_observation(
        record, session_state="running", at=_NOW, drops=None, round_number=op["round"]
    )
    seen.pop("dim")
    return seen


def _verified(record: dict[str, Any], op: dict[str, Any]) -> dict[str, Any]:
    return run_record.with_verification(
        record,
        artifact_id=op["artifact_id"],
        inventory_sha256=op["inventory_sha256"],
        report_sha256=op["report_sha256"],
        destination_uri=op.get("destination_uri"),
        at=_NOW,
    )


_OPS: dict[str, Any] = {
    "slurm_submit": _job,
    "slurm_poll": _job_seen,
    "slurm_round": lambda record, op: run_record_slurm.with_job_round(
        record, at=_NOW, round_number=op["round"]
    ),
    "dim_deploy": _deployed,
    "dim_poll": _session_seen,
    "dim_round": _round,
    "verify": _verified,
    "request": lambda record, op: run_record.with_requested(record, op["sources"]),
}


def _untimed(value: Any, name: str = "") -> Any:
    if name in _TIMES:
        return "<ts>"
    if isinstance(value, dict):
        return {key: _untimed(item, key) for key, item in value.items()}
    return [_untimed(item) for item in value] if isinstance(value, list) else value


def _merge(case: Any) -> Any:
    manifest = case["existing"]
    for op in case["ops"]:
        manifest = run_record.put(manifest, _merged(run_record.of(manifest), op))
    return _untimed(manifest)


FUNCTIONS = {"rr": _merge}
