"""The demo: the demo survey taken from the archive to its expected states, unattended, and a report about it.

Everything runs as in ``beampipe up``. A watcher beside it only looks at the ledger: first until every source is
where it must be, then, after a deposit in the archive, until exactly the one source with news has run again.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import httpx
from rich.console import Console
from rich.table import Table

from beampipe_dagster.assembly import Platform, assemble
from beampipe_dagster.clock import rfc3339
from beampipe_dagster.config.profile import DeploymentProfile, load_profile
from beampipe_dagster.config.settings import Settings
from beampipe_dagster.errors import BeampipeError, ConfigError, ConflictError
from beampipe_dagster.execution.projects import read_text
from beampipe_dagster.ledger import executions, projects, sources
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.sources import NewSource, Source
from beampipe_dagster.ledger.states import Status
from beampipe_dagster.ledger.tables import batch_execution_record as record
from beampipe_dagster.sandbox.archive.demo import DemoSurvey, load_demo
from beampipe_dagster.sandbox.ports import LOOPBACK
from beampipe_dagster.sandbox.up import UpOptions, environment, run_up
from beampipe_dagster.signature.payload import partition_key
from beampipe_dagster.sources.status import describe

ACTOR: Final = "demo"
LOOK_SECONDS: Final = 1.0
FILES: Final = Path(__file__).resolve().parents[2] / "projects" / "wallaby_demo"
LOG_TAIL_BYTES: Final = 200_000
DEPOSIT_BEAMS: Final = 1


@dataclass(slots=True)
class Row:
    """What became of one source of the demo."""

    source_identifier: str
    expected: str
    state: str
    reason: str
    source: Source
    execution: Execution | None
    executions: int

    @property
    def as_expected(self) -> bool:
        """Whether it is where it must be."""
        return self.state == self.expected


@dataclass(slots=True)
class Result:
    """How the demo went."""

    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    deposit: dict[str, Any] = field(default_factory=dict)
    dagster: dict[str, Any] = field(default_factory=dict)


def platform_of(options: UpOptions) -> Platform:
    """The services on the home that ``options`` name, with the URLs of its sandbox."""
    import os  # noqa: PLC0415  # the one place that reads the present environment

    return assemble(Settings.from_env({**os.environ, **environment(options)}))


def seed(options: UpOptions) -> None:
    """Put the demo survey into the ledger: project, profile for the local DALiuGE, sources. Again changes nothing.

    Raises
    ------
    ConfigError
        ``demo_files_missing``: this installation has no demo survey beside it.
    """
    if not (FILES / "wallaby_demo.yaml").is_file():
        raise ConfigError(
            f"the demo survey is not at {FILES}",
            code="demo_files_missing",
            hint="run it from a checkout of the project, or use --no-sandbox",
        )
    platform = platform_of(options)
    demo = load_demo()
    platform.projects.put_profile(local_profile(options))  # the survey names it
    platform.projects.add_project(FILES / "wallaby_demo.yaml", actor=ACTOR)
    names = [source.source_identifier for source in demo.sources]
    with platform.ledger.read() as conn:
        known = {row.source_identifier for row in sources.by_identifiers(conn, demo.survey, names)}
    new = [
        NewSource(source.source_identifier, ra_deg=source.ra_deg, dec_deg=source.dec_deg)
        for source in demo.sources
        if source.source_identifier not in known
    ]
    if new:
        platform.registry.register(demo.survey, new, actor=ACTOR)
    platform.ledger.dispose()


def _seed_alone(options: UpOptions) -> None:
    """Seed a ledger that holds nothing but the demo: it may be a database that is used for something else.

    Raises
    ------
    ConflictError
        ``ledger_in_use``: the ledger has other surveys.
    """
    platform = platform_of(options)
    with platform.ledger.read() as conn:
        others = {item.project_id for item in projects.all_active(conn)} - {load_demo().survey}
    platform.ledger.dispose()
    if others:
        raise ConflictError(
            f"the ledger at {platform.ledger.display_url()} has the surveys {', '.join(sorted(others))}",
            code="ledger_in_use",
            hint="unset BEAMPIPE_DATABASE_URL for the demo, or give it a database of its own",
        )
    seed(options)


def local_profile(options: UpOptions) -> DeploymentProfile:
    """The demo's deployment profile, pointed at the DALiuGE that these options start."""
    stack = options.ports.daliuge
    document = json.loads(read_text(FILES / "profile.json", what="profile"))
    document["translation"]["tm_url"] = stack.translator_url
    document["deployment"] = {
        **document["deployment"],
        "dim_host_for_tm": LOOPBACK,
        "dim_port_for_tm": stack.dim,
        "deploy_host": LOOPBACK,
        "deploy_port": stack.dim,
    }
    return load_profile(document, name="profile.json")


