"""What the registry's known facts say, told as stories: those facts name no function that could be replayed."""

from __future__ import annotations

from datetime import timedelta

import pytest

from beampipe_dagster.errors import InputError
from beampipe_dagster.execution.scope import parse_sources
from beampipe_dagster.ledger import archive, registration, sources
from beampipe_dagster.sources.readiness import blocker
from beampipe_dagster_tests.support.ledgers import SURVEY
from beampipe_dagster_tests.support.platforms import Stage

TTL = timedelta(minutes=180)


def test_a_claim_takes_what_is_due_and_its_end_releases_it(stage: Stage) -> None:
    stage.register("src-1")
    with stage.ledger.begin() as conn:
        claim = sources.claim_due(
            conn,
            SURVEY,
            token="t" * 36,
            limit=10,
            stale_after_hours=24,
            ttl=TTL,
            now=stage.clock.now(),
        )
        assert claim is not None
        assert claim.source_count == 1
        assert [one.source_identifier for one in sources.claimed_sources(conn, claim.token)] == ["src-1"]
        sources.start_claim(conn, claim.token, now=stage.clock.now(), expires_at=stage.clock.now() + TTL)
        sources.finish_claim(conn, claim.token, stats={}, now=stage.clock.now())
        assert sources.claimed_sources(conn, claim.token) == []


def test_a_first_discovery_makes_a_source_pending_and_the_same_again_keeps_it_so(stage: Stage) -> None:
    stage.archives.deposit("A", 7)
    stage.register("A")
    (first,) = stage.discover()
    assert (len(first.changed), stage.source("A").workflow_run_pending) == (1, True)
    (second,) = stage.request("A")
    assert (len(second.unchanged), stage.source("A").workflow_run_pending) == (1, True)


def test_admission_takes_a_pending_source_and_clears_the_flag(stage: Stage) -> None:
    stage.ready("A")
    (execution,) = stage.admit()
    assert execution.source_identifiers == ["A"]
    assert not stage.source("A").workflow_run_pending


def test_a_signature_that_was_executed_is_skipped_and_no_longer_pending(stage: Stage) -> None:
    stage.ready("A")
    source = stage.source("A")
    values: dict[str, object] = {"last_executed_discovery_signature": source.discovery_signature}
    with stage.ledger.begin() as conn:
        sources.update(conn, [source.id], values, now=stage.clock.now())
    assert stage.admit() == []
    assert not stage.source("A").workflow_run_pending


def test_a_failed_execution_leaves_the_last_executed_signature_alone(stage: Stage) -> None:
    execution = stage.submitted("A")
    name = stage.session(execution)
    oid = next(iter(stage.daliuge.sessions[name].drops))
    stage.daliuge.fail(name, {oid: "ERROR: no"})
    stage.poll()
    assert stage.execution(execution).status.value == "failed"
    assert stage.source("A").last_executed_discovery_signature is None


def test_an_unchanged_look_is_counted_as_such(stage: Stage) -> None:
    stage.ready("A")
    (again,) = stage.request("A")
    counts = again.as_dict()
    assert (counts["unchanged"], counts["changed"], counts["failed"]) == (1, {}, {})
    assert stage.source("A").last_outcome == "unchanged"


def test_readiness_is_looked_at_again_after_admission(stage: Stage) -> None:
    stage.admitted("A")

    def why(*sbids: str) -> str | None:
        with stage.ledger.read() as conn:
            source = next(iter(sources.by_identifiers(conn, SURVEY, ["A"])), None)
            found = blocker(source, archive.metadata_of(conn, SURVEY, ["A"]).get("A", {}), sbids=sbids)
        return found.code if found else None

    assert (why(), why("100"), why("2")) == (None, None, "no_archive_metadata")
    with pytest.raises(InputError) as refused:
        parse_sources([{"source_identifier": "A", "sbids": ["1", 2]}])
    assert (refused.value.code, "sbids[1]" in refused.value.message) == ("sbid_blank", True)
    stage.platform.registry.disable(SURVEY, ["A"], actor="test")
    assert why() == "source_disabled"
    stage.poll()
    with stage.ledger.begin() as conn:
        registration.delete(conn, [stage.source("A").id])
    assert why() == "source_not_registered"


def test_the_time_of_staleness_is_left_alone_cleared_or_set(stage: Stage) -> None:
    stage.register("A", stale_after_hours=6)
    stage.register("A")
    assert stage.source("A").stale_after_hours == 6
    stage.platform.registry.set_staleness(SURVEY, ["A"], None, actor="test")
    assert stage.source("A").stale_after_hours is None
    stage.platform.registry.set_staleness(SURVEY, ["A"], 12, actor="test")
    assert stage.source("A").stale_after_hours == 12
