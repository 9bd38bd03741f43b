"""Looks at many sources at once: the same as one by one, in fewer requests, and never worse."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from beampipe_dagster.clock import ManualClock, SystemClock
from beampipe_dagster.config.project import ProjectConfig, Query
from beampipe_dagster.config.validation import load_project
from beampipe_dagster.discovery.archive import (
    CONSERVATIVE,
    DEFAULT_MAXREC,
    Answer,
    AnswerClass,
    Archive,
    Evidence,
    TapCapabilities,
    Upload,
    archive_error,
)
from beampipe_dagster.discovery.archives import TapArchives
from beampipe_dagster.discovery.attribution import Row
from beampipe_dagster.discovery.batch_look import BatchLook
from beampipe_dagster.discovery.batch_query import Ask, BatchQuery, Reply
from beampipe_dagster.discovery.look import Look, SourceLook
from beampipe_dagster.discovery.templates import render
from beampipe_dagster.sandbox.archive.demo import load_catalogue, load_demo
from beampipe_dagster.sandbox.archive.server import ArchiveServer
from beampipe_dagster_tests.discovery.test_rewrite import EVALUATION, LATEST
from beampipe_dagster_tests.support.archives import INCOMPLETE, FakeArchives
from beampipe_dagster_tests.support.platforms import survey_spec

DEMO = Path(__file__).resolve().parents[2] / "projects" / "wallaby_demo" / "wallaby_demo.yaml"
NAMES = [source.source_identifier for source in load_demo().sources]
TEMPLATE = "SELECT f, v FROM t WHERE f LIKE '{id}%'"


@dataclass
class Table:
    """An archive of rows ``{"f", "v"}`` that are found by what ``f`` begins with."""

    rows: list[Row]
    asked: list[list[str]] = field(default_factory=list)
    wrong: Callable[[list[str], list[Row]], list[Row]] = lambda _ids, rows: rows

    def capabilities(self) -> TapCapabilities:
        return CONSERVATIVE

    def query_async(self, adql: str, *, maxrec: int = DEFAULT_MAXREC, upload: Upload | None = None) -> Answer:
        return self.query(adql, maxrec=maxrec, upload=upload)

    def query(self, adql: str, *, maxrec: int = DEFAULT_MAXREC, upload: Upload | None = None) -> Answer:
        del maxrec, upload
        ids = re.findall(r"LIKE '([^%']*)%'", adql)
        self.asked.append(ids)
        found = [row for row in self.rows if any(str(row["f"]).startswith(one) for one in ids)]
        return Answer(self.wrong(ids, found), evidence(AnswerClass.COMPLETE, len(found)))

    def availability(self) -> tuple[bool, str]:
        return True, "here"


def evidence(answer: AnswerClass, rows: int = 0) -> Evidence:
    return Evidence("casda", "https://casda.example", "0" * 64, ManualClock().now(), 0.1, rows, answer=answer)


def failing(
    answer: AnswerClass, when: Callable[[list[str]], bool]
) -> Callable[[list[str], list[Row]], list[Row]]:
    def wrong(ids: list[str], rows: list[Row]) -> list[Row]:
        if when(ids):
            raise archive_error("as the test wants it", evidence(answer))
        return rows

    return wrong


def ask(table: Table, ids: Sequence[str], *, template: str = TEMPLATE, **options: Any) -> dict[str, Reply]:
    query = Query(name="q", adapter="casda", template=template)
    with ThreadPoolExecutor(2) as pool:
        batch = BatchQuery(query=query, archive=table, pool=pool, **options)
        replies = batch.ask({render(template, {"id": one}): Ask({"id": one}) for one in ids})
    assert [render(template, {"id": one}) for one in ids] == list(replies)
    return dict(zip(ids, replies.values(), strict=True))


def table_of(*names: str) -> Table:
    return Table([{"f": f"{name}_{number}", "v": "1"} for name in names for number in range(2)])


IDS = [f"S{number:02}" for number in range(16)]


def test_one_request_and_its_canary_answer_for_all() -> None:
    table = table_of(*IDS[:9])
    replies = ask(table, IDS)
    assert [len(ids) for ids in table.asked] == [16, 1]
    assert [len(replies[one].rows) for one in IDS] == [2] * 9 + [0] * 7
    assert {one.evidence["sources"] for one in replies.values()} == {16}


def test_a_request_asks_for_as_many_as_are_allowed_and_is_as_long_as_is_allowed() -> None:
    table = table_of(*IDS)
    ask(table, IDS, chunk=5)
    assert sorted(len(ids) for ids in table.asked[:-1]) == [1, 5, 5, 5]
    table = table_of(*IDS)
    ask(table, IDS, max_characters=len(TEMPLATE) + 100)
    assert max(len(ids) for ids in table.asked) == 4


@pytest.mark.parametrize("answer", INCOMPLETE)
def test_one_bad_identifier_is_found_by_halving(answer: AnswerClass) -> None:
    table = table_of(*IDS)
    table.wrong = failing(answer, lambda ids: "S05" in ids)
    replies = ask(table, IDS)
    failed = {one: reply.error.code for one, reply in replies.items() if reply.error is not None}
    assert failed == {"S05": f"archive_{answer.value}"}
    assert len(table.asked) < 16


def test_an_answer_that_is_too_long_is_asked_for_in_parts() -> None:
    table = table_of(*IDS)
    table.wrong = failing(AnswerClass.OVERFLOW, lambda ids: len(ids) > 4)
    assert all(len(reply.rows) == 2 for reply in ask(table, IDS).values())


@pytest.mark.parametrize("answer", [AnswerClass.UNAVAILABLE, AnswerClass.REFUSED, AnswerClass.TIMEOUT])
def test_an_archive_that_is_away_is_not_asked_again_and_again(answer: AnswerClass) -> None:
    table = table_of(*IDS)
    table.wrong = failing(answer, lambda _: True)
    replies = ask(table, IDS)
    assert {reply.error.code for reply in replies.values() if reply.error} == {f"archive_{answer.value}"}
    assert all(reply.error for reply in replies.values())
    assert len(table.asked) == 3


def test_an_archive_that_answers_single_sources_only_is_soon_asked_so() -> None:
    table = table_of(*IDS)
    table.wrong = failing(AnswerClass.ERROR, lambda ids: len(ids) > 1)
    replies = ask(table, IDS)
    assert all(len(reply.rows) == 2 for reply in replies.values())
    assert sum(len(ids) > 1 for ids in table.asked) == 7
    assert "batches_fail" in {reply.evidence.get("not_batched") for reply in replies.values()}


@pytest.mark.parametrize("bad", range(50))
def test_wherever_the_one_bad_identifier_stands_the_others_go_on_together(bad: int) -> None:
    ids = [f"S{number:02}" for number in range(50)]
    table = table_of(*ids)
    table.wrong = failing(AnswerClass.ERROR, lambda asked: ids[bad] in asked)
    replies = ask(table, ids)
    assert [one for one, reply in replies.items() if reply.error] == [ids[bad]]
    assert all("not_batched" not in reply.evidence for reply in replies.values())


def test_an_archive_that_goes_away_before_the_canary_is_no_answer() -> None:
    table = table_of(*IDS)
    table.wrong = failing(AnswerClass.UNAVAILABLE, lambda ids: len(ids) == 1)
    assert all(reply.error is not None for reply in ask(table, IDS).values())


def test_what_a_source_alone_gets_in_another_way_is_asked_one_by_one() -> None:
    table = table_of(*IDS)
    table.wrong = lambda ids, rows: (
        rows if len(ids) == 1 else [row for row in rows if str(row["f"]).endswith("_0")]
    )
    replies = ask(table, IDS)
    assert {reply.evidence["not_batched"] for reply in replies.values()} == {"canary_mismatch"}
    assert all(len(reply.rows) == 2 for reply in replies.values())


def test_rows_that_are_missing_are_seen_too_as_the_canary_changes() -> None:
    """An archive that silently loses half of the sources in a batch is caught within a few looks."""
    seen = []
    for seed in range(20):
        table = table_of(*IDS)
        table.wrong = lambda ids, rows: (
            rows if len(ids) == 1 else [row for row in rows if str(row["f"]) < "S08"]
        )
        replies = ask(table, IDS, seed=str(seed))
        seen.append(all(len(reply.rows) == 2 for reply in replies.values()))
    assert 5 <= sum(seen) < 20


def test_a_row_that_belongs_to_nobody_makes_the_query_one_by_one() -> None:
    table = table_of(*IDS)
    table.wrong = lambda ids, rows: rows if len(ids) == 1 else [*rows, {"f": "s00_1", "v": "1"}]
    replies = ask(table, IDS)
    assert {reply.evidence["not_batched"] for reply in replies.values()} == {"row_not_attributable"}


@pytest.mark.parametrize(("in_order", "batched"), [(True, False), (False, True)])
def test_another_order_matters_where_the_first_row_counts(in_order: bool, batched: bool) -> None:  # noqa: FBT001  # a case
    table = table_of("S00", "S01")
    table.wrong = lambda ids, rows: rows if len(ids) == 1 else rows[::-1]
    replies = ask(table, ["S00", "S01"], in_order=in_order)
    assert [("not_batched" in reply.evidence) for reply in replies.values()] == [not batched] * 2


def test_a_template_that_cannot_be_batched_says_why() -> None:
    replies = ask(table_of(*IDS), IDS, template="SELECT DISTINCT f, v FROM t WHERE f LIKE '{id}%'")
    assert {reply.evidence["not_batched"] for reply in replies.values()} == {"distinct_or_limited"}
    assert all(len(reply.rows) == 2 for reply in replies.values())


# Over real sockets


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ArchiveServer]:
    with ArchiveServer(tmp_path / "archive") as running:
        yield running


def asked(server: ArchiveServer) -> int:
    """How many queries the archives were asked since the last time."""
    total = httpx.get(f"{server.base_url}/sandbox/log").json()["total"]
    httpx.delete(f"{server.base_url}/sandbox/log")
    return int(total)


def demo(**templates: str) -> ProjectConfig:
    value: Any = load_project(DEMO.read_bytes()).as_json()
    for query in value["discovery"]["queries"] + value["discovery"]["enrichments"]:
        query["template"] = templates.get(query["name"], query["template"])
    return ProjectConfig.from_json(value)


def both(
    server: ArchiveServer, config: ProjectConfig, names: Sequence[str]
) -> tuple[dict[str, Look], int, int]:
    """The looks at each source, made sure to be the same in both ways, and the requests of each way."""
    archives = TapArchives(urls={"casda": server.casda_url, "vizier": server.vizier_url}, clock=SystemClock())
    asked(server)
    one = SourceLook(config=config, archives=archives, clock=SystemClock())
    alone = {name: one.look(name) for name in names}
    singly = asked(server)
    batch = BatchLook(config=config, archives=archives, clock=SystemClock())
    known = {name: look.datasets for name, look in alone.items()}
    together = {look.source_identifier: look for look in batch.looks(names, known=known)}
    batched = asked(server)
    assert list(together) == list(names)
    for name in names:
        left, right = alone[name], together[name]
        assert (left.signature, left.metadata, left.flags) == (right.signature, right.metadata, right.flags)
        assert left.datasets == right.datasets
        assert (left.error and left.error.as_dict()) == (right.error and right.error.as_dict())
    return together, singly, batched


def not_batched(looks: dict[str, Look]) -> set[Any]:
    reports: list[Any] = [item for look in looks.values() for item in look.evidence]
    return {item["not_batched"] for item in reports if "not_batched" in item}


def test_the_demo_survey_looks_the_same_in_both_ways(server: ArchiveServer) -> None:
    looks, singly, batched = both(server, demo(), NAMES)
    assert [look.error for look in looks.values()] == [None] * 9
    assert not_batched(looks) == set()
    # Alone: 9 + 8 + 9 (one block belongs to two sources). Together: a request and a canary for each of three queries.
    assert (singly, batched) == (26, 6)
    names = ("HIPASSJ1300-13", "HIPASSJ1300-13B")
    files = [
        {file["filename"] for block in looks[name].metadata.values() for file in block["datasets"]}
        for name in names
    ]
    assert [len(found) for found in files] == [1, 3]
    assert files[0].isdisjoint(files[1])


class Forgetful:
    """The sandbox's archives, which forget one source whenever they are asked for several."""

    def __init__(self, server: ArchiveServer, forgotten: str) -> None:
        urls = {"casda": server.casda_url, "vizier": server.vizier_url}
        self.archives = TapArchives(urls=urls, clock=SystemClock())
        self.forgotten = forgotten

    def get(self, config: ProjectConfig, adapter: str) -> Archive:
        return ForgetfulArchive(self.archives.get(config, adapter), self.forgotten)


