"""The page of one execution."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from sqlalchemy.engine import Connection

from beampipe_dagster.cli.render import DIGITS, cell, facts, number, section, table, when
from beampipe_dagster.ledger import artifacts, observations
from beampipe_dagster.ledger.artifacts import Artifact
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.states import OutputState, SchedulerState
from beampipe_dagster.sandbox.terminal import age_text, clean
from beampipe_dagster.sandbox.watch import drops_text, word_text
from beampipe_dagster.sources.status import stage

LOG_LINES: Final = 8
"""Lines of a failed drop's log that are shown: the last ones say what went wrong."""

_COUNTED: Final = ("datasets", "nodes", "findings", "drops", "roots", "partitions")
_DROP_WORDS: Final = ("completed", "running", "waiting", "error", "cancelled", "skipped")


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase that an execution went through: when it began, and for how long it lasted, in seconds."""

    name: str
    began_at: datetime
    seconds: float | None


@dataclass(frozen=True, slots=True)
class ExecutionPage:
    """All that the ledger knows about an execution."""

    execution: Execution
    artifacts: list[Artifact]
    observations: list[dict[str, Any]]

    def as_dict(self, now: datetime) -> dict[str, Any]:
        """The page as JSON; a phase that is still going on lasts until ``now``."""
        run = self.execution
        hidden = {"workflow_manifest", "lease_token", "project_module", "drop_counts", "light"}
        fields = {name: getattr(run, name) for name in type(run).__slots__ if name not in hidden}
        return {
            **fields,
            "project_id": run.project_module,
            "drops": run.drop_counts,
            "source_identifiers": run.source_identifiers,
            "stage": stage(run),
            "phases": phases(run, now),
            "artifacts": self.artifacts,
            "observations": self.observations,
            "failed_drops": failed_drops(run),
            "run_record": run.run_record,
        }


def load(conn: Connection, execution: Execution) -> ExecutionPage:
    """Read an execution's page."""
    return ExecutionPage(
        execution=execution,
        artifacts=artifacts.listing(conn, execution.id),
        observations=observations.of(conn, execution.id),
    )


def phases(run: Execution, now: datetime) -> list[Phase]:
    """The phases in the order of their time; the end of an ended execution has no length."""
    stamps = sorted((datetime.fromisoformat(at), name) for name, at in run.phase_timestamps.items())
    ends = [at for at, _ in stamps[1:]]
    found = [
        Phase(name, at, round((end - at).total_seconds(), 3))
        for (at, name), end in zip(stamps, ends, strict=False)
    ]
    if stamps:
        at, name = stamps[-1]
        found.append(Phase(name, at, None if run.terminal else round((now - at).total_seconds(), 3)))
    return found


def failed_drops(run: Execution) -> list[dict[str, Any]]:
    """The drops that failed, as the run record keeps them."""
    terminal = (run.run_record.get("dim") or {}).get("terminal") or {}
    return [dict(drop) for drop in terminal.get("failed_drops") or []]


def show_execution(out: Console, page: ExecutionPage, *, now: datetime) -> None:
    """Print an execution's page."""
    run = page.execution
    out.print(Text.assemble((run.id, "bold"), "  ", word_text(run.status)), soft_wrap=True)
    out.print(facts(_facts(run, now)))
    section(out, "Phases", _phases(run, now))
    section(out, "Artifacts", _artifacts(page) if page.artifacts else "None yet.")
    if run.drop_counts:
        section(out, "Drops", _drops(run.drop_counts))
    _failed(out, run)


