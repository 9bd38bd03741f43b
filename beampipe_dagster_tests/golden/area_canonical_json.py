"""Canonical text and digest of JSON literals."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import cast

from beampipe_dagster.config.canonical import JsonValue, canonical_json, parse_json, sha256_hex
from beampipe_dagster_tests.golden.runner import Case, Deviation

_FLOAT = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_LONG = 16


def canonical_raw(value: JsonValue) -> JsonValue:
    """``{json}`` -> ``{text, sha256}``."""
    text = canonical_json(parse_json(_literal(value)))
    return {"text": text, "sha256": sha256_hex(text)}


def _literal(value: JsonValue) -> str:
    return cast("str", cast("dict[str, JsonValue]", value)["json"])


def _long_literals(case: Case) -> list[str]:
    return [
        literal
        for literal in _FLOAT.findall(_literal(case.input))
        if len(Decimal(literal).normalize().as_tuple().digits) >= _LONG
    ]


def _nearest(case: Case, got: JsonValue) -> bool:
    """Each number of the answer is the double that is nearest to its literal."""
    text = cast("str", cast("dict[str, JsonValue]", got)["text"])
    literals = _FLOAT.findall(_literal(case.input))
    return [float(number) for number in _FLOAT.findall(text)] == [float(x) for x in literals]


FUNCTIONS = {"canonical_raw": canonical_raw}

DEVIATIONS = [
    Deviation(
        name="nearest double",
        reason="a decimal literal of 16 or more digits is read as the double nearest to it",
        applies=lambda case: bool(_long_literals(case)),
        agrees=_nearest,
    )
]
