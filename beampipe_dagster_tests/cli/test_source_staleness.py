"""`beampipe source set`."""

from __future__ import annotations

import pytest

from beampipe_dagster.ledger import sources
from beampipe_dagster_tests.cli.support import SURVEY, Beampipe, World

SET = ("source", "set", "-p", SURVEY)


def hours_of(world: World, name: str) -> int | None:
    with world.platform.ledger.read() as conn:
        return sources.get(conn, SURVEY, name).stale_after_hours


def test_hours_are_set_and_cleared(world: World, beampipe: Beampipe) -> None:
    world.looked_at("A")
    world.looked_at("B")
    assert "2 sources" in beampipe.ok(*SET, "A", "B", "--stale-after-hours", "12")
    assert hours_of(world, "A") == 12
    assert "had it so before" in beampipe.ok(*SET, "A", "--stale-after-hours", "12")
    assert "when the survey says" in beampipe.ok(*SET, "A", "--stale-after-hours", "none")
    assert (hours_of(world, "A"), hours_of(world, "B")) == (None, 12)
    assert "as long as the survey says" in beampipe.ok("timeline", "source", "-p", SURVEY, "A")


@pytest.mark.parametrize("hours", ["0", "87601"])
def test_hours_that_cannot_be_change_nothing(world: World, beampipe: Beampipe, hours: str) -> None:
    world.looked_at("A")
    beampipe.refused(*SET, "A", "--stale-after-hours", hours, code="invalid_staleness")
    assert hours_of(world, "A") is None


def test_what_is_no_number_is_a_mistake_of_the_command_line(world: World, beampipe: Beampipe) -> None:
    world.looked_at("A")
    assert beampipe(*SET, "A", "--stale-after-hours", "often").exit_code == 2
    assert hours_of(world, "A") is None
