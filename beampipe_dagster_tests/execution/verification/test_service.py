"""Executions whose outputs must be verified, from the gate to their end."""

from __future__ import annotations

from typing import Any

import pytest

from beampipe_dagster.config.canonical import sha256_hex
from beampipe_dagster.errors import BeampipeError, Retry
from beampipe_dagster.execution.verification.report import Product, inventory_sha256
from beampipe_dagster.execution.verification.service import VerificationService
from beampipe_dagster.ledger import executions
from beampipe_dagster.ledger.audit import audit
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.states import OutputState, Status
from beampipe_dagster_tests.support.fake_daliuge import FINISHED
from beampipe_dagster_tests.support.ledgers import at_once
from beampipe_dagster_tests.support.platforms import Stage


def report_of(*sizes: int, **changes: Any) -> dict[str, Any]:
    """A report about one image of each size."""
    products = [Product(f"a/{number}.fits", size, "a" * 64) for number, size in enumerate(sizes or (42,))]
    return {
        "schema": "wallaby-hires-output-inventory/v1",
        "patterns": ["a/*.fits"],
        "pattern_counts": {"a/*.fits": len(products)},
        "products": [product.as_json() for product in products],
        "inventory_sha256": inventory_sha256(products),
        "durable_destination_uri": "s3://bucket/a",
        "publication": {
            "acknowledged": True,
            "publisher": "p",
            "receipt_id": "r",
            "published_at": "2026-01-01T00:00:00Z",
        },
        **changes,
    }


def service_of(stage: Stage) -> VerificationService:
    return VerificationService(ledger=stage.ledger, clock=stage.clock, ids=stage.platform.ids)


def at_the_gate(stage: Stage) -> Execution:
    stage.add_survey(output_verification={"required": True})
    execution = stage.submitted("A")
    stage.daliuge.go(stage.session(execution), FINISHED)
    stage.poll()
    return execution


def test_a_report_completes_the_execution_once_and_the_same_report_changes_nothing(stage: Stage) -> None:
    execution = at_the_gate(stage)
    service = service_of(stage)
    assert [one.execution.id for one in service.waiting()] == [execution.id]
    first = service.accept(execution.id, report_of(), actor="me")
    told = len(stage.events())
    second = service.accept(execution.id, report_of(), actor="me")
    done = stage.execution(execution)
    assert (first.replayed, second.replayed) == (False, True)
    assert second.artifact == first.artifact
    assert (done.status, done.output_state) == (Status.COMPLETED, OutputState.VERIFIED)
    assert done.run_record["output_verification"]["artifact_id"] == first.artifact.id
    assert len(stage.events()) == told
    assert len(stage.events("execution.outputs_verified", "execution.completed")) == 2
    assert service.waiting() == []
    with pytest.raises(BeampipeError) as refused:
        service.accept(execution.id, report_of(43), actor="me")
    assert refused.value.code == "outputs_already_verified"


def test_an_operator_can_fail_what_waits_and_a_report_comes_too_late_then(stage: Stage) -> None:
    execution = at_the_gate(stage)
    done = service_of(stage).fail(execution.id, reason="a/0.fits is missing", actor="me")
    assert (done.status, done.output_state) == (Status.FAILED, OutputState.FAILED)
    assert "a/0.fits is missing" in str(done.last_error)
    with pytest.raises(BeampipeError) as refused:
        service_of(stage).accept(execution.id, report_of(), actor="me")
    assert refused.value.code == "outputs_not_awaited"


def test_a_report_is_refused_where_none_is_wanted(stage: Stage) -> None:
    plain = stage.submitted("A")
    with pytest.raises(BeampipeError) as refused:
        service_of(stage).accept(plain.id, report_of(), actor="me")
    assert refused.value.code == "output_verification_not_required"


