from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from beampipe_dagster.sandbox.archive.adql import QueryEngine
from beampipe_dagster.sandbox.archive.server import ArchiveServer
from beampipe_dagster.sandbox.archive.store import ArchiveStore


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArchiveServer]:
    """A running archive for tests that change nothing."""
    with ArchiveServer(tmp_path_factory.mktemp("archive")) as server:
        yield server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ArchiveServer]:
    """A running archive of the test's own."""
    with ArchiveServer(tmp_path / "archive") as own:
        yield own


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArchiveStore:
    return ArchiveStore(data_dir=tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def casda(store: ArchiveStore) -> Iterator[QueryEngine]:
    engine = QueryEngine(archive="casda", attachments=store.attachments("casda"))
    yield engine
    engine.close()
