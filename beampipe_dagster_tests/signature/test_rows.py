"""Rows that are written by a template have the text that the general encoder gives them."""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from beampipe_dagster.config.canonical import INT_MAX, JsonValue, canonical_json
from beampipe_dagster.errors import ConfigError
from beampipe_dagster.signature.payload import group_by_sbid, sign, sign_stored, text_form
from beampipe_dagster.signature.rows import AT_ONCE, projected, without

KEYS = ("a", "sbid", "dataset_id", "visibility_filename", "%s", 'k"', "é", "inner")
WORDS = (
    "x",
    "",
    "a%sb",
    "100%",
    'say "so"',
    "back\\slash",
    "tab\t",
    "\x00",
    "\x1f",
    "\x7f",
    "é",
    "\u2028",
    "😀",
)

words = st.sampled_from(WORDS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
numbers = st.sampled_from((0, -1, INT_MAX, INT_MAX + 1, -(2**63) - 1, -0.0, 1e-5, 1e-7, 1e16, 1e22, 2505.3))
others: st.SearchStrategy[JsonValue] = st.none() | st.booleans() | numbers
nested: st.SearchStrategy[JsonValue] = st.dictionaries(st.sampled_from(KEYS), words | others, max_size=3)
cells: st.SearchStrategy[JsonValue] = words | others | nested | st.lists(nested | words, max_size=2)


@st.composite
def tables(draw: st.DrawFn) -> list[JsonValue]:
    """Rows that mostly have one form, as those of an archive do; a few stray from it."""
    keys = draw(st.lists(st.sampled_from(KEYS), unique=True, max_size=len(KEYS)))
    inner = draw(st.lists(st.sampled_from(KEYS), unique=True, min_size=1, max_size=3))
    rows: list[JsonValue] = []
    for _ in range(draw(st.integers(0, 6))):
        row: dict[str, JsonValue] = {key: draw(words) for key in keys}
        if "inner" in row:
            row["inner"] = {key: draw(words) for key in inner}
        for key in draw(st.lists(st.sampled_from(KEYS), max_size=2)):
            change = draw(st.sampled_from(("nothing", "nothing", "cell", "less")))
            if change == "cell":
                row[key] = draw(cells)
            elif change == "less":
                row.pop(key, None)
        rows.append(row)
    if draw(st.booleans()) and draw(st.booleans()):
        rows.append(draw(cells))
    return rows


exclusions = st.frozensets(st.sampled_from(KEYS), max_size=3)


@settings(max_examples=300)
@given(records=tables(), excluded=exclusions)
@example(records=[{"a": "1", "x": "2"}, {"a": "1", "b": "2"}], excluded=frozenset({"x"}))
@example(records=[{"i": {"a": "1", "x": "2"}}, {"i": {"a": "1", "b": "2"}}], excluded=frozenset({"x"}))
@example(records=[{"i": {"x": "1"}}, {"i": {"x": "1"}}], excluded=frozenset({"x"}))
@example(records=[{"x": "1"}, {"x": "1"}], excluded=frozenset({"x"}))
@example(records=[{}, {}], excluded=frozenset())
@example(records=[{"a": ["b"]}, {"a": "b"}], excluded=frozenset())
@example(records=[{"a": "b"}, {"a": ["b"]}], excluded=frozenset())
@example(records=[{"a": "b", "c": "d"}, {"a": ["b"], "c": "d"}], excluded=frozenset())
@example(records=[{"i": {"a": "1"}}, {"i": "1"}], excluded=frozenset())
@example(records=[{"i": {"a": "1"}}, {"i": {"b": "1"}}], excluded=frozenset())
@example(records=[{"i": {"a": "1", "x": "1"}}, {"i": {"b": "1", "x": "1"}}], excluded=frozenset({"x"}))
def test_texts_and_copies_are_those_of_the_general_encoder(
    records: list[JsonValue], excluded: frozenset[str]
) -> None:
    copies, texts = projected(records, excluded)
    assert texts == [canonical_json(without(record, excluded)) for record in records]
    assert [canonical_json(copy) for copy in copies] == texts


def plain_payload(records: list[JsonValue], excluded: frozenset[str]) -> dict[str, JsonValue]:
    """The rule itself, written as it is said."""
    payload: dict[str, list[JsonValue]] = {}
    for record in records:
        if isinstance(record, dict) and record.get("sbid") is not None:
            payload.setdefault(text_form(record["sbid"]), []).append(without(record, excluded))
    return {
        sbid: {
            "datasets": sorted(
                own,
                key=lambda record: "\x1f".join(
                    (
                        text_form(record.get("dataset_id")),  # type: ignore[union-attr]  # an object
                        text_form(record.get("visibility_filename")),  # type: ignore[union-attr]
                        canonical_json(record),
                    )
                ),
            )
        }
        for sbid, own in payload.items()
    }


@settings(max_examples=300)
@given(records=tables(), excluded=exclusions)
def test_a_payload_is_what_the_rule_says_also_where_identities_are_equal_or_begin_alike(
    records: list[JsonValue], excluded: frozenset[str]
) -> None:
    plain = plain_payload(records, excluded)
    digest = hashlib.sha256(canonical_json(plain).encode()).hexdigest()
    signature = sign(records, exclude_fields=excluded)
    assert canonical_json(signature.payload) == canonical_json(plain)
    assert signature.digest == digest
    assert sign_stored(group_by_sbid(records), exclude_fields=excluded).digest == digest


def test_many_rows_over_several_pieces_keep_their_texts() -> None:
    rows: list[JsonValue] = [
        {"sbid": str(number % 7), "dataset_id": f"d{number}", "note": 'a "b"' if number == AT_ONCE else "n"}
        for number in range(3 * AT_ONCE + 5)
    ]
    copies, texts = projected(rows, frozenset())
    assert texts == [canonical_json(row) for row in rows]
    assert copies == rows
    assert (
        sign(rows).digest
        == hashlib.sha256(canonical_json(plain_payload(rows, frozenset())).encode()).hexdigest()
    )


class _Word(StrEnum):
    ONE = "one"


class _Liar(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "something else"


@pytest.mark.parametrize("odd", [_Word.ONE, _Liar("one")])
def test_a_text_counts_by_what_it_holds_not_by_what_it_prints(odd: Any) -> None:
    rows: list[JsonValue] = [{"a": "one", "b": "two"}, {"a": odd, "b": "two"}]
    assert projected(rows, frozenset())[1] == ['{"a":"one","b":"two"}'] * 2


@pytest.mark.parametrize("bad", ["\ud800", float("nan"), object(), {"inner": "\udfff"}])
def test_what_json_cannot_hold_is_refused_in_a_template_too(bad: Any) -> None:
    rows: list[JsonValue] = [{"sbid": "1", "a": "x"}, {"sbid": "1", "a": bad}]
    with pytest.raises(ConfigError) as caught:
        sign(rows)
    assert caught.value.code == "invalid_json"


def test_keys_that_are_no_texts_are_left_to_the_general_encoder() -> None:
    rows: Any = [{1: "x"}, {1: "y"}]
    assert projected(rows, frozenset())[1] == ['{"1":"x"}', '{"1":"y"}']
