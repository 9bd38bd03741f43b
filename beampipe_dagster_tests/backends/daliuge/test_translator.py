from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from beampipe_dagster.backends.daliuge.physical import Drop
from beampipe_dagster.backends.daliuge.translator import Translator
from beampipe_dagster.errors import (
    BackendUnavailableError,
    BeampipeError,
    ConfigError,
    GraphError,
    Retry,
)
from beampipe_dagster_tests.support import graphs
from beampipe_dagster_tests.support.fake_daliuge import FakeDaliuge, Fault


@pytest.fixture
def translator(fake: FakeDaliuge) -> Iterator[Translator]:
    client = Translator(url=f"{fake.translator_url}/", timeout_seconds=0.5)
    yield client
    client.close()


def translate(
    translator: Translator, graph: graphs.Graph | None = None, algorithm: str = "metis"
) -> list[Drop]:
    return translator.translate(
        graph or graphs.hello(),
        algorithm=algorithm,
        num_partitions=1,
        num_islands=0,
        oid_prefix="session-1",
    )


def answering(status: int, text: str) -> Translator:
    transport = httpx.MockTransport(lambda _: httpx.Response(status, text=text))
    return Translator(url="http://tm:8084", client=httpx.Client(transport=transport))


def test_the_element_that_is_no_drop_is_left_out(translator: Translator) -> None:
    drops = translate(translator)
    assert [drop["name"] for drop in drops] == ["greeter", "text"]
    assert all(drop["oid"].startswith("session-1_") for drop in drops)


def test_there_is_always_an_island_and_never_a_kept_connection() -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json=[{"oid": "a"}, {}])

    client = httpx.Client(transport=httpx.MockTransport(answer))
    translate(Translator(url="http://tm:8084", client=client))
    assert b"num_islands=1" in asked[0].content
    assert asked[0].headers["connection"] == "close"


def test_a_graph_that_fails_is_told_with_the_translators_own_reason(
    fake: FakeDaliuge, translator: Translator
) -> None:
    with pytest.raises(GraphError) as caught:
        translate(translator, graphs.broken())
    assert caught.value.code == "translation_failed"
    assert "range() arg 3 must not be zero" in caught.value.message
    assert len(caught.value.details["traceback"]) <= 12
    assert fake.calls == ["translate", "explain"]


def test_a_failure_without_a_reason_still_is_the_graphs(fake: FakeDaliuge, translator: Translator) -> None:
    fake.plan.on("explain", Fault("answer", status=500, body="Internal Server Error"))
    with pytest.raises(GraphError, match="gives no reason"):
        translate(translator, graphs.broken())


def test_a_translator_that_goes_away_while_it_is_asked_why_is_an_outage(
    fake: FakeDaliuge, translator: Translator
) -> None:
    fake.plan.on("explain", Fault("cut"))
    with pytest.raises(BackendUnavailableError):
        translate(translator, graphs.broken())


def test_there_is_no_traceback_for_a_graph_that_can_be_translated(translator: Translator) -> None:
    assert translator.traceback_of(graphs.hello()) is None
    assert "ValueError" in (translator.traceback_of(graphs.broken()) or "")


@pytest.mark.parametrize(
    "fault", [Fault("cut"), Fault("done_cut"), Fault("html"), Fault("slow", seconds=1.0)]
)
def test_an_outage_is_one_to_repeat_later(fake: FakeDaliuge, translator: Translator, fault: Fault) -> None:
    fake.plan.on("translate", fault)
    with pytest.raises(BackendUnavailableError) as caught:
        translate(translator)
    assert caught.value.retry is Retry.LATER
    assert fake.translator_url in caught.value.message
    assert len(translate(translator)) == 2


def test_a_translator_that_is_down_is_not_available(fake: FakeDaliuge, translator: Translator) -> None:
    assert translator.available()
    fake.translator.stop()
    assert not translator.available()
    with pytest.raises(BackendUnavailableError) as caught:
        translate(translator)
    assert caught.value.code == "backend_unreachable"


def test_another_service_is_no_translator(fake: FakeDaliuge) -> None:
    assert not Translator(url=fake.manager_url).available()


def test_a_parameter_that_is_refused_is_named(translator: Translator) -> None:
    with pytest.raises(ConfigError, match=r"body\.algorithm: Input should be") as caught:
        translate(translator, algorithm="magic")
    assert caught.value.retry is Retry.NEVER


@pytest.mark.parametrize(
    ("status", "text", "kind", "code"),
    [
        (400, '{"detail":"LG content is malformed"}', GraphError, "translation_failed"),
        (
            400,
            '{"detail":"Field exceeded maximum size of 1024KB."}',
            ConfigError,
            "translation_refused",
        ),
        (404, '{"detail":"Not Found"}', ConfigError, "translation_refused"),
        (404, "<html>", BackendUnavailableError, "backend_nonsense"),
        (429, '{"detail":"slowly"}', BackendUnavailableError, "backend_nonsense"),
        (502, "<html>Bad Gateway</html>", BackendUnavailableError, "backend_nonsense"),
        (503, '{"detail":"starting"}', BackendUnavailableError, "backend_nonsense"),
        (200, "<html>Welcome</html>", BackendUnavailableError, "backend_nonsense"),
        (200, '{"a": 1}', BackendUnavailableError, "backend_nonsense"),
        (200, "[1, 2, 3]", BackendUnavailableError, "backend_nonsense"),
        (200, "[{}]", GraphError, "empty_graph"),
        (200, "[]", GraphError, "empty_graph"),
    ],
)
def test_an_answer_is_judged_by_what_it_says(
    status: int, text: str, kind: type[BeampipeError], code: str
) -> None:
    with pytest.raises(kind) as caught:
        translate(answering(status, text))
    assert caught.value.code == code
    assert caught.value.hint


@pytest.mark.parametrize("url", ["", "tm:8084", "ftp://tm", "http://", "http://tm:port", "/x"])
def test_a_url_must_be_one(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Translator(url=url)
    assert caught.value.code == "invalid_url"
