"""The home directory: made once, held by one, and with Dagster's tables in it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from beampipe_dagster.errors import BeampipeError, ConfigError, ConflictError
from beampipe_dagster.sandbox.home import Home, dagster_yaml, locked, make_home, prepare_home

REPOSITORY = Path(__file__).parents[2]


def prepared(root: Path, **variables: str) -> Home:
    env = {
        "BEAMPIPE_HOME": str(root),
        "DAGSTER_HOME": str(root),
        "PYTHONPATH": str(REPOSITORY),
        "BEAMPIPE_DATABASE_URL": "",
    }
    return prepare_home(root, code_server=("127.0.0.1", 4266), environment={**env, **variables})


def test_the_packaged_dagster_yaml_is_the_one_at_the_top() -> None:
    assert dagster_yaml() == (REPOSITORY / "dagster.yaml").read_text(encoding="utf-8")


def test_a_new_home_is_for_its_owner_alone(tmp_path: Path) -> None:
    home = make_home(tmp_path / "deep" / "home")
    assert home.root.stat().st_mode & 0o777 == 0o700
    assert home.logs.is_dir()
    assert home.archive.is_dir()
    assert home.daliuge.is_dir()


def test_a_directory_that_was_there_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert make_home(tmp_path).root.stat().st_mode & 0o777 == 0o755


def test_a_home_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as caught:
        make_home(tmp_path / "file" / "home")
    assert caught.value.code == "home_unusable"


def test_a_prepared_home_has_the_workspace_and_dagsters_tables(tmp_path: Path) -> None:
    home = prepared(tmp_path / "home")
    workspace = yaml.safe_load(home.workspace.read_text(encoding="utf-8"))
    server = {"host": "127.0.0.1", "port": 4266, "location_name": "beampipe_dagster"}
    assert workspace == {"load_from": [{"grpc_server": server}]}
    runs = sqlite3.connect(home.root / "dagster" / "history" / "runs.db")
    try:
        assert runs.execute("select count(*) from runs").fetchone() == (0,)
    finally:
        runs.close()


def test_the_file_at_the_top_names_the_same_code_location() -> None:
    text = (REPOSITORY / "workspace.yaml").read_text(encoding="utf-8")
    module = yaml.safe_load(text)["load_from"][0]["python_module"]
    assert module["location_name"] == "beampipe_dagster"


def test_a_storage_that_cannot_be_opened_is_told_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(BeampipeError) as caught:
        prepared(tmp_path / "home", BEAMPIPE_DATABASE_URL="oracle://user:hidden@host/db")
    assert caught.value.code == "instance_failed"
    assert "BEAMPIPE_DATABASE_URL is not the URL of a PostgreSQL or SQLite" in caught.value.hint
    assert "hidden" not in str(caught.value)


def test_a_dagster_yaml_of_the_operators_own_is_kept_and_a_written_one_is_renewed(
    tmp_path: Path,
) -> None:
    home = Home(tmp_path)
    first = dagster_yaml().partition("\n")[0]
    home.dagster_yaml.write_text(f"{first}\nstorage: [an old version]\n", encoding="utf-8")
    prepared(tmp_path)
    assert home.dagster_yaml.read_text(encoding="utf-8") == dagster_yaml()

    own = dagster_yaml().partition("\n")[2].replace("num_workers: 4", "num_workers: 2")
    home.dagster_yaml.write_text(own, encoding="utf-8")
    prepared(tmp_path)
    assert home.dagster_yaml.read_text(encoding="utf-8") == own


def test_a_home_is_held_by_one_and_the_other_is_told_by_whom(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    with locked(home):
        with pytest.raises(ConflictError) as caught, locked(home):
            pass
        assert caught.value.code == "home_in_use"
        assert f"process {os.getpid()}" in caught.value.message
    with locked(home):
        assert home.lock.read_text(encoding="utf-8") == str(os.getpid())


def test_a_holder_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, time\n"
        "from beampipe_dagster.sandbox.home import Home, locked\n"
        "with locked(Home(pathlib.Path(sys.argv[1]))):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(ConflictError), locked(Home(tmp_path)):
            pass
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    with locked(Home(tmp_path)):
        assert Home(tmp_path).lock.read_text(encoding="utf-8") == str(os.getpid())
