"""Canonical JSON: the text that every digest is of."""

from __future__ import annotations

import hashlib
import json
import math
import re
from decimal import ROUND_DOWN, ROUND_UP, Context, Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from beampipe_dagster.config.canonical import (
    INT_MAX,
    INT_MIN,
    JsonValue,
    canonical_json,
    digest,
    ordered_json,
    parse_json,
    sha256_hex,
)
from beampipe_dagster.errors import ConfigError

finite = st.floats(allow_nan=False, allow_infinity=False)
characters = st.text(st.characters(exclude_categories=["Cs"]))
scalars = st.none() | st.booleans() | st.integers(INT_MIN, INT_MAX) | finite | characters
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(characters, inner), max_leaves=20
)


def same(left: Any, right: Any) -> bool:
    """Equality that tells -0.0 from 0.0, and 1 from 1.0 and from true."""
    return repr(left) == repr(right)


@given(values)
def test_what_was_written_reads_back_as_the_same_value(value: JsonValue) -> None:
    text = canonical_json(value)
    back = parse_json(text)
    assert same(_sorted(back), _sorted(value))
    assert canonical_json(back) == text


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(element) for element in value] if isinstance(value, list) else value


@given(st.dictionaries(characters, scalars), st.randoms())
def test_the_order_of_keys_does_not_change_the_text(value: dict[str, JsonValue], random: Any) -> None:
    items = list(value.items())
    random.shuffle(items)
    assert canonical_json(dict(items)) == canonical_json(value)


@given(st.dictionaries(characters, st.none()))
def test_keys_stand_in_the_order_of_their_utf8_bytes(value: dict[str, JsonValue]) -> None:
    keys = [key.encode() for key in json.loads(canonical_json(value))]
    assert keys == sorted(keys)


@given(finite)
@example(1e-5)
@example(9.999999999999999e-6)
@example(1e15)
@example(1e16)
@example(5e-324)
@example(1.7976931348623157e308)
@example(-1.5e-9)
@example(0.00012345678901234567)
def test_a_float_is_plain_between_the_exponents_minus_5_and_15(number: float) -> None:
    text = canonical_json(number)
    assert same(float(text), number)
    exponent = int(f"{number:e}".partition("e")[2]) if number else 0
    # Rounding to the six digits of %e may carry into the next power of ten.
    exponent -= abs(number) < float(f"1e{exponent}") if number else 0
    if -5 <= exponent <= 15:
        assert re.fullmatch(r"-?[0-9]+\.[0-9]+", text)
    else:
        assert re.fullmatch(r"-?[0-9](\.[0-9]+)?e[+-][1-9][0-9]*", text)
        assert int(text.partition("e")[2]) == exponent


@given(st.lists(finite))
def test_a_text_that_looks_like_a_number_is_not_changed(numbers: list[float]) -> None:
    texts = [f'{number!r} 1e-05 {10**30} \\"1e-06' for number in numbers]
    assert json.loads(canonical_json([*texts, 1e-6])) == [*texts, 1e-6]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (INT_MAX, "18446744073709551615"),
        (INT_MAX + 1, "1.8446744073709552e+19"),
        (INT_MIN, "-9223372036854775808"),
        (INT_MIN - 1, "-9.223372036854776e+18"),
        (-0.0, "-0.0"),
        (10**300, "1e+300"),
    ],
)
def test_an_integer_beyond_64_bits_is_written_as_a_float(number: float, text: str) -> None:
    assert canonical_json(number) == text
    assert canonical_json({"a": [number, 1e-6]}) == f'{{"a":[{text},1e-6]}}'


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-0", -0.0),
        ("[-0, -0.0, 0]", [-0.0, -0.0, 0]),
        ("18446744073709551615", INT_MAX),
        ("18446744073709551616", 18446744073709551616.0),
        ("-9223372036854775809", -9223372036854775809.0),
        ("1" * 5000 + "e-4990", float("1" * 5000 + "e-4990")),
        ('{"a":1,"a":2}', {"a": 2}),
        (b'"\xc3\xa9"', "é"),
        ('"\\ud83d\\ude00"', "😀"),
    ],
)
def test_numbers_and_repeated_keys_are_read_as_the_digests_need_them(
    text: str | bytes, value: JsonValue
) -> None:
    assert same(parse_json(text), value)


