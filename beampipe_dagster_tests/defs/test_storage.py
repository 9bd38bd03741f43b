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
from beampipe_dagster.sandbox.ports import free_port

REPOSITORY = Path(__file__).parents[2]
POSTGRES = max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), default=None)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    text = (REPOSITORY / "dagster.yaml").read_text(encoding="utf-8")
    (tmp_path / "dagster.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("BEAMPIPE_HOME", str(tmp_path))
    monkeypatch.delenv("BEAMPIPE_DATABASE_URL", raising=False)
    return tmp_path


def unprivileged(*command: str) -> str:
    """The output of a command that refuses to be root, as PostgreSQL's do."""
    user = "postgres" if os.getuid() == 0 else None
    answer = subprocess.run(
        command,
        cwd="/",
        user=user,
        group=user,
        extra_groups=[] if user else None,
        check=True,
        stdout=subprocess.PIPE,
    )
    return answer.stdout.decode().strip()


@pytest.fixture
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL of this test's own."""
    if POSTGRES is None:
        pytest.skip("PostgreSQL is not installed")
    # Not in tmp_path: that is root's, and too long for a socket.
    place = unprivileged("mktemp", "-d", "/tmp/beampipe-pg-XXXXXX")  # noqa: S108  # mktemp makes it unique
    control = (str(POSTGRES.with_name("pg_ctl")), "-D", f"{place}/data", "-w", "-l", f"{place}/log")
    port = free_port()
    options = f"-p {port} -k {place} -c listen_addresses=127.0.0.1 -c fsync=off"
    unprivileged(str(POSTGRES), "-D", f"{place}/data", "-A", "trust", "-U", "beampipe", "-N")
    unprivileged(*control, "-o", options, "start")
    try:
        yield f"postgresql://beampipe:not%20shown@127.0.0.1:{port}/postgres"
    finally:
        unprivileged(*control, "-m", "immediate", "stop")
        unprivileged("rm", "-rf", place)


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
