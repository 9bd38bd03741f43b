from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beampipe_dagster.discovery.cells import cell_text, typed_cell
from beampipe_dagster.discovery.votable import read_result
from beampipe_dagster_tests.support.fake_tap import Serialisation, reserialised, votable


@pytest.mark.parametrize(
    ("text", "datatype", "arraysize", "value"),
    [
        ("5", "int", None, 5),
        ("-9223372036854775808", "long", None, -(2**63)),
        ("198.39", "double", None, 198.39),
        ("2.0", "float", "1", 2.0),
        ("-Inf", "double", None, -math.inf),
        ("true", "boolean", None, True),
        ("false", "boolean", None, False),
        ("", "int", None, None),
        ("", "char", "*", None),
        ("007", "char", "*", "007"),
        ("1.5", "unicodeChar", "10", "1.5"),
        ("1.0 NaN 3.0", "double", "3", [1.0, None, 3.0]),
        ("1 2", "int", "*", [1, 2]),
    ],
)
def test_a_cell_has_the_value_of_its_columns_type(
    text: str, datatype: str, arraysize: str | None, value: Any
) -> None:
    found = typed_cell(text, datatype, arraysize)
    assert found == value
    assert type(found) is type(value)


@settings(deadline=None)
@given(st.floats(allow_nan=False))
def test_a_number_survives_its_text(value: float) -> None:
    assert typed_cell(cell_text(value), "double") == value


@settings(deadline=None)
@given(st.integers(-(2**63), 2**63 - 1))
def test_a_whole_number_survives_its_text(value: int) -> None:
    assert typed_cell(cell_text(np.int64(value)), "long") == value


@pytest.mark.parametrize("serialisation", ["tabledata", "binary", "binary2"])
def test_values_and_columns_are_the_same_in_every_serialisation(serialisation: Serialisation) -> None:
    types = {"n": "int", "x": "double", "ok": "boolean", "s": "char"}
    table: list[dict[str, str | None]] = [
        {"n": "7", "x": "1.5", "ok": "true", "s": "7"},
        {"n": None, "x": None, "ok": None, "s": None},
    ]
    document = votable(list(types), table, types)
    body = document if serialisation == "tabledata" else reserialised(document, serialisation)
    result = read_result(body, maxrec=10)
    kinds = {column.name: (column.datatype, column.arraysize) for column in result.columns}
    assert [column.name for column in result.columns] == list(types)
    typed = [{k: typed_cell(str(v), *kinds[k]) for k, v in row.items()} for row in result.rows]
    assert typed == [{"n": 7, "x": 1.5, "ok": True, "s": "7"}, dict.fromkeys(types)]
