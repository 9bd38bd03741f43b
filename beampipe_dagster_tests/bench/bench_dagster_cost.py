"""What an execution costs Dagster: runs, events, bytes in its databases, processor time; on a real instance.

Code server, daemon and run processes are the product's own; DALiuGE is a fake whose sessions are done at once, so
that everything that is used is ours or Dagster's. Events *of our making* are the asset events, observations and
checks that our code asks for; all others are Dagster's own account of a run and its steps.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Final

from beampipe_dagster_tests.bench.dagster_instance import per, running_instance
from beampipe_dagster_tests.bench.measure import Figures, goal

OURS: Final = frozenset({"ASSET_OBSERVATION", "ASSET_CHECK_EVALUATION", "ASSET_MATERIALIZATION"})
STEPS: Final = 4
"""Materializations that Dagster makes by itself, one for each step of a run."""


def run(*, sources: int = 12, quick: bool = False) -> Figures:
    """All figures, for each execution."""
    number = 2 if quick else sources
    with tempfile.TemporaryDirectory() as name:
        home = Path(name) / "home"
        with running_instance(home, number) as (instance, begin):
            before_bytes, before_cpu = instance.bytes(), instance.cpu_seconds()
            instance.until(lambda: instance.completed() >= number)
            seconds = time.monotonic() - begin
            told = OUTCOMES_TOLD * number

            def delivered() -> bool:
                return sum(instance.events()[kind] for kind in OURS) >= told + STEPS * number

            instance.until(delivered)
            cpu = instance.cpu_seconds() - before_cpu
            events, in_runs, runs = instance.events(), instance.run_events(), instance.runs()
            grown = instance.bytes() - before_bytes
    ours = sum(events[kind] for kind in OURS) - STEPS * number
    return {
        "executions": number,
        "seconds": round(seconds, 1),
        "runs": round(runs / number, 2),
        "events_of_our_making": round(ours / number, 2),
        "events_in_runs": per(number, in_runs),
        "events_of_assets": per(number, events),
        "kilobytes": round(grown / number / 1000, 1),
        "cpu_seconds": round(cpu / number, 2),
        "goals": {
            "events_of_our_making": goal(round(ours / number, 2), 3),
            "runs": goal(round(runs / number, 2), 1),
        },
    }


OUTCOMES_TOLD: Final = 2
"""The poll tells an outcome and its check."""
