"""100,000 registered sources, all stale, on a whole beampipe: how long ticks and pages take, and what memory does.

``python scripts/scale_discovery.py [--sources N] [--minutes M] [--claim N] [--deposits N] [--json FILE]``

Starts what ``beampipe up`` starts (sandbox archive, code server, exporter, web server, daemon; without DALiuGE, since
nothing is executed) in a temporary directory, registers the sources in the ledger, and watches: ticks of the
scheduler's sensor as Dagster records them, pages of the web server by the queries that they make, resident memory
of each process with all that it started, and sources looked at. Exits with 1 when a tick takes 5 s or more, or when
nothing was discovered.
"""  # noqa: INP001  # a script, not a package

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from beampipe_dagster.assembly import assemble  # noqa: E402  # the checkout's, found by the line above
from beampipe_dagster.config.settings import Settings  # noqa: E402
from beampipe_dagster.ledger.tables import discovery_claims, source_registry  # noqa: E402
from beampipe_dagster.sandbox import demo  # noqa: E402
from beampipe_dagster.sandbox.archive.store import ArchiveStore  # noqa: E402
from beampipe_dagster.sandbox.up import environment, stages  # noqa: E402
from beampipe_dagster_tests.bench.bench_tick import SURVEY, seed  # noqa: E402
from beampipe_dagster_tests.support.stack import Stack, new_options, running_stack  # noqa: E402

TICK_SECONDS = 5.0
LOOK_SECONDS = 10.0
PAGES: dict[str, str] = {
    "asset": """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
        id groupName jobNames hasMaterializePermission
        partitionStats { numMaterialized numPartitions numFailed numMaterializing }
        assetMaterializations(limit: 50) { partition timestamp runId metadataEntries { label } } } } }""",
    "partitions": """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
        id partitionKeyCount: partitionStats { numPartitions }
        partitionKeysByDimension(startIdx: 0, endIdx: 100000) { name partitionKeys }
        assetPartitionStatuses { ... on DefaultPartitionStatuses { materializedPartitions } } } } }""",
    "overview": """query { runsOrError(limit: 25) { ... on Runs { results { id status jobName startTime endTime
        tags { key value } } } }
        workspaceOrError { ... on Workspace { locationEntries { id name loadStatus } } }
        assetsOrError { ... on AssetConnection { nodes { id } } } }""",
    "sensor": """query($sensor: SensorSelector!) { sensorOrError(sensorSelector: $sensor) { ... on Sensor {
        sensorState { status ticks(limit: 500) { timestamp endTimestamp status skipReason runIds } } } } }""",
}


@dataclass
class Figures:
    """What was seen."""

    pages: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    memory: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    looked_at: list[tuple[float, int]] = field(default_factory=list)
    ticks: list[float] = field(default_factory=list)
    skipped: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


