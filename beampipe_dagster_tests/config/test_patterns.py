r"""Patterns of project files: what they mean, and what is refused rather than guessed."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.config.patterns import compile_pattern
from beampipe_dagster.errors import ConfigError


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        (r"SB(\d+)", "x SB12 y", "SB12"),
        (r"(?P<id>[0-9]+)", "a7", "7"),
        (r"(?<id>[0-9]+)", "a7", "7"),
        (r"a\z", "ba", "a"),
        (r"a$", "a\n", None),
        (r"(?m)a$", "a\nb", "a"),
        (r"(?i)ab", "xAB", "AB"),
        (r"a++", "aaa", "aaa"),
        (r"[[:alpha:]]+", "12ab", "ab"),
        (r"[^a]", "ab", "b"),
        (r"\x41\u{42}", "AB", "AB"),
        (r"x{2}", "xxx", "xx"),
        (r"a|", "b", ""),
    ],
)
def test_a_pattern_finds_what_it_finds_in_the_shared_syntax(
    pattern: str, text: str, found: str | None
) -> None:
    match = compile_pattern(pattern).search(text)
    assert (match.group() if match else None) == found


@pytest.mark.parametrize(
    "pattern",
    [
        "(",
        ")",
        "[",
        "*",
        "a{",
        "a{,3}{",
        r"(a)\1",
        "(?=a)",
        "(?!a)",
        "(?<=a)",
        "(?>a)",
        r"\p{L}",
        "[a&&b]",
        "a(?i)b",
        r"\q",
        "\\",
        "(?P<x>a)(?P<x>b)",
        r"\x{110000}",
        "b" + "(" * 5000 + ")" * 5000,
    ],
)
def test_what_cannot_mean_the_same_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compile_pattern(pattern)
    assert caught.value.code == "invalid_pattern"
    assert caught.value.hint


@given(st.text(max_size=30) | st.text("()[]{}?*+|^$\\.,:<>=!PimsxA-z09&~", max_size=20))
def test_any_text_is_a_pattern_or_is_refused(pattern: str) -> None:
    try:
        compiled = compile_pattern(pattern)
    except ConfigError:
        return
    assert isinstance(compiled, re.Pattern)


@given(st.text(max_size=20))
def test_an_escaped_text_finds_itself(text: str) -> None:
    pattern = "".join(f"\\x{{{ord(char):x}}}" for char in text if not "\ud800" <= char <= "\udfff")
    match = compile_pattern(pattern).fullmatch(text)
    assert match is not None
