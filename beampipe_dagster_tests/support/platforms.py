"""The whole platform over fakes of the archives and of DALiuGE: what a service test needs, in a few words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from beampipe_dagster.assembly import Platform
from beampipe_dagster.clock import Clock, ManualClock
from beampipe_dagster.config.profile import load_profile
from beampipe_dagster.config.settings import Settings
from beampipe_dagster.discovery.service import BatchReport
from beampipe_dagster.errors import BeampipeError
from beampipe_dagster.execution.steps import StepReport
from beampipe_dagster.ids import Ids, SequenceIds
from beampipe_dagster.ledger import executions, outbox, profiles, provenance, sources
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.outbox import StoredMessage
from beampipe_dagster.ledger.provenance import RecordedEvent
from beampipe_dagster.ledger.sources import NewSource, Source
from beampipe_dagster.ledger.states import ArtifactKind
from beampipe_dagster_tests.support.archives import FakeArchives
from beampipe_dagster_tests.support.fake_daliuge import FakeDaliuge, FaultPlan
from beampipe_dagster_tests.support.graphs import Graph, GraphBuilder, argument
from beampipe_dagster_tests.support.ledgers import SURVEY

FLAKY_RATE = 0.2
INGEST = "beampipe-ingest"
STEPS = ("workflow_manifest", "prepared_graph", "physical_graph", "backend_run")


def ingest_graph() -> Graph:
    """A node that takes the manifest, and a command: four drops."""
    builder = GraphBuilder("survey").app(
        "ingest",
        "dlg.apps.simple.HelloWorldApp",
        name=INGEST,
        fields=[argument("manifest_path", "")],
        outputs=["out"],
    )
    builder.file("manifest").link("ingest.out", "manifest.io")
    builder.bash("image", "cp {in} {out}", inputs=["in"], outputs=["out"])
    return builder.file("result").link("manifest.io", "image.in").link("image.out", "result.io").build()


def survey_spec(graph_sha256: str, **changes: Any) -> dict[str, Any]:
    """A project file's value; ``execution`` and ``discovery`` change what is automatic, others the top."""
    spec: dict[str, Any] = {
        "apiVersion": "beampipe.dev/v2",
        "kind": "ProjectConfig",
        "metadata": {"id": SURVEY},
        "definitions": {
            "transforms": {"found": {"kind": "is_present"}, "digits": {"kind": "extract_digits"}}
        },
        "adapters": {"required": ["casda", "vizier"]},
        "graph": {"path": "survey.graph", "sha256": graph_sha256},
        "discovery": {
            "queries": [
                {
                    "name": "visibility",
                    "adapter": "casda",
                    "template": "SELECT * FROM ivoa.obscore WHERE target = '{source_identifier}'",
                },
                {
                    "name": "catalogue",
                    "adapter": "vizier",
                    "template": "SELECT * FROM hicat WHERE name = '{source_identifier}'",
                },
            ],
            "prepare_metadata": {
                "field_map": {
                    "source_identifier": {"from": "source_identifier"},
                    "dataset_id": {"from": "filename"},
                    "visibility_filename": {"from": "filename"},
                    "sbid": {"from": "obs_id", "transform": "digits"},
                },
                "discovery_flags": {"catalogued": {"from": "enrichments.catalogue", "transform": "found"}},
                "signature": {
                    "exclude_fields": ["access_url"],
                    "include_discovery_flags": changes.pop("sign_flags", True),
                },
            },
        },
        "graph_patches": [
            {
                "match": {"kind": "node_name", "equals": "image"},
                "set": {"num_cpus": "$count(sbids[].datasets[])"},
            }
        ],
        "automation": {
            "discovery": {"enabled": True, "batch_size": 5, **changes.pop("discovery", {})},
            "execution": {"enabled": True, "max_sources_per_execution": 1, **changes.pop("execution", {})},
        },
    }
    return {**spec, **changes}


