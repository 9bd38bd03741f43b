"""Timing and memory of a call."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable
from typing import Any, TypeAlias

Figures: TypeAlias = dict[str, Any]
"""Figure to value; ``goals`` maps a figure to ``{"value", "at_most", "met"}``."""


def milliseconds(action: Callable[[], object], *, times: int = 7) -> float:
    """Processor time of the quickest of several calls, without the garbage collector.

    Not wall time: what else the machine does is none of the product's.
    """
    best = float("inf")
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for _ in range(times):
            begin = time.process_time()
            action()
            best = min(best, time.process_time() - begin)
    finally:
        if was_enabled:
            gc.enable()
    return round(best * 1000, 3)


def peak_megabytes(action: Callable[[], object]) -> float:
    """Most memory that a call holds at a time beyond what there was before, in 10^6 bytes."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        kept = action()
        peak = tracemalloc.get_traced_memory()[1]
        del kept
    finally:
        tracemalloc.stop()
    return round((peak - before) / 1e6, 3)


def goal(value: float, at_most: float) -> Figures:
    """Whether a figure is within its bound."""
    return {"value": value, "at_most": at_most, "met": value <= at_most}
