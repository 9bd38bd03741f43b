"""An archive in this process that answers real ADQL over a table of files, and fails as it is told."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

from beampipe_dagster.clock import Clock
from beampipe_dagster.config.canonical import sha256_hex
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.discovery.archive import (
    CONSERVATIVE,
    DEFAULT_MAXREC,
    Answer,
    AnswerClass,
    Evidence,
    TapCapabilities,
    Upload,
    archive_error,
)
from beampipe_dagster.sandbox.archive.adql import Deadline, QueryEngine
from beampipe_dagster.sandbox.archive.store import ArchiveStore


@dataclass
class EngineArchives:
    """The archive ``casda`` with ``ivoa.obscore``.

    Attributes
    ----------
    asked
        The queries that came.
    fault
        What the next queries get instead of an answer.
    limit
        Rows of an answer at most.
    """

    directory: Path
    clock: Clock
    asked: list[str] = field(default_factory=list)
    fault: AnswerClass | None = None
    limit: int = DEFAULT_MAXREC

    def __post_init__(self) -> None:
        self.store = ArchiveStore(data_dir=self.directory, seed="empty")
        self._engine = QueryEngine(archive="casda", attachments=self.store.attachments("casda"))

    def close(self) -> None:
        """Close its connections."""
        self._engine.close()

    def add(self, filename: str, released: str | None, *, t_max: float = 1.0, collection: str = "W") -> None:
        """A file, with the time at which it became public."""
        with sqlite3.connect(self.store.path("ivoa")) as db:
            db.execute(
                "INSERT INTO obscore (filename, obs_id, obs_release_date, t_max, obs_collection)"
                " VALUES (?, 'ASKAP-7', ?, ?, ?)",
                (filename, released, t_max, collection),
            )
        db.close()

    def get(self, config: ProjectConfig, adapter: str) -> EngineArchives:
        """The archive, whatever its name."""
        del config, adapter
        return self

    def query(self, adql: str, *, maxrec: int = DEFAULT_MAXREC, upload: Upload | None = None) -> Answer:
        """A complete answer, or the error that the test wants."""
        assert upload is None, "it takes no uploads"
        self.asked.append(adql)
        most = min(maxrec, self.limit)
        found = self._engine.run(adql, maxrec=most, deadline=Deadline(30))
        names = [column.name for column in found.columns]
        rows = [["" if cell is None else str(cell) for cell in row] for row in found.rows]
        fault = self.fault or (AnswerClass.OVERFLOW if len(rows) >= most else None)
        evidence = Evidence(
            adapter="casda",
            url="https://casda.example/tap",
            query_sha256=sha256_hex(adql),
            started_at=self.clock.now(),
            seconds=0.1,
            rows=len(rows),
            answer=fault or AnswerClass.COMPLETE,
        )
        if fault is not None:
            raise archive_error("as the test wants it", evidence)
        return Answer([dict(zip(names, row, strict=True)) for row in rows], evidence)

    def query_async(self, adql: str, *, maxrec: int = DEFAULT_MAXREC, upload: Upload | None = None) -> Answer:
        """It has no jobs."""
        raise AssertionError((adql, maxrec, upload))

    def capabilities(self) -> TapCapabilities:
        """It says nothing of itself."""
        return CONSERVATIVE

    def availability(self) -> tuple[bool, str]:
        """It is always there."""
        return True, "here"