class ForgetfulArchive:
    def __init__(self, archive: Archive, forgotten: str) -> None:
        self.archive = archive
        self.forgotten = forgotten

    def capabilities(self) -> TapCapabilities:
        return self.archive.capabilities()

    def query_async(self, adql: str, *, maxrec: int = 20_000, upload: Upload | None = None) -> Answer:
        return self.query(adql, maxrec=maxrec, upload=upload)

    def query(self, adql: str, *, maxrec: int = 20_000, upload: Upload | None = None) -> Answer:
        answer = self.archive.query(adql, maxrec=maxrec, upload=upload)
        if adql.count("HIPASSJ") < 2:
            return answer
        kept = [row for row in answer.rows if not str(row.get("filename")).startswith(self.forgotten)]
        return Answer(kept, answer.evidence)

    def availability(self) -> tuple[bool, str]:
        return self.archive.availability()


@pytest.mark.parametrize("known", [None, dict.fromkeys(NAMES, 1)])
@pytest.mark.parametrize("forgotten", [NAMES[0], NAMES[4]])
def test_a_loss_is_never_believed_from_an_answer_that_sources_shared(
    server: ArchiveServer, known: dict[str, int] | None, forgotten: str
) -> None:
    forgetful = Forgetful(server, forgotten)
    truth = SourceLook(config=demo(), archives=forgetful, clock=SystemClock()).look(forgotten)
    assert truth.datasets > 0
    batch = BatchLook(config=demo(), archives=forgetful, clock=SystemClock())
    looks = {look.source_identifier: look for look in batch.looks(NAMES, known=known)}
    assert looks[forgotten].signature == truth.signature
    assert looks[forgotten].datasets == truth.datasets