class IngestingDaliuge(FakeDaliuge):
    """A DALiuGE whose translator applies the active graph configuration, as the real one does."""

    def translate(self, _: str, body: bytes) -> object:
        drops: Any = super().translate(_, body)
        form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        graph = json.loads(form["lg_content"])
        active = graph["graphConfigurations"].get(graph["activeGraphConfigId"], {"nodes": {}})
        for key, node in active["nodes"].items():
            for drop in drops:
                if drop.get("oid", "").endswith(f"_{key}_0"):
                    (setting,) = node["fields"].values()
                    drop["applicationArgs"] = {"manifest_path": {"value": setting["value"]}}
        return drops

    def manifest_of(self, session_id: str) -> Any:
        """The manifest that a session was given."""
        for drop in self.sessions[session_id].drops.values():
            if drop["name"] == INGEST:
                return json.loads(drop["applicationArgs"]["manifest_path"]["value"])
        raise AssertionError(f"{session_id} has no {INGEST}")

    def deploys(self) -> int:
        """How often a deployment was asked for."""
        return self.calls.count("deploy")


@dataclass
class Stage:
    """A platform and the world around it."""

    platform: Platform
    clock: ManualClock
    archives: FakeArchives
    daliuge: IngestingDaliuge
    home: Path
    holders: dict[str, str] = field(default_factory=dict)

    @property
    def ledger(self) -> Ledger:
        return self.platform.ledger

    def add_survey(self, **changes: Any) -> None:
        """Add the survey, or a changed revision of it."""
        graph = json.dumps(changes.pop("graph", None) or ingest_graph()).encode()
        (self.home / "survey.graph").write_bytes(graph)
        spec = survey_spec(hashlib.sha256(graph).hexdigest(), **changes)
        (self.home / "survey.yaml").write_text(json.dumps(spec))
        self.platform.projects.add_project(self.home / "survey.yaml", actor="test")

    def add_profile(self, name: str = "local", **changes: Any) -> None:
        """Add the deployment profile of the fake DALiuGE."""
        profile = {
            "name": name,
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
            },
            **changes,
        }
        self.platform.projects.put_profile(load_profile(profile))

    def register(self, *names: str, **values: Any) -> None:
        """Register sources."""
        new = [NewSource(name, **values) for name in names]
        self.platform.registry.register(SURVEY, new, actor="test")

    def discover(self) -> list[BatchReport]:
        """A discovery tick, and all of its batches."""
        tick = self.platform.discovery.tick(SURVEY)
        return [self.platform.discovery.run_batch(claim.token) for claim in tick.claims]

    def request(self, *names: str) -> list[BatchReport]:
        """Ask for these sources, and discover."""
        self.clock.advance(1)
        self.platform.registry.mark_for_discovery(SURVEY, list(names), actor="test")
        return self.discover()

    def vanished(self, *names: str) -> list[BatchReport]:
        """Look twice, far enough apart to believe that datasets are gone; the second look."""
        self.request(*names)
        self.clock.advance(3600)
        return self.request(*names)

    def ready(self, *names: str, **deposit: Any) -> None:
        """Register sources, deposit one dataset for each, and discover them."""
        for number, name in enumerate(names):
            self.archives.deposit(name, 100 + number, **deposit)
        self.register(*names)
        self.discover()

    def admit(self) -> list[Execution]:
        """An admission tick."""
        return self.platform.admission.tick(SURVEY).admitted

    def admitted(self, *names: str) -> Execution:
        """Ready sources, and their one execution."""
        self.ready(*names)
        (execution,) = self.admit()
        return execution

    def do(self, step: str, execution: Execution, *, holder: str = "me") -> StepReport:
        """One step."""
        service = self.platform.submission if step == "backend_run" else self.platform.steps
        report: StepReport = getattr(service, step)(execution.id, holder=holder)
        return report

    def submit(self, execution: Execution, *, holder: str = "me", until: str = "backend_run") -> Execution:
        """All steps, the last one included."""
        for step in STEPS[: STEPS.index(until) + 1]:
            execution = self.do(step, execution, holder=holder).execution
        return execution

    def submitted(self, *names: str) -> Execution:
        """Ready sources with a running session."""
        return self.submit(self.admitted(*names))

    def poll(self, *, after: float = 60) -> None:
        """Let time pass, and look."""
        self.clock.advance(after)
        self.platform.poll.tick()

    def source(self, name: str) -> Source:
        with self.ledger.read() as conn:
            return sources.get(conn, SURVEY, name)

    def execution(self, execution: Execution | None = None) -> Execution:
        """An execution as it is now; without an argument the only one."""
        with self.ledger.read() as conn:
            if execution is not None:
                return executions.get(conn, execution.id)
            (only,) = executions.select(conn)
            return only

    def executions(self) -> list[Execution]:
        with self.ledger.read() as conn:
            return executions.select(conn)

    def events(self, *event_types: str) -> list[RecordedEvent]:
        """The story, or the events of some types."""
        with self.ledger.read() as conn:
            told = provenance.timeline(conn, limit=100_000)
        return [one for one in told if not event_types or one.event_type in event_types]

    def told(self, asset: str | None = None) -> list[StoredMessage]:
        """What Dagster is to be told, whenever."""
        self.platform.ledger  # noqa: B018  # the messages of all times
        with self.ledger.read() as conn:
            late = self.clock.now().replace(year=2100)
            found = outbox.due(conn, now=late, limit=100_000)
        return [one for one in found if asset in {None, one.asset}]

    def session(self, execution: Execution) -> str:
        """The name of the execution's session."""
        name = self.execution(execution).daliuge_session_id
        assert name is not None
        return name

    def profile_id(self, name: str) -> str:
        with self.ledger.read() as conn:
            return profiles.by_name(conn, name).id

    def artifact_kinds(self, execution: Execution) -> list[ArtifactKind]:
        from beampipe_dagster.ledger import artifacts  # noqa: PLC0415  # only here

        with self.ledger.read() as conn:
            return [ArtifactKind(one.kind) for one in artifacts.listing(conn, execution.id)]


