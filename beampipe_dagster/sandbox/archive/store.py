"""The data directory of the sandbox archive: one SQLite file a schema, filled when it is missing.

The connection that writes has ``sandbox.sqlite`` as its main file and the others attached, so that rows in
several files are one atomic transaction (SQLite's rollback journal spans attached files).
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from beampipe_dagster.clock import Clock, SystemClock, rfc3339
from beampipe_dagster.errors import ArchiveError, ConfigError
from beampipe_dagster.sandbox.archive.columns import (
    ARCHIVES,
    FOREIGN_KEYS,
    HICAT,
    TABLES,
    TAP_SCHEMA,
    Archive,
    Table,
    tables_of,
)
from beampipe_dagster.sandbox.archive.demo import load_catalogue, load_demo
from beampipe_dagster.sandbox.archive.deposits import (
    Deposit,
    DepositedFile,
    Observation,
    add_evaluation,
    add_files,
    check_deposit,
    end_of,
    insert,
    next_sbid,
)

Seed = Literal["demo", "empty"]

SCHEMA_VERSION = "1"

_SEED_RELEASED = "2025-04-22T06:30:26.285Z"


class ArchiveStore:
    """The archive's data on disk; safe to use from several threads and processes.

    Parameters
    ----------
    data_dir
        Where the files are; made and filled when missing.
    seed
        ``demo`` for the catalogue, the demo survey and its background; ``empty`` for the tables alone.
    clock
        Gives a deposit its times.

    Raises
    ------
    ConfigError
        ``invalid_archive_data`` when the directory cannot be used, or was made by another version.
    """

    def __init__(self, *, data_dir: Path, seed: Seed = "demo", clock: Clock | None = None) -> None:
        self.data_dir = data_dir
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            with self._writing() as db:
                self._create(db)
                if seed == "demo" and _meta(db, "seed") is None:
                    _seed_demo(db)
        except (OSError, ArchiveError) as error:
            raise ConfigError(
                f"The archive's data directory {data_dir} cannot be used: {error.__cause__ or error}",
                code="invalid_archive_data",
                hint="Give a directory that can be written to, or delete it to make it anew.",
            ) from error

    def path(self, schema: str, archive: Archive | None = None) -> Path:
        """The file of a schema; each archive has a ``tap_schema`` of its own."""
        name = f"tap_schema_{archive}" if schema == "tap_schema" else schema
        return self.data_dir / f"{name}.sqlite"

    def attachments(self, archive: Archive) -> dict[str, Path]:
        """Schema to file, for everything that an archive publishes."""
        return {t.schema: self.path(t.schema, archive) for t in tables_of(archive)}

    def row_counts(self) -> dict[str, int]:
        """Rows by table, under the names that queries use."""
        with self._reading() as db:
            return {
                table.adql_name: int(
                    db.execute(f"SELECT COUNT(*) FROM {table.sql_name}").fetchone()[0]  # noqa: S608  # our own names
                )
                for table in TABLES
            }

    def latest_files(self, limit: int = 10) -> list[dict[str, Any]]:
        """The last files added: name, scheduling block, collection, quality, release date."""
        names = ("filename", "obs_id", "obs_collection", "quality_level", "obs_release_date")
        with self._reading() as db:
            rows = db.execute(
                f"SELECT {', '.join(names)} FROM ivoa.obscore ORDER BY rowid DESC LIMIT ?",  # noqa: S608  # our own names
                (limit,),
            ).fetchall()
        return [dict(zip(names, row, strict=True)) for row in rows]

    def deposit(
        self,
        source_identifier: str,
        *,
        sbid: int | None = None,
        beams: int = 2,
        quality: str = "GOOD",
        collection: str = "WALLABY",
        count: int = 1,
    ) -> Deposit:
        """Add observations of a source, as if the telescope had just made them.

        A new scheduling block ends now, later than all that the source has, and gets a calibration file. A
        block that the archive knows keeps its times; if it holds the source already, the beams are added.

        Parameters
        ----------
        source_identifier
            1 to 100 letters, digits, blanks and ``_ + . : -``.
        sbid
            The first scheduling block; the next free one when left out.
        beams
            Files for each block; a block holds 36 beams of a source at most.
        quality
            One of :data:`~beampipe_dagster.sandbox.archive.deposits.QUALITIES`.
        collection
            ``obs_collection`` of the rows.
        count
            How many scheduling blocks, 1 to 100, counted up from the first.

        Raises
        ------
        InputError
            ``invalid_deposit`` naming the value that is out of bounds.
        ConflictError
            ``too_many_beams`` when a block would hold more than 36 beams of the source.
        """
        check_deposit(
            source_identifier,
            sbid=sbid,
            beams=beams,
            quality=quality,
            collection=collection,
            count=count,
        )
        files: list[DepositedFile] = []
        evaluations: list[str] = []
        with self._lock, self._writing() as db:
            first = sbid if sbid is not None else next_sbid(db, count)
            blocks = tuple(range(first, first + count))
            now = self._clock.now()
            for block in blocks:
                t_max = end_of(db, source_identifier, block, now)
                observation = Observation(
                    source_identifier, block, beams, quality, collection, t_max, rfc3339(now)
                )
                files += add_files(db, observation)
                evaluations += add_evaluation(db, block, t_max, observation.released)
        return Deposit(source_identifier, collection, blocks, tuple(files), tuple(evaluations))

    def _create(self, db: sqlite3.Connection) -> None:
        db.execute("CREATE TABLE IF NOT EXISTS sandbox_meta (key TEXT PRIMARY KEY, value TEXT) STRICT")
        version = _meta(db, "schema")
        if version == SCHEMA_VERSION:
            # What is said of the tables is the program's, and may be better than when they were made.
            self._describe(db)
            return
        if version is not None:
            raise ConfigError(
                f"The archive's data directory {self.data_dir} has version {version}, "
                f"this program needs {SCHEMA_VERSION}.",
                code="invalid_archive_data",
                hint="Delete the directory: the sandbox makes it anew.",
            )
        for table in TABLES:
            for statement in table.ddl():
                db.execute(statement)
        self._describe(db)
        db.execute("INSERT INTO sandbox_meta VALUES ('schema', ?)", (SCHEMA_VERSION,))

    def _describe(self, db: sqlite3.Connection) -> None:
        for archive in ARCHIVES:
            _fill_tap_schema(db, archive)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One immediate transaction over all files; rolled back on any error."""
        with self._reading() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            db = sqlite3.connect(self.path("sandbox"), timeout=10.0, isolation_level=None)
        except sqlite3.Error as error:
            raise self._unavailable(error) from error
        try:
            for schema in ("ivoa", "casda", "vizier"):
                db.execute(f"ATTACH ? AS {schema}", (str(self.path(schema)),))
            for archive in ARCHIVES:
                path = self.path("tap_schema", archive)
                db.execute(f"ATTACH ? AS tap_schema_{archive}", (str(path),))
            yield db
        except sqlite3.Error as error:
            raise self._unavailable(error) from error
        finally:
            db.close()

    def _unavailable(self, error: sqlite3.Error) -> ArchiveError:
        return ArchiveError(
            f"The archive's files in {self.data_dir} cannot be used: {error}",
            code="archive_data_unavailable",
            hint="Try again; another process or a long query holds them, or the disk is full.",
        )