def test_what_was_known_to_be_empty_is_not_asked_for_alone_again(server: ArchiveServer) -> None:
    archives = TapArchives(urls={"casda": server.casda_url, "vizier": server.vizier_url}, clock=SystemClock())
    empty = [source.source_identifier for source in load_demo().sources if source.expect == "no_datasets"]
    known = dict.fromkeys(NAMES, 1) | dict.fromkeys(empty, 0)
    batch = BatchLook(config=demo(), archives=archives, clock=SystemClock())
    asked(server)
    list(batch.looks(NAMES, known=known))
    first = asked(server)
    batch = BatchLook(config=demo(), archives=archives, clock=SystemClock())
    list(batch.looks(NAMES))
    assert asked(server) == first + len(empty)


def test_wallabys_own_templates_look_the_same_in_both_ways(server: ArchiveServer) -> None:
    known = [source.hipass for source in load_catalogue()]
    names = [*NAMES, *load_demo().background[:30], *(f"HIPASS{one}" for one in known[:20])]
    names = list(dict.fromkeys(names))
    for name in NAMES[3:6]:
        server.store.deposit(name, beams=3)  # a later epoch: the earlier one is no longer wanted
    looks, singly, batched = both(server, demo(visibility=LATEST, sbid_to_eval_file=EVALUATION), names)
    assert not_batched(looks) == set()
    assert looks[NAMES[3]].datasets == 3
    assert singly > 100
    assert batched <= 8
    # "LIKE 'HIPASSJ1300-13%'" means the neighbour's files too, alone and together.
    assert looks["HIPASSJ1300-13"].datasets == 4
    assert looks["HIPASSJ1300-13B"].datasets == 3