def main() -> int:
    """Run, print, and say by the exit status whether it was well."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--sources", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--claim", type=int, default=400, help="sources of a claim")
    parser.add_argument("--deposits", type=int, default=4_000, help="sources that the archive knows")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="bp-scale-"))
    try:
        report = measure(home, options.sources, options.minutes * 60, options.claim, options.deposits)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    text = json.dumps(report, indent=2)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    print(text)  # noqa: T201  # a command line's output
    return 0 if report["longest_tick_s"] < TICK_SECONDS and report["looked_at"] > 0 else 1


def measure(home: Path, sources: int, seconds: float, claim: int, deposits: int) -> dict[str, Any]:
    """The figures of a run of so many seconds."""
    options = new_options(home)
    demo.FILES = survey_files(home / "survey", claim)  # type: ignore[misc]  # this run's own survey
    settings = Settings.from_env(environment(options))
    platform = assemble(settings)
    seed(platform.ledger, sources)
    with platform.ledger.begin() as conn:  # what was run before is no matter of this
        conn.execute(sa.update(source_registry).values(workflow_run_pending=False))
    platform.ledger.dispose()
    names = {spec.name for stage in stages(options) for spec in stage}
    archive = next(spec for stage in stages(options) for spec in stage if spec.name == "archive")
    store = ArchiveStore(data_dir=data_dir_of(archive.argv), seed="demo")
    for number in range(1, deposits + 1):
        store.deposit(f"BENCH{number:07}", beams=2, count=1)
    away = {name for name in names if name.startswith("dlg-")}
    env = {"BEAMPIPE_SCHEDULER_INTERVAL_SECONDS": "5", "BEAMPIPE_LEASE_SECONDS": "60"}
    with running_stack(home, names=(), without=away, env=env, options=options) as stack:
        figures = watched(stack, seconds)
    return {"sources": sources, "claim": claim, "minutes": seconds / 60, **summary(figures)}


def survey_files(directory: Path, claim: int) -> Path:
    """The demo survey with claims of this size, and without executions."""
    shutil.copytree(demo.FILES, directory)
    path = directory / "wallaby_demo.yaml"
    text = path.read_text(encoding="utf-8")
    wanted = f"batch_size: {claim}\n    tick_discovery_source_limit: {claim * 4}"
    text = text.replace("batch_size: 5", wanted).replace(
        "execution:\n    enabled: true", "execution:\n    enabled: false"
    )
    path.write_text(text, encoding="utf-8")
    return directory


def data_dir_of(command: Sequence[str]) -> Path:
    """Where the sandbox archive keeps its deposits."""
    return Path(command[command.index("--data-dir") + 1])


def watched(stack: Stack, seconds: float) -> Figures:
    """Look at everything every few seconds."""
    figures, columns = Figures(), discovery_claims.c
    began, start = datetime.now(UTC), time.monotonic()
    stack.until(lambda: bool(pages_once(stack, Figures())), "pages of the web server", seconds=120)
    while time.monotonic() - start < seconds:
        time.sleep(LOOK_SECONDS)
        pages_once(stack, figures)
        for name, pid in stack.pids().items():
            own, below = memory_of(pid)
            figures.memory[name].append(own)
            if below:
                figures.memory[f"started by {name}"].append(below)
        with stack.platform.ledger.read() as conn:
            done = conn.execute(
                sa.select(sa.func.count()).where(source_registry.c.last_checked_at >= began)
            ).scalar_one()
            claims = conn.execute(sa.select(columns.state, sa.func.count()).group_by(columns.state)).all()
        figures.looked_at.append((time.monotonic() - start, int(done)))
        states = ", ".join(f"{number} {state}" for state, number in claims)
        print(  # noqa: T201  # progress
            f"{time.monotonic() - start:6.0f} s  {done} looked at; claims: {states}", file=sys.stderr
        )
    ticks = query(stack, "sensor")["sensorOrError"]["sensorState"]["ticks"]
    figures.ticks = [tick["endTimestamp"] - tick["timestamp"] for tick in ticks if tick["endTimestamp"]]
    figures.skipped = sum(tick["status"] != "SUCCESS" for tick in ticks)
    figures.reasons = Counter(
        (tick["skipReason"] or tick["status"])[:120] for tick in ticks if tick["status"] != "SUCCESS"
    )
    return figures


def pages_once(stack: Stack, figures: Figures) -> bool:
    """Load each page once; whether all came."""
    for name in PAGES:
        before = time.perf_counter()
        try:
            query(stack, name)
        except (httpx.HTTPError, AssertionError, ValueError, KeyError) as error:
            print(f"{name}: {str(error)[:300]}", file=sys.stderr)  # noqa: T201  # progress
            return False
        figures.pages[name].append(time.perf_counter() - before)
    return True


def query(stack: Stack, name: str) -> Mapping[str, Any]:
    """One page's query."""
    given: dict[str, Any] = {}
    if "$key" in PAGES[name]:
        given["key"] = {"path": [SURVEY, "archive_metadata"]}
    if "$sensor" in PAGES[name]:
        given["sensor"] = selector(stack)
    return stack.graphql(PAGES[name], **given)


def selector(stack: Stack) -> dict[str, str]:
    """Where the scheduler's sensor is."""
    found = stack.graphql(
        """{ repositoriesOrError { ... on RepositoryConnection { nodes { name location { name } } } } }"""
    )["repositoriesOrError"]["nodes"][0]
    return {
        "repositoryName": found["name"],
        "repositoryLocationName": found["location"]["name"],
        "sensorName": f"{SURVEY}_scheduler_tick",
    }


def memory_of(pid: int) -> tuple[float, float]:
    """Resident memory of a process, and of all that it started (runs among them), in 10^6 bytes."""
    parents: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError, ValueError):
            parents[int((entry / "stat").read_text().rpartition(")")[2].split()[1])].append(int(entry.name))
    below, left = 0.0, [*parents[pid]]
    while left:
        one = left.pop()
        left += parents[one]
        below += resident(one)
    return resident(pid), below


def resident(pid: int) -> float:
    """Resident memory of one process, in 10^6 bytes; 0 when it is gone."""
    with suppress(OSError):
        for line in (Path("/proc") / str(pid) / "status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return round(int(line.split()[1]) * 1024 / 1e6, 1)
    return 0.0


def summary(figures: Figures) -> dict[str, Any]:
    """The figures of a run, short."""
    looked_at = figures.looked_at[-1][1] if figures.looked_at else 0
    minutes = figures.looked_at[-1][0] / 60 if figures.looked_at else 1.0
    third: Callable[[list[float]], int] = lambda values: max(1, len(values) // 3)  # noqa: E731  # short
    return {
        "ticks": len(figures.ticks),
        "ticks_without_claim": figures.skipped,
        "why_no_claim": dict(figures.reasons.most_common(10)),
        "median_tick_s": round(statistics.median(figures.ticks), 3) if figures.ticks else None,
        "longest_tick_s": round(max(figures.ticks, default=float("inf")), 3),
        "looked_at": looked_at,
        "looked_at_per_minute": round(looked_at / minutes),
        "pages_s": {
            name: {"median": round(statistics.median(times), 3), "longest": round(max(times), 3)}
            for name, times in figures.pages.items()
        },
        "memory_mb": {
            name: {
                "first_third": statistics.median(values[: third(values)]),
                "last_third": statistics.median(values[-third(values) :]),
                "most": max(values),
            }
            for name, values in figures.memory.items()
        },
    }


if __name__ == "__main__":
    sys.exit(main())
