"""What the run record keeps about a Slurm job."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from beampipe_dagster.execution import run_record
from beampipe_dagster.execution.run_record_slurm import (
    JobSeen,
    with_job,
    with_job_ended,
    with_job_round,
    with_job_seen,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DONE = JobSeen(
    composite="s:1|/d",
    job_id="1",
    state="COMPLETED",
    source="sacct",
    at=NOW,
    raw="1|COMPLETED|0:0",
    exit_code=0,
    directory="/d",
)


def test_the_end_of_a_submission_is_frozen() -> None:
    record = with_job_ended({}, DONE)
    late = replace(DONE, state="RUNNING", at=NOW + timedelta(hours=1))
    again = with_job_ended(record, late, ledger_status="completed")
    assert again["slurm"]["terminal"] == {**record["slurm"]["terminal"], "ledger_status": "completed"}
    assert again["slurm"]["last_observation"]["state"] == "RUNNING"
    assert with_job_ended(again, late, ledger_status="failed") == again


def test_a_new_submission_ends_by_itself() -> None:
    record = with_job_ended({}, DONE, ledger_status="failed")
    record = with_job(
        record, session_id="s", job_id="2", composite="s:2|/d2", at=NOW, paths={"staging_root": "/d2/x"}
    )
    assert record["slurm"]["terminal"]["slurm_job_id_ref"] == "1"
    second = replace(DONE, composite="s:2|/d2", job_id="2", state="FAILED", directory="/d2")
    record = with_job_ended(record, second, more={"reason": "NonZeroExitCode"})
    assert record["slurm"]["terminal"]["state"] == "FAILED"
    assert record["slurm"]["terminal"]["reason"] == "NonZeroExitCode"
    assert record["slurm"]["paths"] == {"session_dir": "/d2", "staging_root": "/d2/x"}


def test_rounds_keep_the_time_of_the_first() -> None:
    record = with_job_round({}, at=NOW, round_number=1)
    record = with_job_round(record, at=NOW + timedelta(hours=1), round_number=2)
    assert record["slurm_poll"] == {"round": 2, "started_at": "2026-01-01T00:00:00.000Z"}


def test_other_sections_are_not_touched() -> None:
    record = with_job_seen({"custom": 1, "slurm": "no object"}, DONE)
    assert record["custom"] == 1
    assert record["slurm"]["slurm_job_id"] == "1"


def test_a_verification_is_kept_once_per_artifact() -> None:
    def verified(record: dict[str, object], artifact: str, digest: str) -> dict[str, object]:
        return run_record.with_verification(
            record,
            artifact_id=artifact,
            inventory_sha256=digest,
            report_sha256=digest,
            destination_uri=None,
            at=NOW,
        )

    first = verified({}, "a", "1")
    assert verified(first, "a", "2") == first
    assert verified(first, "b", "2") != first


def test_a_time_of_observation_is_read_from_a_text_or_an_object() -> None:
    text = "2026-08-22T03:23:43.555Z"
    assert run_record.observed_at(text) == run_record.observed_at({"observed_at": text})
    assert run_record.observed_at(text) == datetime(2026, 8, 22, 3, 23, 43, 555000, tzinfo=UTC)
    unreadable: list[object] = [None, 1, "soon", {}]
    assert [run_record.observed_at(value) for value in unreadable] == [None] * 4