def run_demo(
    options: UpOptions,
    *,
    report: Path,
    timeout_seconds: float = 300.0,
    keep_logs: Path | None = None,
    console: Console | None = None,
) -> int:
    """Run the demo headless and write its report.

    Parameters
    ----------
    options
        Where it runs.
    report
        JSON file to be written, in success and in failure.
    timeout_seconds
        How long the sources may take to reach their states.
    keep_logs
        Directory that the logs are copied to when something was not as expected.
    console
        Where progress and the table are shown.

    Returns
    -------
    int
        0 when everything was as expected, 1 otherwise.
    """
    out = console or Console()
    stop = threading.Event()
    result = Result()
    watcher = _Watcher(options, result, out, timeout_seconds)
    thread = threading.Thread(target=watcher.run, args=(stop,), name="demo", daemon=True)
    try:
        run_up(options, console=out, seed=lambda: _seed_alone(options), stop=stop, on_up=thread.start)
    except BeampipeError as error:
        result.problems.append(str(error))
    if thread.ident is None:
        result.problems.append("the platform did not come up")
    else:
        thread.join(timeout=30)
    report.write_text(json.dumps(_report(options, result), indent=2) + "\n")
    if result.rows:
        out.print(_table(result.rows))
    if result.problems:
        for problem in result.problems:
            out.print(f"[red]not as expected:[/red] {problem}", soft_wrap=True)
        if keep_logs is not None:
            shutil.copytree(options.home / "logs", keep_logs, dirs_exist_ok=True)
            out.print(f"logs: {keep_logs}", soft_wrap=True)
        return 1
    out.print(f"[green]As expected.[/green] Report: {report}", soft_wrap=True)
    return 0


