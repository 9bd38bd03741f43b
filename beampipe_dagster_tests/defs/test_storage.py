"""Dagster's storage follows the environment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.instance.ref import InstanceRef
from dagster._core.storage.runs.sqlite.sqlite_run_storage import SqliteRunStorage

from beampipe_dagster.defs.storage import psycopg2_url
from beampipe_dagster.errors import ConfigError
from beampipe_dagster_tests.support.postgres import PostgresServer

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    text = (REPOSITORY / "dagster.yaml").read_text(encoding="utf-8")
    (tmp_path / "dagster.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("BEAMPIPE_HOME", str(tmp_path))
    monkeypatch.delenv("BEAMPIPE_DATABASE_URL", raising=False)
    return tmp_path


@pytest.fixture
def postgres(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of a database of this test's own, with a password in it."""
    with postgres_server.database(template=None) as url:
        yield url.replace("postgresql+psycopg2://postgres@", "postgresql://postgres:not%20shown@")


def test_without_a_database_url_it_is_sqlite_below_the_home(home: Path) -> None:
    with dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home))) as instance:
        assert isinstance(instance.run_storage, SqliteRunStorage)
        instance.add_dynamic_partitions("sources", ["HIPASSJ1318-21"])
        assert instance.get_dynamic_partitions("sources") == ["HIPASSJ1318-21"]
    assert (home / "dagster" / "history" / "runs.db").exists()


def test_another_process_opens_the_same_storage_from_the_serialised_instance(home: Path) -> None:
    with dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home))) as instance:
        instance.add_dynamic_partitions("sources", ["one"])
        kept = instance.get_ref().to_dict()
        again = InstanceRef.from_dict(kept)  # type: ignore[no-untyped-call]  # Dagster's own
    with dg.DagsterInstance.from_ref(again) as instance:
        assert instance.get_dynamic_partitions("sources") == ["one"]


@pytest.mark.integration
def test_a_postgresql_url_of_either_spelling_is_used_with_its_driver_and_never_shown(
    home: Path, postgres: str
) -> None:
    env = {**os.environ, "BEAMPIPE_DATABASE_URL": postgres, "PYTHONPATH": str(REPOSITORY)}
    info = subprocess.run(
        [sys.executable, "-m", "dagster", "instance", "info"],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "run_storage: PostgresRunStorage" in info.stdout
    assert "event_log_storage: PostgresEventLogStorage" in info.stdout
    assert "schedule_storage: PostgresScheduleStorage" in info.stdout
    assert "not%20shown" not in info.stdout + info.stderr
    assert "not shown" not in info.stdout + info.stderr
    assert not (home / "dagster").exists()


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgresql://me@host/db", "postgresql+psycopg2://me@host/db"),
        ("postgresql+psycopg2://me@host/db", "postgresql+psycopg2://me@host/db"),
        ("postgresql+psycopg://me@host/db", "postgresql+psycopg2://me@host/db"),
        (
            "postgres://me:p%40ss@host:1/db?sslmode=require",
            "postgresql+psycopg2://me:p%40ss@host:1/db?sslmode=require",
        ),
        ("sqlite:////srv/ledger.db", None),
    ],
)
def test_every_spelling_of_a_postgresql_url_means_psycopg2(given: str, used: str | None) -> None:
    assert psycopg2_url(given) == used


@pytest.mark.parametrize("url", ["", "no url", "mysql://me:hidden@host/db", "postgresql"])
def test_another_database_is_refused_without_showing_the_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        psycopg2_url(url)
    assert caught.value.code == "invalid_database_url"
    assert "hidden" not in str(caught.value.as_dict())


def test_a_home_that_is_not_absolute_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEAMPIPE_HOME", "somewhere")
    with pytest.raises(ConfigError, match="absolute"):
        dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home)))


def test_the_limits_that_keep_one_machine_usable_are_in_the_file() -> None:
    settings = yaml.safe_load((REPOSITORY / "dagster.yaml").read_text(encoding="utf-8"))
    assert settings["telemetry"] == {"enabled": False}
    assert settings["concurrency"]["runs"]["max_concurrent_runs"] == 4
    assert settings["run_monitoring"]["enabled"] is True
    assert settings["run_retries"]["retry_on_asset_or_op_failure"] is False
