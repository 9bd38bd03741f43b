"""`beampipe execution verify`."""

from __future__ import annotations

import json
from pathlib import Path

import sqlalchemy as sa

from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.tables import batch_execution_record as record
from beampipe_dagster_tests.cli.support import Beampipe, World
from beampipe_dagster_tests.execution.verification.test_service import report_of


def _waiting(world: World) -> Execution:
    world.looked_at("A")
    execution = world.submitted(world.admitted("A"))
    with world.platform.ledger.begin() as conn:
        conn.execute(
            sa.update(record).values(
                output_verification_required=True,
                output_verification_policy={
                    "required": True,
                    "inventory_schema": "wallaby-hires-output-inventory/v1",
                },
                output_state="pending",
                control_phase="output_verification",
                daliuge_state="finished",
            )
        )
    return execution


def _report(tmp_path: Path, **changes: object) -> str:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report_of(**changes)))
    return str(path)


def test_a_report_completes_the_execution_and_may_come_again(
    world: World, beampipe: Beampipe, tmp_path: Path
) -> None:
    execution = _waiting(world)
    report = _report(tmp_path)
    assert "is valid: 1 products, 42 bytes" in beampipe.ok(
        "execution", "verify", execution.id, "--report", report, "--dry-run"
    )
    first = beampipe.json("execution", "verify", execution.id[:20], "--report", report)
    assert (first["status"], first["replayed"]) == ("completed", False)
    assert "taken before" in beampipe.ok("execution", "verify", execution.id, "--report", report)
    assert "products verified by p" in beampipe.ok("timeline", "execution", execution.id)


def test_a_report_that_breaks_a_rule_is_refused_with_its_code(
    world: World, beampipe: Beampipe, tmp_path: Path
) -> None:
    execution = _waiting(world)
    report = _report(tmp_path, products=[])
    beampipe.refused("execution", "verify", execution.id, "--report", report, code="output_products_count")
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    beampipe.refused("execution", "verify", execution.id, "--report", str(broken), code="invalid_json")


def test_products_are_refused_with_a_reason(world: World, beampipe: Beampipe) -> None:
    execution = _waiting(world)
    beampipe.refused("execution", "verify", execution.id, code="report_or_reason")
    beampipe.refused("execution", "verify", execution.id, "--failed", code="report_or_reason")
    text = beampipe.ok("execution", "verify", execution.id, "--failed", "--reason", "the cube is empty")
    assert "failed" in text
    assert "the cube is empty" in text
