"""A platform for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from beampipe_dagster_tests.definitions.world import World, world


@pytest.fixture
def here(tmp_path: Path, migrated_sqlite: Path) -> Iterator[World]:
    """A platform with everything around it, and nothing in it."""
    with world(tmp_path, migrated_sqlite) as made:
        yield made
