from __future__ import annotations

import math
import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.discovery.prepare import (
    choose_enrichment_row,
    dec_text,
    discovery_flags,
    prepare_metadata,
    ra_text,
    sbids_of,
)
from beampipe_dagster.errors import ConfigError, DataError, Retry


def project(
    field_map: dict[str, JsonValue] | None = None, flags: dict[str, JsonValue] | None = None
) -> ProjectConfig:
    return ProjectConfig.from_json(
        {
            "apiVersion": "beampipe.dev/v2",
            "kind": "ProjectConfig",
            "metadata": {"id": "survey"},
            "definitions": {
                "transforms": {
                    "digits": {"kind": "extract_digits"},
                    "present": {"kind": "is_present"},
                    "round": {"kind": "chain", "steps": ["round"]},
                }
            },
            "discovery": {"prepare_metadata": {"field_map": field_map or {}, "discovery_flags": flags or {}}},
        }
    )


SBID: dict[str, JsonValue] = {"sbid": {"from": "obs_id", "transform": "digits"}}


def record(
    config: ProjectConfig, row: dict[str, JsonValue], enrichments: dict[str, JsonValue] | None = None
) -> dict[str, JsonValue]:
    (only,) = prepare_metadata(config, "S", [row], enrichments or {}).records
    return only


def test_mapped_fields_come_first_and_columns_keep_what_they_say() -> None:
    config = project({**SBID, "dataset_id": {"from": "filename"}})
    assert record(config, {"FILENAME": "a.ms", "OBS_ID": "ASKAP-7", "Sbid": "raw"}) == {
        "sbid": "7",
        "dataset_id": "a.ms",
        "source_identifier": "S",
        "filename": "a.ms",
        "obs_id": "ASKAP-7",
    }


def test_a_null_column_is_kept_and_an_absent_one_left_out() -> None:
    config = project({"a": {"from": "x"}, "b": {"from": "y"}, "c": {"from": "x", "transform": "digits"}})
    assert record(config, {"x": None}) == {"a": None, "source_identifier": "S", "x": None}


def test_an_enrichment_joins_the_records_of_its_sbid() -> None:
    made = record(project(SBID), {"obs_id": "ASKAP-7", "extra": "column"}, {"extra": {"7": {"k": 1}}})
    assert made["extra"] == {"k": 1}


def test_an_enrichment_field_is_found_by_the_raw_and_else_by_the_mapped_sbid() -> None:
    config = project({**SBID, "e": {"from": "enrichments.extra"}})
    assert record(config, {"obs_id": "ASKAP-7"}, {"extra": {"7": 1}})["e"] == 1
    assert record(config, {"obs_id": "ASKAP-7"}, {"extra": {"7": 1, "ASKAP-7": 2}})["e"] == 2
    assert record(config, {"obs_id": "ASKAP-7"}, {"extra": {"8": 1}})["e"] is None
    assert "e" not in record(config, {"filename": "a"}, {"extra": {"7": 1}})


def test_flags_are_read_by_path_and_keep_the_raw_value_when_a_transform_gives_nothing() -> None:
    config = project(
        flags={
            "complete": {"from": "enrichments.cat", "transform": "present"},
            "deep": {"from": "enrichments.by.7.k"},
            "missing": {"from": "enrichments.none.k"},
            "raw": {"from": "enrichments.word", "transform": "digits"},
        }
    )
    found: dict[str, JsonValue] = {"cat": [{"a": 1}], "by": {"7": {"k": 2}}, "word": "none"}
    assert discovery_flags(config, found) == {"complete": True, "deep": 2, "missing": None, "raw": "none"}


def test_a_catalogue_position_becomes_flags_and_fields() -> None:
    row: JsonValue = {"RAJ2000": "198.392", "DEJ2000": "-0.5", "RVmom": "", "RV50max": "2500"}
    made = prepare_metadata(project(), "S", [{"a": 1}], {"ra_dec_vsys": [row]})
    expected: dict[str, JsonValue] = {
        "ra_string": "13h13m34.08s",
        "dec_string": "-0.30.0",
        "vsys": "2500",
    }
    assert made.flags == expected
    assert made.records == [{"a": 1, "source_identifier": "S", **expected}]


@pytest.mark.parametrize("cell", ["", None, " "])
def test_an_empty_position_makes_no_flag(cell: JsonValue) -> None:
    row: JsonValue = {"RAJ2000": cell, "DEJ2000": cell, "RVmom": cell}
    assert discovery_flags(project(), {"ra_dec_vsys": [row]}) == {}


@pytest.mark.parametrize("word", ["13:13:34", "nan", "inf", "1_0", "1e999"])
def test_a_position_that_is_no_number_is_taken_as_it_is(word: str) -> None:
    flags = discovery_flags(project(), {"ra_dec_vsys": [{"RAJ2000": word}]})
    assert flags == {"ra_string": word}


def test_numbers_win_over_a_configured_flag_and_text_does_not() -> None:
    config = project(flags={name: {"from": "enrichments.z"} for name in ("ra_string", "dec_string", "vsys")})
    row: JsonValue = {"RAJ2000": "180", "DEJ2000": "text", "RVmom": 1}
    flags = discovery_flags(config, {"ra_dec_vsys": [row], "z": "own"})
    assert flags == {"ra_string": "12h0m0s", "dec_string": "own", "vsys": "own"}


