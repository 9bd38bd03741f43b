"""``python -m beampipe_dagster_tests.bench [NAME ...] [--json] [--sources N] [--quick]``."""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
from collections.abc import Sequence
from inspect import signature
from typing import Any

import beampipe_dagster_tests.bench as package
from beampipe_dagster_tests.bench.measure import Figures


def built() -> list[str]:
    """The names of all benchmarks, sorted."""
    names = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name.removeprefix("bench_") for name in names if name.startswith("bench_"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, and say by the exit status whether every goal was met (0) or one was missed (1)."""
    parser = argparse.ArgumentParser(
        prog="python -m beampipe_dagster_tests.bench", description="Measure what the product costs."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(built())}; all by default")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")
    parser.add_argument(
        "--sources", type=int, metavar="N", help="of benchmarks that look at sources; 1000 by default"
    )
    parser.add_argument(
        "--quick", action="store_true", help="of benchmarks that have it: a run of seconds, for tests"
    )
    options = parser.parse_args(argv)
    if unknown := [name for name in options.names if name not in built()]:
        parser.error(f"there is no benchmark {unknown[0]!r}; built: {', '.join(built())}")
    names = options.names or built()
    results = {name: measured(name, sources=options.sources, quick=options.quick) for name in names}
    document = results[names[0]] if len(names) == 1 else results
    if options.json:
        print(json.dumps(document, indent=2))  # noqa: T201  # a command line's output
    else:
        for name, figures in results.items():
            print(as_text(name, figures))  # noqa: T201  # a command line's output
    return 0 if all(goal["met"] for figures in results.values() for goal in figures["goals"].values()) else 1


def measured(name: str, *, sources: int | None = None, quick: bool = False) -> Figures:
    """The figures of one benchmark; ``sources`` and ``quick`` are for those that can do with fewer, or more."""
    run = importlib.import_module(f"{package.__name__}.bench_{name}").run
    wanted: dict[str, Any] = {"sources": sources, "quick": quick or None}
    given = {
        key: value for key, value in wanted.items() if value is not None and key in signature(run).parameters
    }
    figures: Figures = run(**given)
    return figures


def as_text(name: str, figures: Figures) -> str:
    """A line for each figure, and one for each goal."""
    lines = [f"{name}:"]
    lines += [f"  {key}: {value}" for key, value in figures.items() if key != "goals"]
    for goal, about in figures["goals"].items():
        verdict = "met" if about["met"] else "MISSED"
        lines.append(f"  goal {goal} <= {about['at_most']}: {verdict} ({about['value']})")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
