"""The demo survey is seeded once, only into a ledger of its own, and its report tells where the time went."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from beampipe_dagster.errors import ConflictError
from beampipe_dagster.ledger import executions, profiles, projects, provenance, sources
from beampipe_dagster.sandbox import demo
from beampipe_dagster.sandbox.archive.demo import load_demo
from beampipe_dagster.sandbox.daliuge import DaliugePorts
from beampipe_dagster.sandbox.up import UpOptions, UpPorts
from beampipe_dagster_tests.support.platforms import Stage


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> UpOptions:
    monkeypatch.delenv("BEAMPIPE_DATABASE_URL", raising=False)
    return UpOptions(home=tmp_path, ports=UpPorts(archive=4711, daliuge=DaliugePorts(dim=4712, tm=4713)))


def test_seeding_adds_the_survey_its_sources_and_a_profile_for_the_local_daliuge(options: UpOptions) -> None:
    demo.seed(options)
    platform = demo.platform_of(options)
    with platform.ledger.read() as conn:
        revision = projects.active(conn, "wallaby_demo")
        registered = sources.listing(conn, "wallaby_demo")
        profile = profiles.by_name(conn, "local-daliuge")
    assert revision.version == 1
    assert {row.source_identifier for row in registered} == {
        source.source_identifier for source in load_demo().sources
    }
    assert all(row.ra_deg is not None and row.dec_deg is not None for row in registered)
    assert profile.spec["deployment"] == {
        **demo.local_profile(options).deployment.model_dump(),
        "deploy_port": 4712,
    }
    assert demo.local_profile(options).translation.tm_url == "http://127.0.0.1:4713"


def test_seeding_again_changes_nothing_and_tells_nothing(options: UpOptions) -> None:
    demo.seed(options)
    platform = demo.platform_of(options)
    with platform.ledger.read() as conn:
        before = provenance.timeline(conn), projects.all_active(conn), profiles.everything(conn)
    demo.seed(options)
    with platform.ledger.read() as conn:
        after = provenance.timeline(conn), projects.all_active(conn), profiles.everything(conn)
    assert before == after


def test_the_demo_refuses_a_ledger_with_other_surveys(
    options: UpOptions, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = stage.ledger.engine.url.render_as_string(hide_password=False)
    monkeypatch.setenv("BEAMPIPE_DATABASE_URL", url)
    with pytest.raises(ConflictError) as refused:
        demo._seed_alone(options)
    assert refused.value.code == "ledger_in_use"
    assert "survey" in refused.value.message
    with stage.ledger.read() as conn:
        assert [item.project_id for item in projects.all_active(conn)] == ["survey"]


def test_a_phase_lasts_until_the_next_one_begins(stage: Stage) -> None:
    execution = stage.submitted("A")
    with stage.ledger.read() as conn:
        run = executions.get(conn, execution.id)
    began = datetime(2026, 1, 1, tzinfo=UTC)
    run = replace(
        run,
        created_at=began,
        completed_at=began + timedelta(seconds=9),
        phase_timestamps={
            "admitted": "2026-01-01T00:00:00.000Z",
            "translated": "2026-01-01T00:00:02.500Z",
            "submitted": "2026-01-01T00:00:03.000Z",
        },
    )
    assert demo.stage_seconds(run) == {"admitted": 2.5, "translated": 0.5, "submitted": 6.0, "total": 9.0}