def _facts(run: Execution, now: datetime) -> list[tuple[str, object]]:
    profile = run.deployment_profile_snapshot.get("name")
    took = age_text(((run.completed_at or now) - run.created_at).total_seconds())
    ended = f"{when(run.completed_at)} UTC, after {took}" if run.completed_at else None
    urls = ((run.run_record.get("dim") or {}).get("deploy") or {}).get("operator_urls") or {}
    later = f"{when(run.next_launch_at)} UTC" if run.wait_count and run.next_launch_at else None
    outcome = run.terminal_outcome
    why = f" ({run.failure_class})" if run.failure_class else ""
    error = None
    if run.last_error:
        code = f" [{run.last_error_code}]" if run.last_error_code else ""
        # Errors of the services have their code in them already.
        known = code and run.last_error.startswith(code.strip())
        error = cell(f"{run.last_error}{'' if known else code}", "red" if run.terminal else "yellow")
    return [
        ("project", run.project_module),
        ("partition", run.partition_key),
        ("sources", "\n".join(run.source_identifiers)),
        ("stage", None if run.terminal else stage(run)),
        ("outcome", f"{outcome}{why}" if outcome else None),
        ("error", error),
        ("next try", later),
        ("to look at", _escalations(run)),
        ("began", f"{when(run.created_at)} UTC by {run.created_by}"),
        ("ended", ended),
        ("submission", word_text(run.submission_state)),
        ("scheduler", _unless(run.scheduler_state, SchedulerState.NOT_SUBMITTED)),
        ("session", word_text(run.daliuge_state)),
        ("outputs", _unless(run.output_state, OutputState.NOT_STARTED)),
        ("session id", run.daliuge_session_id),
        ("manager", run.daliuge_manager_url),
        ("status URL", urls.get("dim_session_status_url")),
        ("profile", f"{profile} r{run.deployment_profile_revision}" if profile else None),
        ("datasets", run.dataset_count or None),
        ("signature", run.discovery_signature),
    ]


def _escalations(run: Execution) -> Text | None:
    """What an operator was told about it, with what can be done."""
    told = (run.escalations or {}).values()
    return cell("\n".join(f"{one['reason']} ({one['hint']})" for one in told), "yellow") if told else None


def _unless(state: str, nothing: str) -> Text | None:
    return None if state == nothing else word_text(state)


def _phases(run: Execution, now: datetime) -> Table:
    rows = table("phase", "began (UTC)", ("lasted", {"justify": "right"}))
    for phase in phases(run, now):
        lasted = "" if phase.seconds is None else _seconds(phase.seconds)
        rows.add_row(cell(phase.name.replace("_", " ")), when(phase.began_at, now=now), lasted)
    return rows


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else age_text(seconds)


def _artifacts(page: ExecutionPage) -> Table:
    rows = table("document", "SHA-256", ("size", {"justify": "right"}), "what is in it")
    for artifact in page.artifacts:
        known = [
            number(count, name.removesuffix("s"))
            for name in _COUNTED
            if (count := _count(artifact.metadata.get(name)))
        ]
        size = artifact.size_bytes
        rows.add_row(
            cell(artifact.kind.replace("_", " ")),
            cell(artifact.sha256[:DIGITS], "dim"),
            f"{size / 1e3:,.1f} kB" if size >= 1_000 else f"{size} B",
            cell(", ".join(known) or " "),
        )
    return rows


def _count(value: object) -> int:
    if isinstance(value, list):
        return len(value)
    return value if isinstance(value, int) else 0


def _drops(counts: dict[str, int]) -> Text:
    told = ", ".join(f"{counts[word]} {word}" for word in _DROP_WORDS if counts.get(word))
    return Text.assemble(drops_text(counts, length=20), f"  {told}" if told else "")


def _failed(out: Console, run: Execution) -> None:
    drops = failed_drops(run)
    if not drops:
        return
    with_log = [drop for drop in drops if str(drop.get("log") or "").strip()]
    section(out, "Failed drops", Text("") if with_log else "None of them has a log of its own.")
    for drop in with_log:
        lines = clean(str(drop["log"]).strip()).splitlines()
        out.print(Padding(cell(drop.get("name") or drop.get("oid"), "bold red"), (0, 0, 0, 2)))
        if len(lines) > LOG_LINES:
            more = f"… {len(lines) - LOG_LINES} lines before; --json has them"
            out.print(Padding(cell(more, "dim"), (0, 0, 0, 4)))
        out.print(Padding(cell("\n".join(lines[-LOG_LINES:])), (0, 0, 0, 4)))
    others = sorted({str(drop.get("name") or drop.get("oid")) for drop in drops if drop not in with_log})
    if with_log and others:
        after = f"and after it, without a log of their own: {', '.join(others)}"
        out.print(Padding(cell(after, "dim"), (0, 0, 0, 2)))