def test_a_report_that_comes_before_the_session_has_ended_is_taken_when_it_comes_again(stage: Stage) -> None:
    stage.add_survey(output_verification={"required": True})
    execution = stage.submitted("A")
    with pytest.raises(BeampipeError) as refused:
        service_of(stage).accept(execution.id, report_of(), actor="me")
    assert (refused.value.code, refused.value.retry) == ("outputs_not_awaited", Retry.LATER)
    stage.daliuge.go(stage.session(execution), FINISHED)
    stage.poll()
    assert (
        service_of(stage).accept(execution.id, report_of(), actor="me").execution.status is Status.COMPLETED
    )


def test_of_two_reports_at_the_same_moment_one_counts(stage: Stage) -> None:
    execution = at_the_gate(stage)
    service = service_of(stage)
    done = at_once(
        lambda: service.accept(execution.id, report_of(42), actor="me"),
        lambda: service.accept(execution.id, report_of(43), actor="you"),
    )
    refused = [one for one in done if isinstance(one, BeampipeError)]
    assert [one.code for one in refused] == ["outputs_already_verified"]
    assert stage.execution(execution).status is Status.COMPLETED
    assert len(stage.events("execution.outputs_verified")) == 1


def test_an_execution_that_waits_takes_no_room_and_is_not_polled(stage: Stage) -> None:
    execution = at_the_gate(stage)
    before = stage.execution(execution).poll_count
    stage.poll()
    assert stage.execution(execution).poll_count == before
    with stage.ledger.read() as conn:
        assert executions.active_counts(conn)[0] == 0
        assert list(audit(conn)) == []


def test_a_new_signature_after_admission_keeps_its_source_pending(stage: Stage) -> None:
    execution = at_the_gate(stage)
    stage.archives.deposit("A", 900)
    stage.request("A")
    assert stage.source("A").workflow_run_pending
    done = service_of(stage).accept(execution.id, report_of(), actor="me").execution
    assert done.status is Status.COMPLETED
    assert stage.source("A").workflow_run_pending
    (told,) = stage.events("execution.completed")
    assert told.payload["source_signatures_finalized"] is False
    count = len(stage.events())
    assert service_of(stage).accept(execution.id, report_of(), actor="me").replayed
    assert stage.source("A").workflow_run_pending
    assert len(stage.events()) == count


def test_the_digest_of_an_inventory_is_that_of_its_canonical_text() -> None:
    product = Product("HIPASSJ1318-21/image.fits", 42, "a" * 64)
    text = '[{"bytes":42,"path":"HIPASSJ1318-21/image.fits","sha256":"' + "a" * 64 + '"}]'
    assert inventory_sha256([product]) == sha256_hex(text)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"products": []}, "output_products_count"),
        ({"inventory_sha256": "0" * 64}, "inventory_sha256_mismatch"),
        ({"patterns": ["../x"], "pattern_counts": {"../x": 1}}, "unsafe_output_pattern"),
        ({"pattern_counts": {}}, "pattern_counts_mismatch"),
        ({"durable_destination_uri": "https://u:p@host/x"}, "invalid_destination_uri"),
        ({"durable_destination_uri": "file://host/x"}, "invalid_destination_uri"),
        ({"more": 1}, "output_report_structure"),
        ({"schema": "other/v1"}, "output_schema_mismatch"),
    ],
)
def test_each_broken_rule_has_its_code_and_leaves_the_execution_waiting(
    stage: Stage, changes: dict[str, Any], code: str
) -> None:
    execution = at_the_gate(stage)
    with pytest.raises(BeampipeError) as refused:
        service_of(stage).accept(execution.id, report_of(**changes), actor="me")
    assert refused.value.code == code
    assert stage.execution(execution).status is Status.RUNNING


@pytest.mark.parametrize("path", ["/absolute.fits", "../escape.fits", "a//b", "./a", "a\\b", ""])
def test_a_product_stays_below_the_destination(stage: Stage, path: str) -> None:
    execution = at_the_gate(stage)
    products = [{"path": path, "bytes": 1, "sha256": "a" * 64}]
    with pytest.raises(BeampipeError) as refused:
        service_of(stage).accept(execution.id, report_of(products=products), actor="me")
    assert refused.value.code == "unsafe_product_path"
