"""Rows of observations: what a deposit or the seed adds to ``ivoa.obscore`` and to the evaluation files."""

from __future__ import annotations

import re
import sqlite3
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from beampipe_dagster.errors import ConflictError, InputError
from beampipe_dagster.sandbox.archive.columns import EVALUATION_FILE, OBSCORE, Table
from beampipe_dagster.sandbox.archive.demo import position_from_name

QUALITIES = ("GOOD", "UNCERTAIN", "BAD", "REJECTED", "NOT_VALIDATED")
MAX_BEAMS = 36
MAX_COUNT = 100
MAX_SBID = 9_999_999
LAST_SEEDED_SBID = 73_099

_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _+.:-]{0,99}")
_COLLECTION = re.compile(r"[ -~]{1,128}")
_MJD_EPOCH = datetime(1858, 11, 17, tzinfo=UTC)
_EXPOSURE_S = 28_814.88
_EXPOSURE_D = _EXPOSURE_S / 86_400
# ".invalid" is reserved never to resolve (RFC 2606): the sandbox serves no files.
_ACCESS = "https://casda.sandbox.invalid/datalink/links?ID="


@dataclass(frozen=True, slots=True)
class DepositedFile:
    """A visibility file that was added to ``ivoa.obscore``; times are MJD, days."""

    filename: str
    obs_publisher_did: str
    sbid: int
    beam: int
    quality: str
    t_min: float
    t_max: float


@dataclass(frozen=True, slots=True)
class Deposit:
    """What a deposit added.

    Parameters
    ----------
    source_identifier, collection
        As they were given.
    sbids
        The scheduling blocks, in the order of their observation.
    files
        Rows added to ``ivoa.obscore``.
    evaluation_files
        Names added to ``casda.observation_evaluation_file``; none for a block that has one already.
    """

    source_identifier: str
    collection: str
    sbids: tuple[int, ...]
    files: tuple[DepositedFile, ...]
    evaluation_files: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The deposit as JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Observation:
    """One scheduling block of one source, ready to be made into rows."""

    source_identifier: str
    sbid: int
    beams: int
    quality: str
    collection: str
    t_max: float
    released: str


def check_deposit(
    source_identifier: object,
    *,
    sbid: object,
    beams: object,
    quality: object,
    collection: object,
    count: object,
) -> None:
    """Refuse values that cannot be deposited.

    Raises
    ------
    InputError
        ``invalid_deposit`` naming the first value that is out of bounds.
    """
    if not isinstance(source_identifier, str) or not _IDENTIFIER.fullmatch(source_identifier):
        raise _invalid(
            "source_identifier",
            source_identifier,
            "Give 1 to 100 letters, digits, blanks and _ + . : - that begin with a letter or a digit.",
        )
    for name, value, top in (("beams", beams, MAX_BEAMS), ("count", count, MAX_COUNT)):
        if not _is_int(value, top):
            raise _invalid(name, value, f"Give a whole number from 1 to {top}.")
    if sbid is not None and not _is_int(sbid, MAX_SBID):
        raise _invalid("sbid", sbid, f"Give a whole number from 1 to {MAX_SBID}, or leave it out.")
    if isinstance(sbid, int) and isinstance(count, int) and sbid + count - 1 > MAX_SBID:
        raise _invalid("count", count, f"From SB{sbid} the blocks would go above {MAX_SBID}.")
    if quality not in QUALITIES:
        raise _invalid("quality", quality, f"Give one of {', '.join(QUALITIES)}.")
    if not isinstance(collection, str) or not _COLLECTION.fullmatch(collection):
        raise _invalid("collection", collection, "Give 1 to 128 printable ASCII characters.")


def next_sbid(db: sqlite3.Connection, count: int) -> int:
    """The first scheduling block that nothing uses, with room for ``count`` of them."""
    used = db.execute(
        "SELECT MAX(CAST(substr(obs_id, 7) AS INTEGER)) FROM ivoa.obscore"
        " UNION ALL SELECT MAX(sbid) FROM casda.observation_evaluation_file"
    ).fetchall()
    taken = [int(value) for (value,) in used if value is not None]
    first = max([LAST_SEEDED_SBID, *taken]) + 1
    if first + count - 1 > MAX_SBID:
        raise _invalid("sbid", first + count - 1, f"Scheduling blocks end at {MAX_SBID}; give one.")
    return first


def end_of(db: sqlite3.Connection, source_identifier: str, sbid: int, now: datetime) -> float:
    """When a block ended (MJD, days): as its rows say, or now and after all that the source has.

    Surveys select the latest epoch by ``MAX(t_max)``, so a new block must be strictly later; more beams of an
    old block must not be.
    """
    known = db.execute("SELECT MAX(t_max) FROM ivoa.obscore WHERE obs_id = ?", (f"ASKAP-{sbid}",)).fetchone()[
        0
    ]
    if known is not None:
        return float(known)
    latest = db.execute(
        "SELECT MAX(t_max) FROM ivoa.obscore WHERE filename GLOB ?", (f"{source_identifier}*",)
    ).fetchone()[0]
    current = (now.astimezone(UTC) - _MJD_EPOCH) / timedelta(days=1)
    return round(max(current, (latest or 0.0) + 1e-5), 6)


