"""``python -m beampipe_dagster_tests.golden DIR [--area NAME ...] [--files ROOT] [--json]``."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from beampipe_dagster.config.canonical import canonical_json
from beampipe_dagster_tests.golden.runner import (
    Outcome,
    ReplayError,
    Verdict,
    built_areas,
    replay,
    shortened,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Replay, print, and say by the exit status whether a case failed (1) or nothing ran (2)."""
    parser = argparse.ArgumentParser(
        prog="python -m beampipe_dagster_tests.golden",
        description="Replay known cases against the product.",
        epilog=f"Areas: {', '.join(built_areas())}.",
    )
    parser.add_argument("directory", type=Path, help="holds <area>.json")
    parser.add_argument("--area", action="append", default=[], help="only this; may be repeated")
    parser.add_argument("--files", type=Path, help="root of @file: paths (default: DIR's parent)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")
    options = parser.parse_args(argv)
    try:
        results = replay(options.directory, areas=options.area, files=options.files)
    except ReplayError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  # a command line's output
        return 2
    print(_as_json(results) if options.json else _as_text(results))  # noqa: T201  # the output
    failed = any(o.verdict is Verdict.FAILED for outcomes in results.values() for o in outcomes)
    return 1 if failed else 0


def _counts(outcomes: Sequence[Outcome]) -> tuple[int, int, int]:
    counts = Counter(outcome.verdict for outcome in outcomes)
    return counts[Verdict.PASSED], len(outcomes), counts[Verdict.DEVIATES]


def _summary(label: str, outcomes: Sequence[Outcome]) -> str:
    passed, total, deviates = _counts(outcomes)
    return f"{label}: {passed}/{total} (deviates {deviates})"


def _as_text(results: dict[str, list[Outcome]]) -> str:
    lines = []
    for area, outcomes in results.items():
        lines.append(_summary(area, outcomes))
        lines.extend(_failure(o) for o in outcomes if o.verdict is Verdict.FAILED)
    lines.append(_summary("total", [o for outcomes in results.values() for o in outcomes]))
    return "\n".join(lines)


def _failure(outcome: Outcome) -> str:
    expected, got = shortened(canonical_json(outcome.case.expected), outcome.got)
    if outcome.note:
        got = outcome.note
    return f"  FAILED {outcome.case.fn} {outcome.case.name!r}: expected {expected} got {got}"


def _as_json(results: dict[str, list[Outcome]]) -> str:
    areas = {}
    for area, outcomes in results.items():
        passed, total, deviates = _counts(outcomes)
        areas[area] = {
            "passed": passed,
            "total": total,
            "deviates": deviates,
            "cases": [
                {
                    "name": outcome.case.name,
                    "fn": outcome.case.fn,
                    "expected": canonical_json(outcome.case.expected),
                    "got": outcome.got,
                    "verdict": outcome.verdict.value,
                    "note": outcome.note,
                }
                for outcome in outcomes
                if outcome.verdict is not Verdict.PASSED
            ],
        }
    everything = [o for outcomes in results.values() for o in outcomes]
    passed, total, deviates = _counts(everything)
    document = {"areas": areas, "passed": passed, "total": total, "deviates": deviates}
    return json.dumps(document, ensure_ascii=False, indent=2)


if __name__ == "__main__":
    sys.exit(main())
