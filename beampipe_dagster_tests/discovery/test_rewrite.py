from __future__ import annotations

import pytest

from beampipe_dagster.discovery.rewrite import REASONS, BatchPlan, NotBatchable, Reason, plan_batch
from beampipe_dagster.errors import InputError

NAMES = frozenset({"source_identifier", "source_name", "sbid"})
LATEST = """SELECT o.* FROM ivoa.obscore o
INNER JOIN (
  SELECT MAX(t_max) AS mx FROM ivoa.obscore
  WHERE filename LIKE '{source_identifier}%'
  AND obs_collection IN ('ASKAP Pilot Survey for WALLABY', 'WALLABY')
) AS latest ON o.t_max = latest.mx
WHERE o.filename LIKE '{source_identifier}%'
AND o.obs_collection IN ('ASKAP Pilot Survey for WALLABY', 'WALLABY')
"""
EVALUATION = """SELECT * FROM casda.observation_evaluation_file
WHERE sbid = '{sbid}' AND format = 'calibration'
AND filename LIKE 'calibration-metadata-processing-logs-SB{sbid}_%.tar'
"""


def planned(template: str) -> BatchPlan:
    plan = plan_batch(template, NAMES)
    assert isinstance(plan, BatchPlan), plan
    return plan


def many(template: str, *values: str) -> str:
    return planned(template).adql([dict.fromkeys(NAMES, value) for value in values])


def test_an_equality_becomes_a_list_and_the_rest_stays_as_it_was_written() -> None:
    template = "SELECT HIPASS,  RAJ2000 -- why\nFROM \"VIII/73/hicat\" WHERE HIPASS = '{source_name}' ORDER BY HIPASS"
    assert many(template, "J2", "J1", "J2") == template.replace("= '{source_name}'", "IN ('J1', 'J2')")


def test_a_pattern_becomes_alternatives() -> None:
    template = "SELECT * FROM t o WHERE (o.f LIKE '{sbid}_SB%' AND (x = 1 OR y = 2))"
    wanted = "SELECT * FROM t o WHERE ((o.f LIKE 'A_SB%' OR o.f LIKE 'B_SB%') AND (x = 1 OR y = 2))"
    assert many(template, "B", "A") == wanted


def test_conditions_that_belong_together_stay_together() -> None:
    adql = many(EVALUATION, "1", "2")
    assert (
        "((sbid = '1' AND filename LIKE 'calibration-metadata-processing-logs-SB1_%.tar') OR (sbid = '2'"
        in adql
    )
    assert adql.rstrip().endswith("AND format = 'calibration'\nAND 1 = 1")


def test_the_join_with_the_greatest_value_becomes_a_choice_among_each_sources_own_rows() -> None:
    plan = planned(LATEST)
    assert plan.keep_max == "t_max"
    assert many(LATEST, "A", "B") == (
        "SELECT o.* FROM ivoa.obscore o\nWHERE (o.filename LIKE 'A%' OR o.filename LIKE 'B%')\n"
        "AND o.obs_collection IN ('ASKAP Pilot Survey for WALLABY', 'WALLABY')\n"
    )


def test_quotes_are_doubled_and_what_cannot_be_quoted_is_refused() -> None:
    assert "IN ('O''Neill', 'b')" in many("SELECT a FROM t WHERE a = '{sbid}'", "O'Neill", "b")
    with pytest.raises(InputError, match="backslash"):
        many("SELECT a FROM t WHERE a = '{sbid}'", "x\\")


def test_a_column_is_known_by_its_name_in_the_answer() -> None:
    (comparison,) = planned("SELECT a AS Name, b FROM t WHERE t.A = '{sbid}'").comparisons
    assert comparison.column == "Name"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("SELECT a FROM t WHERE (a = '{sbid}'", Reason.UNREADABLE),
        ("SELECT a FROM t WHERE a = '{sbid}'; SELECT 1", Reason.UNREADABLE),
        ("SELECT a FROM t WHERE a = '{other}'", Reason.NO_PLACEHOLDER),
        ("SELECT a FROM t WHERE a = {sbid}", Reason.NOT_IN_A_LITERAL),
        ("SELECT a FROM t WHERE a = '{sbid}' -- {sbid}", Reason.NOT_IN_A_LITERAL),
        ("SELECT a FROM t WHERE a = '{sbid}' AND \"{sbid}\" = 1", Reason.NOT_IN_A_LITERAL),
        ("SELECT a FROM t WHERE a = '{sbid}' OR b = 1", Reason.NOT_A_CONDITION),
        ("SELECT a FROM t WHERE NOT a = '{sbid}'", Reason.NOT_A_CONDITION),
        ("SELECT a FROM t WHERE a NOT LIKE '{sbid}'", Reason.NOT_A_CONDITION),
        ("SELECT a FROM t WHERE a <> '{sbid}'", Reason.NOT_A_CONDITION),
        ("SELECT a FROM t WHERE a LIKE '{sbid}' ESCAPE '!'", Reason.NOT_A_CONDITION),
        ("SELECT a FROM t WHERE LOWER(a) = '{sbid}'", Reason.NOT_A_CONDITION),
        ("SELECT a FROM t WHERE a = '{sbid}' || 'x'", Reason.NOT_A_CONDITION),
        ("SELECT a, '{sbid}' AS b FROM t WHERE a = '{sbid}'", Reason.NOT_A_CONDITION),
        ("SELECT a FROM t WHERE a IN (SELECT b FROM u WHERE b = '{sbid}')", Reason.NOT_A_CONDITION),
        ("SELECT a FROM t WHERE a = '{sbid}' UNION SELECT a FROM u", Reason.SET_OPERATION),
        ("WITH u AS (SELECT a FROM t) SELECT a FROM u WHERE a = '{sbid}'", Reason.SET_OPERATION),
        ("SELECT COUNT(*) FROM t WHERE a = '{sbid}'", Reason.AGGREGATE),
        ("SELECT a, MAX(b) FROM t WHERE a = '{sbid}' GROUP BY a", Reason.AGGREGATE),
        ("SELECT a, ROW_NUMBER() OVER (ORDER BY a) AS n FROM t WHERE a = '{sbid}'", Reason.AGGREGATE),
        ("SELECT DISTINCT a FROM t WHERE a = '{sbid}'", Reason.LIMITED),
        ("SELECT TOP 1 a FROM t WHERE a = '{sbid}'", Reason.LIMITED),
        ("SELECT a FROM t WHERE a = '{sbid}' OFFSET 1", Reason.LIMITED),
        ("SELECT a FROM t, u WHERE a = '{sbid}'", Reason.JOIN),
        ("SELECT a FROM t JOIN u ON t.x = u.x WHERE a = '{sbid}'", Reason.JOIN),
        ("SELECT a FROM (SELECT * FROM t) AS q WHERE a = '{sbid}'", Reason.JOIN),
        ("SELECT a FROM TAP_UPLOAD.ids WHERE a LIKE '{sbid}%'", Reason.JOIN),
        ("SELECT b FROM t WHERE a = '{sbid}'", Reason.COLUMN_NOT_SELECTED),
        ("SELECT UPPER(a) AS a FROM t WHERE a = '{sbid}'", Reason.COLUMN_NOT_SELECTED),
        ("SELECT t.*, b AS a FROM t WHERE a = '{sbid}'", Reason.COLUMN_NOT_SELECTED),
        ("SELECT a, b AS a FROM t WHERE a = '{sbid}'", Reason.COLUMN_NOT_SELECTED),
        ("SELECT a FROM t WHERE a LIKE 'x\\{sbid}'", Reason.BACKSLASH),
        (LATEST.replace("SELECT o.*", "SELECT *"), Reason.COLUMN_NOT_SELECTED),
        (LATEST.replace("SELECT o.*", "SELECT o.filename"), Reason.COLUMN_NOT_SELECTED),
        (LATEST.replace("INNER", "LEFT"), Reason.JOIN),
        (LATEST.replace("MAX(", "MIN("), Reason.JOIN),
        (LATEST.replace("= latest.mx", "> latest.mx"), Reason.JOIN),
        (LATEST.replace("o.t_max =", "o.t_min ="), Reason.JOIN),
        (LATEST.replace("o.filename LIKE '{source_identifier}%'", "o.filename LIKE '{sbid}%'"), Reason.JOIN),
        (LATEST.replace("  AND obs_collection", "  AND quality = 1 AND obs_collection"), Reason.JOIN),
        (LATEST.replace("AS mx FROM ivoa.obscore", "AS mx FROM ivoa.other"), Reason.JOIN),
        (LATEST + " AND latest.mx > 1", Reason.JOIN),
    ],
)  # fmt: skip
def test_what_would_not_give_each_source_its_own_rows_is_asked_source_by_source(
    template: str, reason: Reason
) -> None:
    assert plan_batch(template, NAMES) == NotBatchable(reason)
    assert str(NotBatchable(reason)) == REASONS[reason]


def test_every_reason_has_a_sentence() -> None:
    assert set(REASONS) == set(Reason)
