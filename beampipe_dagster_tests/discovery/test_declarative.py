"""What a query declares about its rows: which are a source's, which are kept; alone and together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.clock import SystemClock
from beampipe_dagster.config.project import ProjectConfig, Query
from beampipe_dagster.config.validation import load_project
from beampipe_dagster.discovery.archives import TapArchives
from beampipe_dagster.discovery.attribution import Row
from beampipe_dagster.discovery.batch_look import BatchLook
from beampipe_dagster.discovery.declarative import kept, literal_of
from beampipe_dagster.discovery.look import SourceLook
from beampipe_dagster.errors import DataError
from beampipe_dagster.sandbox.archive.demo import load_demo
from beampipe_dagster.sandbox.archive.server import ArchiveServer

DEMO = Path(__file__).resolve().parents[2] / "projects" / "wallaby_demo" / "wallaby_demo.yaml"
NAMES = [source.source_identifier for source in load_demo().sources]
BASE = {"name": "q", "adapter": "casda", "template": "SELECT * FROM ivoa.obscore WHERE {match}"}


def query(**fields: Any) -> Query:
    return Query.model_validate({**BASE, **fields})


def keep(name: str, rows: list[Row], **fields: Any) -> list[Row]:
    return kept(query(**fields), {"id": name}, rows)


@pytest.mark.parametrize(
    ("match", "text"),
    [
        ({"filename": "{id}"}, "filename = '{id}'"),
        ({"column": "o.f", "value": "{id}_SB", "how": "prefix"}, "o.f LIKE '{id}_SB%'"),
        ({"column": '"My file"', "value": "{id}", "how": "contains"}, "\"My file\" LIKE '%{id}%'"),
        ({"a": "{id}", "b": "it's {id}"}, "(a = '{id}' AND b = 'it''s {id}')"),
        ([{"column": "a", "value": "{id}"}], "a = '{id}'"),
    ],
)
def test_a_match_is_written_where_the_template_says(match: Any, text: str) -> None:
    begin = "SELECT * FROM ivoa.obscore WHERE "
    assert query(match=match).adql_template == begin + text


def test_without_a_match_the_template_stays_as_it_was_written() -> None:
    assert query().adql_template == BASE["template"]


def test_a_value_is_compared_literally_and_never_as_a_pattern() -> None:
    match = {"column": "f", "value": "{id}", "how": "prefix"}
    rows: list[Row] = [{"F": "A_1x"}, {"F": "AB1x"}, {"F": "a_1x"}, {"F": ""}, {"F": None}]
    assert keep("A_1", rows, match=match) == [{"F": "A_1x"}]
    assert keep("_1", rows, match={**match, "how": "contains"}) == [{"F": "A_1x"}, {"F": "a_1x"}]


def test_what_the_archive_calls_equal_is_the_archives_to_say() -> None:
    rows: list[Row] = [{"sbid": "7"}]
    assert keep("07", rows, match={"sbid": "{id}"}) == rows


def test_a_quote_in_a_name_or_a_value_is_a_quote() -> None:
    assert literal_of("it's {id}", {"id": "O'N"}) == "it's O'N"


def test_rows_are_kept_by_value() -> None:
    rows: list[Row] = [{"c": "W"}, {"c": "E"}, {"c": "w"}]
    assert keep("x", rows, keep={"where": {"C": "W"}}) == [{"c": "W"}]
    assert keep("x", rows, keep={"where": {"c": ["W", "E"]}}) == rows[:2]


def test_the_latest_is_the_greatest_number_or_time_and_null_never_is() -> None:
    rows: list[Row] = [{"t": "9"}, {"t": "10"}, {"t": ""}, {"t": "1e1"}]
    assert keep("x", rows, keep={"latest": "t"}) == [rows[1], rows[3]]
    assert keep("x", rows[2:3], keep={"latest": "t"}) == []
    times: list[Row] = [{"t": "2026-01-02T00:00:00Z"}, {"t": "2026-01-02 01:00:00"}, {"t": "2026-01-01"}]
    assert keep("x", times, keep={"latest": "t"}) == [times[1]]


def test_the_latest_is_kept_of_each_group_among_the_rows_that_are_kept_by_value() -> None:
    rows: list[Row] = [
        {"s": "1", "t": "1", "q": "good"},
        {"s": "1", "t": "2", "q": "good"},
        {"s": "1", "t": "3", "q": "bad"},
        {"s": "2", "t": "1", "q": "good"},
    ]
    assert keep("x", rows, keep={"where": {"q": "good"}, "latest": "t", "per": ["S"]}) == [rows[1], rows[3]]


@pytest.mark.parametrize(
    ("rows", "rules", "code"),
    [
        ([{"t": "1"}, {"t": "2026-01-01"}], {"latest": "t"}, "keep_not_comparable"),
        ([{"t": "soon"}], {"latest": "t"}, "keep_not_comparable"),
        ([{"t": "NaN"}], {"latest": "t"}, "keep_not_comparable"),
        ([{"t": "1"}], {"latest": "u"}, "keep_column_missing"),
        ([{"t": "1"}], {"where": {"u": "1"}}, "keep_column_missing"),
        ([{"t": "1", "T": "2"}], {"where": {"tT": "1"}}, "keep_column_missing"),
    ],
)
def test_what_cannot_be_decided_is_an_error(rows: list[Row], rules: Any, code: str) -> None:
    with pytest.raises(DataError) as caught:
        keep("x", rows, keep=rules)
    assert caught.value.code == code
    assert caught.value.hint


@given(
    values=st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(("", "1", "2", "10", "-1"))), max_size=8)
)
def test_the_latest_of_each_group_is_what_a_plain_reading_says(values: list[tuple[str, str]]) -> None:
    rows: list[Row] = [{"g": group, "t": value} for group, value in values]
    expected = [
        row
        for row, (group, value) in zip(rows, values, strict=True)
        if value and float(value) == max(float(v) for g, v in values if g == group and v)
    ]
    assert keep("x", rows, keep={"latest": "t", "per": ["g"]}) == expected


# In a survey


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ArchiveServer]:
    with ArchiveServer(tmp_path / "archive") as running:
        yield running


def declared(**fields: Any) -> ProjectConfig:
    value: Any = load_project(DEMO.read_bytes()).as_json()
    value["discovery"]["queries"][0].update(fields)
    return ProjectConfig.from_json(value)


def looks(server: ArchiveServer, config: ProjectConfig) -> dict[str, Any]:
    """What each source has, made sure to be the same alone and together."""
    archives = TapArchives(urls={"casda": server.casda_url, "vizier": server.vizier_url}, clock=SystemClock())
    one = SourceLook(config=config, archives=archives, clock=SystemClock())
    alone = {name: one.look(name) for name in NAMES}
    batch = BatchLook(config=config, archives=archives, clock=SystemClock())
    known = {name: look.datasets for name, look in alone.items()}
    for look in batch.looks(NAMES, known=known):
        other = alone[look.source_identifier]
        assert look.error is None
        assert (look.signature, look.metadata, look.flags) == (other.signature, other.metadata, other.flags)
        assert "not_batched" not in str(look.evidence)
    return {name: (look.signature, look.datasets) for name, look in alone.items()}


TEMPLATE = "SELECT * FROM ivoa.obscore WHERE {match}"
WRITTEN = "SELECT * FROM ivoa.obscore WHERE filename LIKE '{source_identifier}_SB%'"
MATCH = {"column": "filename", "value": "{source_identifier}_SB", "how": "prefix"}


def test_a_declared_query_gives_the_signatures_of_the_written_one(server: ArchiveServer) -> None:
    assert looks(server, declared(template=TEMPLATE, match=MATCH)) == looks(
        server, declared(template=WRITTEN)
    )


def test_a_source_whose_name_begins_with_anothers_keeps_its_files(server: ArchiveServer) -> None:
    crossing = looks(server, declared(template=TEMPLATE, match={**MATCH, "value": "{source_identifier}"}))
    apart = looks(server, declared(template=TEMPLATE, match=MATCH))
    assert [apart[name][1] for name in ("HIPASSJ1300-13", "HIPASSJ1300-13B")] == [1, 3]
    # Without what follows a name, the author means all that begin with it.
    assert [crossing[name][1] for name in ("HIPASSJ1300-13", "HIPASSJ1300-13B")] == [4, 3]


def test_the_latest_epoch_declared_is_the_latest_epoch_written(server: ArchiveServer) -> None:
    server.store.deposit(NAMES[4], beams=3)
    keeping = {"latest": "t_max", "per": ["target_name"]}
    before = looks(server, declared(template=TEMPLATE, match=MATCH))
    after = looks(server, declared(template=TEMPLATE, match=MATCH, keep={"latest": "t_max"}))
    per = looks(server, declared(template=TEMPLATE, match=MATCH, keep=keeping))
    assert before[NAMES[4]][1] > after[NAMES[4]][1] == 3
    assert per[NAMES[4]][1] >= 3


def test_the_canonical_text_of_a_survey_without_them_stays_as_it_was() -> None:
    text = load_project(DEMO.read_bytes()).canonical_text()
    assert not any(f'"{word}"' in text for word in ("batch", "keep", "watermark"))
    primary = load_project(DEMO.read_bytes()).as_json()["discovery"]
    assert "match" not in primary["queries"][0]  # type: ignore[call-overload,index,operator]  # any JSON


def test_a_short_form_has_the_digest_of_its_long_form() -> None:
    short = declared(template=TEMPLATE, match={"filename": "{source_identifier}"}, batch="or")
    full = declared(
        template=TEMPLATE,
        match=[{"column": "filename", "value": "{source_identifier}", "how": "equals"}],
        batch={"form": "or"},
    )
    assert short.spec_sha256 == full.spec_sha256
    assert ProjectConfig.from_json(short.as_json()) == short
