from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.config.project import TRANSFORM_KINDS, Transform
from beampipe_dagster.discovery.transforms import (
    KINDS,
    MAX_STEPS,
    NONE,
    apply,
    calibration_archives,
    column,
    is_empty,
    select_calibration_archive,
    text,
)
from beampipe_dagster.errors import ConfigError

values: st.SearchStrategy[JsonValue] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner)),
    max_leaves=4,
)


def transform(kind: str, **parameters: Any) -> Transform:
    return Transform.model_validate({"kind": kind, **parameters})


def chain(*steps: str) -> Transform:
    return transform("chain", steps=list(steps))


def archive_row(**fields: JsonValue) -> dict[str, JsonValue]:
    return {
        "filename": "calibration-metadata-processing-logs-SB9_a.tar",
        "format": "calibration",
        "access_url": "https://archive.example/a",
        "filesize": 5,
        **fields,
    }


def test_every_kind_that_a_project_file_may_name_is_there() -> None:
    assert set(TRANSFORM_KINDS) == KINDS


@pytest.mark.parametrize(
    ("spec", "value", "expected"),
    [
        (transform("identity"), " X ", " X "),
        (transform("trim"), "\u2003 X \x85", "X"),
        (transform("trim"), "\x1cX", "\x1cX"),
        (transform("trim"), 1e20, "1e+20"),
        (transform("trim"), "  ", NONE),
        (transform("trim"), ["a"], NONE),
        (transform("lowercase"), "ÜN", "Ün"),
        (transform("uppercase"), "straße", "STRAßE"),
        (transform("replace", **{"from": "aa", "to": "b"}), "aaaa", "bb"),
        (transform("replace", **{"from": ""}), "a", NONE),
        (transform("add_prefix", prefix="SB"), 7, "SB7"),
        (transform("add_suffix", suffix=".ms"), "a", "a.ms"),
        (transform("strip_prefix", prefix="HIPASS"), "HIPASSJ1", "J1"),
        (transform("strip_prefix", prefix="HIPASS"), "HIPASS", ""),
        (transform("default_if_empty", default="d"), {}, "d"),
        (transform("default_if_empty"), " ", None),
        (transform("default_if_empty", default="d"), 0, 0),
        (transform("extract_digits"), "ASKAP-72962", "72962"),
        (transform("extract_digits"), "٣٤", NONE),
        (transform("split_last"), "scan:1/ 2 ", "2"),
        (transform("split_last", separators=[]), "a/b", "a/b"),
        (transform("is_present"), False, True),
        (transform("is_present"), [], False),
        (transform("regex_extract", pattern=r"SB(\d+)"), "xSB12 SB34", "12"),
        (transform("regex_extract", pattern=r"SB(\d+)", group=0), "SB12", "SB12"),
        (transform("regex_extract", pattern=r"SB(\d+)", group=2), "SB12", NONE),
        (transform("regex_extract", pattern="(a)|b"), "b", NONE),
        (transform("regex_extract", pattern="("), "b", NONE),
        (transform("regex_extract", pattern="(?=b)(b)"), "b", NONE),
        (transform("regex_extract", pattern=r"(\w)\z"), "ab", "b"),
        (transform("no_such_kind"), "x", NONE),
        (chain(), "x", "x"),
        (transform("chain"), "x", NONE),
        (None, None, None),
        ([], "x", "x"),
        ("not_defined", "x", NONE),
    ],
)
def test_a_transform_gives(spec: Any, value: JsonValue, expected: object) -> None:
    result = apply(spec, value, {})
    assert result == expected
    assert type(result) is type(expected)


def test_a_chain_ends_at_the_first_nothing() -> None:
    names = {"digits": transform("extract_digits"), "default": transform("default_if_empty", default="0")}
    assert apply(["digits", "default"], "none", names) is NONE
    assert apply(["default", "digits"], "", names) == "0"


def test_a_name_means_what_the_project_defines_and_nothing_else() -> None:
    assert apply("trim", " x ", {}) is NONE
    assert apply("trim", " x ", {"trim": transform("uppercase")}) == "X"