def make_platform(
    ledger: Ledger,
    *,
    home: Path,
    clock: Clock,
    archives: FakeArchives,
    ids: Ids | None = None,
    **settings: Any,
) -> Platform:
    """A platform on a ledger; a second one on the same ledger is a second daemon."""
    values = {"execution_max_in_flight": 20, "poll_interval_seconds": 5.0, **settings}
    return Platform(
        settings=Settings(home=home, database_url=ledger.url, **values),
        ledger=ledger,
        clock=clock,
        ids=ids or SequenceIds(),
        archives=archives,
    )


@contextmanager
def new_stage(ledger: Ledger, home: Path, *, flaky: bool = False, **settings: Any) -> Iterator[Stage]:
    """A platform with the survey and a default profile, and nothing registered."""
    clock = ManualClock()
    rate = FLAKY_RATE if flaky else 0.0
    archives = FakeArchives(clock=clock, rate=rate)
    with IngestingDaliuge(plan=FaultPlan(seed=1, rate=rate)) as daliuge:
        platform = make_platform(ledger, home=home, clock=clock, archives=archives, **settings)
        stage = Stage(platform, clock, archives, daliuge, home)
        stage.add_profile()
        stage.add_survey()
        yield stage


@pytest.fixture
def stage(ledger: Ledger, tmp_path: Path) -> Iterator[Stage]:
    """Everything works."""
    with new_stage(ledger, tmp_path) as made:
        yield made


@pytest.fixture(params=["good", "flaky"])
def any_stage(request: pytest.FixtureRequest, ledger: Ledger, tmp_path: Path) -> Iterator[Stage]:
    """Everything works, and then once more with every fifth call going wrong."""
    with new_stage(ledger, tmp_path, flaky=request.param == "flaky") as made:
        yield made


def code_of(outcome: object) -> str:
    """An error's code, else what it is instead."""
    return outcome.code if isinstance(outcome, BeampipeError) else type(outcome).__name__