def test_a_calibration_archive_brings_its_url_and_name() -> None:
    row: JsonValue = {"access_url": "https://archive.example/x", "file_name": "x.tar"}
    made = record(project(SBID), {"obs_id": "7"}, {"sbid_to_eval_file": {"7": row}})
    assert made["evaluation_file_access_url"] == "https://archive.example/x"
    assert made["evaluation_file"] == "x.tar"


def test_sbids_are_sorted_as_text_and_each_there_once() -> None:
    rows: list[dict[str, JsonValue]] = [{"OBS_ID": name} for name in ("A-9", "A-10", "A-9", "none")]
    assert sbids_of(project(SBID), rows) == ["10", "9"]
    assert sbids_of(project(), rows) == []


def archive(name: str, size: int, url: str = "https://archive.example/x") -> dict[str, JsonValue]:
    return {
        "filename": f"calibration-metadata-processing-logs-{name}.tar",
        "format": "calibration",
        "filesize": size,
        "access_url": url,
    }


def test_an_enrichment_without_a_rule_keeps_its_first_row() -> None:
    assert choose_enrichment_row("other", "7", [{"a": 1}, {"a": 2}]) == {"a": 1}
    assert choose_enrichment_row("other", "7", []) is None


def test_the_calibration_archive_is_the_largest_of_this_sbid() -> None:
    rows = [archive("SB7_a", 5), archive("SB7_b", 9), archive("SB72_a", 99), archive("SB7x", 99)]
    assert choose_enrichment_row("sbid_to_eval_file", "7", rows) == rows[1]


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([], "missing_calibration_archive"),
        ([archive("SB72_a", 9)], "missing_calibration_archive"),
        ([archive("SB7_a", 9), archive("SB7_a", 9, "other")], "ambiguous_calibration_archive"),
    ],
)
def test_a_calibration_archive_that_cannot_be_told_is_refused(
    rows: list[dict[str, JsonValue]], code: str
) -> None:
    with pytest.raises(DataError) as caught:
        choose_enrichment_row("sbid_to_eval_file", "7", rows)
    assert caught.value.code == code
    assert caught.value.retry is Retry.NEVER
    assert caught.value.details["sbid"] == "7"


def test_a_cyclic_chain_is_an_error_and_not_a_crash() -> None:
    with pytest.raises(ConfigError) as caught:
        record(project({"a": {"from": "x", "transform": "round"}}), {"x": 1})
    assert caught.value.code == "transform_cycle"


@pytest.mark.parametrize(
    ("degrees", "written"),
    [
        (0, "0h0m0s"),
        (198.392, "13h13m34.08s"),
        (359.99999, "0h0m0s"),
        (-10, "23h20m0s"),
        (370, "0h40m0s"),
        (14.99999999, "1h0m0s"),
    ],
)
def test_right_ascension_as_text(degrees: float, written: str) -> None:
    assert ra_text(degrees) == written


@pytest.mark.parametrize(
    ("degrees", "written"),
    [
        (-15.4589, "-15.27.32.04"),
        (-0.5, "-0.30.0"),
        (-0.0001, "-0.0.0.36"),
        (-1e-9, "0.0.0"),
        (33.333333, "33.20.0"),
        (59.99999999, "60.0.0"),
        (12.0, "12.0.0"),
    ],
)
def test_declination_as_text(degrees: float, written: str) -> None:
    assert dec_text(degrees) == written


@given(degrees=st.floats(0, 360, exclude_max=True))
@example(degrees=360 - 1e-13)
def test_right_ascension_reads_back(degrees: float) -> None:
    match = re.fullmatch(r"(\d+)h(\d+)m(\d+(?:\.\d{1,2})?)s", ra_text(degrees))
    assert match
    hours, minutes, seconds = int(match[1]), int(match[2]), float(match[3])
    assert hours < 24
    assert minutes < 60
    assert seconds < 60
    read = (hours + minutes / 60 + seconds / 3600) * 15
    assert abs(math.remainder(read - degrees, 360)) <= 0.00501 / 3600 * 15


@given(degrees=st.floats(-90, 90))
def test_declination_reads_back_with_its_sign(degrees: float) -> None:
    match = re.fullmatch(r"(-?)(\d+)\.(\d+)\.(\d+(?:\.\d{1,2})?)", dec_text(degrees))
    assert match
    minutes, seconds = int(match[3]), float(match[4])
    assert minutes < 60
    assert seconds < 60
    size = int(match[2]) + minutes / 60 + seconds / 3600
    assert abs((-size if match[1] else size) - degrees) <= 0.00501 / 3600


@given(degrees=st.floats(-90, 90))
def test_turning_the_sign_turns_only_the_sign(degrees: float) -> None:
    assume(dec_text(degrees) != "0.0.0")
    one, other = dec_text(degrees), dec_text(-degrees)
    assert one.lstrip("-") == other.lstrip("-")
    assert one != other
