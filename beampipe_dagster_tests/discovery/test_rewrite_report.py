"""How each query is asked for many, in a report that nobody has to be asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from beampipe_dagster.clock import ManualClock
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.config.validation import load_project
from beampipe_dagster.discovery.archive import TapCapabilities
from beampipe_dagster.discovery.batch_query import MAX_CHARACTERS
from beampipe_dagster.discovery.rewrite_report import QueryReport, last_costs, report
from beampipe_dagster_tests.discovery.test_rewrite import EVALUATION, LATEST
from beampipe_dagster_tests.support.ledgers import SURVEY
from beampipe_dagster_tests.support.platforms import Stage, survey_spec

PROJECTS = Path(__file__).resolve().parents[2] / "projects"
UPLOADS = {"casda": TapCapabilities(upload=True)}


def of(template: str, *, part: str = "queries", able: Any = UPLOADS, **fields: Any) -> QueryReport:
    spec: Any = survey_spec("0" * 64)
    spec["discovery"]["queries"] = spec["discovery"]["queries"][:1]
    query = {"name": "q", "adapter": "casda", "template": template, **fields}
    spec["discovery"][part] = [query]
    return report(ProjectConfig.from_json(spec), capabilities=able)[-1]


def codes(found: QueryReport) -> set[str]:
    return {one.code for one in found.surprises}


@pytest.mark.parametrize(
    ("template", "fields", "form", "upload"),
    [
        ("SELECT * FROM t WHERE a = '{source_name}'", {}, "in", True),
        ("SELECT * FROM t WHERE a = '{source_name}'", {"batch": "or"}, "or", False),
        ("SELECT * FROM t WHERE a = '{source_name}'", {"batch": "upload"}, "upload", True),
        ("SELECT * FROM t WHERE a LIKE '{source_name}_%'", {}, "or", False),
        ("SELECT * FROM t WHERE a LIKE '{source_name}_%'", {"batch": "none"}, "per_source", False),
        ("SELECT * FROM t WHERE {match}", {"match": {"a": "{source_name}"}}, "in", True),
        (LATEST, {}, "latest", False),
    ],
)
def test_the_form_is_told(template: str, fields: dict[str, Any], form: str, *, upload: bool) -> None:
    found = of(template, **fields)
    assert (found.form, found.upload, found.exact) == (form, upload, form != "per_source")


def test_without_capabilities_there_are_no_uploads() -> None:
    assert not of("SELECT * FROM t WHERE a = '{source_name}'", able=None).upload


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("SELECT DISTINCT * FROM t WHERE a = '{source_name}'", "distinct_or_limited"),
        (
            "SELECT * FROM t WHERE a LIKE '{source_name}!_%' ESCAPE '!'",
            "placeholder_not_in_a_top_level_condition",
        ),
        ("SELECT * FROM t WHERE LOWER(a) = '{source_name}'", "placeholder_not_in_a_top_level_condition"),
        ("SELECT a FROM t WHERE a = '{source_name}' UNION SELECT a FROM u", "set_operation"),
    ],
)
def test_what_is_asked_one_by_one_says_why(template: str, reason: str) -> None:
    found = of(template)
    assert (found.form, found.reason, found.batch_size) == ("per_source", reason, 1)
    assert found.why
    assert found.why in found.sentence


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("SELECT * FROM t WHERE a = '{source_name}'", set()),
        ("SELECT * FROM t WHERE a LIKE '{source_name}_SB%'", {"like_on_upload"}),
        ("SELECT * FROM t WHERE a LIKE '{source_name}%'", {"like_on_upload", "prefix_crosses"}),
        ("SELECT * FROM t WHERE a LIKE '{source_name}!_%' ESCAPE '!'", {"not_adql_2"}),
        ("SELECT a FROM t WHERE a = '{source_name}' UNION SELECT a FROM u", {"not_adql_2"}),
        ("SELECT * FROM t WHERE UPPER(a) = '{source_name}'", {"function_on_column"}),
        ("WITH w AS (SELECT 1) SELECT * FROM w WHERE a = '{source_name}'", {"not_adql_2"}),
    ],
)
def test_traps_are_found(template: str, expected: set[str]) -> None:
    assert codes(of(template)) == expected


def test_a_prefix_that_is_declared_is_meant() -> None:
    match = {"column": "a", "value": "{source_name}", "how": "prefix"}
    assert "prefix_crosses" not in codes(of("SELECT * FROM t WHERE {match}", match=match))


def test_an_order_that_is_left_open_is_told_where_the_first_row_counts() -> None:
    assert "order_open" in codes(of(EVALUATION, part="enrichments"))
    assert "order_open" not in codes(of(f"{EVALUATION} ORDER BY filename", part="enrichments"))
    assert "order_open" not in codes(of(EVALUATION, part="enrichments", keep={"latest": "filesize"}))


def test_a_watermark_that_cannot_be_is_told_before_the_first_sweep() -> None:
    watermark = {"column": "released"}
    assert "watermark_not_possible" in codes(
        of("SELECT DISTINCT a FROM t WHERE a = '{source_name}'", watermark=watermark)
    )
    assert codes(of("SELECT a FROM t WHERE a = '{source_name}'", watermark=watermark)) == set()


def test_a_request_is_never_longer_than_is_allowed() -> None:
    template = "SELECT * FROM t WHERE a LIKE 'long{source_name}%'".replace("long", "x" * 2000)
    found = of(template, batch={"size": 500})
    assert found.batch_size < 20
    assert found.batch_characters <= MAX_CHARACTERS


def test_the_surveys_of_the_project_are_reported() -> None:
    config = load_project((PROJECTS / "wallaby_demo" / "wallaby_demo.yaml").read_bytes())
    found = report(config)
    assert [(one.role, one.form) for one in found] == [
        ("primary", "or"),
        ("further", "in"),
        ("enrichment", "in"),
    ]
    assert all(one.exact for one in found)


def test_the_newest_requests_tell_what_a_source_costs(stage: Stage, clock: ManualClock) -> None:
    del clock
    for number, name in enumerate(("A", "B", "C", "D")):
        stage.archives.deposit(name, 100 + number)
    stage.register("A", "B", "C", "D")
    stage.discover()
    with stage.ledger.read() as conn:
        costs = last_costs(conn, SURVEY)
    assert {name: cost.form for name, cost in costs.items()} == {"visibility": "in", "catalogue": "in"}
    assert costs["visibility"].sources == 4
    assert costs["visibility"].seconds_per_source == pytest.approx(0.025)
    config = ProjectConfig.from_json(survey_spec("0" * 64))
    assert report(config, costs=costs)[0].as_dict()["cost"]["seconds_per_source"] == 0.025
