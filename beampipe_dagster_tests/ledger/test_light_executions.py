"""Executions that are read without their manifest."""

from __future__ import annotations

import pytest

from beampipe_dagster.errors import LedgerError
from beampipe_dagster.ledger import executions
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster_tests.support.ledgers import START, add_execution


def test_a_light_execution_is_the_same_but_for_its_manifest_which_it_can_neither_read_nor_lose(
    ledger: Ledger,
) -> None:
    added = add_execution(ledger)
    with ledger.begin() as conn:
        kept: dict[str, object] = {"beampipe_run_record": {"dim": {}}}
        whole = executions.move(conn, added, now=START, values={"workflow_manifest": kept})
        (light,) = executions.select(conn, light=True)
        assert (light.light, light.workflow_manifest, light.id) == (True, None, whole.id)
        assert light.sources == whole.sources
        with pytest.raises(LedgerError) as caught:
            _ = light.run_record
        assert caught.value.code == "manifest_not_read"
        with pytest.raises(LedgerError):
            executions.move(conn, light, now=START, values={"workflow_manifest": {}})
        moved = executions.move(conn, light, now=START, values={"launch_count": 1})
        assert (moved.light, moved.launch_count) == (True, 1)
        assert executions.get(conn, whole.id).run_record == {"dim": {}}
