"""The bounded YAML loader: scalars, places, refusals, hostile documents."""

from __future__ import annotations

import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.config.canonical import JsonValue, canonical_json
from beampipe_dagster.config.yaml_loader import load_yaml
from beampipe_dagster.errors import ConfigError

names = st.text("abcdefgh_", min_size=1, max_size=6)
leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | names
documents = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=15,
)


def refusal(text: str | bytes, **bounds: int) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_yaml(text, name="survey.yaml", **bounds)
    assert caught.value.hint
    return caught.value


@given(documents)
def test_json_is_yaml(value: JsonValue) -> None:
    assert load_yaml(canonical_json(value)).value == value


@given(documents)
def test_every_key_is_where_its_position_says(value: JsonValue) -> None:
    text = yaml.safe_dump(value, default_flow_style=False)
    document = load_yaml(text)
    lines = text.splitlines()

    def check(part: JsonValue, path: tuple[str | int, ...]) -> None:
        place = document.position(path)
        assert place is not None
        line, column = place
        if path and isinstance(path[-1], str):
            assert lines[line - 1][column - 1 :].lstrip("'\"").startswith(path[-1])
        if isinstance(part, dict):
            for key, inner in part.items():
                check(inner, (*path, key))
        elif isinstance(part, list):
            for index, inner in enumerate(part):
                check(inner, (*path, index))

    check(document.value, ())


def test_a_position_is_that_of_the_key_or_of_the_element() -> None:
    document = load_yaml("a:\n  - x\n  - {b: 1}\n")
    assert document.position(()) == (1, 1)
    assert document.position(("a",)) == (1, 1)
    assert document.position(("a", 1)) == (3, 5)
    assert document.position(("a", 1, "b")) == (3, 6)
    for path in [("b",), ("a", 2), ("a", -1), ("a", "x"), (0,), ("a", 0, "x")]:
        assert document.position(path) is None


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("TRUE", True),
        ("yes", "yes"),
        ("off", "off"),
        ("~", None),
        ("0123", "0123"),
        ("-0123", "-0123"),
        ("0123.5", 123.5),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("=", "="),
        ("0b11", 3),
        ("-0x1F", -31),
        ("0X1F", "0X1F"),
        ("+5", 5),
        ("-0", 0),
        ("1.", 1.0),
        ("-.5", -0.5),
        ("1e3", 1000.0),
        ("1e400", "1e400"),
        (".NaN", None),
        ("+.inf", None),
        ("+-5", "+-5"),
        ("'12'", "12"),
        ("! 12", "12"),
        ("!!str 1", "1"),
        ('!!int "0x10"', 16),
        ('!!float "1"', 1.0),
        ("!!float .inf", None),
        ('!!bool "true"', True),
        ("!!null ''", None),
        ("!mine [1]", {"!mine": [1]}),
        ("!mine 1", {"!mine": 1}),
    ],
)
def test_scalars_follow_yaml_1_2(scalar: str, value: JsonValue) -> None:
    loaded = load_yaml(f"a: {scalar}").value
    assert isinstance(loaded, dict)
    assert canonical_json(loaded["a"]) == canonical_json(value)


def test_scalar_keys_become_text() -> None:
    value = load_yaml("1: a\ntrue: b\n1.5: c\n0x1F: d\n1e3: e\n").value
    assert value == {"1": "a", "true": "b", "1.5": "c", "31": "d", "1000.0": "e"}


def test_a_merge_key_is_a_key_like_any_other() -> None:
    assert load_yaml("<<: {a: 1}\nb: 2").value == {"<<": {"a": 1}, "b": 2}


def test_an_alias_is_a_copy_even_of_a_tagged_value() -> None:
    value = load_yaml("a: &x !t {k: [1]}\nb: *x\n? &k key\n: c\nd: *k").value
    assert value == {"a": {"!t": {"k": [1]}}, "b": {"!t": {"k": [1]}}, "key": "c", "d": "key"}
    assert isinstance(value, dict)
    assert value["a"] is not value["b"]


def test_an_empty_document_is_null() -> None:
    assert load_yaml("").value is None
    assert load_yaml("# nothing\n").value is None


def test_a_duplicate_key_is_refused_with_its_line() -> None:
    error = refusal("a: 1\nb:\n  c: 1\n  c: 2\n")
    assert error.code == "invalid_yaml"
    assert error.message.startswith("survey.yaml:4:3: ")
    assert (error.details["line"], error.details["column"]) == (4, 3)
    assert "line 3" in error.hint


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: [1,\nb: }", ":2:4: "),
        ("a:\n\tb: 1", ":2:1: "),
        ("a: 1\n---\nb: 2\n", ":2:1: "),
        ("\ufeffa: 1", ":1:1: "),
        ("a: é\x07", ":1:5: "),
        (b"a: 1\nb: \xff", ":2:4: "),
        ("a: *b", ":1:4: "),
        ("a: &a [*a]", ":1:8: "),
        ("a: 18446744073709551616", ":1:4: "),
        ("a: -9223372036854775809", ":1:4: "),
        ("a: " + "9" * 100_000, ":1:4: "),
        ("a: !!int x", ":1:4: "),
        ("a: !!binary x", ":1:4: "),
        ("a: !!seq {}", ":1:4: "),
        ("a: !!python/object:os.system {}", ":1:4: "),
        ("1: a\n'1': b", ":2:1: "),
        ("\ud800", ": "),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(text: str | bytes, place: str) -> None:
    error = refusal(text)
    assert error.code == "invalid_yaml"
    assert error.message.startswith(f"survey.yaml{place}")


@pytest.mark.parametrize("text", ["? [1]\n: x", "null: x", "{a: b}: c", "!t a: b", "? *a\n: b", ".nan: x"])
def test_a_key_that_json_cannot_have_is_refused(text: str) -> None:
    document = f"- &a [1]\n- {text}" if "*a" in text else text
    document = document.replace("- ? *a\n: b", "- ? *a\n  : b")
    assert refusal(document).code == "invalid_config_value"


def test_the_bounds_are_exact() -> None:
    assert load_yaml("[[1]]", max_depth=2).value == [[1]]
    assert "2 deep" in refusal("[[[1]]]", max_depth=2).message
    assert load_yaml("[1, 2]", max_nodes=3).value == [1, 2]
    assert "more than 3" in refusal("{a: 1, b: 2}", max_nodes=3).message
    assert load_yaml("é", max_bytes=2).value == "é"
    assert "3 bytes" in refusal("éa", max_bytes=2).message


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{after}: &{after} [{','.join([f'*{before}'] * 9)}]\n"
    for before, after in zip("abcdefghijkl", "bcdefghijklm", strict=True)
)
MIB = 1024 * 1024


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        f"a: &a {'x' * 900_000}\nb: [{','.join(['*a'] * 20_000)}]",
        "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 2000)),
        *((opening * (MIB // len(opening))) for opening in ("[", "{", "- ", "? ", "[{", "&a [", "!t [")),
        "x" * (MIB + 1),
    ],
    ids=str.__len__,
)
def test_a_hostile_document_is_refused_at_once(text: str) -> None:
    # Measured: below 5 ms each; CPU time, so that a busy machine does not fail the test.
    start = time.process_time()
    refusal(text)
    assert time.process_time() - start < 0.1
