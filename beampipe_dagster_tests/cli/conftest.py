from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from beampipe_dagster.assembly import assemble
from beampipe_dagster.config.settings import Settings
from beampipe_dagster.ledger.sources import NewSource
from beampipe_dagster_tests.cli.support import DEMO, SURVEY, Beampipe, World

NAMES = ("A", "B", "C")


@pytest.fixture
def empty(tmp_path: Path) -> Beampipe:
    """With a home that does not exist."""
    return Beampipe(tmp_path / "home")


@pytest.fixture
def beampipe(tmp_path: Path, migrated_sqlite: Path) -> Beampipe:
    """With an empty ledger."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(migrated_sqlite, home / "ledger.db")
    return Beampipe(home)


@pytest.fixture
def world(beampipe: Beampipe) -> Iterator[World]:
    """The demo survey, its profile, and sources A, B and C."""
    platform = assemble(Settings.from_env({"BEAMPIPE_HOME": str(beampipe.home)}))
    platform.projects.add_profile(DEMO / "profile.json")
    platform.projects.add_project(DEMO / "wallaby_demo.yaml", actor="test")
    new = [NewSource(name, ra_deg=10.0, dec_deg=-20.0) for name in NAMES]
    platform.registry.register(SURVEY, new, actor="test")
    yield World(platform)
    platform.ledger.dispose()
