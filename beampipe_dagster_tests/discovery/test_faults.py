"""An archive that misbehaves, from the socket to the ledger: nothing is believed that should not be, nothing is lost.

Each fault stands between two archives over real sockets and a whole platform (its gate and circuits among it) on
both databases. While it lasts, signatures and rows stay; when it is over, the platform finds the truth by itself.
"""

from __future__ import annotations

import hashlib
import json
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from beampipe_dagster.assembly import Platform, polite_archives
from beampipe_dagster.clock import ManualClock
from beampipe_dagster.config.settings import Settings
from beampipe_dagster.errors import InputError
from beampipe_dagster.ids import SequenceIds, UuidIds
from beampipe_dagster.ledger import archive, registration, sources
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.sources import NewSource, Source
from beampipe_dagster_tests.support import fake_tap
from beampipe_dagster_tests.support.fake_tap import Reply
from beampipe_dagster_tests.support.ledgers import SURVEY
from beampipe_dagster_tests.support.platforms import ingest_graph, survey_spec
from beampipe_dagster_tests.support.world_tap import Fault, Row, WorldTap

NAMES = ("A", "B", "C")
TIMEOUT_SECONDS = 1
STALL_SECONDS = 10.0


class RunningClock(ManualClock):
    """A clock that is set by hand, and whose measure of durations is the real one."""

    def monotonic(self) -> float:
        return time.monotonic()


@dataclass
class Scene:
    """A platform and the two archives that it asks."""

    platform: Platform
    clock: RunningClock
    casda: WorldTap
    vizier: WorldTap

    def deposit(self, name: str, sbid: int, beam: int = 0) -> None:
        """One more dataset of a source, in the archive."""
        self.casda.add(
            target=name, source_identifier=name, obs_id=f"ASKAP-{sbid}", filename=f"{name}_{sbid}_{beam}.ms"
        )

    def register(self, *names: str) -> None:
        """Sources that are in the catalogue, with two datasets each, and have been looked at."""
        for number, name in enumerate(names):
            self.vizier.add(name=name)
            self.deposit(name, 100 + number, 0)
            self.deposit(name, 100 + number, 1)
        self.platform.registry.register(SURVEY, [NewSource(name) for name in names], actor="test")
        self.look()

    def look(self, *names: str, after: float = 1) -> None:
        """Let time pass, and look at what is asked for, or due."""
        self.clock.advance(after)
        if names:
            self.platform.registry.mark_for_discovery(SURVEY, list(names), actor="test")
        for claim in self.platform.discovery.tick(SURVEY).claims:
            self.platform.discovery.run_batch(claim.token)

    def settle(self) -> None:
        """Let hours pass, until everything has been asked that is to be asked."""
        for _ in range(6):
            self.look(*NAMES, after=3700)

    def source(self, name: str) -> Source:
        with self.platform.ledger.read() as conn:
            return sources.get(conn, SURVEY, name)

    def believed(self) -> dict[str, tuple[str | None, Any, bool]]:
        """Signature, rows and pending flag of each source."""
        with self.platform.ledger.read() as conn:
            stored = archive.metadata_of(conn, SURVEY, NAMES)
        return {
            name: (source.discovery_signature, stored.get(name), source.workflow_run_pending)
            for name in NAMES
            for source in [self.source(name)]
        }

    def files(self, name: str) -> set[str]:
        """What the ledger believes to be a source's datasets."""
        with self.platform.ledger.read() as conn:
            rows: dict[str, Any] = archive.metadata_of(conn, SURVEY, [name]).get(name, {})
        return {one["dataset_id"] for block in rows.values() for one in block.get("datasets", [])}

    def truth(self, name: str) -> set[str]:
        """What the archive has of it."""
        return {str(row["filename"]) for row in self.casda.of([name])}