DISTINCT = "SELECT DISTINCT * FROM ivoa.obscore WHERE filename LIKE '{source_identifier}_SB%'"
UNNAMED = "SELECT RAJ2000, DEJ2000 FROM \"VIII/73/hicat\" WHERE HIPASS = '{source_name}'"


@pytest.mark.parametrize(
    ("name", "template", "reason"),
    [
        ("visibility", DISTINCT, "distinct_or_limited"),
        ("ra_dec_vsys", UNNAMED, "column_not_selected"),
    ],
)
def test_a_query_that_is_asked_one_by_one_leaves_the_others_batched(
    server: ArchiveServer, name: str, template: str, reason: str
) -> None:
    looks, singly, batched = both(server, demo(**{name: template}), NAMES)
    assert not_batched(looks) == {reason}
    assert batched < singly


def test_the_archives_errors_are_the_same_in_both_ways(server: ArchiveServer) -> None:
    template = "SELECT * FROM ivoa.obscore WHERE filename LIKE '{source_identifier}_SB%' AND nothing = 1"
    config = demo(visibility=template)
    archives = TapArchives(urls={"casda": server.casda_url, "vizier": server.vizier_url}, clock=SystemClock())
    looks = list(BatchLook(config=config, archives=archives, clock=SystemClock()).looks(NAMES))
    assert {look.error.code for look in looks if look.error} == {"archive_error"}
    assert all(look.error for look in looks)


