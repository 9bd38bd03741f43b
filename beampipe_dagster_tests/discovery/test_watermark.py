"""New rows found for all sources at once: nothing is missed, nothing is asked for twice, nothing moves too early."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import sqlalchemy as sa

from beampipe_dagster.assembly import Platform
from beampipe_dagster.clock import ManualClock
from beampipe_dagster.discovery import watermark
from beampipe_dagster.discovery.archive import AnswerClass
from beampipe_dagster.discovery.watermark import QuerySweep, SweepReport, WatermarkService
from beampipe_dagster.ids import UuidIds
from beampipe_dagster.ledger import leases, sources, watermarks
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.sources import NewSource
from beampipe_dagster.ledger.tables import source_registry
from beampipe_dagster.ledger.watermarks import Watermark
from beampipe_dagster_tests.support.archives import INCOMPLETE, FakeArchives
from beampipe_dagster_tests.support.engine_archive import EngineArchives
from beampipe_dagster_tests.support.ledgers import START, SURVEY, at_once
from beampipe_dagster_tests.support.platforms import make_platform, survey_spec

TEMPLATE = "SELECT * FROM ivoa.obscore WHERE filename LIKE '{source_identifier}_SB%' AND obs_collection = 'W'"
MARK = {"column": "obs_release_date", "lag_hours": 24, "every_minutes": 15}


def day(number: int, hour: int = 0) -> str:
    """A time some days before the tests begin, as archives write it."""
    return (START + timedelta(days=number - 30, hours=hour)).isoformat(timespec="seconds")[:19]


@dataclass
class World:
    platform: Platform
    archive: EngineArchives
    clock: ManualClock
    home: Path

    @property
    def service(self) -> WatermarkService:
        return self.platform.watermarks

    def survey(self, **query: Any) -> None:
        fields = {"name": "visibility", "adapter": "casda", "template": TEMPLATE, "watermark": MARK, **query}
        spec: Any = survey_spec("0" * 64, discovery={"stale_after_hours": 1000, "batch_size": 50})
        spec["adapters"]["required"] = ["casda"]
        spec["discovery"]["queries"] = [fields]
        spec["discovery"]["prepare_metadata"]["discovery_flags"] = {}
        del spec["graph"], spec["graph_patches"]
        (self.home / "survey.yaml").write_text(json.dumps(spec))
        self.platform.projects.add_project(self.home / "survey.yaml", actor="test")

    def register(self, *names: str) -> None:
        self.platform.registry.register(SURVEY, [NewSource(name) for name in names], actor="test")

    def sweep(self) -> QuerySweep:
        self.clock.advance(60)
        report = self.service.sweep(SURVEY)
        (only,) = report.sweeps
        return only

    def discover(self) -> set[str]:
        """All that is due is looked at; its names."""
        looked = set()
        self.clock.advance(60)
        for claim in self.platform.discovery.tick(SURVEY).claims:
            with self.platform.ledger.read() as conn:
                looked |= {one.source_identifier for one in sources.claimed_sources(conn, claim.token)}
            self.platform.discovery.run_batch(claim.token)
        return looked

    def mark(self) -> Watermark:
        with self.platform.ledger.read() as conn:
            found = watermarks.get(conn, SURVEY, "visibility")
        assert found is not None
        return found

    def settled(self) -> None:
        """Everything is looked at, and the watermark has moved as far as it can."""
        self.discover()
        self.sweep()
        self.discover()
        self.sweep()


@pytest.fixture
def world(ledger: Ledger, tmp_path: Path, clock: ManualClock) -> Iterator[World]:
    archive = EngineArchives(tmp_path / "archive", clock)
    platform = make_platform(ledger, home=tmp_path, clock=clock, archives=cast("FakeArchives", archive))
    made = World(platform, archive, clock, tmp_path)
    made.survey()
    made.register("A", "AB", "C")
    for name in ("A", "AB"):
        archive.add(f"{name}_SB1", day(1))
    yield made
    archive.close()


def test_the_first_sweep_asks_for_a_look_at_every_source(world: World) -> None:
    assert world.discover() == {"A", "AB", "C"}
    assert world.discover() == set()
    first = world.sweep()
    assert (first.everything, first.marked, first.position) == (True, 3, None)
    assert world.discover() == {"A", "AB", "C"}
    assert world.sweep().position == day(1)
    assert world.discover() == set()


def test_a_new_row_makes_its_source_due_and_no_other(world: World) -> None:
    world.settled()
    world.archive.add("AB_SB2", day(2))
    found = world.sweep()
    assert (found.new_rows, found.marked, found.unknown_rows) == (1, 1, 0)
    assert world.discover() == {"AB"}
    assert world.sweep().marked == 0


def test_a_sweep_is_one_query_whatever_the_number_of_sources(world: World) -> None:
    world.register(*(f"S{number:03}" for number in range(200)))
    world.settled()
    world.archive.asked.clear()
    world.sweep()
    (adql,) = world.archive.asked
    assert "filename AS bp_key1, obs_release_date AS bp_mark" in adql
    assert "obs_collection = 'W'" in adql


def test_the_watermark_moves_only_when_the_looks_are_committed(world: World) -> None:
    world.settled()
    world.archive.add("A_SB2", day(5))
    assert world.sweep().position == day(1)
    waiting = world.sweep()
    assert (waiting.position, waiting.waiting, waiting.marked) == (day(1), 1, 0)
    assert world.mark().candidate == day(5)
    world.archive.fault = AnswerClass.TIMEOUT
    world.discover()
    world.archive.fault = None
    assert world.sweep().position == day(1)
    world.clock.advance(3600)  # the backoff after a failure
    assert world.discover() == {"A"}
    assert world.sweep().position == day(5)
    assert world.mark().candidate is None


def test_what_comes_while_the_watermark_waits_is_found_too(world: World) -> None:
    world.settled()
    world.archive.add("A_SB2", day(5))
    world.sweep()
    world.archive.add("C_SB1", day(6))
    assert world.sweep().marked == 1
    assert world.discover() == {"A", "C"}
    assert world.sweep().position == day(6)


def test_rows_that_come_late_within_the_overlap_are_found(world: World) -> None:
    world.archive.add("C_SB0", day(10, 12))
    world.settled()
    assert world.mark().position == day(10, 12)
    world.archive.add("A_SB9", day(9, 13))
    assert world.sweep().marked == 1
    assert world.discover() == {"A"}
    world.archive.add("A_SB10", day(9, 11))  # beyond the overlap: the survey's own staleness finds it
    assert world.sweep().new_rows == 0
    world.clock.advance(1001 * 3600)
    assert world.discover() == {"A", "AB", "C"}


def test_a_row_that_was_seen_asks_once_and_a_second_one_like_it_asks_again(world: World) -> None:
    world.settled()
    world.archive.add("A_SB2", day(2))
    assert world.sweep().marked == 1
    world.discover()
    assert [world.sweep().new_rows for _ in range(3)] == [0, 0, 0]
    world.archive.add("A_SB2", day(2))
    assert world.sweep().marked == 1


def test_rows_of_nobody_are_counted_and_rows_that_are_not_the_surveys_are_not_seen(world: World) -> None:
    world.settled()
    world.archive.add("STRANGER_SB1", day(3))
    world.archive.add("A_SB8", day(3), collection="EMU")
    world.archive.add("A_SB9", None)
    found = world.sweep()
    assert (found.new_rows, found.unknown_rows, found.marked) == (1, 1, 0)
    assert found.position == day(3)


def test_a_release_date_in_the_future_does_not_hide_what_comes_before_it(world: World) -> None:
    world.archive.add("C_SB1", day(400))
    world.settled()
    assert world.mark().position is not None
    assert str(world.mark().position) < day(31)
    world.clock.advance(3600)
    world.archive.add("A_SB2", world.clock.now().isoformat()[:19])
    assert world.sweep().marked == 1
    assert world.discover() == {"A"}


@pytest.mark.parametrize("fault", INCOMPLETE)
def test_a_sweep_that_fails_changes_nothing(world: World, fault: AnswerClass) -> None:
    world.settled()
    world.archive.add("A_SB2", day(2))
    before = world.mark()
    world.archive.fault = fault
    found = world.sweep()
    assert found.error is not None
    assert found.error.code == f"archive_{fault.value}"
    world.archive.fault = None
    assert world.mark() == before
    assert world.discover() == set()
    assert world.sweep().marked == 1


def test_too_many_new_rows_make_every_source_due_instead(world: World) -> None:
    world.settled()
    for number in range(40):
        world.archive.add(f"X{number}_SB1", day(4))
    world.archive.add("A_SB2", day(9))
    world.archive.limit = 30
    found = world.sweep()
    assert (found.everything, found.marked) == (True, 3)
    world.archive.limit = 20_000
    assert world.discover() == {"A", "AB", "C"}
    assert world.sweep().position == day(9)


def test_an_overlap_with_too_many_rows_changes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.settled()
    before = world.mark()
    monkeypatch.setattr(watermark, "SEEN_LIMIT", 0)
    found = world.sweep()
    assert found.error is not None
    assert found.error.code == "watermark_overlap_too_long"
    assert world.mark() == before


def test_an_archive_without_rows_has_no_watermark_until_there_is_one(world: World) -> None:
    world.survey(template=TEMPLATE.replace("'W'", "'NEW'"))
    world.discover()
    assert [world.sweep().marked for _ in range(2)] == [0, 0]
    world.archive.add("A_SB3", day(3), collection="NEW")
    assert world.sweep().everything


def test_another_question_begins_afresh(world: World) -> None:
    world.settled()
    world.survey(template=TEMPLATE.replace("AND", "AND t_max > 0 AND"))
    assert world.sweep().everything


def test_days_are_a_watermark_too(world: World) -> None:
    world.survey(watermark={**MARK, "column": "t_max"})
    world.settled()
    world.archive.add("A_SB2", day(2), t_max=61000.5)
    assert world.sweep().marked == 1
    world.discover()
    assert world.sweep().position == "61000.5"
    world.sweep()
    assert "t_max >= 60999.5" in world.archive.asked[-1]


def test_what_is_neither_a_time_nor_a_number_is_refused(world: World) -> None:
    world.survey(watermark={**MARK, "column": "filename"})
    found = world.sweep()
    assert found.error is not None
    assert found.error.code == "watermark_not_comparable"


def test_a_query_that_cannot_be_asked_for_all_is_refused_with_why(world: World) -> None:
    world.survey(template=TEMPLATE.replace("SELECT", "SELECT DISTINCT"))
    found = world.sweep()
    assert found.error is not None
    assert found.error.code == "watermark_not_possible"
    assert "DISTINCT" in found.error.message


def test_the_join_with_the_latest_is_swept_for_all_epochs(world: World) -> None:
    inner = TEMPLATE.replace("SELECT *", "SELECT MAX(t_max) AS mx")
    outer = TEMPLATE.partition("WHERE ")[2]
    template = f"SELECT o.* FROM ivoa.obscore o JOIN ({inner}) AS x ON o.t_max = x.mx WHERE {outer}"  # noqa: S608  # a template
    world.survey(template=template)
    world.settled()
    world.archive.add("A_SB2", day(2), t_max=0.5)
    assert world.sweep().marked == 1


def test_disabled_and_quarantined_sources_neither_hold_the_watermark_nor_are_forgotten(world: World) -> None:
    world.settled()
    world.platform.registry.disable(SURVEY, ["A"], actor="test")
    with world.platform.ledger.begin() as conn:
        values = {"quarantined_at": world.clock.now(), "own_failure_count": 5}
        conn.execute(
            sa.update(source_registry).where(source_registry.c.source_identifier == "C").values(**values)
        )
    for name in ("A", "AB", "C"):
        world.archive.add(f"{name}_SB7", day(7))
    assert world.sweep().marked == 3
    assert world.discover() == {"AB"}
    assert world.sweep().position == day(7)
    with world.platform.ledger.read() as conn:
        assert sources.get(conn, SURVEY, "C").quarantined_at is not None
    world.platform.registry.enable(SURVEY, ["A"], actor="test")
    assert world.discover() == {"A"}


def test_a_restart_between_sweep_and_look_loses_nothing(world: World, tmp_path: Path) -> None:
    world.settled()
    world.archive.add("A_SB2", day(2))
    world.sweep()
    again = make_platform(
        world.platform.ledger,
        home=tmp_path,
        clock=world.clock,
        archives=cast("FakeArchives", world.archive),
        ids=UuidIds(),
    )
    reborn = World(again, world.archive, world.clock, tmp_path)
    assert reborn.sweep().marked == 0
    assert reborn.discover() == {"A"}
    assert reborn.sweep().position == day(2)


def test_two_sweeps_at_once_ask_for_a_look_once(world: World) -> None:
    world.settled()
    world.archive.add("A_SB2", day(2))

    def service() -> WatermarkService:
        return WatermarkService(
            ledger=world.platform.ledger, clock=world.clock, ids=UuidIds(), archives=world.archive
        )

    reports = at_once(*[lambda: service().sweep(SURVEY)] * 4)
    assert all(isinstance(report, SweepReport) for report in reports)
    done = [one for report in reports if isinstance(report, SweepReport) for one in report.sweeps]
    assert sum(one.marked for one in done) == 1
    assert world.discover() == {"A"}


def test_a_sweep_that_lost_its_lease_writes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.settled()
    world.archive.add("A_SB2", day(2))
    before, query = world.mark(), world.archive.query

    def slow(adql: str, **options: Any) -> Any:
        world.clock.advance(watermark.LEASE_SECONDS + 1)
        with world.platform.ledger.begin() as conn:
            assert leases.acquire(conn, f"watermark:{SURVEY}", "other", now=world.clock.now(), seconds=60)
        return query(adql, **options)

    monkeypatch.setattr(world.archive, "query", slow)
    found = world.sweep()
    assert found.error is not None
    assert found.error.code == "sweep_overtaken"
    assert world.mark() == before
    monkeypatch.undo()
    assert world.service.sweep(SURVEY).skip_reason == "sweep_running"


def test_a_sweep_is_due_as_often_as_the_survey_says(world: World) -> None:
    assert world.service.due(SURVEY) == ["visibility"]
    world.sweep()
    assert world.service.due(SURVEY) == []
    world.clock.advance(15 * 60)
    assert world.service.due(SURVEY) == ["visibility"]


def test_a_survey_without_a_watermark_is_not_swept(world: World) -> None:
    world.survey(watermark=None)
    assert world.service.due(SURVEY) == []
    assert world.service.sweep(SURVEY).skip_reason == "no_watermark"


def test_the_story_says_who_was_asked_for_and_by_what(world: World) -> None:
    world.settled()
    world.archive.add("A_SB2", day(2))
    world.sweep()
    from beampipe_dagster.ledger import provenance  # noqa: PLC0415  # only here

    with world.platform.ledger.read() as conn:
        told = [one for one in provenance.timeline(conn, limit=1000) if one.event_type == "discovery.swept"]
    newest = max(told, key=lambda one: one.occurred_at)
    assert newest.payload["names"] == ["A"]
    assert newest.payload["query"] == "visibility"
