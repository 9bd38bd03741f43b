"""Which form a query for many takes, and what becomes of it when it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from beampipe_dagster.clock import ManualClock, SystemClock
from beampipe_dagster.config.project import Query
from beampipe_dagster.discovery.archive import (
    DEFAULT_MAXREC,
    Answer,
    AnswerClass,
    Archive,
    Evidence,
    Mode,
    TapCapabilities,
    Upload,
    archive_error,
)
from beampipe_dagster.discovery.archives import TapArchives
from beampipe_dagster.discovery.attribution import Row
from beampipe_dagster.discovery.batch_query import Ask, BatchQuery, Reply
from beampipe_dagster.discovery.templates import render
from beampipe_dagster.discovery.upload_join import Costs, Form
from beampipe_dagster.sandbox.archive.demo import load_demo
from beampipe_dagster.sandbox.archive.server import ArchiveServer
from beampipe_dagster_tests.discovery.test_batch_look import demo

EQUAL = "SELECT k, v FROM t WHERE k = '{id}'"
LIKE = "SELECT k, v FROM t WHERE k LIKE '{id}%'"
IDS = [f"S{number:03}" for number in range(120)]


@dataclass
class Catalogue:
    """Rows ``{"k", "v"}`` that are found by ``k``, in any form of query, with a row limit and jobs."""

    rows: list[Row]
    able: TapCapabilities = field(default_factory=lambda: TapCapabilities(upload=True))
    limit: int = DEFAULT_MAXREC
    seconds: dict[str, float] = field(default_factory=dict)
    asked: list[tuple[str, int]] = field(default_factory=list)
    modes: list[Mode] = field(default_factory=list)
    refuses: Callable[[str, int], AnswerClass | None] = lambda _form, _count: None

    def query(self, adql: str, *, maxrec: int = DEFAULT_MAXREC, upload: Upload | None = None) -> Answer:
        return self._answer(adql, min(maxrec, self.limit), upload, "sync")

    def query_async(self, adql: str, *, maxrec: int = DEFAULT_MAXREC, upload: Upload | None = None) -> Answer:
        return self._answer(adql, maxrec, upload, "async")

    def capabilities(self) -> TapCapabilities:
        return self.able

    def availability(self) -> tuple[bool, str]:
        return True, "here"

    def _answer(self, adql: str, most: int, upload: Upload | None, mode: Mode) -> Answer:
        wanted = {row[0] for row in upload.rows} if upload else set(adql.split("'")[1::2])
        form = "upload" if upload else "in" if " IN (" in adql else "or" if " OR " in adql else "single"
        self.asked.append((form, len(wanted)))
        self.modes.append(mode)
        fault = self.refuses(form, len(wanted))
        found = [dict(row) for row in self.rows if row["k"] in wanted]
        if fault is None and len(found) >= most:
            fault = AnswerClass.OVERFLOW
        evidence = Evidence(
            "casda",
            "https://casda.example",
            "0" * 64,
            ManualClock().now(),
            self.seconds.get(form, 0.1),
            len(found),
            answer=fault or AnswerClass.COMPLETE,
            mode=mode,
        )
        if fault is not None:
            raise archive_error("as the test wants it", evidence)
        return Answer(found, evidence)

    def forms(self) -> list[str]:
        return [form for form, _ in self.asked]


def catalogue(*names: str, rows: int = 1, **options: Any) -> Catalogue:
    return Catalogue([{"k": name, "v": str(n)} for name in names for n in range(rows)], **options)


def ask(
    archive: Archive, ids: Sequence[str], *, template: str = EQUAL, costs: Costs | None = None, **query: Any
) -> dict[str, Reply]:
    made = Query.model_validate({"name": "q", "adapter": "casda", "template": template, **query})
    with ThreadPoolExecutor(1) as pool:
        batch = BatchQuery(query=made, archive=archive, pool=pool, costs=costs)
        replies = batch.ask({render(made.adql_template, {"id": one}): Ask({"id": one}) for one in ids})
    return dict(zip(ids, replies.values(), strict=True))


def right(replies: dict[str, Reply], archive: Catalogue) -> bool:
    return all(
        reply.error is None and reply.rows == [row for row in archive.rows if row["k"] == name]
        for name, reply in replies.items()
    )


def test_more_sources_than_a_request_can_name_go_into_a_table() -> None:
    archive = catalogue(*IDS[:70])
    replies = ask(archive, IDS)
    assert archive.asked == [("upload", 120), ("single", 1)]
    assert right(replies, archive)
    assert {reply.evidence["form"] for reply in replies.values()} == {"upload"}


def test_as_many_as_a_request_can_name_do_not() -> None:
    archive = catalogue(*IDS)
    ask(archive, IDS[:50])
    assert archive.forms() == ["in", "single"]


def test_an_archive_without_uploads_gets_none() -> None:
    archive = catalogue(*IDS, able=TapCapabilities())
    assert right(ask(archive, IDS), archive)
    assert archive.forms() == ["in", "in", "in", "single"]


def test_a_like_is_asked_as_alternatives_whatever_the_archive_can() -> None:
    archive = Catalogue([])
    ask(archive, IDS, template=LIKE)
    assert "upload" not in archive.forms()


def test_a_table_is_as_long_as_the_archive_allows() -> None:
    archive = catalogue(*IDS, able=TapCapabilities(upload=True, upload_row_limit=50))
    assert right(ask(archive, IDS), archive)
    assert archive.asked == [("upload", 50), ("upload", 50), ("upload", 20), ("single", 1)]


def test_the_cheaper_form_is_used_once_both_were_tried(clock: ManualClock) -> None:
    costs, forms = Costs(clock=clock), []
    for _ in range(4):
        archive = catalogue(*IDS, seconds={"upload": 2.0, "in": 0.1})
        assert right(ask(archive, IDS, costs=costs), archive)
        forms.append(archive.forms()[0])
    assert forms == ["upload", "in", "in", "in"]
    assert costs.seconds("casda", EQUAL, Form.IN) == pytest.approx(0.3 / 120)


def test_a_table_that_the_archive_does_not_take_is_not_tried_again(clock: ManualClock) -> None:
    costs = Costs(clock=clock)
    for expected in (["upload", "in", "in", "in", "single"], ["in", "in", "in", "single"]):
        archive = catalogue(*IDS)
        archive.refuses = lambda form, _: AnswerClass.ERROR if form == "upload" else None
        assert right(ask(archive, IDS, costs=costs), archive)
        assert archive.forms() == expected


def test_a_table_of_which_the_archive_loses_rows_is_not_believed() -> None:
    class Losing(Catalogue):
        def query(self, adql: str, *, maxrec: int = DEFAULT_MAXREC, upload: Upload | None = None) -> Answer:
            if upload is not None:
                upload = replace(upload, rows=())
            return super().query(adql, maxrec=maxrec, upload=upload)

    archive = Losing(catalogue(*IDS).rows)
    assert right(ask(archive, IDS), archive)
    assert archive.forms() == ["upload", "single", "in", "in", "in", "single"]


def test_an_archive_that_joins_without_regard_to_case_is_asked_in_another_form() -> None:
    class Careless(Catalogue):
        def query(self, adql: str, *, maxrec: int = DEFAULT_MAXREC, upload: Upload | None = None) -> Answer:
            answer = super().query(adql, maxrec=maxrec, upload=upload)
            more: list[Row] = [{"k": "s000", "v": "other"}] if upload is not None else []
            return Answer([*answer.rows, *more], answer.evidence)

    archive = Careless(catalogue(*IDS).rows)
    assert right(ask(archive, IDS), archive)
    assert archive.forms() == ["upload", "in", "in", "in", "single"]


def test_a_table_whose_answer_is_too_long_is_halved() -> None:
    archive = catalogue(*IDS, rows=3, limit=200)
    assert right(ask(archive, IDS), archive)
    assert archive.asked[:3] == [("upload", 120), ("upload", 60), ("upload", 60)]


@pytest.mark.parametrize("form", ["in", "or", "upload", "none"])
def test_the_author_may_choose_the_form(form: str) -> None:
    archive = catalogue(*IDS[:4])
    replies = ask(archive, IDS[:4], batch=form)
    assert right(replies, archive)
    assert archive.forms()[0] == ("single" if form == "none" else form)
    if form == "none":
        assert {reply.evidence["not_batched"] for reply in replies.values()} == {"batch_none"}


def test_a_form_that_cannot_be_is_asked_one_by_one_and_says_so() -> None:
    archive = Catalogue([])
    replies = ask(archive, IDS[:4], template=LIKE, batch="in")
    assert {reply.evidence["not_batched"] for reply in replies.values()} == {"form_not_possible"}


def test_the_author_may_choose_how_many_share_a_request() -> None:
    archive = catalogue(*IDS[:20])
    ask(archive, IDS[:20], batch={"form": "in", "size": 8})
    assert archive.asked == [("in", 8), ("in", 8), ("in", 4), ("single", 1)]


# Overflow


def test_a_batch_that_overflows_is_halved_until_it_fits() -> None:
    archive = catalogue(*IDS[:32], rows=4, limit=20, able=TapCapabilities())
    assert right(ask(archive, IDS[:32]), archive)
    assert set(archive.modes) == {"sync"}
    assert max(count for form, count in archive.asked if form == "single") == 1


def test_a_single_source_that_overflows_is_asked_about_by_a_job() -> None:
    archive = catalogue(
        *IDS[:8], limit=50, able=TapCapabilities(async_=True, hard_maxrec=100_000, documented=True)
    )
    archive.rows += [{"k": "S003", "v": str(n)} for n in range(100)]
    replies = ask(archive, IDS[:8])
    assert right(replies, archive)
    assert len(replies["S003"].rows) == 101
    assert replies["S003"].evidence["mode"] == "async"
    assert {replies[one].evidence["mode"] for one in IDS[:8] if one != "S003"} == {"sync"}


@pytest.mark.parametrize("able", [TapCapabilities(), TapCapabilities(async_=True, hard_maxrec=60)])
def test_what_not_even_a_job_may_give_is_that_sources_error(able: TapCapabilities) -> None:
    archive = catalogue(*IDS[:8], limit=50, able=able)
    archive.rows += [{"k": "S003", "v": str(n)} for n in range(100)]
    failed = {one: reply.error.code for one, reply in ask(archive, IDS[:8]).items() if reply.error}
    assert failed == {"S003": "archive_overflow"}


# Over real sockets


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ArchiveServer]:
    with ArchiveServer(tmp_path / "archive") as running:
        yield running


def test_the_sandbox_takes_tables_and_gives_the_same(server: ArchiveServer) -> None:
    archives = TapArchives(urls={"casda": server.casda_url, "vizier": server.vizier_url}, clock=SystemClock())
    config = demo()
    archive = archives.get(config, "vizier")
    assert archive.capabilities().upload
    template = "SELECT HIPASS, RAJ2000, DEJ2000 FROM \"VIII/73/hicat\" WHERE HIPASS = '{id}'"
    known = [source.source_identifier.removeprefix("HIPASS") for source in load_demo().sources]
    found: dict[str, dict[str, list[Row]]] = {}
    for form in ("none", "in", "or", "upload"):
        replies = ask(archive, [*known, "O'Neill", "nobody"], template=template, batch=form)
        assert [reply.error for reply in replies.values()] == [None] * len(replies)
        assert {reply.evidence.get("form") for reply in replies.values()} == (
            {form} if form != "none" else {None}
        )
        found[form] = {name: reply.rows for name, reply in replies.items()}
    assert found["in"] == found["or"] == found["upload"] == found["none"]
    assert sum(len(rows) for rows in found["none"].values()) > 3
    assert httpx.get(f"{server.base_url}/sandbox/log").json()["total"] > 0
