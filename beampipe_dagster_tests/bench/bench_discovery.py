"""Many sources looked at together, beside the same sources one by one in ten threads, at a distance of 200 ms.

The archive is a process of its own over real sockets, and the queries are WALLABY's: the latest epoch's files, the
catalogue's position, and the calibration archive of each scheduling block. Both ways must come to the same looks.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx

from beampipe_dagster.clock import SystemClock
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.config.validation import load_project
from beampipe_dagster.discovery.archives import TapArchives
from beampipe_dagster.discovery.batch_look import BatchLook
from beampipe_dagster.discovery.look import Look, SourceLook
from beampipe_dagster.sandbox.archive.demo import load_catalogue
from beampipe_dagster.sandbox.archive.store import ArchiveStore
from beampipe_dagster_tests.bench.bench_config import DEMO
from beampipe_dagster_tests.bench.measure import Figures, goal

LATENCY_SECONDS: Final = 0.2
THREADS: Final = 10
VISIBILITY: Final = """SELECT o.* FROM ivoa.obscore o INNER JOIN (
  SELECT MAX(t_max) AS mx FROM ivoa.obscore
  WHERE filename LIKE '{source_identifier}%'
  AND obs_collection IN ('ASKAP Pilot Survey for WALLABY', 'WALLABY')
) AS latest ON o.t_max = latest.mx
WHERE o.filename LIKE '{source_identifier}%'
AND o.obs_collection IN ('ASKAP Pilot Survey for WALLABY', 'WALLABY')"""
EVALUATION: Final = """SELECT * FROM casda.observation_evaluation_file
WHERE sbid = '{sbid}' AND format = 'calibration'
AND filename LIKE 'calibration-metadata-processing-logs-SB{sbid}_%.tar'"""


def run(*, sources: int = 1000) -> Figures:
    """All figures; times are wall times, since waiting for the archive is what this is about."""
    catalogue = [f"HIPASS{one.hipass}" for one in load_catalogue()]
    names = [*catalogue, *(f"BENCH{number:06}" for number in range(len(catalogue), sources))][:sources]
    config = _survey()
    with tempfile.TemporaryDirectory() as directory:
        store = ArchiveStore(data_dir=Path(directory), seed="demo")
        for name in names:
            store.deposit(name, beams=3, count=2)
        with _archive(Path(directory)) as base:
            for archive in ("casda", "vizier"):
                httpx.put(
                    f"{base}/sandbox/faults/{archive}", json={"latency": LATENCY_SECONDS}
                ).raise_for_status()
            together, seconds, requests = _measured(base, lambda a: _together(config, a, names))
            alone, baseline_seconds, baseline_requests = _measured(base, lambda a: _alone(config, a, names))
    equal = _facts(together) == _facts(alone)
    ratio = round(baseline_seconds / seconds, 2)
    per_source = round(seconds * 1000 / len(names), 3)
    return {
        "sources": len(names),
        "sources_with_datasets": sum(look.datasets > 0 for look in together),
        "latency_ms": LATENCY_SECONDS * 1000,
        "seconds": round(seconds, 2),
        "ms_per_source": per_source,
        "requests": requests,
        "baseline": f"one by one; {THREADS} threads, as for all at once",
        "baseline_seconds": round(baseline_seconds, 2),
        "baseline_ms_per_source": round(baseline_seconds * 1000 / len(names), 3),
        "requests_baseline": baseline_requests,
        "ratio": ratio,
        "equal": equal,
        "goals": {
            "share_of_baseline": goal(round(1 / ratio, 3), 0.1),
            "ms_per_source": goal(per_source, 3),
            "different_looks": goal(0 if equal else 1, 0),
        },
    }


def _survey() -> ProjectConfig:
    value: Any = load_project(DEMO.joinpath("wallaby_demo.yaml").read_bytes()).as_json()
    value["discovery"]["queries"][0]["template"] = VISIBILITY
    value["discovery"]["enrichments"][0]["template"] = EVALUATION
    return ProjectConfig.from_json(value)


@contextmanager
def _archive(data_dir: Path) -> Iterator[str]:
    """The sandbox archive as a process; its root URL."""
    command = [
        sys.executable,
        "-m",
        "beampipe_dagster.sandbox.archive",
        "--data-dir",
        str(data_dir),
        "--port",
        "0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            found = re.search(r"page=(http://\S+)/$", line.strip())
            if found is None:
                raise RuntimeError(f"the sandbox archive did not start: {line!r}")
            yield found[1]
        finally:
            process.terminate()


def _measured(base: str, look: Callable[[TapArchives], list[Look]]) -> tuple[list[Look], float, int]:
    """The looks in the order of their names, how long they took, and how many requests that were."""
    urls = {"casda": f"{base}/casda/tap", "vizier": f"{base}/vizier/tap"}
    archives = TapArchives(urls=urls, clock=SystemClock())
    archives.get(_survey(), "casda").query(
        "SELECT TOP 1 * FROM tap_schema.tables"
    )  # pyvo takes a second to import
    httpx.delete(f"{base}/sandbox/log").raise_for_status()
    begin = time.perf_counter()
    looks = look(archives)
    seconds = time.perf_counter() - begin
    return looks, seconds, int(httpx.get(f"{base}/sandbox/log").json()["total"])


def _together(config: ProjectConfig, archives: TapArchives, names: Sequence[str]) -> list[Look]:
    batch = BatchLook(config=config, archives=archives, clock=SystemClock(), concurrency=THREADS)
    return list(batch.looks(names))


def _alone(config: ProjectConfig, archives: TapArchives, names: Sequence[str]) -> list[Look]:
    one = SourceLook(config=config, archives=archives, clock=SystemClock())
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(one.look, names))


def _facts(looks: Sequence[Look]) -> list[tuple[Any, ...]]:
    return [
        (
            look.source_identifier,
            look.signature,
            look.metadata,
            look.flags,
            look.error and look.error.as_dict(),
        )
        for look in looks
    ]