@pytest.fixture
def scene(ledger: Ledger, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Scene]:
    values: dict[str, Any] = {"archive_failures_to_open": 100, **getattr(request, "param", {})}
    with (
        WorldTap(["target", "source_identifier", "obs_id", "filename"], column="target") as casda,
        WorldTap(["name"], column="name") as vizier,
    ):
        clock, ids = RunningClock(), SequenceIds()
        settings = Settings(
            home=tmp_path,
            database_url=ledger.url,
            archive_urls={"casda": casda.url, "vizier": vizier.url},
            **values,
        )
        archives = polite_archives(settings, ledger=ledger, clock=clock, ids=ids, environ={})
        platform = Platform(settings=settings, ledger=ledger, clock=clock, ids=ids, archives=archives)
        limits = {"timeout_seconds": TIMEOUT_SECONDS, "retries": 0}
        graph = json.dumps(ingest_graph()).encode()
        (tmp_path / "survey.graph").write_bytes(graph)
        spec = survey_spec(
            hashlib.sha256(graph).hexdigest(), adapters={"required": ["casda", "vizier"], "tap": limits}
        )
        (tmp_path / "survey.yaml").write_text(json.dumps(spec))
        platform.projects.add_project(tmp_path / "survey.yaml", actor="test")
        scene = Scene(platform, clock, casda, vizier)
        scene.register(*NAMES)
        yield scene


def _said(reply: Reply) -> Callable[[WorldTap], Fault]:
    """The same answer to everybody."""
    return lambda _: lambda _names, _table: reply


def _changed(change: Callable[[WorldTap, list[Row]], Reply]) -> Callable[[WorldTap], Fault]:
    """An answer that is made of the true rows."""
    return lambda tap: lambda _names, table: change(tap, table)


def _renamed(table: list[Row], name: str | None) -> Reply:
    """The true rows, with the scheduling block in another column, or in none."""
    renamed = [
        {name if key == "obs_id" else key: value for key, value in row.items() if key != "obs_id" or name}
        for row in table
    ]
    columns = [column for column in ("target", "source_identifier", name, "filename") if column]
    return fake_tap.rows(
        [{str(key): one[key] for key in one} for one in renamed], types=dict.fromkeys(columns, "char")
    )


OVERFLOW = '<INFO name="QUERY_STATUS" value="OVERFLOW"/>'
COLUMNS = ("target", "source_identifier", "obs_id", "filename")
FAULTS: dict[str, tuple[Callable[[WorldTap], Fault], set[str]]] = {
    "overflow at the tail": (_changed(lambda _, table: fake_tap.overflow(table)), {"archive_overflow"}),
    "overflow at the head": (
        _changed(
            lambda _, table: fake_tap.rows(table, types=dict.fromkeys(COLUMNS, "char"), status="OVERFLOW")
        ),
        {"archive_overflow"},
    ),
    "overflow without rows": (
        _said(Reply(fake_tap.votable(COLUMNS, [], {}, tail=OVERFLOW))),
        {"archive_overflow"},
    ),
    "error with status 200": (_said(fake_tap.error_document("no such table")), {"archive_error"}),
    "error after rows": (
        _changed(lambda _, table: fake_tap.error_after_rows(table, "disk full")),
        {"archive_error"},
    ),
    "page": (_said(fake_tap.html()), {"archive_malformed"}),
    "document cut off": (
        _changed(lambda _, table: Reply(fake_tap.votable(COLUMNS, table, {})[:-40])),
        {"archive_malformed"},
    ),
    "empty body": (_said(Reply(b"")), {"archive_malformed"}),
    "no rows and no status": (
        _said(Reply(fake_tap.votable(COLUMNS, [], {}, status=None))),
        {"archive_malformed"},
    ),
    "503 with Retry-After": (
        _said(Reply(b"later", status=503, headers={"Retry-After": "2"})),
        {"archive_unavailable", "archive_refused"},
    ),
    "500": (_said(Reply(b"oops", status=500)), {"archive_unavailable"}),
    "one byte at a time": (
        _changed(lambda tap, table: fake_tap.with_fault(tap.answer(table), "trickle")),
        {"archive_timeout"},
    ),
    "429": (_said(fake_tap.too_many("2")), {"archive_refused"}),
    "reset before the answer": (
        _changed(lambda tap, table: fake_tap.with_fault(tap.answer(table), "reset")),
        {"archive_unavailable"},
    ),
    "reset in the body": (
        _changed(lambda tap, table: fake_tap.with_fault(tap.answer(table), "reset_in_body")),
        {"archive_unavailable", "archive_malformed"},
    ),
    "closed in the body": (
        _changed(lambda tap, table: fake_tap.with_fault(tap.answer(table), "truncate")),
        {"archive_unavailable", "archive_malformed"},
    ),
    "stall of ten seconds": (
        _changed(lambda tap, table: fake_tap.slow(tap.answer(table), STALL_SECONDS)),
        {"archive_timeout"},
    ),
    "column missing": (_changed(lambda _, table: _renamed(table, None)), {"missing_sbid"}),
    "column renamed": (_changed(lambda _, table: _renamed(table, "block")), {"missing_sbid"}),
}
"""By name: what an archive does, and the codes of the error that it has to come to."""


