"""What sbatch's messages mean, receipts, and paths."""

from __future__ import annotations

import pytest

from beampipe_dagster.backends.slurm.sbatch import (
    FoundBy,
    Refusal,
    Submitted,
    read_submit,
    receipt,
    refusal,
    session_paths,
)
from beampipe_dagster.errors import BackendError, BackendUnavailableError, BeampipeError, Retry

NONCE = "n0nce4tests"


def frame(name: str, text: str, code: int = 0) -> str:
    return f"\n@{NONCE}@{name}\n{text}\n@{NONCE}@end {code}\n"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Batch job submission failed: Invalid partition name specified", Refusal.PERMANENT),
        ("Batch job submission failed: Invalid account or account/partition combination", Refusal.PERMANENT),
        ("Batch job submission failed: Requested node configuration is not available", Refusal.PERMANENT),
        ("sbatch: error: Unable to open file /no/such/file.sh", Refusal.PERMANENT),
        ("sbatch: unrecognized option '--bogus'", Refusal.PERMANENT),
        ("sbatch: error: Batch script is empty!", Refusal.PERMANENT),
        ("Unable to contact slurm controller (connect failure)", Refusal.BUSY),
        ("Job violates accounting/QOS policy (job submit limit, user's size)", Refusal.BUSY),
        ("Slurm temporarily unable to accept job, sleeping and retrying", Refusal.BUSY),
        ("Batch job submission failed: Socket timed out on send/recv operation", Refusal.AMBIGUOUS),
        ("Batch job submission failed: Zero Bytes were transmitted or received", Refusal.AMBIGUOUS),
        ("something that nobody has seen", Refusal.AMBIGUOUS),
    ],
)
def test_a_message_says_whether_the_job_may_be_there(text: str, kind: Refusal) -> None:
    assert refusal(1, text) is kind


@pytest.mark.parametrize("code", [None, 124, 137])
def test_an_sbatch_that_was_ended_may_have_submitted_whatever_it_said(code: int | None) -> None:
    assert refusal(code, "Invalid account") is Refusal.AMBIGUOUS


@pytest.mark.parametrize("text", ["", "12a", "1\n2", "1;x && y", "-1"])
def test_only_one_line_that_is_an_id_is_a_receipt(text: str) -> None:
    assert receipt(text) is None


def test_a_receipt_may_stand_between_what_modules_say() -> None:
    assert receipt("module ready\n 12;setonix \nbye\n") == "12"


def test_an_answer_cut_after_sbatch_still_names_the_job() -> None:
    found = read_submit(frame("sbatch", "12"), name="bp-1", nonce=NONCE)
    assert found == Submitted("12", FoundBy.SBATCH, is_released=False)


@pytest.mark.parametrize("output", ["", "12\n", frame("answer", "attempted"), frame("answer", "several 1 2")])
def test_whatever_is_not_known_is_looked_for_before_anything_else(output: str) -> None:
    with pytest.raises(BackendError) as caught:
        read_submit(output, name="bp-1", nonce=NONCE)
    assert caught.value.retry is Retry.AFTER_RECONCILE


@pytest.mark.parametrize("word", ["locked", "unusable", "unasked down"])
def test_an_answer_before_sbatch_means_that_nothing_happened(word: str) -> None:
    with pytest.raises(BackendUnavailableError) as caught:
        read_submit(frame("answer", word), name="bp-1", nonce=NONCE)
    assert caught.value.retry is Retry.LATER


@pytest.mark.parametrize("path", ["a/b.sh", "/dlg/b.sh", "/dlg/../x/b.sh", "/dlg2/a/b.sh", "/dlg/a,b/c.sh"])
def test_a_job_script_outside_of_dlg_root_is_refused(path: str) -> None:
    with pytest.raises(BeampipeError, match="does not lie"):
        session_paths(path, "/dlg")