# Over archives in memory


@pytest.fixture
def archives(clock: ManualClock) -> FakeArchives:
    made = FakeArchives(clock=clock)
    for source in ("A", "B", "C"):
        made.deposit(source, 7)
    made.deposit("C", 8)
    return made


def looks_at(archives: FakeArchives, names: Sequence[str], **changes: Any) -> dict[str, Look]:
    spec = survey_spec("0" * 64, **changes)
    template = "SELECT * FROM evaluation WHERE sbid = '{sbid}'"
    spec["discovery"]["enrichments"] = [{"name": "evaluation", "adapter": "casda", "template": template}]
    batch = BatchLook(config=ProjectConfig.from_json(spec), archives=archives, clock=archives.clock)
    return {look.source_identifier: look for look in batch.looks(names)}


def test_a_scheduling_block_is_asked_for_once_for_all_its_sources(archives: FakeArchives) -> None:
    looks = looks_at(archives, ["A", "B", "C"])
    assert [look.error for look in looks.values()] == [None] * 3
    # Two distinct blocks, of four that sources have: one request for both, and the canary.
    assert archives.batches == {"casda": 2, "vizier": 1}
    assert archives.queries["casda", "7"] + archives.queries["casda", "8"] == 1
    evidence: list[Any] = looks["C"].evidence
    assert [item["sources"] for item in evidence] == [3, 3, 4]


def test_what_is_wrong_with_one_source_is_that_sources_error_only(archives: FakeArchives) -> None:
    archives.deposit("C", 9, obs_id="none", filename=None, target=None)
    looks = looks_at(archives, ["A", "B", "x\\", "C"])
    assert looks["x\\"].error is not None
    assert looks["x\\"].error.code == "unsafe_identifier"
    assert (looks["A"].error, looks["B"].error) == (None, None)


@pytest.mark.parametrize("answer", INCOMPLETE)
@pytest.mark.parametrize(
    ("adapter", "asked_for", "failed"), [("casda", "A", "A"), ("vizier", "B", "B"), ("casda", "8", "C")]
)
def test_an_incomplete_answer_makes_those_looks_errors_that_needed_it(
    archives: FakeArchives, adapter: str, asked_for: str, failed: str, answer: AnswerClass
) -> None:
    archives.fail(asked_for, *[answer] * 5, adapter=adapter)
    looks = looks_at(archives, ["A", "B", "C", "D"])
    errors = {name: look.error.code for name, look in looks.items() if look.error is not None}
    assert errors == {failed: f"archive_{answer.value}"}
    assert looks[failed].signature is None
    assert looks["D"].datasets == 0


def test_every_look_is_given_once_and_a_survey_without_queries_is_an_error_of_each(
    archives: FakeArchives,
) -> None:
    config = ProjectConfig.from_json({**survey_spec("0" * 64), "discovery": {"queries": []}})
    looks = list(BatchLook(config=config, archives=archives, clock=archives.clock).looks(["A", "B", "A"]))
    assert [(look.source_identifier, look.error and look.error.code) for look in looks] == [
        ("A", "no_discovery_query"),
        ("B", "no_discovery_query"),
    ]
