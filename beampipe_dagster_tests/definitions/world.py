"""A whole platform in one process: a ledger in a file, archives in memory, a DALiuGE that does as it is told."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg

from beampipe_dagster.assembly import Platform, assemble
from beampipe_dagster.clock import Clock, ManualClock
from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.config.profile import load_profile
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.config.settings import Settings
from beampipe_dagster.defs import names
from beampipe_dagster.defs.build import build_definitions
from beampipe_dagster.defs.resources import FixedPlatform
from beampipe_dagster.discovery.archive import (
    CONSERVATIVE,
    Answer,
    AnswerClass,
    Evidence,
    TapCapabilities,
    Upload,
    archive_error,
)
from beampipe_dagster.ledger import executions, outbox, sources
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.outbox import StoredMessage
from beampipe_dagster.ledger.sources import NewSource, Source
from beampipe_dagster.ledger.tables import batch_execution_record as record
from beampipe_dagster_tests.support.fake_daliuge import FINISHED, FakeDaliuge
from beampipe_dagster_tests.support.graphs import bash_chain

SURVEY = "toy"
PROFILE = "fake-daliuge"

_YAML = """\
apiVersion: beampipe.dev/v2
kind: ProjectConfig
metadata: {{id: {survey}, description: A survey of a test}}
adapters: {{required: [casda]}}
graph: {{path: toy.graph, sha256: {sha256}}}
discovery:
  queries:
    - name: visibility
      adapter: casda
      template: SELECT * FROM ivoa.obscore WHERE filename LIKE '{{source_identifier}}_SB%'
  prepare_metadata:
    field_map:
      source_identifier: {{from: source_identifier}}
      dataset_id: {{from: filename}}
      sbid: {{from: sbid}}
manifest:
  group_by: [source_identifier, sbid]
  source_template: {{source_identifier: "{{source_identifier}}"}}
graph_patches:
  - match: {{kind: node_name, equals: step1}}
    set: {{num_cpus: "$count(sbids[].datasets[])"}}
output_verification: {{required: false}}
automation:
  discovery: {{enabled: true, batch_size: 50, stale_after_hours: 24}}
  execution:
    enabled: true
    archive_name: casda
    max_sources_per_execution: 1
    tick_execution_run_limit: 100
    tick_execution_source_limit: 100
    deployment_profile_name: {profile}
"""


class MemoryArchive:
    """An archive of file names by source; every query is answered whole, or as ``fault`` says."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.files: dict[str, list[str]] = {}
        self.fault: AnswerClass | None = None

    def get(self, config: ProjectConfig, adapter: str) -> MemoryArchive:
        """The provider's side: there is one archive."""
        del config, adapter
        return self

    def availability(self) -> tuple[bool, str]:
        """It is always there."""
        return True, "in memory"

    def capabilities(self) -> TapCapabilities:
        """It answers at once, and no more."""
        return CONSERVATIVE

    def query_async(self, adql: str, *, maxrec: int = 20_000, upload: Upload | None = None) -> Answer:
        """It answers at once anyway."""
        return self.query(adql, maxrec=maxrec, upload=upload)

    def query(self, adql: str, *, maxrec: int = 20_000, upload: Upload | None = None) -> Answer:
        """The rows of those sources that are asked for."""
        del maxrec, upload
        asked = re.findall(r"LIKE '([^%]+)_SB%'", adql)
        assert asked, adql
        rows: list[dict[str, JsonValue]] = [
            {"filename": name, "sbid": name.split("_SB")[1].split("_")[0]}
            for source in asked
            for name in self.files.get(source, [])
        ]
        evidence = Evidence(
            adapter="casda",
            url="memory:",
            query_sha256=hashlib.sha256(adql.encode()).hexdigest(),
            started_at=self._clock.now(),
            seconds=0.0,
            rows=len(rows),
            answer=self.fault or AnswerClass.COMPLETE,
        )
        if self.fault is not None:
            raise archive_error("as the test wants it", evidence)
        return Answer(rows, evidence)

    def deposit(self, *source_identifiers: str, sbid: int = 100, beams: int = 1) -> None:
        """Another scheduling block of each source."""
        for name in source_identifiers:
            self.files.setdefault(name, []).extend(f"{name}_SB{sbid}_B{beam:02}.ms" for beam in range(beams))