@pytest.mark.parametrize("asked", [NAMES, ("B",)], ids=["together", "alone"])
@pytest.mark.parametrize("name", sorted(FAULTS))
def test_what_is_no_complete_answer_changes_nothing_and_the_truth_is_found_afterwards(
    scene: Scene, name: str, asked: tuple[str, ...]
) -> None:
    maker, codes = FAULTS[name]
    before = scene.believed()
    scene.deposit("B", 200)
    scene.casda.fault = maker(scene.casda)
    scene.look(*asked)

    assert scene.believed() == before
    now = scene.clock.now()
    for source in map(scene.source, asked):
        assert source.last_outcome in {"error", "timeout"}
        assert (source.last_error or {}).get("code") in codes
        assert source.discovery_claim_token is None
        assert source.next_attempt_at is not None
        assert source.next_attempt_at > now

    scene.casda.fault = None
    scene.settle()
    for source in map(scene.source, NAMES):
        assert source.last_error is None
        assert source.failure_count == 0
        assert scene.files(source.source_identifier) == scene.truth(source.source_identifier)
    after = scene.believed()
    assert after["B"][0] != before["B"][0]
    assert {after[other] == before[other] for other in ("A", "C")} == {True}


@pytest.mark.parametrize("asked", [NAMES, ("B",)], ids=["together", "alone"])
@pytest.mark.parametrize(
    "change",
    [
        lambda tap, table: tap.answer(table[::-1]),
        lambda _, table: fake_tap.rows(
            [dict(reversed(row.items())) for row in table], types=dict.fromkeys(COLUMNS, "char")
        ),
        lambda _, table: fake_tap.rows(table, types=dict.fromkeys(COLUMNS, "unicodeChar")),
    ],
    ids=["rows in another order", "columns in another order", "columns of another type"],
)
def test_what_says_the_same_in_other_words_changes_nothing(
    scene: Scene, change: Callable[[WorldTap, list[Row]], Reply], asked: tuple[str, ...]
) -> None:
    before = scene.believed()
    scene.casda.fault = _changed(change)(scene.casda)
    scene.look(*asked)
    assert scene.believed() == before
    assert scene.source("B").last_outcome == "unchanged"


def test_rows_that_are_told_twice_are_seen_as_what_they_are_and_forgotten_again(scene: Scene) -> None:
    before = scene.believed()
    scene.casda.fault = _changed(lambda tap, table: tap.answer([*table, *table]))(scene.casda)
    scene.look(*NAMES)
    during = scene.believed()
    assert {name: scene.files(name) for name in NAMES} == {name: scene.truth(name) for name in NAMES}
    scene.casda.fault = None
    scene.settle()
    assert {name: one[:2] for name, one in scene.believed().items()} == {
        name: one[:2] for name, one in before.items()
    }
    assert set(during) == set(before)


def test_a_source_that_an_archive_forgets_for_a_moment_keeps_everything(scene: Scene) -> None:
    before = scene.believed()
    scene.casda.fault = lambda _names, table: scene.casda.answer(
        [row for row in table if row["target"] != "B"]
    )
    scene.look(*NAMES)
    assert scene.believed() == before
    assert scene.source("B").last_outcome == "vanishing"
    assert scene.source("A").last_outcome == "unchanged"
    scene.casda.fault = None
    scene.settle()
    assert scene.believed() == before
    assert scene.source("B").vanish_signature is None


def test_a_source_that_only_a_shared_answer_lacks_is_asked_alone_and_keeps_everything(scene: Scene) -> None:
    before = scene.believed()

    def shared(names: list[str], table: list[Row]) -> Reply | None:
        return scene.casda.answer([row for row in table if row["target"] != "B"]) if len(names) > 1 else None

    scene.casda.fault = shared
    scene.look(*NAMES)
    assert scene.believed() == before
    assert {scene.source(name).last_outcome for name in NAMES} == {"unchanged"}


