"""What a query says about its archive, and how jobs, redirects and looks at availability pass the gate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import requests

from beampipe_dagster.clock import SystemClock
from beampipe_dagster.config.settings import ArchiveLimits
from beampipe_dagster.discovery.archive import (
    DEFAULT_MAXREC,
    Answer,
    AnswerClass,
    Evidence,
    TapCapabilities,
    Upload,
    archive_error,
)
from beampipe_dagster.discovery.gate import CIRCUIT_OPEN, GATE_TIMEOUT, ArchiveGate, Use, archive_key
from beampipe_dagster.discovery.polite import PoliteArchive, outcome_of
from beampipe_dagster.discovery.traffic import PoliteSession, traffic
from beampipe_dagster.errors import ArchiveError, Retry
from beampipe_dagster.ids import UuidIds
from beampipe_dagster.ledger import gates
from beampipe_dagster.ledger.circuits import CircuitState, Outcome
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.gates import ArchiveRow, User
from beampipe_dagster_tests.support.fake_tap import FakeTap, html, redirect, rows, too_many
from beampipe_dagster_tests.support.ledgers import SURVEY

GOOD = rows([{"name": "A"}])


def evidence(answer: AnswerClass) -> Evidence:
    return Evidence("casda", "u", "0" * 64, SystemClock().now(), 0.1, 0, answer=answer)


@pytest.mark.parametrize(
    ("answer", "retry", "outcome"),
    [
        (AnswerClass.OVERFLOW, None, Outcome.ANSWERED),
        (AnswerClass.ERROR, None, Outcome.ANSWERED),
        (AnswerClass.ERROR, Retry.NEVER, Outcome.ANSWERED),
        (AnswerClass.MALFORMED, None, Outcome.UNCLEAR),
        (AnswerClass.TIMEOUT, None, Outcome.AWAY),
        (AnswerClass.UNAVAILABLE, None, Outcome.AWAY),
        (AnswerClass.REFUSED, None, Outcome.AWAY),
        (AnswerClass.REFUSED, Retry.NEVER, Outcome.NOTHING),
    ],
)
def test_what_an_error_says_about_the_archive(
    answer: AnswerClass, retry: Retry | None, outcome: Outcome
) -> None:
    assert outcome_of(archive_error("m", evidence(answer), retry=retry)) is outcome


@pytest.mark.parametrize("code", [CIRCUIT_OPEN, GATE_TIMEOUT])
def test_a_request_that_was_not_sent_says_nothing(code: str) -> None:
    assert outcome_of(ArchiveError("m", code=code)) is Outcome.NOTHING


def nothing() -> None:
    """What happens between two requests by default."""


@dataclass
class Jobs:
    """An archive whose jobs are three requests over a real socket."""

    url: str
    between: Callable[[], None] = nothing
    session: PoliteSession = field(default_factory=lambda: PoliteSession(timeout_seconds=10))

    def query(self, adql: str, *, maxrec: int = DEFAULT_MAXREC, upload: Upload | None = None) -> Answer:
        del adql, maxrec, upload
        self.session.get(f"{self.url}/sync")
        return Answer([], evidence(AnswerClass.COMPLETE))

    def query_async(self, adql: str, *, maxrec: int = DEFAULT_MAXREC, upload: Upload | None = None) -> Answer:
        for _ in range(3):
            self.query(adql, maxrec=maxrec, upload=upload)
            self.between()
        return Answer([], evidence(AnswerClass.COMPLETE))

    def capabilities(self) -> TapCapabilities:
        self.session.get(f"{self.url}/sync")
        return TapCapabilities()

    def availability(self) -> tuple[bool, str]:
        return self.session.get(f"{self.url}/sync").ok, "asked"


def behind_gate(ledger: Ledger, archive: Jobs) -> PoliteArchive:
    clock = SystemClock()
    gate = ArchiveGate(ledger=ledger, clock=clock, ids=UuidIds(), timeout_seconds=10)
    user = User(SURVEY, "casda", archive_key(archive.url))
    return PoliteArchive(archive, gate, Use(user, archive.url, ArchiveLimits(max_concurrency=1)), clock)


def row_of(ledger: Ledger, archive: PoliteArchive) -> ArchiveRow:
    with ledger.read() as conn:
        return gates.get(conn, archive.use.key)


def in_use(ledger: Ledger) -> int:
    with ledger.read() as conn:
        return sum(gates.permits_in_use(conn, now=SystemClock().now()).values())


def test_a_job_holds_a_permit_for_each_of_its_requests_and_none_in_between(ledger: Ledger) -> None:
    held: list[int] = []
    with FakeTap(GOOD) as tap:
        archive = behind_gate(ledger, Jobs(tap.url, between=lambda: held.append(in_use(ledger))))
        archive.query_async("SELECT 1")
        assert held == [0, 0, 0]
        assert row_of(ledger, archive).good_count == 3


def test_the_requests_of_jobs_open_the_circuit_and_are_stopped_by_it(ledger: Ledger) -> None:
    with FakeTap(html(status=503)) as tap:
        archive = behind_gate(ledger, Jobs(tap.url))
        archive.query_async("SELECT 1")
        assert row_of(ledger, archive).circuit.state is CircuitState.OPEN
        with pytest.raises(ArchiveError) as caught:
            archive.query_async("SELECT 1")
        assert caught.value.code == CIRCUIT_OPEN
        assert len(tap.queries) == 3


def test_a_job_whose_archive_cannot_be_reached_counts_as_a_failure(ledger: Ledger) -> None:
    with FakeTap(GOOD) as tap:
        url = tap.url
    archive = behind_gate(ledger, Jobs(url))
    with pytest.raises(requests.ConnectionError):
        archive.query_async("SELECT 1")
    assert row_of(ledger, archive).circuit.failures == 1
    assert in_use(ledger) == 0


def test_a_redirect_needs_no_permit_of_its_own(ledger: Ledger) -> None:
    with FakeTap(GOOD) as target, FakeTap(redirect(f"{target.url}/sync")) as tap:
        archive = behind_gate(ledger, Jobs(tap.url))
        archive.query_async("SELECT 1")
        assert len(target.queries) == 3
        assert row_of(ledger, archive).good_count == 3


def test_quiet_that_a_job_was_asked_for_is_everybodys(ledger: Ledger) -> None:
    with FakeTap(too_many("3600"), GOOD) as tap:
        archive = behind_gate(ledger, Jobs(tap.url))
        with pytest.raises(ArchiveError) as caught:
            archive.query_async("SELECT 1")
        assert caught.value.code == GATE_TIMEOUT
        assert "the archive asked for a pause until" in caught.value.message
        assert len(tap.queries) == 1


def test_availability_and_capabilities_are_asked_for_also_when_nothing_else_is(ledger: Ledger) -> None:
    with FakeTap(GOOD) as tap:
        archive = behind_gate(ledger, Jobs(tap.url))
        archive.gate.make_known(archive.use)
        with ledger.begin() as conn:
            gates.open_by_hand(conn, archive.use.key, now=SystemClock().now(), until=None, reason="")
        assert archive.availability() == (True, "asked")
        archive.capabilities()
        with pytest.raises(ArchiveError):
            archive.query("SELECT 1")
        assert len(tap.queries) == 2


def test_what_breaks_in_our_own_code_says_nothing_about_the_archive(ledger: Ledger) -> None:
    class Broken(Jobs):
        def query(self, adql: str, *, maxrec: int = DEFAULT_MAXREC, upload: Upload | None = None) -> Answer:
            del maxrec, upload
            raise ZeroDivisionError(adql)

    archive = behind_gate(ledger, Broken("https://tap.example/tap"))
    with pytest.raises(ZeroDivisionError):
        archive.query("SELECT 1")
    found = row_of(ledger, archive)
    assert (found.circuit.failures, found.good_count, found.failure_count) == (0, 0, 0)
    assert in_use(ledger) == 0


def test_a_session_without_anybody_responsible_sends_as_it_is() -> None:
    with FakeTap(GOOD) as tap, traffic(None):
        assert PoliteSession(timeout_seconds=10).get(f"{tap.url}/sync").ok
