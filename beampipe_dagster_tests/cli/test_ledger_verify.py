"""`beampipe ledger verify`."""

from __future__ import annotations

import sqlalchemy as sa

from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.tables import provenance_events
from beampipe_dagster_tests.cli.support import Beampipe, World
from beampipe_dagster_tests.support.ledgers import unguarded


def test_a_ledger_that_nobody_touched_is_intact(world: World, beampipe: Beampipe) -> None:
    world.looked_at("A")
    execution = world.submitted(world.admitted("A"))
    assert "Everything is as it was written: 1 execution" in beampipe.ok("ledger", "verify")
    found = beampipe.json("ledger", "verify", "--execution", execution.id)
    assert found["intact"]
    assert found["events"] > 1
    assert found["documents"] == 1


def test_a_changed_event_is_named_and_the_exit_code_says_so(world: World, beampipe: Beampipe) -> None:
    world.looked_at("A")
    execution = world.submitted(world.admitted("A"))
    ledger = Ledger(f"sqlite:///{beampipe.home / 'ledger.db'}")
    with unguarded(ledger) as conn:
        conn.execute(sa.update(provenance_events).where(provenance_events.c.seq == 1).values(actor="x"))
    ledger.dispose()
    result = beampipe("ledger", "verify")
    assert result.exit_code == 1
    assert "event_changed" in result.stdout
    assert execution.id in result.stdout
    assert "compare it with a backup" in result.stdout
    assert beampipe.json("ledger", "verify", exit_code=1)["findings"] == 1


def test_an_unknown_execution_is_no_intact_one(world: World, beampipe: Beampipe) -> None:
    world.looked_at("A")
    result = beampipe("ledger", "verify", "--execution", "none")
    assert result.exit_code == 1
    assert "execution_not_found" in result.stderr
