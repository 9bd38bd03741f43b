from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beampipe_dagster.config.canonical import JsonValue, canonical_json
from beampipe_dagster.discovery.attribution import Row, _Pattern, attribute
from beampipe_dagster.discovery.rewrite import BatchPlan, plan_batch
from beampipe_dagster.discovery.templates import render
from beampipe_dagster.errors import ArchiveError
from beampipe_dagster.sandbox.archive.adql import Deadline, QueryEngine
from beampipe_dagster.sandbox.archive.store import ArchiveStore

PREFIX = "SELECT o.* FROM ivoa.obscore o WHERE o.filename LIKE '{id}%' AND o.obs_collection = 'WALLABY'"
LATEST = """SELECT o.filename, o.t_max, o.obs_id FROM ivoa.obscore o
JOIN (SELECT MAX(t_max) AS mx FROM ivoa.obscore WHERE filename LIKE '{id}%' AND obs_collection = 'WALLABY') AS x
ON o.t_max = x.mx WHERE o.filename LIKE '{id}%' AND o.obs_collection = 'WALLABY'"""
TEMPLATES = (
    PREFIX,
    LATEST,
    "SELECT filename, obs_id FROM ivoa.obscore WHERE filename LIKE '{id}_SB%'",
    "SELECT filename AS f, t_max FROM ivoa.obscore WHERE filename LIKE '%{id}%'",
    "SELECT * FROM ivoa.obscore WHERE obs_id = '{id}'",
    "SELECT * FROM ivoa.obscore WHERE obs_id = '{id}' AND filename LIKE '{id}_%'",
)
ORDER = "ORDER BY filename, obs_id, t_max, obs_collection"
NAMES = ("A", "A1", "A1B", "a1", "A_", "A-1", "AA", "B", "O'N", "1", "")
identifiers = st.sampled_from(NAMES[:-1])
rows = st.lists(
    st.tuples(
        st.builds(
            "".join, st.tuples(st.sampled_from(NAMES), st.sampled_from(("", "_SB1", "x", "_SB_A1", "\n")))
        ),
        st.sampled_from(NAMES),
        st.sampled_from(("WALLABY", "EMU")),
        st.sampled_from((None, 1.5, 2.0, 10.0, 0.1 + 0.2, -1.0)),
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


def answered(engine: QueryEngine, adql: str) -> list[Row]:
    answer = engine.run(adql, maxrec=1000, deadline=Deadline(10))
    names = [column.name for column in answer.columns]
    cells = [["" if cell is None else str(cell) for cell in row] for row in answer.rows]
    return [dict(zip(names, row, strict=True)) for row in cells]


@settings(max_examples=150, deadline=None)
@given(
    template=st.sampled_from((*TEMPLATES, *(f"{one} {ORDER}" for one in TEMPLATES))),
    values=rows,
    ids=st.lists(identifiers, min_size=2, max_size=6, unique=True),
)
def test_what_each_source_gets_of_a_batch_is_what_it_gets_alone_row_for_row(
    store: ArchiveStore, engine: QueryEngine, template: str, values: list[tuple[Any, ...]], ids: list[str]
) -> None:
    fill(store.path("ivoa"), values)
    contexts: list[dict[str, JsonValue]] = [{"id": one} for one in ids]
    plan = planned(template)
    together = attribute(plan, contexts, answered(engine, plan.adql(contexts)))
    alone = [answered(engine, render(template, context)) for context in contexts]
    if template not in TEMPLATES:
        assert together == alone
    # Without an ORDER BY, an archive may give the rows of the same query in any order.
    assert [sorted(map(canonical_json, one)) for one in together] == [
        sorted(map(canonical_json, one)) for one in alone
    ]


def test_a_row_that_fits_two_sources_goes_to_both() -> None:
    contexts = [{"id": "J1300-13"}, {"id": "J1300-13B"}]
    answer: list[Row] = [{"filename": "J1300-13B_SB1"}, {"filename": "J1300-13_SB1"}]
    assert attribute(planned(PREFIX), contexts, answer) == [answer, answer[:1]]


def test_the_copies_are_independent_of_each_other() -> None:
    contexts = [{"id": "A"}, {"id": "AB"}]
    first, second = attribute(planned(PREFIX), contexts, [{"filename": "AB"}])
    first[0]["filename"] = "changed"
    assert second == [{"filename": "AB"}]


@pytest.mark.parametrize("cell", ["a_SB1", "C", "", None])
def test_a_row_that_fits_none_is_an_error(cell: str | None) -> None:
    with pytest.raises(ArchiveError) as caught:
        attribute(planned(PREFIX), [{"id": "A"}, {"id": "B"}], [{"filename": "A1"}, {"filename": cell}])
    assert caught.value.code == "row_not_attributable"


def test_a_column_is_found_in_whatever_case_the_archive_spells_it() -> None:
    assert attribute(planned(PREFIX), [{"id": "A"}], [{"FileName": "A1"}]) == [[{"FileName": "A1"}]]


@pytest.mark.parametrize("row", [{"other": "A"}, {"FILENAME": "A", "Filename": "A"}])
def test_an_answer_without_the_column_that_tells_belongs_to_nobody(row: Row) -> None:
    with pytest.raises(ArchiveError, match="belong to nobody"):
        attribute(planned(PREFIX), [{"id": "A"}], [row])


def test_the_greatest_is_found_by_number_and_null_is_none() -> None:
    values = ("9", "10", "", "1e1")
    answer: list[Row] = [{"filename": f"A{i}", "t_max": one, "obs_id": ""} for i, one in enumerate(values)]
    (kept,) = attribute(planned(LATEST), [{"id": "A"}], answer)
    assert [row["filename"] for row in kept] == ["A1", "A3"]
    assert attribute(planned(LATEST), [{"id": "A"}], answer[2:3]) == [[]]


@pytest.mark.parametrize("value", ["NaN", "2025-01-01", "Infinity"])
def test_what_is_no_number_is_not_compared_by_guessing(value: str) -> None:
    with pytest.raises(ArchiveError) as caught:
        attribute(planned(LATEST), [{"id": "A"}], [{"filename": "A", "t_max": value, "obs_id": ""}])
    assert caught.value.code == "value_not_comparable"


@settings(max_examples=500)
@given(
    pattern=st.text("ab%_.\n*", max_size=9),
    cell=st.text("ab_.\n*", max_size=9),
    like=st.booleans(),
    data=st.data(),
)
def test_a_pattern_fits_what_the_regular_expression_of_it_matches(
    *, pattern: str, cell: str, like: bool, data: st.DataObject
) -> None:
    if data.draw(st.booleans()):  # one that is likely to fit
        cell = "".join(
            data.draw(st.text("ab", max_size=2)) if char == "%" else "a" if char == "_" else char
            for char in pattern
        )
    wild = {"%": ".*", "_": "."} if like else {}
    text = "".join(wild.get(char) or re.escape(char) for char in pattern)
    expected = re.fullmatch(text, cell, re.DOTALL) is not None
    assert bool(_Pattern(pattern, like).test()(cell)) is expected
