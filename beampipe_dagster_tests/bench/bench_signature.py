"""Rows of an archive signed, beside the least that signing can cost: their JSON and its hash."""

from __future__ import annotations

import hashlib
import json
from typing import Final

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.signature.payload import sign
from beampipe_dagster_tests.bench.bench_config import BEAMS, survey_records
from beampipe_dagster_tests.bench.measure import Figures, goal, milliseconds

EXCLUDED: Final = ("access_url", "evaluation_file_access_url", "filesize")


def run() -> Figures:
    """All figures; times in milliseconds of processor time."""
    rows: list[JsonValue] = [*survey_records()]

    def plain() -> str:
        return hashlib.sha256(json.dumps(rows, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    sign_ms = milliseconds(lambda: sign(rows, exclude_fields=EXCLUDED))
    baseline_ms = milliseconds(plain)
    rate = round(len(rows) / sign_ms * 1000)
    return {
        "rows": len(rows),
        "scheduling_blocks": -(-len(rows) // BEAMS),
        "sign_ms": sign_ms,
        "baseline": "json.dumps and SHA-256 of the same rows",
        "baseline_ms": baseline_ms,
        "rows_per_second": rate,
        "baseline_rows_per_second": round(len(rows) / baseline_ms * 1000),
        "ratio": round(sign_ms / baseline_ms, 3),
        "goals": {"microseconds_per_row": goal(round(1e6 / rate, 3), 3.334)},
    }
