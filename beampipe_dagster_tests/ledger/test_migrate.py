from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from beampipe_dagster.errors import LedgerError, Retry
from beampipe_dagster.ledger import sources
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.migrate import _config, current, ensure_current, head, migrate
from beampipe_dagster.ledger.tables import VERSION_TABLE, metadata
from beampipe_dagster_tests.support.ledgers import DIALECTS, at_once, empty_database, opened


@pytest.fixture(params=DIALECTS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with empty_database(request, request.param, tmp_path) as made:
        yield made


def test_migrations_make_exactly_the_tables_that_the_code_has(ledger: Ledger) -> None:
    with ledger.read() as conn:
        context = MigrationContext.configure(
            conn,
            opts={"compare_type": True, "compare_server_default": False, "version_table": VERSION_TABLE},
        )
        assert compare_metadata(context, metadata) == []
        assert sa.inspect(conn).get_table_names() != []


def test_the_indexes_that_are_locks_are_unique_and_partial(ledger: Ledger) -> None:
    with ledger.read() as conn:
        inspector = sa.inspect(conn)
        for table, name in (
            ("execution_sources", "ux_execution_sources_active"),
            ("project_configs", "ux_project_configs_active"),
            ("batch_execution_record", "ux_batch_execution_record_session"),
        ):
            index = next(one for one in inspector.get_indexes(table) if one["name"] == name)
            assert index["unique"]
            assert str(index["dialect_options"][f"{ledger.dialect}_where"])


def test_checks_of_the_metadata_are_in_the_database(ledger: Ledger) -> None:
    with ledger.read() as conn:
        inspector = sa.inspect(conn)
        for table in metadata.sorted_tables:
            wanted = {str(one.name) for one in table.constraints if isinstance(one, sa.CheckConstraint)}
            found = {str(one["name"]) for one in inspector.get_check_constraints(table.name)}
            assert found == wanted, table.name


def test_an_empty_database_is_migrated_once(url: str) -> None:
    with opened(url) as ledger:
        assert current(ledger) is None
        assert migrate(ledger) == (None, head())
        assert migrate(ledger) == (head(), head())


def test_an_unmigrated_ledger_is_refused_with_what_to_do(url: str) -> None:
    with opened(url) as ledger:
        with pytest.raises(LedgerError) as caught:
            ensure_current(ledger)
        assert caught.value.code == "ledger_not_migrated"
        assert caught.value.retry is Retry.NEVER
        assert "beampipe ledger migrate" in caught.value.hint
        migrate(ledger)
        ensure_current(ledger)


def test_a_ledger_of_another_revision_is_refused(ledger: Ledger) -> None:
    with ledger.begin() as conn:
        conn.execute(sa.text("UPDATE ledger_version SET version_num = 'from_the_future'"))
    with pytest.raises(LedgerError) as caught:
        ensure_current(ledger)
    assert "from_the_future" in caught.value.message


def test_a_ledger_of_the_first_revision_keeps_its_sources_and_quarantines_none(url: str) -> None:
    insert = """INSERT INTO source_registry (id, project_module, source_identifier, enabled, created_at, updated_at,
        failure_count, workflow_run_pending, last_error, discovery_signature)
        VALUES ('1', 'survey', 'A', true, '2026-01-01 00:00:00.000000', '2026-01-01 00:00:00.000000',
        3, true, :error, 'abc')"""
    with opened(url) as ledger:
        upgrade_to(ledger, "0001")
        assert current(ledger) == "0001"
        with ledger.begin() as conn:
            conn.execute(sa.text(insert), {"error": '{"code": "x"}'})
        assert migrate(ledger) == ("0001", head())
        with ledger.read() as conn:
            source = sources.get(conn, "survey", "A")
            context = MigrationContext.configure(conn, opts={"version_table": VERSION_TABLE})
            assert compare_metadata(context, metadata) == []
    assert (source.failure_count, source.own_failure_count, source.quarantined_at) == (3, 0, None)
    assert (source.workflow_run_pending, source.last_error) == (True, {"code": "x"})


def upgrade_to(ledger: Ledger, revision: str) -> None:
    """Migrate as an older release did."""
    config = _config()
    with ledger.begin() as conn:
        config.attributes["connection"] = conn
        command.upgrade(config, revision)


def _migrate_in_a_process(url: str) -> str | None:
    with opened(url) as ledger:
        return migrate(ledger)[1]


def test_several_processes_may_migrate_at_once(url: str) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        assert pool.map(_migrate_in_a_process, [url] * 3) == [head()] * 3
    with opened(url) as ledger:
        ensure_current(ledger)


def test_several_threads_may_migrate_at_once(url: str) -> None:
    assert at_once(*(lambda: _migrate_in_a_process(url) for _ in range(4))) == [head()] * 4