def test_chains_may_stand_in_chains() -> None:
    names = {"a": chain("b", "b"), "b": chain("c", "c"), "c": transform("add_suffix", suffix="!")}
    assert apply("a", "x", names) == "x!!!!"


@pytest.mark.parametrize("length", [1, 2, 5_000])
def test_a_cycle_is_refused_with_its_path_or_its_length_and_never_overflows_the_stack(length: int) -> None:
    names = {str(n): chain(str((n + 1) % length)) for n in range(length)}
    with pytest.raises(ConfigError) as caught:
        apply("0", "x", names)
    assert caught.value.code == ("transform_cycle" if length < MAX_STEPS else "transform_too_long")
    if length == 2:
        assert caught.value.details["cycle"] == ["0", "1", "0"]


def test_chains_that_multiply_are_bounded() -> None:
    names = {str(n): chain(*[str(n + 1)] * 10) for n in range(50)} | {"50": transform("trim")}
    with pytest.raises(ConfigError, match="more than 1000 transforms") as caught:
        apply("0", "x", names)
    assert caught.value.code == "transform_too_long"


@given(value=values)
def test_text_is_trimmed_and_never_blank(value: JsonValue) -> None:
    found = text(value)
    assert found is None or (found != "" and text(found) == found)
    if isinstance(value, bool | int | float):
        assert found is not None


@given(value=values)
def test_present_is_the_opposite_of_empty(value: JsonValue) -> None:
    assert apply(transform("is_present"), value, {}) is not is_empty(value)


@given(value=values, kind=st.sampled_from(sorted(KINDS - {"chain"})))
def test_no_value_makes_a_transform_fail(value: JsonValue, kind: str) -> None:
    spec = transform(kind, prefix="p", suffix="s", pattern="(.)", **{"from": "a"})
    result = apply(spec, value, {})
    assert result is NONE or result is None or isinstance(result, bool | int | float | str | list | dict)


@pytest.mark.parametrize(
    ("row", "name", "expected"),
    [
        ({"Ra": 1, "ra": 2, "RA": 3}, "Ra", 1),
        ({"ra": 2, "RA": 3}, "Ra", 2),
        ({"RA": 3}, "Ra", 3),
        ({"rA": 4}, "Ra", NONE),
        ({"Ra": None, "ra": 2}, "Ra", None),
    ],
)
def test_a_column_is_found_as_spelled_then_lower_then_upper(
    row: dict[str, JsonValue], name: str, expected: object
) -> None:
    assert column(row, name) is expected


@pytest.mark.parametrize(
    "fields",
    [
        {"filesize": "12.5"},
        {"filesize": -1, "file_size": 7},
        {"filesize": True},
        {"filesize": None},
        {"access_url": " "},
        {"format": "diagnostics"},
        {"filename": "Calibration-metadata-processing-logs-SB9_a.tar"},
        {"filename": " ", "file_name": "calibration-metadata-processing-logs-SB9_a.tar"},
    ],
)
def test_an_unusable_archive_never_counts(fields: dict[str, JsonValue]) -> None:
    assert calibration_archives([archive_row(**fields)]) == []


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"filesize": " 12 "}, 12),
        ({"filesize": 12.9}, 12),
        ({"filesize": "", "file_size": "x", "access_estsize": 4}, 4),
        ({"filesize": 2**64 - 1}, 2**64 - 1),
        ({"filesize": 2**64, "size": 1}, 1),
    ],
)
def test_an_archives_size_is_the_first_that_is_one(fields: dict[str, JsonValue], size: int) -> None:
    assert [found[0] for found in calibration_archives(archive_row(**fields))] == [size]


def test_the_largest_archive_wins_and_of_equal_ones_the_last_name() -> None:
    names = [f"calibration-metadata-processing-logs-SB9_{letter}.tar" for letter in "abc"]
    rows: list[JsonValue] = [
        archive_row(filename=name, filesize=size) for name, size in zip(names, (7, 7, 3), strict=True)
    ]
    chosen = select_calibration_archive(rows)
    assert chosen is not None
    assert chosen["filename"] == names[1]
    assert apply(transform("select_eval_file_by_size"), rows, {}) == names[1]
    assert select_calibration_archive([]) is None