def _meta(db: sqlite3.Connection, key: str) -> str | None:
    row = db.execute("SELECT value FROM sandbox_meta WHERE key = ?", (key,)).fetchone()
    return None if row is None else str(row[0])


def _seed_demo(db: sqlite3.Connection) -> None:
    """The catalogue, the background, then the demo survey, so that the latest files are the demo's."""
    catalogue = load_catalogue()
    insert(
        db,
        HICAT,
        [
            {
                "recno": number,
                "HIPASS": source.hipass,
                "RAJ2000": source.ra_deg,
                "DEJ2000": source.dec_deg,
                "RV50max": round(source.rv_kms + source.w50_kms / 2, 1),
                "RV50min": round(source.rv_kms - source.w50_kms / 2, 1),
                "RVmom": source.rv_kms,
            }
            for number, source in enumerate(catalogue, 1)
        ],
    )
    demo = load_demo()
    pilot = "ASKAP Pilot Survey for WALLABY"
    for offset, name in enumerate(demo.background):
        sbid, beams = demo.background_first_sbid + 3 * offset, demo.background_beams
        _seed_one(db, Observation(name, sbid, beams, "GOOD", pilot, _seed_end(sbid), _SEED_RELEASED))
    for source in demo.sources:
        for each in source.observations:
            _seed_one(
                db,
                Observation(
                    source.source_identifier,
                    each.sbid,
                    each.beams,
                    each.quality,
                    "WALLABY",
                    each.t_max or _seed_end(each.sbid),
                    _SEED_RELEASED,
                ),
            )
    db.execute("INSERT INTO sandbox_meta VALUES ('seed', 'demo')")


def _seed_end(sbid: int) -> float:
    """The end (MJD, days) of a seeded block: blocks follow each other from January 2022 to April 2025."""
    return round(59_585.0 + (sbid - 33_000) * 0.03003, 6)


def _seed_one(db: sqlite3.Connection, observation: Observation) -> None:
    add_files(db, observation)
    add_evaluation(db, observation.sbid, observation.t_max, observation.released, extras=True)


def _fill_tap_schema(db: sqlite3.Connection, archive: Archive) -> None:
    """Describe an archive's tables in its own ``tap_schema`` (TAP 1.1, section 4)."""
    schema = f"tap_schema_{archive}"
    own = {t.name: Table(schema, t.name, t.adql_name, archive, t.description, t.columns) for t in TAP_SCHEMA}
    for table in own.values():
        for statement in table.ddl():
            db.execute(statement)
        db.execute(f"DELETE FROM {table.sql_name}")  # noqa: S608  # our own names
    published = tables_of(archive)
    schemas = list(dict.fromkeys(table.schema for table in published))
    insert(
        db,
        own["schemas"],
        [{"schema_name": name, "schema_index": i} for i, name in enumerate(schemas)],
    )
    insert(
        db,
        own["tables"],
        [
            {
                "schema_name": table.schema,
                "table_name": table.adql_name,
                "table_type": "table",
                "description": table.description,
                "table_index": i,
            }
            for i, table in enumerate(published)
        ],
    )
    rows = [
        {
            "table_name": table.adql_name,
            "column_name": column.adql_name,
            "utype": column.utype or None,
            "ucd": column.ucd or None,
            "unit": column.unit or None,
            "description": column.description,
            "datatype": column.datatype,
            "arraysize": column.arraysize,
            "principal": int(column.std or table.schema not in {"ivoa", "tap_schema"}),
            "indexed": int(column.indexed),
            "std": int(column.std),
            "column_index": i,
        }
        for table in published
        for i, column in enumerate(table.columns)
    ]
    insert(db, own["columns"], rows)
    for name in ("keys", "key_columns"):
        insert(db, own[name], [asdict(key) for key in FOREIGN_KEYS])
