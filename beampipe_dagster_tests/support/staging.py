"""A platform whose survey stages its data at the sandbox archive, on one clock with it."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa

from beampipe_dagster.clock import ManualClock
from beampipe_dagster.errors import BeampipeError
from beampipe_dagster.execution.steps import StepReport
from beampipe_dagster.ledger import staging as jobs
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.staging import StagingJob
from beampipe_dagster.ledger.tables import metadata
from beampipe_dagster.sandbox.archive.deposits import Deposit
from beampipe_dagster.sandbox.archive.server import ArchiveServer
from beampipe_dagster_tests.support.archives import FakeArchives
from beampipe_dagster_tests.support.fake_daliuge import FaultPlan
from beampipe_dagster_tests.support.platforms import (
    IngestingDaliuge,
    Stage,
    ingest_graph,
    make_platform,
    survey_spec,
)

PASSWORD = "canary-password-77"  # noqa: S105  # looked for in everything that is kept

_QUERIES: dict[str, Any] = {
    "queries": [
        {
            "name": "visibility",
            "adapter": "casda",
            "template": "SELECT * FROM ivoa.obscore WHERE target = '{source_identifier}'",
        }
    ],
    "enrichments": [
        {
            "name": "sbid_to_eval_file",
            "adapter": "casda",
            "template": "SELECT * FROM evaluation WHERE sbid = '{sbid}'",
        }
    ],
}


@dataclass
class StagingStage:
    """A stage, the archive that stages, and what it has given out."""

    stage: Stage
    server: ArchiveServer
    deposits: list[Deposit] = field(default_factory=list)

    @property
    def base_url(self) -> str:
        return self.server.base_url

    def script(self, **values: Any) -> dict[str, Any]:
        """Change how the archive behaves; what it has done so far."""
        answer = httpx.put(f"{self.base_url}/sandbox/staging", json=values)
        assert answer.status_code == 200, answer.text
        done: dict[str, Any] = answer.json()
        return done

    def deposit(self, source: str, *sbids: int, beams: int = 2) -> None:
        """Data in the archive that stages, and the same in the one that is asked for metadata."""
        rows = self.stage.archives._rows
        for sbid in sbids:
            made = self.server.store.deposit(source, sbid=sbid, beams=beams)
            self.deposits.append(made)
            for file in made.files:
                row: dict[str, Any] = {
                    "filename": file.filename,
                    "target": source,
                    "obs_id": f"ASKAP-{sbid}",
                    "obs_publisher_did": file.obs_publisher_did,
                    "access_url": self._link(file.obs_publisher_did),
                }
                rows.setdefault(("casda", source), []).append(row)
            rows["casda", str(sbid)] = [self._evaluation(sbid, name) for name in made.evaluation_files]
        self.stage.archives.catalogue(source)

    def _evaluation(self, sbid: int, name: str) -> dict[str, Any]:
        query = f"SELECT id FROM casda.observation_evaluation_file WHERE filename = '{name}'"  # noqa: S608  # ours
        answer = httpx.get(
            f"{self.base_url}/casda/tap/sync", params={"LANG": "ADQL", "QUERY": query, "FORMAT": "csv"}
        )
        number = answer.text.split()[1]
        return {
            "sbid": str(sbid),
            "filename": name,
            "format": "calibration",
            "filesize": "10",
            "access_url": self._link(f"evaluation-{number}"),
        }

    def _link(self, file_id: str) -> str:
        return f"{self.base_url}/casda/datalink/links?ID={file_id}"

    def admitted(self, source: str = "A", *sbids: int, beams: int = 2) -> Execution:
        """A source with data, and its execution."""
        self.deposit(source, *(sbids or (72962,)), beams=beams)
        self.stage.register(source)
        self.stage.discover()
        (execution,) = self.stage.admit()
        return execution

    def stage_data(self, execution: Execution, *, holder: str = "me") -> StepReport:
        """The step."""
        return self.stage.platform.staging.staged_data(execution.id, holder=holder)

    def tried(self, execution: Execution, *, holder: str = "me") -> BeampipeError | StepReport:
        """The step, or its error."""
        try:
            return self.stage_data(execution, holder=holder)
        except BeampipeError as error:
            return error

    def until_staged(self, execution: Execution, *, rounds: int = 40) -> StepReport:
        """The step again and again, as the launcher would."""
        for _ in range(rounds):
            outcome = self.tried(execution)
            if isinstance(outcome, StepReport):
                return outcome
            assert outcome.code == "staging_waiting", outcome
            self.stage.clock.advance(300)
        raise AssertionError("it is never staged")

    def submitted(self, execution: Execution) -> Execution:
        """All steps."""
        self.until_staged(execution)
        return self.stage.submit(execution)

    def jobs(self, execution: Execution) -> list[StagingJob]:
        with self.stage.ledger.read() as conn:
            return jobs.of(conn, execution.id)

    def archive_jobs(self) -> list[dict[str, Any]]:
        """What the archive has."""
        found: list[dict[str, Any]] = httpx.get(f"{self.base_url}/sandbox/staging").json()["jobs"]
        return found

    def dump(self) -> str:
        """Everything in the ledger, documents unpacked."""
        parts: list[str] = []
        with self.stage.ledger.read() as conn:
            for table in metadata.sorted_tables:
                for row in conn.execute(sa.select(table)):
                    for cell in row:
                        if isinstance(cell, bytes | memoryview):
                            try:
                                parts.append(zlib.decompress(bytes(cell)).decode())
                            except zlib.error:
                                parts.append(bytes(cell).decode("utf-8", "replace"))
                        else:
                            parts.append(json.dumps(cell, default=str))
        return "\n".join(parts)


@contextmanager
def new_staging_stage(ledger: Ledger, home: Path, **settings: Any) -> Iterator[StagingStage]:
    """The survey stages by scheduling block, an hour's delay is nothing, and the password is right."""
    clock = ManualClock()
    archives = FakeArchives(clock=clock)
    before = {name: os.environ.get(name) for name in ("CASDA_USERNAME", "CASDA_PASSWORD")}
    os.environ |= {"CASDA_USERNAME": "astronomer", "CASDA_PASSWORD": PASSWORD}
    try:
        with (
            ArchiveServer(home / "archive", seed="empty", clock=clock) as server,
            IngestingDaliuge(plan=FaultPlan(seed=1, rate=0.0)) as daliuge,
        ):
            values = {"casda_login_url": f"{server.base_url}/casda/login", "staging_patience_seconds": 60.0}
            platform = make_platform(
                ledger, home=home, clock=clock, archives=archives, **{**values, **settings}
            )
            stage = Stage(platform, clock, archives, daliuge, home)
            made = StagingStage(stage, server)
            made.script(username="astronomer", password=PASSWORD, delay_seconds=10.0)
            stage.add_profile()
            add_staging_survey(stage)
            yield made
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def add_staging_survey(stage: Stage, **changes: Any) -> None:
    """The survey with calibration archives and scans; ``changes`` are of its top."""
    graph = json.dumps(ingest_graph()).encode()
    (stage.home / "survey.graph").write_bytes(graph)
    spec = survey_spec(hashlib.sha256(graph).hexdigest())
    prepare = spec["discovery"]["prepare_metadata"]
    fields = {**prepare["field_map"], "scan_id": {"from": "obs_publisher_did"}}
    excluded = ["access_url", "evaluation_file_access_url"]
    signature = {"exclude_fields": excluded, "include_discovery_flags": True}
    spec["discovery"] = {**_QUERIES, "prepare_metadata": {"field_map": fields, "signature": signature}}
    (stage.home / "survey.yaml").write_text(json.dumps({**spec, **changes}))
    stage.platform.projects.add_project(stage.home / "survey.yaml", actor="test")