def add_files(db: sqlite3.Connection, observation: Observation) -> list[DepositedFile]:
    """Add a block's files, from the first beam number that it has not used for the source.

    Raises
    ------
    ConflictError
        ``too_many_beams`` when the block would hold more than 36 beams of the source.
    """
    source, sbid = observation.source_identifier, observation.sbid
    # 36 beams at most, so the count of the rows is the next beam's number.
    taken = db.execute(
        "SELECT COUNT(*) FROM ivoa.obscore WHERE filename GLOB ?", (f"{source}_SB{sbid}_F00_B*",)
    ).fetchone()[0]
    if taken + observation.beams > MAX_BEAMS:
        raise ConflictError(
            f"SB{sbid} already holds {taken} beams of {source}; {observation.beams} more are too many.",
            code="too_many_beams",
            hint=f"A block has {MAX_BEAMS} beams: deposit fewer, or leave sbid out for a new block.",
        )
    ra, dec = _position(db, source)
    first_scan = db.execute("SELECT COALESCE(MAX(rowid), 0) + 1 FROM ivoa.obscore").fetchone()[0]
    files, rows = [], []
    for offset in range(observation.beams):
        beam = taken + offset
        did = f"scan-{100_000 + first_scan + offset}-{sbid}"
        filename = f"{source}_SB{sbid}_F00_B{beam:02d}.ms.tar"
        t_min = round(observation.t_max - _EXPOSURE_D, 6)
        files.append(DepositedFile(filename, did, sbid, beam, observation.quality, t_min, observation.t_max))
        rows.append(_obscore_row(observation, files[-1], ra, dec))
    insert(db, OBSCORE, rows)
    return files


def add_evaluation(
    db: sqlite3.Connection, sbid: int, t_max: float, released: str, *, extras: bool = False
) -> list[str]:
    """Add a block's calibration file, unless it has one.

    Parameters
    ----------
    extras
        Also add what else an archive keeps beside it, which a query has to tell apart.
    """
    known = db.execute(
        "SELECT 1 FROM casda.observation_evaluation_file WHERE sbid = ? AND format = 'calibration'",
        (sbid,),
    ).fetchone()
    if known is not None:
        return []
    done = _MJD_EPOCH + timedelta(days=t_max, hours=6)
    stamp = done.strftime("%Y-%m-%d-%H%M%S")
    names = [("calibration", f"calibration-metadata-processing-logs-SB{sbid}_{stamp}.tar")]
    if extras:
        names += [
            ("txt", f"README-SB{sbid}.txt"),
            ("validation-report", f"WALLABY-validation-SB{sbid}.cube.tar"),
        ]
    first = db.execute(
        "SELECT COALESCE(MAX(id), 10000) + 1 FROM casda.observation_evaluation_file"
    ).fetchone()[0]
    rows = [
        {
            "id": first + i,
            "sbid": sbid,
            "project_code": "AS102",
            "format": kind,
            "filename": name,
            "filesize": 40_000_000 + (sbid * 7919 + i) % 9_000_000,
            "access_url": f"{_ACCESS}evaluation-{first + i}",
            "released_date": released,
            "observation_id": 1_000 + sbid % 100_000,
            "project_id": 16,
        }
        for i, (kind, name) in enumerate(names)
    ]
    insert(db, EVALUATION_FILE, rows)
    return [name for _, name in names]


def insert(db: sqlite3.Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    """Insert rows by column name; a column that a row does not name becomes NULL."""
    names = [column.name for column in table.columns]
    columns = ", ".join(f'"{name}"' for name in names)
    marks = ", ".join("?" for _ in names)
    db.executemany(
        f"INSERT INTO {table.sql_name} ({columns}) VALUES ({marks})",  # noqa: S608  # our own names
        [tuple(row.get(name) for name in names) for row in rows],
    )


def _obscore_row(
    observation: Observation, file: DepositedFile, ra: float | None, dec: float | None
) -> dict[str, Any]:
    size = 15_500_000_000 + (file.sbid * 104_729 + file.beam * 7_919) % 400_000_000
    region = None if ra is None or dec is None else f"CIRCLE ICRS {ra!r} {dec!r} 0.55"
    return {
        "dataproduct_type": "visibility",
        "calib_level": 1,
        "obs_collection": observation.collection,
        "obs_id": f"ASKAP-{file.sbid}",
        "obs_publisher_did": file.obs_publisher_did,
        "access_url": f"{_ACCESS}{file.obs_publisher_did}",
        "access_format": "application/x-votable+xml;content=datalink",
        "access_estsize": size // 1_000,
        "target_name": observation.source_identifier,
        "s_ra": ra,
        "s_dec": dec,
        "s_fov": 1.10091,
        "s_region": region,
        "t_min": file.t_min,
        "t_max": file.t_max,
        "t_exptime": _EXPOSURE_S,
        "t_xel": 1,
        "em_min": 0.21118891723913913,
        "em_max": 0.2118827219066405,
        "em_xel": 251,
        "o_ucd": "phys.polarisation",
        "pol_states": "/XX/XY/YX/YY/",
        "pol_xel": 4,
        "facility_name": "ASKAP",
        "em_ucd": "em.wl",
        "em_unit": "m",
        "s_ucd": "pos.eq",
        "s_unit": "deg",
        "obs_release_date": observation.released,
        "quality_level": file.quality,
        "filename": file.filename,
        "filesize": size,
    }


def _position(db: sqlite3.Connection, source: str) -> tuple[float | None, float | None]:
    row = db.execute(
        'SELECT "RAJ2000", "DEJ2000" FROM vizier."VIII/73/hicat" WHERE "HIPASS" = ?',
        (source.removeprefix("HIPASS"),),
    ).fetchone()
    if row is not None:
        return row[0], row[1]
    return position_from_name(source) or (None, None)


def _is_int(value: object, top: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= top


def _invalid(name: str, value: object, hint: str) -> InputError:
    return InputError(
        f"A deposit with {name}={str(value)[:120]!r} cannot be made.",
        code="invalid_deposit",
        hint=hint,
        details={"field": name},
    )
