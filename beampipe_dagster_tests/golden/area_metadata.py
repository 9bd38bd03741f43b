"""Records and flags made of rows, SBIDs, kept enrichment rows, and positions as text."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, cast

from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.config.yaml_loader import load_yaml
from beampipe_dagster.discovery.prepare import (
    choose_enrichment_row,
    dec_text,
    prepare_metadata,
    ra_text,
    sbids_of,
)
from beampipe_dagster.errors import DataError
from beampipe_dagster_tests.golden.runner import Case, Deviation

if TYPE_CHECKING:
    from beampipe_dagster.config.canonical import JsonValue

_SEXAGESIMAL = re.compile(r"(-?)(\d+)[h.](\d+)[m.](\d+(?:\.\d+)?)s?")


def prepared(value: JsonValue) -> JsonValue:
    """``{yaml, source, rows, enrichments}`` -> ``{discovery_flags, records}``."""
    case = cast("dict[str, JsonValue]", value)
    metadata = prepare_metadata(
        _config(case),
        cast("str", case["source"]),
        cast("list[dict[str, JsonValue]]", case["rows"]),
        cast("dict[str, JsonValue]", case["enrichments"]),
    )
    records: list[JsonValue] = list(metadata.records)
    return {"discovery_flags": metadata.flags, "records": records}


def sbid_values(value: JsonValue) -> JsonValue:
    """``{yaml, rows}`` -> SBIDs."""
    case = cast("dict[str, JsonValue]", value)
    return list(sbids_of(_config(case), cast("list[dict[str, JsonValue]]", case["rows"])))


def eval_enrichment(value: JsonValue) -> JsonValue:
    """``{query, sbid, rows}`` -> ``{row}`` or ``{error_code}``."""
    case = cast("dict[str, JsonValue]", value)
    rows = cast("list[dict[str, JsonValue]]", case["rows"])
    try:
        return {"row": choose_enrichment_row(str(case["query"]), str(case["sbid"]), rows)}
    except DataError as error:
        return {"error_code": error.code}


def ra(value: JsonValue) -> JsonValue:
    """``{deg}`` -> text."""
    return ra_text(_degrees(value))


def dec(value: JsonValue) -> JsonValue:
    """``{deg}`` -> text."""
    return dec_text(_degrees(value))


def _degrees(value: JsonValue) -> float:
    return float(cast("dict[str, float]", value)["deg"])


def _config(case: dict[str, JsonValue]) -> ProjectConfig:
    return ProjectConfig.from_json(load_yaml(cast("str", case["yaml"])).value)


def _reads_back(case: Case, got: JsonValue) -> bool:
    """The text, read as an angle, is the angle that was given, to half a hundredth of a second."""
    match = _SEXAGESIMAL.fullmatch(str(got))
    if match is None or float(match[3]) >= 60 or float(match[4]) >= 60:
        return False
    size = float(match[2]) + float(match[3]) / 60 + float(match[4]) / 3600
    read = (-size if match[1] else size) * (15 if case.fn == "ra" else 1)
    off = read - _degrees(case.input)
    if case.fn == "ra":
        off = math.remainder(off, 360)
    return abs(off) <= 0.00501 / 3600 * (15 if case.fn == "ra" else 1)


def _sixty_seconds(case: Case) -> bool:
    return case.fn in {"ra", "dec"} and re.search(r"[m.]60s?$", str(case.expected)) is not None


def _lost_sign(case: Case) -> bool:
    return case.fn == "dec" and -1 < _degrees(case.input) < 0


def _negative_ra(case: Case) -> bool:
    return case.fn == "ra" and _degrees(case.input) < 0


FUNCTIONS = {
    "prepare": prepared,
    "sbid_values": sbid_values,
    "eval_enrichment": eval_enrichment,
    "ra": ra,
    "dec": dec,
}
DEVIATIONS = [
    Deviation(
        name="sixty seconds",
        reason="seconds that round up to 60 are carried into the minutes",
        applies=_sixty_seconds,
        agrees=_reads_back,
    ),
    Deviation(
        name="southern zero degrees",
        reason="a declination between 0 and -1 degrees keeps its sign",
        applies=_lost_sign,
        agrees=_reads_back,
    ),
    Deviation(
        name="negative right ascension",
        reason="a right ascension is brought into 0 to 24 hours",
        applies=_negative_ra,
        agrees=_reads_back,
    ),
]
