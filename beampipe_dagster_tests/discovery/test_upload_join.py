"""A table that goes with the query: the same rows for each source, and chosen when it is cheaper."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beampipe_dagster.clock import ManualClock
from beampipe_dagster.config.canonical import JsonValue, canonical_json
from beampipe_dagster.discovery.archive import Upload
from beampipe_dagster.discovery.attribution import Row, attribute
from beampipe_dagster.discovery.rewrite import BatchPlan, plan_batch
from beampipe_dagster.discovery.templates import render
from beampipe_dagster.discovery.upload_join import (
    COST_SECONDS,
    TRAPS,
    Costs,
    Form,
    Trap,
    upload_request,
    upload_trap,
)
from beampipe_dagster.sandbox.archive.adql import Deadline, QueryEngine
from beampipe_dagster.sandbox.archive.adql import Upload as Uploaded
from beampipe_dagster.sandbox.archive.columns import Column
from beampipe_dagster.sandbox.archive.store import ArchiveStore

ORDER = " ORDER BY filename, obs_id, t_max, obs_collection"
TEMPLATES = (
    "SELECT * FROM ivoa.obscore WHERE obs_id = '{id}'",
    "SELECT o.* FROM ivoa.obscore o WHERE o.obs_id = '{id}' AND o.obs_collection = 'WALLABY'",
    "SELECT filename, obs_id AS block, t_max FROM ivoa.obscore WHERE obs_id = '{id}'",
    "SELECT o.* FROM ivoa.obscore o WHERE o.filename = '{id}_SB1' AND o.obs_id = '{id}'",
    """SELECT o.filename, o.t_max, o.obs_id FROM ivoa.obscore o JOIN (SELECT MAX(t_max) AS mx FROM ivoa.obscore
    WHERE obs_id = '{id}') AS x ON o.t_max = x.mx WHERE o.obs_id = '{id}'""",
)
ALL_FORMS = (*TEMPLATES, "SELECT * FROM ivoa.obscore WHERE filename LIKE '{id}%'")
# HIPASS J1300-13 and J1300-13B, J0541-69 and J0541-69A: real pairs, each a prefix of the other.
NAMES = ("J1300-13", "J1300-13B", "J0541-69", "J0541-69A", "j1300-13", "O'N", "1", "01", "ü")
identifiers = st.sampled_from(NAMES)
rows = st.lists(
    st.tuples(
        st.builds("".join, st.tuples(identifiers, st.sampled_from(("", "_SB1", "_SB_A1")))),
        st.one_of(st.none(), identifiers),
        st.sampled_from(("WALLABY", "EMU")),
        st.sampled_from((None, 1.5, 2.0, 10.0)),
    ),
    max_size=14,
)


def planned(template: str) -> BatchPlan:
    plan = plan_batch(template, {"id"})
    assert isinstance(plan, BatchPlan), plan
    return plan


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArchiveStore:
    return ArchiveStore(data_dir=tmp_path_factory.mktemp("store"), seed="empty")


@pytest.fixture(scope="module")
def engine(store: ArchiveStore) -> Iterator[QueryEngine]:
    made = QueryEngine(archive="casda", attachments=store.attachments("casda"))
    yield made
    made.close()


def fill(path: Path, values: list[tuple[Any, ...]]) -> None:
    with sqlite3.connect(path) as db:
        db.execute("DELETE FROM obscore")
        db.executemany(
            "INSERT INTO obscore (filename, obs_id, obs_collection, t_max) VALUES (?, ?, ?, ?)", values
        )
    db.close()


def answered(engine: QueryEngine, adql: str, upload: Upload | None = None) -> list[Row]:
    tables = []
    if upload is not None:
        columns = tuple(Column(name, "char") for name in upload.columns)
        tables = [Uploaded(upload.name, columns, [tuple(row) for row in upload.rows])]
    answer = engine.run(adql, maxrec=1000, deadline=Deadline(10), uploads=tables)
    names = [column.name for column in answer.columns]
    cells = [["" if cell is None else str(cell) for cell in row] for row in answer.rows]
    return [dict(zip(names, row, strict=True)) for row in cells]


def requests(plan: BatchPlan, contexts: list[dict[str, JsonValue]]) -> list[tuple[str, Upload | None]]:
    """The query for many in each of the forms that it can have."""
    found: list[tuple[str, Upload | None]] = [
        (plan.adql(contexts), None),
        (plan.adql(contexts, as_list=False), None),
    ]
    if upload_trap(plan) is None:
        request = upload_request(plan, contexts)
        assert not isinstance(request, Trap)
        found.append(request)
    return found


def in_any_order(parts: list[list[Row]]) -> list[list[str]]:
    return [sorted(map(canonical_json, rows)) for rows in parts]


@settings(max_examples=150, deadline=None)
@given(
    template=st.sampled_from((*ALL_FORMS, *(f"{one}{ORDER}" for one in ALL_FORMS))),
    values=rows,
    ids=st.lists(identifiers, min_size=2, max_size=6),
)
def test_each_source_gets_the_same_rows_in_every_form_and_alone(
    store: ArchiveStore, engine: QueryEngine, template: str, values: list[tuple[Any, ...]], ids: list[str]
) -> None:
    fill(store.path("ivoa"), values)
    contexts: list[dict[str, JsonValue]] = [{"id": one} for one in ids]
    plan = planned(template)
    alone = [answered(engine, render(template, context)) for context in contexts]
    for adql, upload in requests(plan, contexts):
        together = attribute(plan, contexts, answered(engine, adql, upload))
        assert in_any_order(together) == in_any_order(alone)
        if template not in ALL_FORMS:
            assert together == alone


@pytest.mark.parametrize("template", TEMPLATES)
def test_an_equality_may_be_uploaded(template: str) -> None:
    assert upload_trap(planned(template)) is None


@pytest.mark.parametrize(
    "template",
    [
        "SELECT * FROM t WHERE f LIKE '{id}%'",
        "SELECT * FROM t WHERE f LIKE '{id}'",
        "SELECT * FROM t WHERE a = '{id}' AND f LIKE '%{id}%'",
    ],
)
def test_a_like_is_never_uploaded_and_says_why(template: str) -> None:
    trap = upload_trap(planned(template))
    assert trap is Trap.LIKE
    assert "no index" in TRAPS[trap]


def test_the_table_has_each_value_once_and_the_query_stays_as_short() -> None:
    contexts: list[dict[str, JsonValue]] = [{"id": f"S{n % 300}"} for n in range(900)]
    request = upload_request(planned(TEMPLATES[1]), contexts)
    assert not isinstance(request, Trap)
    adql, upload = request
    assert len(upload.rows) == 300
    assert len(adql) < 200
    assert "AND o.obs_collection = 'WALLABY'" in adql


def test_quotes_go_into_the_table_as_they_are() -> None:
    request = upload_request(planned(TEMPLATES[0]), [{"id": "O'N"}])
    assert not isinstance(request, Trap)
    assert request[1].rows == (("O'N",),)


@pytest.mark.parametrize(
    "template", ["SELECT * FROM t WHERE a = ' {id}'", "SELECT * FROM t WHERE a = '{id}'"]
)
def test_a_text_that_may_arrive_as_another_is_not_uploaded(template: str) -> None:
    value = "x" if "' " in template else ""
    assert upload_request(planned(template), [{"id": value}]) is Trap.VALUE


# Costs

FORMS = [Form.UPLOAD, Form.IN]


@pytest.fixture
def costs(clock: ManualClock) -> Costs:
    return Costs(clock=clock)


def test_what_nobody_has_measured_is_tried_first_then_the_cheapest(costs: Costs) -> None:
    assert costs.cheapest_first("casda", "t", FORMS) == [Form.UPLOAD, Form.IN]
    costs.measured("casda", "t", Form.UPLOAD, seconds=9, sources=100)
    assert costs.cheapest_first("casda", "t", FORMS) == [Form.IN, Form.UPLOAD]
    costs.measured("casda", "t", Form.IN, seconds=10, sources=100)
    assert costs.cheapest_first("casda", "t", FORMS) == [Form.UPLOAD, Form.IN]
    costs.measured("casda", "t", Form.IN, seconds=1, sources=100)
    assert costs.cheapest_first("casda", "t", FORMS) == [Form.IN, Form.UPLOAD]
    assert costs.seconds("casda", "t", Form.IN) == 0.01


def test_archives_and_templates_have_costs_of_their_own(costs: Costs) -> None:
    costs.measured("casda", "t", Form.UPLOAD, seconds=9, sources=100)
    assert costs.seconds("vizier", "t", Form.UPLOAD) is None
    assert costs.seconds("casda", "u", Form.UPLOAD) is None


def test_what_failed_is_left_out_until_it_is_forgotten(costs: Costs, clock: ManualClock) -> None:
    costs.failed("casda", "t", Form.UPLOAD)
    assert costs.cheapest_first("casda", "t", FORMS) == [Form.IN]
    assert costs.cheapest_first("casda", "t", [Form.UPLOAD]) == [Form.UPLOAD]
    clock.advance(COST_SECONDS + 1)
    assert costs.cheapest_first("casda", "t", FORMS) == [Form.UPLOAD, Form.IN]