class _Watcher:
    """Looks at the ledger until everything is as expected, or time is over."""

    def __init__(self, options: UpOptions, result: Result, out: Console, timeout: float) -> None:
        self._options = options
        self._result = result
        self._out = out
        self._timeout = timeout
        self._demo: DemoSurvey = load_demo()

    def run(self, stop: threading.Event) -> None:
        try:
            self._platform = platform_of(self._options)
            self._watch(stop)
        except Exception as error:  # noqa: BLE001  # a thread's end must be told, whatever it was
            self._result.problems.append(f"{type(error).__name__}: {error}")
        finally:
            stop.set()

    def _watch(self, stop: threading.Event) -> None:
        first = self._until(stop, lambda rows: all(row.as_expected for row in rows), "the expected states")
        if not first:
            return
        self._deposit(stop)
        self._ask_dagster(stop)

    def _until(self, stop: threading.Event, done: Callable[[list[Row]], bool], goal: str) -> bool:
        """Look every second; on time-out say which source stands where, and why."""
        clock = self._platform.clock
        end = clock.monotonic() + self._timeout
        shown = ""
        while not stop.is_set():
            rows = self._result.rows = self._look()
            line = _progress(rows)
            if line != shown:
                self._out.print(f"  {line}", soft_wrap=True)
                shown = line
            if done(rows):
                return True
            if clock.monotonic() > end:
                self._result.problems.extend(
                    f"{row.source_identifier} is {row.state} ({row.reason or 'no reason given'}), "
                    f"expected {row.expected}"
                    for row in rows
                    if not row.as_expected
                )
                self._result.problems.append(f"{goal} were not reached within {self._timeout:.0f} s")
                return False
            stop.wait(LOOK_SECONDS)
        self._result.problems.append(f"it was stopped before {goal} were reached")
        return False

    def _look(self) -> list[Row]:
        with self._platform.ledger.read() as conn:
            registered = {
                row.source_identifier: row for row in sources.listing(conn, self._demo.survey, limit=1000)
            }
            all_runs = executions.select(conn, record.c.project_module == self._demo.survey, limit=1000)
        rows = []
        for expected in self._demo.sources:
            source = registered[expected.source_identifier]
            runs = [run for run in all_runs if expected.source_identifier in run.source_identifiers]
            state = describe(source, runs[-1] if runs else None)
            rows.append(
                Row(
                    expected.source_identifier,
                    expected.expect,
                    state.word,
                    state.detail or "",
                    source,
                    runs[-1] if runs else None,
                    len(runs),
                )
            )
        return rows

    def _deposit(self, stop: threading.Event) -> None:
        """A new observation of one source: only that source may run again."""
        chosen = next(row for row in self._result.rows if row.expected == "completed")
        before = {row.source_identifier: row for row in self._result.rows}
        answer = httpx.post(
            f"{self._options.archive_url}/sandbox/deposits",
            json={"source_identifier": chosen.source_identifier, "beams": DEPOSIT_BEAMS},
            timeout=30,
            trust_env=False,
        )
        answer.raise_for_status()
        self._out.print(f"  deposited a new observation of {chosen.source_identifier}", soft_wrap=True)
        marked_at = self._platform.clock.now()
        self._platform.registry.mark_for_discovery(self._demo.survey, None, actor=ACTOR)

        def settled(rows: list[Row]) -> bool:
            looked = all((row.source.last_checked_at or marked_at) > marked_at for row in rows)
            return (
                looked
                and all(row.as_expected for row in rows)
                and any(
                    row.source_identifier == chosen.source_identifier and row.executions > chosen.executions
                    for row in rows
                )
            )

        if not self._until(stop, settled, "the states after the deposit"):
            return
        again = {
            row.source_identifier
            for row in self._result.rows
            if row.executions != before[row.source_identifier].executions
            or row.source.discovery_signature != before[row.source_identifier].source.discovery_signature
        }
        self._result.deposit = {
            "source_identifier": chosen.source_identifier,
            "added": answer.json(),
            "signature_before": chosen.source.discovery_signature,
            "changed_sources": sorted(again),
        }
        if again != {chosen.source_identifier}:
            self._result.problems.append(
                f"a deposit of {chosen.source_identifier} changed {', '.join(sorted(again)) or 'nothing'}"
            )

    def _ask_dagster(self, stop: threading.Event) -> None:
        """Dagster must show what the ledger says: a partition a signature, an outcome an execution."""
        with self._platform.ledger.read() as conn:
            runs = executions.select(conn, record.c.project_module == self._demo.survey, limit=1000)
        keys = sorted({run.partition_key for run in runs})
        clock = self._platform.clock
        end = clock.monotonic() + self._timeout
        seen: dict[str, Any] = {}
        while not stop.is_set() and clock.monotonic() < end:
            seen = _dagster_view(self._options.web_url, self._demo.survey)
            if seen.get("outcomes") == keys:
                break
            stop.wait(LOOK_SECONDS)
        self._result.dagster = {**seen, "expected_outcomes": keys}
        if seen.get("outcomes") != keys:
            self._result.problems.append(
                f"Dagster shows outcomes for {seen.get('outcomes')}, the ledger has {keys}"
            )


