from __future__ import annotations

import sqlite3
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from beampipe_dagster.clock import ManualClock
from beampipe_dagster.errors import ArchiveError, ConfigError, ConflictError, InputError
from beampipe_dagster.sandbox.archive.adql import Deadline, QueryEngine
from beampipe_dagster.sandbox.archive.store import ArchiveStore

SOURCE = "HIPASSJ1318-21"


def rows(store: ArchiveStore, adql: str, archive: Any = "casda") -> list[tuple[Any, ...]]:
    engine = QueryEngine(archive=archive, attachments=store.attachments(archive))
    try:
        return engine.run(adql, maxrec=10_000, deadline=Deadline(10)).rows
    finally:
        engine.close()


def test_seeding_fills_every_table(tmp_path: Path) -> None:
    counts = ArchiveStore(data_dir=tmp_path).row_counts()
    assert counts == {
        "ivoa.obscore": 219,
        "casda.observation_evaluation_file": 324,
        '"VIII/73/hicat"': 1_000,
    }


def test_opening_again_changes_nothing(tmp_path: Path) -> None:
    first = ArchiveStore(data_dir=tmp_path)
    first.deposit(SOURCE)
    again = ArchiveStore(data_dir=tmp_path)
    assert again.row_counts() == first.row_counts()


def test_an_empty_archive_has_its_tables_and_can_be_seeded_later(tmp_path: Path) -> None:
    assert set(ArchiveStore(data_dir=tmp_path, seed="empty").row_counts().values()) == {0}
    assert ArchiveStore(data_dir=tmp_path).row_counts()["ivoa.obscore"] == 219


def test_two_processes_that_create_at_once_seed_once(tmp_path: Path) -> None:
    threads = [threading.Thread(target=lambda: ArchiveStore(data_dir=tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ArchiveStore(data_dir=tmp_path).row_counts()["ivoa.obscore"] == 219


def test_a_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("x")
    with pytest.raises(ConfigError) as caught:
        ArchiveStore(data_dir=place)
    assert caught.value.code == "invalid_archive_data"
    assert str(place) in caught.value.message


def test_a_damaged_file_is_refused_with_the_way_out(tmp_path: Path) -> None:
    ArchiveStore(data_dir=tmp_path)
    (tmp_path / "sandbox.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigError, match="delete it") as caught:
        ArchiveStore(data_dir=tmp_path)
    assert caught.value.code == "invalid_archive_data"


def test_data_of_another_version_is_refused(tmp_path: Path) -> None:
    ArchiveStore(data_dir=tmp_path)
    with sqlite3.connect(tmp_path / "sandbox.sqlite") as db:
        db.execute("UPDATE sandbox_meta SET value = '99' WHERE key = 'schema'")
    db.close()
    with pytest.raises(ConfigError, match="version 99"):
        ArchiveStore(data_dir=tmp_path)


def test_a_deposit_adds_its_files_and_one_calibration_file(tmp_path: Path) -> None:
    store = ArchiveStore(data_dir=tmp_path)
    deposit = store.deposit(SOURCE, beams=3)
    (sbid,) = deposit.sbids
    assert [f.filename for f in deposit.files] == [
        f"{SOURCE}_SB{sbid}_F00_B{beam:02d}.ms.tar" for beam in range(3)
    ]
    found = rows(store, f"SELECT obs_publisher_did FROM ivoa.obscore WHERE obs_id='ASKAP-{sbid}'")  # noqa: S608  # a value of the test
    assert {did for (did,) in found} == {f.obs_publisher_did for f in deposit.files}
    files = rows(
        store,
        f"SELECT filename, format FROM casda.observation_evaluation_file WHERE sbid = {sbid}",  # noqa: S608  # a value of the test
    )
    assert files == [(deposit.evaluation_files[0], "calibration")]
    prefix = f"calibration-metadata-processing-logs-SB{sbid}_"
    assert deposit.evaluation_files[0].startswith(prefix)


def test_a_new_block_is_the_latest_epoch_even_when_the_clock_stands(tmp_path: Path) -> None:
    clock = ManualClock(datetime(2020, 1, 1, tzinfo=UTC))
    store = ArchiveStore(data_dir=tmp_path, clock=clock)
    deposit = store.deposit(SOURCE, count=3)
    ends = [f.t_max for f in deposit.files[::2]]
    assert ends == sorted(set(ends))
    (latest,) = rows(store, "SELECT MAX(t_max) FROM ivoa.obscore WHERE filename LIKE 'HIPASSJ1318-21%'")
    assert latest[0] == ends[-1]


def test_more_beams_of_a_block_keep_its_times_and_its_calibration_file(tmp_path: Path) -> None:
    store = ArchiveStore(data_dir=tmp_path)
    deposit = store.deposit(SOURCE, sbid=72_962, beams=1)
    assert [f.beam for f in deposit.files] == [2]
    assert deposit.evaluation_files == ()
    ends = rows(store, "SELECT DISTINCT t_max FROM ivoa.obscore WHERE obs_id = 'ASKAP-72962'")
    assert len(ends) == 1


def test_another_source_in_a_block_shares_its_times(tmp_path: Path) -> None:
    store = ArchiveStore(data_dir=tmp_path)
    deposit = store.deposit("HIPASSJ1320-12", sbid=72_962)
    assert [f.beam for f in deposit.files] == [0, 1]
    ends = rows(store, "SELECT DISTINCT t_max FROM ivoa.obscore WHERE obs_id = 'ASKAP-72962'")
    assert len(ends) == 1


def test_a_source_whose_name_is_a_prefix_has_its_own_beam_numbers(tmp_path: Path) -> None:
    store = ArchiveStore(data_dir=tmp_path)
    deposit = store.deposit("HIPASSJ1300-13", sbid=72_974, beams=1)
    assert [f.beam for f in deposit.files] == [1]


def test_identifiers_of_datasets_are_never_used_twice(tmp_path: Path) -> None:
    store = ArchiveStore(data_dir=tmp_path)
    store.deposit(SOURCE, count=5)
    (counts,) = rows(store, "SELECT COUNT(*), COUNT(DISTINCT obs_publisher_did) FROM ivoa.obscore")
    assert counts[0] == counts[1] == 229


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("source_identifier", ""),
        ("source_identifier", "a'b"),
        ("source_identifier", "x%"),
        ("source_identifier", "a*"),
        ("source_identifier", "x" * 101),
        ("source_identifier", None),
        ("beams", 0),
        ("beams", 37),
        ("beams", True),
        ("beams", "2"),
        ("count", 0),
        ("count", 101),
        ("sbid", 0),
        ("sbid", 10_000_000),
        ("quality", "good"),
        ("collection", ""),
        ("collection", "WALL\nABY"),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_its_name(store: ArchiveStore, field: str, value: object) -> None:
    before = store.row_counts()
    given: dict[str, Any] = {"source_identifier": SOURCE, field: value}
    with pytest.raises(InputError) as caught:
        store.deposit(given.pop("source_identifier"), **given)
    assert caught.value.code == "invalid_deposit"
    assert caught.value.details["field"] == field
    assert caught.value.hint
    assert store.row_counts() == before


def test_blocks_may_not_count_up_past_the_last_number(store: ArchiveStore) -> None:
    with pytest.raises(InputError, match="9999999"):
        store.deposit(SOURCE, sbid=9_999_999, count=2)


def test_a_block_holds_36_beams_and_a_refused_deposit_leaves_nothing(tmp_path: Path) -> None:
    store = ArchiveStore(data_dir=tmp_path)
    store.deposit(SOURCE, sbid=80_001, beams=30)
    before = store.row_counts()
    with pytest.raises(ConflictError, match="30 beams") as caught:
        # The first block has room; the second has not, so that neither is added.
        store.deposit(SOURCE, sbid=80_000, beams=7, count=2)
    assert caught.value.code == "too_many_beams"
    assert store.row_counts() == before


def test_deposits_from_threads_get_blocks_of_their_own(tmp_path: Path) -> None:
    store = ArchiveStore(data_dir=tmp_path)
    sbids: list[int] = []
    threads = [threading.Thread(target=lambda: sbids.extend(store.deposit(SOURCE).sbids)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(sbids)) == 8


def test_a_directory_that_went_away_is_an_error_of_the_archive(tmp_path: Path) -> None:
    store = ArchiveStore(data_dir=tmp_path / "gone")
    for file in (tmp_path / "gone").iterdir():
        file.unlink()
    (tmp_path / "gone").rmdir()
    with pytest.raises(ArchiveError) as caught:
        store.deposit(SOURCE)
    assert caught.value.code == "archive_data_unavailable"


def test_tap_schema_is_described_anew_when_the_archive_is_opened(tmp_path: Path) -> None:
    data = tmp_path / "data"
    first = ArchiveStore(data_dir=data, seed="empty")
    adql = "SELECT table_name, column_name, utype FROM tap_schema.columns ORDER BY table_name, column_name"
    described = rows(first, adql, "casda")
    with sqlite3.connect(data / "tap_schema_casda.sqlite") as db:
        db.execute("UPDATE columns SET utype = NULL")
        db.execute("DELETE FROM keys")
    again = ArchiveStore(data_dir=data, seed="empty")
    assert rows(again, adql, "casda") == described
    assert len(rows(again, "SELECT key_id FROM tap_schema.keys", "casda")) == 5
    assert ("ivoa.obscore", "s_ra") in {(table, column) for table, column, utype in described if utype}


def test_tap_schema_of_an_archive_knows_its_own_tables_only(store: ArchiveStore) -> None:
    adql = "SELECT table_name FROM tap_schema.tables WHERE schema_name <> 'tap_schema'"
    assert {name for (name,) in rows(store, adql, "vizier")} == {'"VIII/73/hicat"'}
    assert {name for (name,) in rows(store, adql, "casda")} == {
        "ivoa.obscore",
        "casda.observation_evaluation_file",
    }