def test_rows_that_nobody_asked_for_are_not_believed_and_each_source_is_asked_alone(scene: Scene) -> None:
    before = scene.believed()
    stranger: Row = {"target": "Z", "source_identifier": "Z", "obs_id": "ASKAP-9", "filename": "Z.ms"}

    def shared(names: list[str], table: list[Row]) -> Reply | None:
        return scene.casda.answer([*table, stranger]) if len(names) > 1 else None

    scene.casda.fault = shared
    scene.look(*NAMES)
    assert scene.believed() == before
    assert {scene.source(name).last_outcome for name in NAMES} == {"unchanged"}


def test_datasets_that_are_gone_for_good_are_let_go_by_a_second_answer(scene: Scene) -> None:
    scene.casda.table = [row for row in scene.casda.table if row["filename"] != "B_101_1.ms"]
    scene.look("B")
    assert scene.files("B") == {"B_101_0.ms", "B_101_1.ms"}
    scene.look("B", after=60)
    assert scene.source("B").last_outcome == "vanishing"
    scene.settle()
    assert scene.files("B") == scene.truth("B") == {"B_101_0.ms"}


def test_more_rows_than_asked_for_are_an_overflow_and_take_no_memory_to_speak_of(scene: Scene) -> None:
    before = scene.believed()
    cells = "".join(f"<TD>{text}</TD>" for text in ("B", "B", "ASKAP-1", "f.ms"))
    body = fake_tap.votable(COLUMNS, [], {}).replace(
        b"<TABLEDATA></TABLEDATA>",
        b"<TABLEDATA>" + f"<TR>{cells}</TR>".encode() * 1_000_000 + b"</TABLEDATA>",
    )
    scene.casda.fault = _said(Reply(body))(scene.casda)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scene.look("B")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    assert scene.believed() == before
    assert (scene.source("B").last_error or {})["code"] in {"archive_overflow", "archive_timeout"}
    assert grown < 4 * len(body) / 2**20
    scene.casda.fault = None
    scene.settle()
    assert scene.believed() == before


@pytest.mark.parametrize("name", ["a" * 100, "HIPASS J1318-21", "SB+1.2_3:4-5", "A B"])
def test_an_unusual_identifier_is_asked_for_as_it_is(scene: Scene, name: str) -> None:
    scene.deposit(name, 300)
    scene.platform.registry.register(SURVEY, [NewSource(name)], actor="test")
    scene.look(name)
    assert scene.files(name) == scene.truth(name) == {f"{name}_300_0.ms"}


HOSTILE = [
    "O'Hara",
    "x; DROP TABLE y --",
    "50%",
    "back\\slash",
    "new\nline",
    "Ωmega",
    '"quoted"',
    "a" * 101,
    "",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_identifier_is_refused_at_the_door(scene: Scene, name: str) -> None:
    with pytest.raises(InputError):
        scene.platform.registry.register(SURVEY, [NewSource(name)], actor="test")


def test_a_quote_in_an_identifier_that_got_in_all_the_same_ends_no_text_of_a_query(scene: Scene) -> None:
    name = "O' OR '1'='1"
    scene.deposit(name, 300)
    with scene.platform.ledger.begin() as conn:
        registration.upsert(conn, SURVEY, [NewSource(name)], ids=UuidIds(), now=scene.clock.now())
    scene.look(name, *NAMES)
    assert scene.files(name) == scene.truth(name) == {f"{name}_300_0.ms"}
    assert scene.files("A") == scene.truth("A")


@pytest.mark.parametrize("scene", [{"archive_failures_to_open": 2}], indirect=True)
def test_an_archive_that_is_away_costs_no_source_a_failure_and_is_found_back(scene: Scene) -> None:
    before = scene.believed()
    scene.deposit("B", 200)
    scene.casda.fault = _said(Reply(b"", status=500))(scene.casda)
    scene.look(*NAMES)
    asked = len(scene.casda.queries)
    scene.look(*NAMES)
    assert len(scene.casda.queries) == asked
    assert scene.believed() == before
    assert sum(scene.source(name).failure_count for name in NAMES) == 0
    tick = scene.platform.discovery.tick(SURVEY)
    assert tick.skip_reason == "tap_unreachable"
    scene.casda.fault = None
    scene.settle()
    assert scene.files("B") == scene.truth("B")
    assert scene.clock.now() - scene.source("B").created_at > timedelta(hours=1)
