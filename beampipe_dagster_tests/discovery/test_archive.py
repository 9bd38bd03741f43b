from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from beampipe_dagster.discovery.archive import AnswerClass, Evidence, archive_error
from beampipe_dagster.errors import Retry


def evidence(answer: AnswerClass) -> Evidence:
    return Evidence(
        adapter="casda",
        url="https://archive.example/tap/sync",
        query_sha256="0" * 64,
        started_at=datetime(2026, 1, 1, tzinfo=UTC),
        seconds=0.12345,
        rows=3,
        http_status=200,
        query_status="OVERFLOW",
        bytes=99,
        answer=answer,
    )


@pytest.mark.parametrize("answer", [item for item in AnswerClass if item is not AnswerClass.COMPLETE])
def test_an_error_is_named_after_its_class_and_carries_the_evidence(answer: AnswerClass) -> None:
    error = archive_error("half of it", evidence(answer))
    assert error.code == f"archive_{answer.value}"
    assert error.details == evidence(answer).as_dict()
    assert error.hint
    assert "casda" in error.message
    assert "https://archive.example/tap/sync" in error.message


def test_only_an_overflow_is_not_worth_asking_again_as_it_is() -> None:
    never = [item for item in AnswerClass if archive_error("x", evidence(item)).retry is Retry.NEVER]
    assert never == [AnswerClass.OVERFLOW]


def test_evidence_is_json() -> None:
    shown = evidence(AnswerClass.COMPLETE).as_dict()
    assert json.loads(json.dumps(shown)) == shown
    assert (shown["started_at"], shown["seconds"]) == ("2026-01-01T00:00:00.000Z", 0.123)
