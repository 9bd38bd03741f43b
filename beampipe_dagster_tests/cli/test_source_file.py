"""Files of sources."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.cli.source_file import read_sources
from beampipe_dagster.errors import InputError
from beampipe_dagster.ledger.sources import NewSource
from beampipe_dagster.sources.registry import IDENTIFIER


def _read(tmp_path: Path, text: str) -> list[NewSource]:
    path = tmp_path / "sources"
    path.write_text(text, encoding="utf-8")
    return read_sources(path, enabled=True)


def test_one_name_a_line_with_comments_and_blank_lines(tmp_path: Path) -> None:
    found = _read(tmp_path, "# ours\n\nHIPASSJ1318-21\r\n  NGC 253  \n")
    assert [item.source_identifier for item in found] == ["HIPASSJ1318-21", "NGC 253"]


def test_a_header_makes_it_csv_with_columns_in_any_order(tmp_path: Path) -> None:
    found = _read(tmp_path, '\ufeff# ours\nDEC_DEG,"source_identifier",RA_DEG\n-21,J1,199.5\n,J2,\n\n')
    assert found == [NewSource("J1", ra_deg=199.5, dec_deg=-21.0), NewSource("J2")]


def test_disabled_sources_are_read_as_such(tmp_path: Path) -> None:
    path = tmp_path / "sources"
    path.write_text("J1\n")
    assert read_sources(path, enabled=False) == [NewSource("J1", enabled=False)]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("J1\n50%\n", 2, "'50%' cannot be a source identifier"),
        ("J1\nJ2\nJ1\n", 3, "'J1' is on line 1 already"),
        ("source_identifier,ra_deg,dec_deg\nJ1,360,0\n", 2, "ra_deg of 'J1' is '360'"),
        ("source_identifier,ra_deg,dec_deg\nJ1,0,90.1\n", 2, "dec_deg of 'J1' is '90.1'"),
        ("source_identifier,ra_deg,dec_deg\nJ1,nan,0\n", 2, "ra_deg of 'J1' is 'nan'"),
        ("source_identifier,ra_deg,dec_deg\nJ1,1h,0\n", 2, "ra_deg of 'J1' is '1h'"),
        ("source_identifier,ra_deg,dec_deg\nJ1,1,\n", 2, "only one of ra_deg and dec_deg"),
        ("source_identifier,ra_deg\nJ1,1\n", 2, "only one of ra_deg and dec_deg"),
        ("source_identifier,ra_deg,dec_deg\n,1,1\n", 2, "the name is missing"),
        ("source_identifier,ra\nJ1,1\n", 1, "the column 'ra' is not known"),
        ("source_identifier,source_identifier\n", 1, "a column is there twice"),
        ("source_identifier\nJ1,1,2\n", 2, "3 values below a header of 1 columns"),
        ('source_identifier\n"J1\n', 2, "not CSV"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, text: str, line: int, message: str) -> None:
    with pytest.raises(InputError, match="cannot be used") as caught:
        _read(tmp_path, text)
    error = caught.value
    assert error.code == "invalid_source_file"
    (problem,) = error.details["lines"]
    assert problem["line"] == line
    assert message in problem["message"]
    assert f":{line}: " in error.message


def test_all_bad_lines_are_in_the_details_and_ten_in_the_message(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="25 lines") as caught:
        _read(tmp_path, "%\n" * 25)
    assert len(caught.value.details["lines"]) == 25
    assert caught.value.message.count("\n") == 11
    assert "and 15 more" in caught.value.message


def test_a_file_without_a_source_is_refused(tmp_path: Path) -> None:
    for text in ("", "# nothing\n", "source_identifier,ra_deg,dec_deg\n"):
        with pytest.raises(InputError, match="names no source") as caught:
            _read(tmp_path, text)
        assert caught.value.code == "no_sources"


NAMES = st.lists(
    st.from_regex(IDENTIFIER, fullmatch=True).map(str.strip).filter(IDENTIFIER.fullmatch),
    unique=True,
    min_size=1,
)


@given(names=NAMES)
def test_what_the_registry_takes_can_be_in_a_file(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("sources")
    plain = _read(folder, "\n".join(names))
    table = _read(folder, "\n".join(["source_identifier", *names]))
    assert [item.source_identifier for item in plain] == names
    assert plain == table


def test_a_json_list_holds_names_or_objects(tmp_path: Path) -> None:
    found = _read(
        tmp_path,
        ' [{"source_identifier": "J1", "ra_deg": 199.5, "dec_deg": -21, "stale_after_hours": 6},'
        ' "J2", {"source_identifier": "J3", "enabled": false, "ra_deg": null}]',
    )
    assert found == [
        NewSource("J1", ra_deg=199.5, dec_deg=-21.0, stale_after_hours=6),
        NewSource("J2"),
        NewSource("J3", enabled=False),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('["50%"]', ":1: '50%' cannot be a source identifier"),
        ('["A", "A"]', ":2: 'A' is entry 1 already"),
        ('["A", 7]', ":2: is neither a name nor an object"),
        ('[{"source_identifier": "A", "ra": 1}]', ":1: the field 'ra' is not known"),
        ('[{"ra_deg": 1}]', ":1: the name is missing"),
        ('[{"source_identifier": 7}]', ":1: source_identifier is not a text"),
        ('[{"source_identifier": "A", "enabled": 1}]', ":1: enabled of 'A' is neither true nor false"),
        ('[{"source_identifier": "A", "stale_after_hours": 1.5}]', "'A' is not a whole number"),
        ('[{"source_identifier": "A", "ra_deg": 1}]', "only one of ra_deg and dec_deg"),
        ('["A"', "cannot be read as JSON"),
    ],
)
def test_an_entry_that_cannot_be_used_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        _read(tmp_path, text)
    assert caught.value.code == "invalid_source_file"
    assert message in caught.value.message


def test_an_empty_json_list_names_no_source(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        _read(tmp_path, "[]")
    assert caught.value.code == "no_sources"