@dataclass
class World:
    """The platform, what surrounds it, and a Dagster instance in memory."""

    platform: Platform
    clock: ManualClock
    archive: MemoryArchive
    daliuge: FakeDaliuge
    instance: dg.DagsterInstance
    folder: Path
    definitions: dg.Definitions = field(init=False)

    @property
    def resource(self) -> FixedPlatform:
        """The platform for Dagster."""
        return FixedPlatform.of(self.platform)

    def load(self) -> dg.Definitions:
        """Load the code location anew, as a reload does."""
        self.definitions = build_definitions(self.resource)
        return self.definitions

    def add_survey(self, survey: str = SURVEY) -> None:
        """A survey with a graph of one command, and the profile that it names."""
        raw = json.dumps(bash_chain("echo a > {out}")).encode()
        (self.folder / "toy.graph").write_bytes(raw)
        path = self.folder / f"{survey}.yaml"
        path.write_text(
            _YAML.format(survey=survey, sha256=hashlib.sha256(raw).hexdigest(), profile=PROFILE), "utf-8"
        )
        self.platform.projects.put_profile(load_profile(self.profile_document()))
        self.platform.projects.add_project(path, actor="test")

    def profile_document(self, **deployment: Any) -> dict[str, Any]:
        """The profile, pointed at the fake DALiuGE."""
        return {
            "name": PROFILE,
            "is_default": True,
            "translation": {
                "algo": "metis",
                "num_par": 1,
                "num_islands": 1,
                "tm_url": self.daliuge.translator_url,
            },
            "deployment": {
                "kind": "rest_remote",
                "deploy_host": "127.0.0.1",
                "deploy_port": self.daliuge.manager.port,
                **deployment,
            },
        }

    def register(self, *source_identifiers: str, survey: str = SURVEY) -> None:
        """Register sources."""
        new = [NewSource(name) for name in source_identifiers]
        self.platform.registry.register(survey, new, actor="test")

    def discover(self, survey: str = SURVEY) -> dict[str, str]:
        """One round of discovery without Dagster: partition key by source, for what changed."""
        self.clock.advance(1)
        self.platform.registry.mark_for_discovery(survey, None, actor="test")
        changed: dict[str, str] = {}
        for claim in self.platform.discovery.tick(survey).claims:
            changed |= self.platform.discovery.run_batch(claim.token).changed
        self.instance.add_dynamic_partitions(names.partitions_name(survey), list(changed.values()))
        return changed

    def with_sources(self, *source_identifiers: str, survey: str = SURVEY) -> list[str]:
        """A survey with discovered sources; their partition keys."""
        self.add_survey(survey)
        self.register(*source_identifiers, survey=survey)
        self.archive.deposit(*source_identifiers)
        changed = self.discover(survey)
        self.load()
        return [changed[name] for name in source_identifiers]

    def admit(self, survey: str = SURVEY) -> list[Execution]:
        """Admit what is pending."""
        return self.platform.admission.tick(survey).admitted

    def execution(self, key: str, survey: str = SURVEY) -> Execution:
        """The execution of a partition as it is now."""
        with self.platform.ledger.read() as conn:
            found = executions.by_partition(conn, survey, key)
        assert found is not None, f"no execution of {key}"
        return found

    def executions(self) -> list[Execution]:
        """All executions."""
        with self.platform.ledger.read() as conn:
            return executions.select(conn, record.c.id.is_not(None), limit=1000)

    def source(self, name: str, survey: str = SURVEY) -> Source:
        """A registry row as it is now."""
        with self.platform.ledger.read() as conn:
            return sources.get(conn, survey, name)

    def undelivered(self) -> list[StoredMessage]:
        """Outbox messages that wait, also those that are not due yet."""
        far = self.clock.now().replace(year=9000)
        with self.platform.ledger.read() as conn:
            return outbox.due(conn, now=far, limit=1000)

    def materialize(
        self, *keys: str, survey: str = SURVEY, tags: dict[str, str] | None = None, config: Any = None
    ) -> dg.ExecuteInProcessResult:
        """Run the survey's four steps for a key, or for the range from the first to the last one."""
        job = self.definitions.resolve_job_def(names.execution_job(survey))
        where: dict[str, Any] = {"partition_key": keys[0], "tags": tags}
        if len(keys) > 1:
            where = {
                "tags": {
                    "dagster/asset_partition_range_start": keys[0],
                    "dagster/asset_partition_range_end": keys[-1],
                }
            }
        return job.execute_in_process(
            instance=self.instance, raise_on_error=False, run_config=config, **where
        )

    def submit(self, key: str, survey: str = SURVEY) -> str:
        """Bring an execution to its session with the services alone; the session's id."""
        execution = self.execution(key, survey)
        steps = self.platform.steps
        for step in (
            steps.workflow_manifest,
            steps.prepared_graph,
            steps.physical_graph,
            self.platform.submission.backend_run,
        ):
            step(execution.id, holder="test")
        session_id = self.execution(key, survey).daliuge_session_id
        assert session_id is not None
        return session_id

    def finish(self, session_id: str) -> None:
        """The session ends well."""
        self.daliuge.go(session_id, FINISHED)


@contextmanager
def world(folder: Path, template: Path) -> Iterator[World]:
    """A platform on a copy of a migrated ledger."""
    home = folder / "home"
    home.mkdir()
    shutil.copy(template, home / "ledger.db")
    clock = ManualClock()
    archive = MemoryArchive(clock)
    environment = {
        "BEAMPIPE_HOME": str(home),
        "BEAMPIPE_SHAPING_EXECUTION_MAX_IN_FLIGHT_RUNS": "1000",
        "BEAMPIPE_LEASE_SECONDS": "60",
        "BEAMPIPE_DIM_POLL_INTERVAL_SECONDS": "5",
    }
    with FakeDaliuge() as daliuge, dg.DagsterInstance.ephemeral() as instance:
        platform = assemble(Settings.from_env(environment), clock=clock, archives=archive)
        try:
            yield World(platform, clock, archive, daliuge, instance, folder)
        finally:
            platform.ledger.dispose()


def failure(result: dg.ExecuteInProcessResult, step: str | None = None) -> dict[str, str]:
    """What the failed step says: ``description`` and its metadata as text."""
    events = [event for event in result.all_node_events if event.is_step_failure]
    chosen = (
        events[0] if step is None else next(e for e in events if e.step_key and e.step_key.endswith(step))
    )
    data = chosen.step_failure_data.user_failure_data
    assert data is not None, chosen.message
    shown = {name: str(value.value) for name, value in data.metadata.items()}
    return {"description": data.description or "", **shown}


def materialized(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, dict[str, Any]]:
    """Metadata of an asset's materializations in a run, by partition."""
    return {
        event.partition or "": {
            name: value.value
            for name, value in event.step_materialization_data.materialization.metadata.items()
        }
        for event in result.get_asset_materialization_events()
        if event.asset_key is not None and event.asset_key.path[-1] == asset
    }


def keys_of(events: Sequence[Any]) -> list[tuple[str, str | None]]:
    """Asset and partition of asset events."""
    return [(event.asset_key.path[-1], getattr(event, "partition", None)) for event in events]
