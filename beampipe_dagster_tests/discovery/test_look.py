from __future__ import annotations

from typing import Any

import pytest

from beampipe_dagster.clock import ManualClock
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.discovery.look import SourceLook
from beampipe_dagster.errors import ConfigError
from beampipe_dagster.signature.payload import NO_DATASETS_DIGEST, sign_stored
from beampipe_dagster_tests.support.archives import INCOMPLETE, FakeArchives
from beampipe_dagster_tests.support.platforms import survey_spec

ENRICHMENT = {
    "name": "evaluation",
    "adapter": "casda",
    "template": "SELECT * FROM evaluation WHERE sbid = '{sbid}'",
}


def looker(
    archives: FakeArchives, clock: ManualClock, *, enriched: bool = False, **changes: Any
) -> SourceLook:
    spec = survey_spec("0" * 64, **changes)
    if enriched:
        spec["discovery"]["enrichments"] = [ENRICHMENT]
    return SourceLook(config=ProjectConfig.from_json(spec), archives=archives, clock=clock)


@pytest.fixture
def archives(clock: ManualClock) -> FakeArchives:
    made = FakeArchives(clock=clock)
    made.deposit("A", 7, beams=2)
    return made


def test_a_complete_look_has_rows_flags_signature_and_the_evidence_of_each_answer(
    archives: FakeArchives, clock: ManualClock
) -> None:
    look = looker(archives, clock).look("A")
    assert look.error is None
    assert look.signature is not None
    assert (look.datasets, look.flags) == (2, {"catalogued": True})
    evidence: list[Any] = look.evidence
    assert [(one["adapter"], one["rows"], one["answer"]) for one in evidence] == [
        ("casda", 2, "complete"),
        ("vizier", 1, "complete"),
    ]
    again = sign_stored(look.metadata, exclude_fields=["access_url"], include_flags=True)
    assert again.digest == look.signature.digest


def test_the_time_of_a_look_is_before_its_first_query(archives: FakeArchives, clock: ManualClock) -> None:
    began = clock.now()
    archives.on_query = lambda _adapter, _source: clock.advance(5)
    assert looker(archives, clock).look("A").began_at == began


def test_nothing_found_is_a_complete_look_that_asks_nothing_more(
    archives: FakeArchives, clock: ManualClock
) -> None:
    look = looker(archives, clock).look("B")
    assert look.signature is not None
    assert (look.signature.digest, look.datasets, len(look.evidence)) == (NO_DATASETS_DIGEST, 0, 1)
    assert archives.queries["vizier", "B"] == 0


@pytest.mark.parametrize("answer", INCOMPLETE)
@pytest.mark.parametrize(("adapter", "asked"), [("casda", "A"), ("vizier", "A"), ("casda", "7")])
def test_one_incomplete_answer_makes_the_look_an_error(
    archives: FakeArchives, clock: ManualClock, adapter: str, asked: str, answer: Any
) -> None:
    archives.fail(asked, answer, adapter=adapter)
    look = looker(archives, clock, enriched=True).look("A")
    assert look.signature is None
    assert look.metadata == {}
    assert look.error is not None
    assert look.error.code == f"archive_{answer.value}"


def test_an_enrichment_is_asked_once_a_scheduling_block(archives: FakeArchives, clock: ManualClock) -> None:
    archives.deposit("A", 8)
    look = looker(archives, clock, enriched=True).look("A")
    assert look.error is None
    assert (archives.queries["casda", "7"], archives.queries["casda", "8"]) == (1, 1)


def test_an_archive_that_is_not_configured_is_an_error_of_the_look(
    archives: FakeArchives, clock: ManualClock
) -> None:
    queries = [{"name": "one", "adapter": "nowhere", "template": "SELECT '{source_identifier}'"}]
    spec = survey_spec("0" * 64)
    spec["discovery"]["queries"] = queries
    config = ProjectConfig.from_json(spec)
    look = SourceLook(config=config, archives=archives, clock=clock).look("A")
    assert isinstance(look.error, ConfigError)


def test_a_survey_without_queries_is_an_error_of_the_look(archives: FakeArchives, clock: ManualClock) -> None:
    spec = survey_spec("0" * 64, discovery={})
    spec["discovery"]["queries"] = []
    look = SourceLook(config=ProjectConfig.from_json(spec), archives=archives, clock=clock).look("A")
    assert look.error is not None
    assert look.error.code == "no_discovery_query"


def test_a_defect_is_an_error_of_this_look_only(archives: FakeArchives, clock: ManualClock) -> None:
    archives.fail("A", ZeroDivisionError("oops"))
    look = looker(archives, clock).look("A")
    assert look.error is not None
    assert (look.error.code, "ZeroDivisionError: oops" in look.error.message) == ("internal", True)
    assert looker(archives, clock).look("A").error is None


def test_the_order_of_rows_changes_nothing(archives: FakeArchives, clock: ManualClock) -> None:
    first = looker(archives, clock).look("A")
    archives._rows["casda", "A"].reverse()
    second = looker(archives, clock).look("A")
    assert first.signature == second.signature
    assert first.metadata == second.metadata
