"""What is known about the ticks of discovery and their defaults, told as stories: those facts name no function."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from beampipe_dagster.config.project import ExecutionAutomation
from beampipe_dagster.discovery.service import DiscoveryService
from beampipe_dagster.ledger import sources
from beampipe_dagster_tests.support.ledgers import SURVEY
from beampipe_dagster_tests.support.platforms import Stage

LEASE = timedelta(minutes=1)


def service(stage: Stage, **caps: Any) -> DiscoveryService:
    """Discovery with caps of its own."""
    return DiscoveryService(
        ledger=stage.ledger,
        clock=stage.clock,
        ids=stage.platform.ids,
        archives=stage.archives,
        **caps,
    )


@pytest.mark.parametrize(
    ("caps", "reason"),
    [
        ({"queue_max_depth": 0}, "queue_full"),
        ({"max_in_flight": 1}, "in_flight_cap"),
    ],
)
def test_a_tick_that_claims_nothing_names_the_cap(stage: Stage, caps: dict[str, int], reason: str) -> None:
    stage.register(*(f"S{number}" for number in range(10)))
    first = service(stage, max_batches_per_tick=1).tick(SURVEY)
    assert (len(first.claims), first.skip_reason) == (1, None)
    with stage.ledger.begin() as conn:
        sources.start_claim(
            conn, first.claims[0].token, now=stage.clock.now(), expires_at=stage.clock.now() + LEASE
        )
    second = service(stage, **caps).tick(SURVEY)
    assert (second.claims, second.skip_reason) == ([], reason)


def test_a_survey_has_a_cap_of_its_own(stage: Stage) -> None:
    stage.add_survey(discovery={"batch_size": 1, "concurrent_discovery_batch_limit": 1})
    stage.register("A", "B")
    (claim,) = stage.platform.discovery.tick(SURVEY).claims
    with stage.ledger.begin() as conn:
        sources.start_claim(conn, claim.token, now=stage.clock.now(), expires_at=stage.clock.now() + LEASE)
    assert stage.platform.discovery.tick(SURVEY).skip_reason == "project_in_flight_cap"


def test_a_tick_asks_for_no_more_batches_than_it_may(stage: Stage) -> None:
    stage.register(*(f"S{number:02}" for number in range(20)))
    assert len(service(stage, max_batches_per_tick=2).tick(SURVEY).claims) == 2


def test_without_anything_due_a_tick_says_so(stage: Stage) -> None:
    assert stage.platform.discovery.tick(SURVEY).skip_reason == "nothing_due"
    assert stage.platform.admission.tick(SURVEY).skip_reason == "no_pending_sources"


def test_an_execution_policy_that_says_nothing_has_known_defaults() -> None:
    rules = ExecutionAutomation.model_validate({})
    assert (
        rules.enabled,
        rules.archive_name,
        rules.max_sources_per_execution,
        rules.tick_execution_source_limit,
        rules.tick_execution_run_limit,
        rules.min_sources_to_trigger,
        rules.max_wait_minutes,
        rules.claim_ttl_minutes,
    ) == (False, "casda", 20, 500, 20, 1, 1440, 180)