_OUTCOMES_QUERY: Final = """
query Outcomes($key: AssetKeyInput!) {
  assetNodeOrError(assetKey: $key) {
    ... on AssetNode {
      assetMaterializations(limit: 500) { partition }
      assetPartitionStatuses { ... on DefaultPartitionStatuses { materializedPartitions } }
    }
  }
}
"""


def _dagster_view(web_url: str, project_id: str) -> dict[str, Any]:
    """What the web server says about the survey's outcomes."""
    answer = httpx.post(
        f"{web_url}/graphql",
        json={
            "query": _OUTCOMES_QUERY,
            "variables": {"key": {"path": [project_id, "execution_outcome"]}},
        },
        timeout=30,
        trust_env=False,
    ).json()
    node = ((answer.get("data") or {}).get("assetNodeOrError")) or {}
    found = {item["partition"] for item in node.get("assetMaterializations") or []}
    shown = (node.get("assetPartitionStatuses") or {}).get("materializedPartitions") or []
    return {"outcomes": sorted(key for key in found if key), "partitions_shown": len(shown)}


def _progress(rows: list[Row]) -> str:
    words: dict[str, int] = {}
    for row in rows:
        words[row.state] = words.get(row.state, 0) + 1
    return ", ".join(f"{number} {word}" for word, number in sorted(words.items()))


def _table(rows: list[Row]) -> Table:
    table = Table(title="wallaby_demo", title_justify="left")
    for column in ("source", "state", "signature", "drops", "runs"):
        table.add_column(column, no_wrap=True)
    table.add_column("reason", overflow="fold")
    for row in rows:
        run = row.execution
        drops = (run.drop_counts or {}) if run else {}
        state = (
            f"[green]{row.state}[/green]"
            if row.as_expected
            else f"[red]{row.state}[/red], expected {row.expected}"
        )
        table.add_row(
            row.source_identifier,
            state,
            (row.source.discovery_signature or "")[:12],
            f"{drops.get('completed', 0)}/{drops.get('total', 0)}" if drops else "",
            str(row.executions),
            row.reason,
        )
    return table


def _report(options: UpOptions, result: Result) -> dict[str, Any]:
    return {
        "survey": "wallaby_demo",
        "as_expected": not result.problems,
        "problems": result.problems,
        "ui_url": options.web_url,
        "metrics_url": options.metrics_url,
        "sources": [_source_report(row) for row in result.rows],
        "deposit": result.deposit,
        "dagster": result.dagster,
    }


def _source_report(row: Row) -> dict[str, Any]:
    run = row.execution
    signature = row.source.discovery_signature
    return {
        "source_identifier": row.source_identifier,
        "status": row.state,
        "expected": row.expected,
        "reason": row.reason,
        "signature": signature,
        "partition_key": run.partition_key
        if run
        else partition_key(row.source_identifier, signature)
        if signature and row.state == "held"
        else None,
        "execution_id": run.id if run else None,
        "executions": row.executions,
        "daliuge_session_id": run.daliuge_session_id if run else None,
        "drops": run.drop_counts if run else None,
        "seconds": stage_seconds(run) if run else {},
        "error": run.last_error if run and run.status is Status.FAILED else None,
    }


def stage_seconds(run: Execution) -> dict[str, float]:
    """Seconds from each phase to the next, by the name of the phase that began."""
    stamps = sorted((at, phase) for phase, at in run.phase_timestamps.items())
    if run.completed_at is not None:
        stamps.append((rfc3339(run.completed_at), "end"))
    seconds: dict[str, float] = {}
    for (at, phase), (after, _) in pairwise(stamps):
        seconds[phase] = round((_time(after) - _time(at)).total_seconds(), 3)
    if run.completed_at is not None:
        seconds["total"] = round((run.completed_at - run.created_at).total_seconds(), 3)
    return seconds


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def demo_options(options: UpOptions, home: Path) -> UpOptions:
    """The same options on a fresh home of the demo's own."""
    if home.exists():
        shutil.rmtree(home)
    return replace(options, home=home)
