"""`beampipe ledger`."""

from __future__ import annotations

from beampipe_dagster_tests.cli.support import Beampipe, World


def test_a_missing_ledger_has_the_state_missing_and_is_not_made(empty: Beampipe) -> None:
    result = empty("ledger", "status")
    assert result.exit_code == 1
    assert "missing; make it with: beampipe ledger migrate" in result.stdout
    assert empty.json("ledger", "status", exit_code=1)["state"] == "missing"
    assert not empty.home.exists()


def test_migrating_makes_a_ledger_once(empty: Beampipe) -> None:
    assert "from revision none to" in empty.ok("ledger", "migrate")
    assert "already" in empty.ok("ledger", "migrate")
    answer = empty.json("ledger", "migrate")
    assert (answer["changed"], answer["before"]) == (False, answer["after"])


def test_an_empty_database_is_told_and_can_be_migrated(empty: Beampipe) -> None:
    empty.home.mkdir()
    (empty.home / "ledger.db").touch()
    assert empty.json("ledger", "status", exit_code=1)["state"] == "empty"
    empty.ok("ledger", "migrate")
    assert empty.json("ledger", "status")["state"] == "current"


def test_the_status_counts_what_is_in_it(world: World, beampipe: Beampipe) -> None:
    world.looked_at("A")
    world.submitted(world.admitted("A"))
    found = beampipe.json("ledger", "status")
    assert (found["projects"], found["sources"], found["executions"]) == (1, 3, 1)
    assert found["executions_active"] == 1
    text = beampipe.ok("ledger", "status")
    assert "1, 1 of them active" in text
    assert "current" in text


def test_a_password_is_not_shown(empty: Beampipe) -> None:
    url = "postgresql://user:secret@127.0.0.1:1/ledger"
    result = empty("ledger", "status", env={"BEAMPIPE_DATABASE_URL": url})
    assert result.exit_code == 1
    assert result.stderr.startswith("error[ledger_unavailable]")
    assert "secret" not in result.output
