"""``beampipe project prune``: what it would retire, and what it retires."""

from __future__ import annotations

from datetime import timedelta

from beampipe_dagster.ledger import archive, projects, sources
from beampipe_dagster_tests.cli.support import SURVEY, Beampipe, World

DAYS = timedelta(days=1)


def supersede(world: World, name: str) -> str:
    """A source that had another signature forty days ago; its key."""
    platform = world.platform
    now = platform.clock.now()
    key = f"{name}@{'a' * 12}"
    with platform.ledger.begin() as conn:
        for signature, days in (("a" * 64, 40), ("b" * 64, 35)):
            change = archive.SignatureChange(
                id=platform.ids.new(),
                project_module=SURVEY,
                source_identifier=name,
                signature=signature,
                previous_signature=None,
                partition_key=f"{name}@{signature[:12]}",
                project_config_id=projects.active(conn, SURVEY).id,
                sbid_count=1,
                dataset_count=1,
                diff={},
                evidence=[],
                metadata_json={},
                discovered_at=now - days * DAYS,
            )
            archive.record_change(conn, change)
        source = sources.get(conn, SURVEY, name)
        sources.update(conn, [source.id], {"discovery_signature": "b" * 64}, now=now)
    return key


def test_a_dry_run_says_what_would_go_and_changes_nothing(world: World, beampipe: Beampipe) -> None:
    key = supersede(world, "A")
    shown = beampipe.ok("project", "prune", SURVEY, "--dry-run")
    assert key in shown
    assert "superseded" in shown
    assert "1 key would be retired; 1 of 2 stay." in shown
    assert beampipe.json("project", "prune", SURVEY, "--dry-run") == {
        "project_id": SURVEY,
        "live": 2,
        "due": 1,
        "over": 0,
        "left": 1,
        "settled": 1,
        "limit": 10_000,
        "keys": [key],
        "dry_run": True,
    }


def test_a_key_is_retired_once(world: World, beampipe: Beampipe) -> None:
    supersede(world, "A")
    assert "1 key was retired; 1 of 2 stay." in beampipe.ok("project", "prune", SURVEY)
    assert "No key was retired; 1 of 1 stay." in beampipe.ok("project", "prune", SURVEY)


def test_days_can_be_given(world: World, beampipe: Beampipe) -> None:
    supersede(world, "A")
    assert beampipe.json("project", "prune", SURVEY, "--dry-run", "--days", "36")["keys"] == []


def test_an_unknown_survey_is_refused(beampipe: Beampipe) -> None:
    beampipe.refused("project", "prune", "nobody", code="project_not_found")
