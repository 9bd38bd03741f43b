"""An answer about a scheduling block that several sources and claims share costs one request, and is never stale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, cast

import pytest

from beampipe_dagster.clock import ManualClock
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.discovery.archive import Archive
from beampipe_dagster.discovery.batch_look import BatchLook
from beampipe_dagster.discovery.batch_query import Ask, Reply
from beampipe_dagster.discovery.look import Look
from beampipe_dagster.discovery.lookups import MAX_ROWS, TTL_SECONDS, Lookups
from beampipe_dagster.errors import ArchiveError
from beampipe_dagster_tests.support.archives import FakeArchives
from beampipe_dagster_tests.support.platforms import survey_spec

ARCHIVE = cast("Archive", object())


class Asked:
    def __init__(self, *, error: ArchiveError | None = None, rows: int = 1) -> None:
        self.texts: list[list[str]] = []
        self.error = error
        self.rows = rows

    def __call__(self, asks: Mapping[str, Ask]) -> dict[str, Reply]:
        self.texts.append(list(asks))
        rows: list[Any] = [{"a": str(n)} for n in range(self.rows)]
        return {text: Reply(error=self.error) if self.error else Reply(rows) for text in asks}


def through(
    lookups: Lookups, asked: Asked, *texts: str, archive: Archive = ARCHIVE, since: Any = None
) -> Any:
    return lookups.since(since).through("casda", archive, {text: Ask({}) for text in texts}, asked)


@pytest.fixture
def lookups(clock: ManualClock) -> Lookups:
    return Lookups(clock=clock)


def test_only_what_is_not_kept_is_asked_for(lookups: Lookups) -> None:
    asked = Asked()
    assert list(through(lookups, asked, "a", "b")) == ["a", "b"]
    found = through(lookups, asked, "c", "a")
    assert asked.texts == [["a", "b"], ["c"]]
    assert list(found) == ["c", "a"]
    assert found["a"].evidence["kept"] is True
    assert "kept" not in found["c"].evidence


def test_an_answer_is_kept_for_a_tick_only(lookups: Lookups, clock: ManualClock) -> None:
    asked = Asked()
    through(lookups, asked, "a")
    clock.advance(TTL_SECONDS)
    through(lookups, asked, "a")
    assert asked.texts == [["a"], ["a"]]


def test_what_was_asked_for_before_a_source_was_requested_is_asked_for_again(
    lookups: Lookups, clock: ManualClock
) -> None:
    asked = Asked()
    through(lookups, asked, "a")
    clock.advance(1)
    through(lookups, asked, "a", since=clock.now() - timedelta(seconds=2))
    assert asked.texts == [["a"]]
    through(lookups, asked, "a", since=clock.now())
    assert asked.texts == [["a"], ["a"]]


def test_what_is_not_complete_or_too_long_is_not_kept(lookups: Lookups) -> None:
    through(lookups, Asked(error=ArchiveError("away")), "a")
    through(lookups, Asked(rows=MAX_ROWS + 1), "b")
    assert len(lookups) == 0


def test_another_archive_has_answers_of_its_own(lookups: Lookups) -> None:
    asked = Asked()
    other = cast("Archive", object())
    through(lookups, asked, "a")
    through(lookups, asked, "a", archive=other)
    assert asked.texts == [["a"], ["a"]]


def test_the_memory_is_bounded(clock: ManualClock) -> None:
    lookups, asked = Lookups(clock=clock, max_entries=3), Asked()
    for text in "abcde":
        through(lookups, asked, text)
    assert len(lookups) == 3
    through(lookups, asked, "e")
    through(lookups, asked, "a")
    assert asked.texts[5:] == [["a"]]


# In looks


@pytest.fixture
def archives(clock: ManualClock) -> FakeArchives:
    made = FakeArchives(clock=clock)
    for source in ("A", "B", "C", "D"):
        made.deposit(source, 7)
    return made


def batch(archives: FakeArchives, lookups: Lookups | None = None) -> BatchLook:
    spec = survey_spec("0" * 64)
    template = "SELECT * FROM evaluation WHERE sbid = '{sbid}'"
    spec["discovery"]["enrichments"] = [{"name": "evaluation", "adapter": "casda", "template": template}]
    config = ProjectConfig.from_json(spec)
    return BatchLook(config=config, archives=archives, clock=archives.clock, lookups=lookups)


def looked(batch_look: BatchLook, names: Sequence[str], **options: Any) -> dict[str, Look]:
    return {look.source_identifier: look for look in batch_look.looks(names, **options)}


def test_a_block_is_asked_about_once_for_all_parts_of_a_claim(archives: FakeArchives) -> None:
    one = batch(archives)
    for names in (["A", "B"], ["C", "D"]):
        assert all(look.error is None for look in looked(one, names).values())
    assert archives.queries["casda", "7"] == 1


def test_a_block_is_asked_about_once_for_all_claims_of_a_tick(
    archives: FakeArchives, lookups: Lookups
) -> None:
    looked(batch(archives, lookups), ["A", "B"])
    looked(batch(archives, lookups), ["C", "D"])
    assert archives.queries["casda", "7"] == 1
    looked(batch(archives), ["C", "D"])
    assert archives.queries["casda", "7"] == 2


def test_a_look_is_as_old_as_the_oldest_of_its_answers(
    archives: FakeArchives, lookups: Lookups, clock: ManualClock
) -> None:
    began = clock.now()
    looked(batch(archives, lookups), ["A", "B"])
    clock.advance(10)
    assert {look.began_at for look in looked(batch(archives, lookups), ["C", "D"]).values()} == {began}
    again = looked(batch(archives, lookups), ["C", "D"], fresh_since=clock.now() - timedelta(seconds=1))
    assert {look.began_at for look in again.values()} == {clock.now()}
    assert archives.queries["casda", "7"] == 2
