"""Fixtures for all tests."""

from __future__ import annotations

from beampipe_dagster_tests.support.ledgers import clock, ids, ledger, migrated_sqlite
from beampipe_dagster_tests.support.platforms import any_stage, stage
from beampipe_dagster_tests.support.postgres import postgres_server

__all__ = ["any_stage", "clock", "ids", "ledger", "migrated_sqlite", "postgres_server", "stage"]
