"""Calls of `beampipe`, and ledgers for it to look at."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from beampipe_dagster.assembly import Platform
from beampipe_dagster.cli.main import root
from beampipe_dagster.config.canonical import digest
from beampipe_dagster.execution import run_record
from beampipe_dagster.execution.outcome import finish
from beampipe_dagster.ledger import (
    archive,
    artifacts,
    executions,
    fsm,
    profiles,
    projects,
    provenance,
    sources,
)
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.states import (
    ArtifactKind,
    ControlPhase,
    DaliugeState,
    Status,
    SubmissionState,
    TerminalOutcome,
)
from beampipe_dagster.signature.payload import partition_key
from beampipe_dagster_tests.support.ledgers import new_execution

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO = REPOSITORY / "projects" / "wallaby_demo"
SURVEY = "wallaby_demo"
LOG = "Traceback (most recent call last):\n" + "".join(f"  frame {n}\n" for n in range(12)) + "ValueError: no"


@dataclass(frozen=True)
class Beampipe:
    """Calls `beampipe` with a home of its own."""

    home: Path
    columns: int = 100

    def __call__(self, *args: str, env: dict[str, str] | None = None, stdin: str | None = None) -> Result:
        settings: dict[str, str | None] = {
            "BEAMPIPE_HOME": str(self.home),
            "BEAMPIPE_DATABASE_URL": None,
            "BEAMPIPE_CASDA_TAP_URL": None,
            "COLUMNS": str(self.columns),
            **(env or {}),
        }
        return CliRunner(env=settings).invoke(root, list(args), input=stdin, prog_name="beampipe")

    def ok(self, *args: str) -> str:
        """What it prints when it succeeds."""
        result = self(*args)
        assert result.exit_code == 0, result.output
        return result.stdout

    def json(self, *args: str, exit_code: int = 0) -> Any:
        """The document that it prints; nothing else may be on stdout."""
        result = self(*args, "--json")
        assert result.exit_code == exit_code, result.output
        return json.loads(result.stdout)

    def refused(self, *args: str, code: str, exit_code: int = 1) -> str:
        """What it says when it fails with this code; the same code must be in the JSON."""
        result = self(*args)
        assert result.exit_code == exit_code, result.output
        assert result.stderr.startswith(f"error[{code}]: "), result.stderr
        assert "Traceback" not in result.output
        assert self.json(*args, exit_code=exit_code)["error"]["code"] == code
        return result.stderr


class World:
    """A ledger with the demo survey, and what a test puts into it."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform

    def looked_at(self, name: str, *, datasets: int = 2, ready: bool = True) -> str:
        """A complete answer about a source; its signature."""
        now = self.platform.clock.now()
        document: dict[str, Any] = {
            "datasets": [{"dataset_id": f"{name}_B{n:02d}.ms", "sbid": "7"} for n in range(datasets)],
            "discovery_flags": {"position": ready},
        }
        signature = digest(document)
        with self.platform.ledger.begin() as conn:
            source = sources.get(conn, SURVEY, name)
            ids = self.platform.ids
            archive.replace_metadata(conn, SURVEY, name, {"7": document}, ids=ids, now=now)
            added: list[Any] = [{"sbid": "7", "dataset": item["dataset_id"]} for item in document["datasets"]]
            change = archive.SignatureChange(
                id=ids.new(),
                project_module=SURVEY,
                source_identifier=name,
                signature=signature,
                previous_signature=None,
                partition_key=partition_key(name, signature),
                project_config_id=projects.active(conn, SURVEY).id,
                sbid_count=1,
                dataset_count=datasets,
                diff={"added": added, "counts": {"added": datasets}},
                evidence=[],
                metadata_json={"7": document},
                discovered_at=now,
            )
            archive.record_change(conn, change)
            values: dict[str, object] = {
                "last_checked_at": now,
                "last_outcome": "changed",
                "discovery_signature": signature,
                "workflow_run_pending": True,
                "workflow_run_pending_at": now,
            }
            sources.update(conn, [source.id], values, now=now)
            event = provenance.Event(
                event_type="discovery.changed",
                project_module=SURVEY,
                source_identifier=name,
                payload={"signature": signature, "sbids": 1, "datasets": datasets},
            )
            provenance.record(conn, [event], ids=ids, now=now)
        return signature

    def admitted(self, *names: str) -> Execution:
        """An execution over sources that were looked at."""
        now = self.platform.clock.now()
        with self.platform.ledger.begin() as conn:
            rows = {row.source_identifier: row for row in sources.by_identifiers(conn, SURVEY, names)}
            signatures = {name: rows[name].discovery_signature or "0" * 64 for name in names}
            profile = profiles.everything(conn)[0]
            new = new_execution(
                projects.active(conn, SURVEY).id,
                names,
                ids=self.platform.ids,  # type: ignore[arg-type]  # any of them counts
                project_module=SURVEY,
                partition_key=partition_key(names[0], signatures[names[0]]),
                signatures=signatures,
                sources=[{"source_identifier": k, "discovery_signature": v} for k, v in signatures.items()],
                deployment_profile_id=profile.id,
                deployment_profile_snapshot=profile.spec,
            )
            execution = executions.create(conn, new, now=now)
            gone: dict[str, object] = {"workflow_run_pending": False}
            sources.update(conn, [row.id for row in rows.values()], gone, now=now)
            events = [
                provenance.Event(
                    event_type=kind,
                    project_module=SURVEY,
                    source_identifier=name,
                    execution_id=execution.id,
                    actor="automation",
                    payload={"partition_key": execution.partition_key, "profile": "local r1"},
                )
                for name in names
                for kind in ("execution.created", "execution.automated_admitted")
            ]
            provenance.record(conn, events, ids=self.platform.ids, now=now)
        return execution

    def submitted(self, execution: Execution, *, done: int = 3) -> Execution:
        """Its session runs."""
        with self.platform.ledger.begin() as conn:
            artifacts.put(
                conn,
                execution.id,
                ArtifactKind.MANIFEST,
                {"sources": []},
                phase=ControlPhase.MANIFEST_GENERATED,
                facts={"datasets": 2},
                ids=self.platform.ids,
                now=self.platform.clock.now(),
            )
            return executions.move(
                conn,
                execution,
                now=self.platform.clock.now(),
                patch=fsm.StatusPatch(status=Status.RUNNING),
                values={
                    "submission_state": SubmissionState.SUBMITTED,
                    "daliuge_state": DaliugeState.RUNNING,
                    "daliuge_session_id": f"session-{execution.id}",
                    "control_phase": ControlPhase.MONITORING,
                    "drop_counts": {"total": 9, "completed": done, "error": 0},
                },
            )

    def ended(self, execution: Execution, status: Status, *, error: str | None = None) -> Execution:
        """It has ended, with one failed drop where it failed."""
        clock, ids = self.platform.clock, self.platform.ids
        drops = [{"oid": "o1", "name": "image", "state": "error", "log": LOG}]
        with self.platform.ledger.begin() as conn:
            kept = run_record.with_terminal(
                execution.run_record,
                session_id=execution.daliuge_session_id,
                session_state=status.value,
                at=clock.now(),
                ledger_status=status.value,
                error=error,
                failed_drops=drops if error else None,
            )
            failed = status is Status.FAILED
            return finish(
                conn,
                execution,
                status,
                outcome=TerminalOutcome.FAILED if failed else TerminalOutcome.SUCCEEDED,
                clock=clock,
                ids=ids,
                values={"workflow_manifest": run_record.put(execution.workflow_manifest, kept)},
                error=error,
                error_code="session_failed" if error else None,
            )

    def set_source(self, name: str, **values: object) -> None:
        """Set columns of a source."""
        with self.platform.ledger.begin() as conn:
            row = sources.get(conn, SURVEY, name)
            sources.update(conn, [row.id], values, now=self.platform.clock.now())
