"""The page about states says what the code says."""

from __future__ import annotations

import importlib.util
from itertools import product
from pathlib import Path
from types import ModuleType

import pytest

from beampipe_dagster.execution.reconcile import RULES, Axes
from beampipe_dagster.ledger.states import DaliugeState, OutputState, SchedulerState, SubmissionState

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "write_state_docs.py"


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_state_docs", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_code_says(writer: ModuleType) -> None:
    assert writer.PAGE.read_text(encoding="utf-8") == writer.page(), "run scripts/write_state_docs.py"


def test_every_line_of_the_table_is_the_first_that_holds_for_some_axes() -> None:
    first = {
        next(number for number, rule in enumerate(RULES) if rule.holds(Axes(*words)))
        for words in product(SubmissionState, SchedulerState, DaliugeState, OutputState, (False, True))
    }
    assert first == set(range(len(RULES)))
