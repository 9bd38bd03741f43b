"""An overview says of all sources what the status of each says of one, on both databases."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from itertools import product
from typing import Any

import pytest

from beampipe_dagster.ids import SequenceIds
from beampipe_dagster.ledger import sources
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.sources import Source
from beampipe_dagster.observe import survey_overview as module
from beampipe_dagster.observe.survey_overview import Overview, survey_overview
from beampipe_dagster.sources.status import Word, describe, latest_executions
from beampipe_dagster_tests.support.fake_daliuge import FINISHED
from beampipe_dagster_tests.support.ledgers import START, SURVEY, register
from beampipe_dagster_tests.support.platforms import Stage

CHOICES: dict[str, tuple[Any, ...]] = {
    "enabled": (True, False),
    "discovery_claim_token": (None, "claim"),
    "hold": (None, {"code": "execution_failed"}, {"code": "discovery_flags_failed"}),
    "workflow_run_pending": (False, True),
    "quarantined_at": (None, START),
    "last_outcome": (None, "error", "timeout", "no_datasets", "unchanged"),
    "last_checked_at": (None, START),
    "vanish_first_at": (None, START),
    "last_executed_discovery_signature": (None, "a" * 64),
}


def seen(ledger: Ledger, *, hours: int | None = 24, after: float = 0.0) -> Overview:
    with ledger.read() as conn:
        now = START + timedelta(hours=after)
        return survey_overview(conn, project_id=SURVEY, stale_after_hours=hours, now=now)


def told_one_by_one(ledger: Ledger) -> dict[str, int]:
    """The same, from the status of each source."""
    with ledger.read() as conn:
        rows: list[Source] = sources.listing(conn, SURVEY, limit=100_000)
        newest = latest_executions(conn, SURVEY, [row.source_identifier for row in rows])
    return dict(Counter(str(describe(row, newest.get(row.source_identifier)).word) for row in rows))


def test_the_words_are_those_of_the_sources_whatever_their_rows_say(ledger: Ledger, ids: SequenceIds) -> None:
    cases = [dict(zip(CHOICES, values, strict=True)) for values in product(*CHOICES.values())]
    with ledger.begin() as conn:
        # Every seventh: all choices in almost all pairs, in a fraction of the time.
        for number, values in enumerate(cases[::7]):
            register(conn, [f"S{number:04}"], ids=ids, discovery_signature="a" * 64, **values)
    overview = seen(ledger)
    assert overview.words == told_one_by_one(ledger)
    assert len(overview.words) > 9


def test_the_words_follow_an_execution_to_its_end(stage: Stage) -> None:
    stage.add_survey()
    stage.add_profile()
    execution = stage.submitted("A")
    assert seen(stage.ledger).words == told_one_by_one(stage.ledger) == {Word.RUNNING: 1}
    assert seen(stage.ledger).numbers["executing"] == 1
    stage.daliuge.go(stage.session(execution), FINISHED)
    stage.poll()
    assert seen(stage.ledger).words == told_one_by_one(stage.ledger)
    assert seen(stage.ledger).numbers["executing"] == 0


def test_a_survey_without_sources_is_empty(ledger: Ledger) -> None:
    overview = seen(ledger)
    assert (overview.total, overview.words, overview.places, overview.cells) == (0, {}, (), ())
    assert overview.oldest_look is None


def test_a_look_becomes_stale_with_the_survey_or_by_the_sources_own_hours(
    ledger: Ledger, ids: SequenceIds
) -> None:
    with ledger.begin() as conn:
        register(conn, ["by survey"], ids=ids, last_checked_at=START)
        register(conn, ["own"], ids=ids, last_checked_at=START, stale_after_hours=2)
        register(conn, ["disabled"], ids=ids, last_checked_at=START, enabled=False)
        register(conn, ["never"], ids=ids)
    assert [seen(ledger, after=hours).stale for hours in (1, 3, 23, 25)] == [0, 1, 1, 2]
    assert seen(ledger, hours=None, after=25).stale == 1
    assert seen(ledger).never_looked == 1
    assert seen(ledger).oldest_look == seen(ledger).newest_look == START


def test_many_sources_are_a_grid_and_few_are_points(
    ledger: Ledger, ids: SequenceIds, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ledger.begin() as conn:
        register(conn, ["corner"], ids=ids, ra_deg=359.9, dec_deg=-90.0)
        register(conn, ["twin 1", "twin 2"], ids=ids, ra_deg=4.9, dec_deg=4.9)
        register(conn, ["pole"], ids=ids, ra_deg=0.0, dec_deg=90.0)
        register(conn, ["nowhere"], ids=ids)
    few = seen(ledger)
    assert Counter((place.ra_deg, place.dec_deg) for place in few.places)[4.9, 4.9] == 2
    monkeypatch.setattr(module, "POINTS_SHOWN", 3)
    many = seen(ledger)
    assert many.places == ()
    assert {(cell.ra, cell.dec, cell.number) for cell in many.cells} == {(71, 0, 1), (0, 18, 2), (0, 36, 1)}
    assert many.without_place == 1


def test_only_a_changed_number_changes_the_fingerprint(ledger: Ledger, ids: SequenceIds) -> None:
    with ledger.begin() as conn:
        register(conn, ["A"], ids=ids, last_checked_at=START)
    first = seen(ledger)
    assert seen(ledger, after=1).fingerprint == first.fingerprint
    assert seen(ledger, after=25).fingerprint != first.fingerprint
