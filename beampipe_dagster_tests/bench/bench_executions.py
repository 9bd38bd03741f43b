"""Executions an hour through the whole chain over a backend that does nothing, beside AiiDA's processes.

What one execution is, on each side, in the same run of this program and one after the other:

- *services*: admission, manifest, graph, translation, intent, deployment and receipt, a poll, the outcome; on SQLite,
  by the product's services in one process. DALiuGE is a fake over real sockets whose sessions are done at once.
- *dagster*: the same on a real instance with a code server, a daemon and a process for each run; from the start of
  the daemon to the last outcome. Everything waits in its queues first, as a survey's sources do after a deposit.
- *AiiDA 2.9, job*: a ``core.arithmetic.add`` CalcJob on localhost (``core.local``, ``core.direct``, no waits between
  connections or polls), blocking, in one process, which is what a profile without a broker can do; its job is one
  shell command. Inputs, job, outputs and provenance are stored on ``core.sqlite_dos``.
- *AiiDA 2.9, function*: a ``calcfunction`` that returns its argument: AiiDA's cheapest process, with nothing outside.

The job is the counterpart of an execution: both hand work to something outside, look at it, and keep what came of it.
The services are compared with it, since both run in one process; the figure of Dagster stands beside them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.migrate import migrate
from beampipe_dagster.ledger.states import Status
from beampipe_dagster_tests.bench.dagster_instance import NoOpDaliuge, pending_stage, running_instance
from beampipe_dagster_tests.bench.measure import Figures, goal

AIIDA: Final = "aiida-core==2.9.*"
ON_DAGSTER: Final = 24
"""A run costs seconds of processor time: so many are enough to see how many fit into an hour."""

_NOTHING: Final = """
import json, os, sys, time, warnings
warnings.simplefilter("ignore")
number, home = int(sys.argv[1]), sys.argv[2]
import aiida
from aiida import engine, orm
from aiida.manage.configuration import create_profile, get_config, load_profile
from aiida.plugins import CalculationFactory

create_profile(
    get_config(create=True), name="bench", storage_backend="core.sqlite_dos",
    storage_config={"filepath": os.path.join(home, "store")},
    email="bench@localhost", first_name="no", last_name="body", institution="none",
)
load_profile("bench", allow_switch=True)

@engine.calcfunction
def nothing(x):
    return orm.Int(x.value)

nothing(orm.Int(0))
begin = time.perf_counter()
for place in range(number):
    nothing(orm.Int(place))
functions = time.perf_counter() - begin

computer = orm.Computer(
    label="localhost", hostname="localhost", transport_type="core.local", scheduler_type="core.direct",
    workdir=os.path.join(home, "work"),
).store()
computer.set_minimum_job_poll_interval(0)
computer.configure(safe_interval=0)
code = orm.InstalledCode(
    label="add", computer=computer, filepath_executable="/bin/bash", default_calc_job_plugin="core.arithmetic.add"
).store()
Add = CalculationFactory("core.arithmetic.add")

def job(place):
    _, node = engine.run_get_node(Add, code=code, x=orm.Int(place), y=orm.Int(1))
    assert node.is_finished_ok, node.exit_status

job(0)
begin = time.perf_counter()
for place in range(number):
    job(place)
jobs = time.perf_counter() - begin
print(json.dumps({"version": aiida.__version__, "functions": functions, "jobs": jobs}))
"""


def run(*, sources: int = 50, quick: bool = False) -> Figures:
    """Executions an hour of each, and how many times AiiDA's jobs the services do."""
    number = 3 if quick else sources
    figures: Figures = {"executions": number}
    figures["services_per_hour"] = services = _an_hour(number, _by_services(number))
    if not quick:
        on_dagster = min(ON_DAGSTER, number)
        figures["dagster_executions"] = on_dagster
        figures["dagster_per_hour"] = _an_hour(on_dagster, _by_dagster(on_dagster))
    interpreter = aiida(install=not quick)
    if interpreter is None:
        return {**figures, "aiida": "not installed", "goals": {}}
    other = _by_aiida(interpreter, number)
    figures |= {
        "aiida": other["version"],
        "aiida_jobs_per_hour": (jobs := _an_hour(number, other["jobs"])),
        "aiida_functions_per_hour": (functions := _an_hour(number, other["functions"])),
        "ratio": round(services / jobs, 2),
        "ratio_to_functions": round(services / functions, 2),
    }
    if not quick:
        figures["dagster_ratio"] = round(figures["dagster_per_hour"] / jobs, 2)
    return {**figures, "goals": {"aiida_jobs_for_each_execution": goal(round(jobs / services, 3), 1.0)}}


def _an_hour(number: int, seconds: float) -> int:
    return round(number * 3600 / seconds)


def _by_services(number: int) -> float:
    with tempfile.TemporaryDirectory() as name, NoOpDaliuge() as daliuge:
        home = Path(name)
        ledger = Ledger(f"sqlite:///{home / 'ledger.db'}")
        try:
            migrate(ledger)
            stage = pending_stage(ledger, home, daliuge, number, poll_interval_seconds=1.0)
            begin = time.perf_counter()
            stage.admit()
            for launch in stage.platform.launcher.due(stage.executions()[0].project_module, limit=number):
                stage.submit(launch.execution, holder=launch.execution.id)
            while any(not one.terminal for one in stage.executions()):
                stage.platform.poll.tick()
            seconds = time.perf_counter() - begin
            done = [one.status for one in stage.executions()]
            if done != [Status.COMPLETED] * number:
                raise AssertionError(f"not everything completed: {sorted(set(done))}")
        finally:
            ledger.dispose()
    return seconds


def _by_dagster(number: int) -> float:
    with (
        tempfile.TemporaryDirectory() as name,
        running_instance(Path(name) / "home", number) as (instance, begin),
    ):
        instance.until(lambda: instance.completed() >= number)
        return time.monotonic() - begin


def aiida(*, install: bool) -> Path | None:
    """The interpreter of an environment with AiiDA, made in the cache directory when it is not there yet."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = base / "beampipe-dagster" / "aiida-2.9"
    interpreter, ready = place / "bin" / "python", place / "ready"
    if ready.exists():
        return interpreter
    if not install:
        return None
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    subprocess.run([str(interpreter), "-m", "pip", "install", "--quiet", AIIDA], check=True, timeout=1200)
    ready.touch()
    return interpreter


def _by_aiida(interpreter: Path, number: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [str(interpreter), "-c", _NOTHING, str(number), home],
            env={**os.environ, "AIIDA_PATH": home},
            cwd=home,
            capture_output=True,
            text=True,
            check=False,
            timeout=3600,
        )
    if done.returncode != 0:
        raise AssertionError(f"AiiDA did not get through: {done.stderr[-2000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures
