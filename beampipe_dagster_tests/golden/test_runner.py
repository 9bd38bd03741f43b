"""The replay: what it counts, what it fails, how it ends."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from beampipe_dagster_tests.golden.__main__ import main
from beampipe_dagster_tests.golden.runner import (
    Area,
    Case,
    Deviation,
    ReplayError,
    Verdict,
    replay_area,
    shortened,
    with_files,
)

if TYPE_CHECKING:
    from pathlib import Path


def case(expr: str, result: object, fn: str | None = "expr", context: Any = None) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": f"{expr} is {result}",
        "input": {"expr": expr, "context": context},
        "expected": {"result": result},
    }
    return entry if fn is None else {**entry, "fn": fn}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    cases = [case("$count(a)", 1, context={"a": 1}), case("$count(a)", 7, fn=None)]
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / "expressions.json").write_text(json.dumps(cases))
    return tmp_path / "cases"


def test_cases_without_a_function_are_not_counted(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(directory)]) == 0
    assert capsys.readouterr().out == "expressions: 1/1 (deviates 0)\ntotal: 1/1 (deviates 0)\n"


def test_a_case_that_differs_fails_the_replay_and_is_shown(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (directory / "expressions.json").write_text(json.dumps([case("$count(a)", 0.0)]))
    assert main([str(directory), "--area", "expressions"]) == 1
    out = capsys.readouterr().out
    assert "expressions: 0/1 (deviates 0)" in out
    assert '\'$count(a) is 0.0\': expected {"result":0.0} got {"result":0}' in out


def test_an_unknown_function_is_a_failure_that_says_so(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (directory / "expressions.json").write_text(json.dumps([case("a", None, fn="zap")]))
    assert main([str(directory)]) == 1
    assert "no fn 'zap'" in capsys.readouterr().out


def test_json_output_is_one_document(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(directory), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["passed"], document["total"], document["deviates"]) == (1, 1, 0)


@pytest.mark.parametrize("arguments", [["--area", "nothing"], ["--area", "canonical_json"]])
def test_an_area_without_module_or_file_ends_with_2(
    directory: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(directory), *arguments]) == 2
    assert "error: " in capsys.readouterr().err


def test_files_are_put_in_place_of_their_references(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("q:\n- {t: text}\n")
    value = with_files({"x": ["@file:a.yaml#q[0].t", "@file:a.yaml"]}, tmp_path)
    assert value == {"x": ["text", "q:\n- {t: text}\n"]}
    with pytest.raises(ReplayError, match="leaves"):
        with_files("@file:../secret", tmp_path)


def test_a_deviation_holds_only_for_the_answer_that_its_rule_calls_for(tmp_path: Path) -> None:
    path = tmp_path / "demo.json"
    path.write_text(json.dumps([{"name": "n", "fn": "f", "input": 1, "expected": 0}]))

    def verdict(answer: int) -> Verdict:
        def is_two(_: Case, got: object) -> bool:
            return got == 2

        rule = Deviation("rule", "because", applies=lambda case: case.input == 1, agrees=is_two)
        area = Area("demo", {"f": lambda _: answer}, (rule,))
        return replay_area(area, path, files=tmp_path)[0].verdict

    assert [verdict(0), verdict(2), verdict(3)] == [Verdict.PASSED, Verdict.DEVIATES, Verdict.FAILED]


def test_an_exception_fails_its_case_only(tmp_path: Path) -> None:
    path = tmp_path / "demo.json"
    path.write_text(json.dumps([{"fn": "f", "input": n, "expected": 1} for n in (0, 1)]))
    area = Area("demo", {"f": lambda value: 1 // int(str(value))})
    outcomes = replay_area(area, path, files=tmp_path)
    assert [outcome.verdict for outcome in outcomes] == [Verdict.FAILED, Verdict.PASSED]
    assert "ZeroDivisionError" in outcomes[0].note


def test_long_texts_are_shown_from_where_they_differ() -> None:
    left, right = "a" * 1000 + "x" + "b" * 1000, "a" * 1000 + "y" + "b" * 1000
    shown = shortened(left, right)
    assert all(len(text) < 400 for text in shown)
    assert "x" in shown[0]
    assert "y" in shown[1]
