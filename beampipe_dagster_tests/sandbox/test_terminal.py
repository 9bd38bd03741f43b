"""Texts for a terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.sandbox.terminal import age_text, clean, short_key, shortened


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0.0 s"),
        (4.24, "4.2 s"),
        (59.9, "59.9 s"),
        (60, "1m 00s"),
        (185, "3m 05s"),
        (3600, "1h 00m"),
        (7830, "2h 10m"),
        (86_400, "1d 0h"),
        (442_800, "5d 3h"),
    ],
)
def test_a_length_of_time_has_at_most_two_units(seconds: float, text: str) -> None:
    assert age_text(seconds) == text


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert clean("a\x1b[2Jb\x07\x9bc\u202ed\r\ne\tf\ng") == "a\ufffd[2Jb\ufffd\ufffdc\ufffdd\ne\tf\ng"


@given(st.text())
def test_a_cleaned_text_is_printable_but_for_its_lines(text: str) -> None:
    assert not [
        char for char in clean(text) if (char < " " or "\x7f" <= char <= "\x9f") and char not in "\n\t"
    ]


@given(st.text(), st.integers(min_value=1, max_value=200))
def test_a_shortened_text_is_one_line_of_that_length(text: str, length: int) -> None:
    short = shortened(text, length)
    assert len(short) <= length
    assert "\n" not in short


def test_a_key_is_shown_without_the_name_beside_it() -> None:
    assert short_key("J1@abc", "J1") == "@abc"
    assert short_key("J1B@abc", "J1") == "J1B@abc"
    assert short_key("3-sources@abc", "J1") == "3-sources@abc"