@pytest.mark.parametrize(
    "text",
    [
        "NaN",
        "[Infinity]",
        "-Infinity",
        "1e400",
        "[-1e999]",
        "1" * 400,
        '"\\ud800"',
        '{"\\udc00":1}',
        b'"\xff"',
        b"\xef\xbb\xbf{}",
        "",
        "{'a':1}",
        "[1,]",
        "[" * 100_000,
        '"\n"',
    ],
)
def test_what_is_not_json_is_refused_with_the_name_of_the_document(text: str | bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_json(text, name="graph.json")
    assert caught.value.code == "invalid_json"
    assert caught.value.message.startswith("graph.json:")
    assert caught.value.hint


def test_a_syntax_error_shows_line_and_column() -> None:
    with pytest.raises(ConfigError, match=r"^\[invalid_json\] g:2:6: "):
        parse_json('{"a": 1,\n"b": }', name="g")


@pytest.mark.parametrize(
    "value", [math.nan, [math.inf], {"a": -math.inf}, "\ud800", {"\udc00": 1}, 10**400, {1, 2}, b"a"]
)
def test_what_json_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        canonical_json(value)
    assert caught.value.code == "invalid_json"


def test_a_cycle_and_a_tower_are_refused() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    tower: list[Any] = []
    for _ in range(100_000):
        tower = [tower]
    for value in (cycle, tower):
        with pytest.raises(ConfigError):
            canonical_json(value)


WIDE = Context(prec=1200)
SHORT_ESCAPES = {8: "b", 9: "t", 10: "n", 12: "f", 13: "r", 34: '"', 92: "\\"}


def encoded(value: Any) -> str:
    """The canonical text again, written from its rules alone and without the json module."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return '"' + "".join(encoded_character(ord(char), char) for char in value) + '"'
    if isinstance(value, list):
        return "[" + ",".join(map(encoded, value)) + "]"
    if isinstance(value, dict):
        keys = sorted(value, key=str.encode)
        return "{" + ",".join(f"{encoded(key)}:{encoded(value[key])}" for key in keys) + "}"
    if isinstance(value, int) and INT_MIN <= value <= INT_MAX:
        return str(value)
    return encoded_float(float(value))


def encoded_character(code: int, char: str) -> str:
    if code in SHORT_ESCAPES:
        return "\\" + SHORT_ESCAPES[code]
    return f"\\u{code:04x}" if code < 0x20 else char


def encoded_float(number: float) -> str:
    """Shortest digits by search; where they go, by the exponent of the first of them."""
    sign = "-" if math.copysign(1.0, number) < 0 else ""
    size = abs(number)
    if not size:
        return f"{sign}0.0"
    digits, power = shortest(Decimal(size))
    if not -5 <= power <= 15:
        point = "." if digits[1:] else ""
        return f"{sign}{digits[0]}{point}{digits[1:]}e{'+' if power > 0 else '-'}{abs(power)}"
    if power < 0:
        return f"{sign}0.{'0' * (-power - 1)}{digits}"
    digits = digits.ljust(power + 1, "0")
    return f"{sign}{digits[: power + 1]}.{digits[power + 1 :] or '0'}"


def shortest(exact: Decimal) -> tuple[str, int]:
    """The fewest digits that read back as the double, the nearest ones of those; where the first one stands."""
    power = exact.adjusted()
    for count in range(1, 18):
        unit = Decimal(1).scaleb(power - count + 1)
        near = [exact.quantize(unit, mode, WIDE) for mode in (ROUND_DOWN, ROUND_UP)]
        right = [candidate for candidate in near if float(candidate) == float(exact)]
        if right:
            best = min(right, key=lambda candidate: abs(WIDE.subtract(candidate, exact)))
            digits = "".join(map(str, best.as_tuple().digits)).rstrip("0")
            return digits, best.adjusted()
    raise AssertionError(exact)


@given(
    st.recursive(
        scalars | st.integers(-(2**90), 2**90) | st.floats(1e-12, 1e-3) | st.floats(1e13, 1e18),
        lambda inner: st.lists(inner) | st.dictionaries(characters, inner),
        max_leaves=20,
    )
)
@example([1e-05, 1.5e-05, 1e-06, 123456789012345.6, 1e15, 1e16, 12345678901234567.0, 2.0**-24])
@example({"\uffff": 1, "\U00010000": 2, "\x7f": "\u2028/", "": "\x00\x1f\b"})
def test_an_encoder_of_other_hands_writes_the_same_text(value: Any) -> None:
    assert canonical_json(value) == encoded(value)


def test_a_digest_is_sha256_of_the_utf8_text() -> None:
    expected = hashlib.sha256('{"a":"é"}'.encode()).hexdigest()
    assert digest({"a": "é"}) == expected
    assert sha256_hex('{"a":"é"}') == expected
    assert sha256_hex('{"a":"é"}'.encode()) == expected


def test_ordered_json_keeps_the_order_of_keys_and_the_canonical_scalars() -> None:
    assert ordered_json({"b": 1e-6, "a": 10**30}) == '{"b":1e-6,"a":1e+30}'
