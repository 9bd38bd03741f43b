from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.backends.daliuge._http import plain_text
from beampipe_dagster.backends.daliuge.manager import IslandManager, manager_url
from beampipe_dagster.errors import (
    BackendError,
    BackendUnavailableError,
    BeampipeError,
    ConflictError,
    GraphError,
    SubmissionUncertainError,
)
from beampipe_dagster_tests.support.fake_daliuge import NODE, FakeDaliuge, Fault

DROP = {"oid": "a", "name": "first", "categoryType": "Application", "node": NODE}


@pytest.fixture
def manager(fake: FakeDaliuge) -> Iterator[IslandManager]:
    client = IslandManager(url=fake.manager_url, read_seconds=0.5, write_seconds=0.5)
    yield client
    client.close()


def answering(status: int, body: object) -> IslandManager:
    text = body if isinstance(body, str) else json.dumps(body)

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(status, text=text, headers={"content-type": "text/html"})

    client = httpx.Client(transport=httpx.MockTransport(answer))
    return IslandManager(url="http://dim:8001", client=client)


def inner(**kinds: str) -> dict[str, object]:
    args = {node: {"type": kind, "args": "dummy"} for node, kind in kinds.items()}
    return {"type": "SubManagerException", "args": args}


def test_a_session_goes_from_created_to_deleted(manager: IslandManager) -> None:
    manager.create("s-1")
    manager.append("s-1", [DROP])
    assert manager.graph_size("s-1") == 1
    manager.deploy("s-1", ["a"])
    assert manager.status("s-1") == {NODE: 3}
    assert manager.graph_status("s-1") == {"a": {"execStatus": 1, "status": 0}}
    assert manager.drop_names("s-1") == {"a": "first"}
    assert manager.sessions() == ["s-1"]
    assert manager.nodes() == [NODE]
    manager.cancel("s-1")
    manager.delete("s-1")
    assert manager.sessions() == []


@pytest.mark.parametrize(
    ("body", "kind", "code"),
    [
        (inner(n1="NoSessionException"), BackendError, "session_absent"),
        (inner(n1="NoSessionException", n2="NoSessionException"), BackendError, "session_absent"),
        (
            inner(n1="NoSessionException", n2="SubManagerException"),
            BackendUnavailableError,
            "node_unreachable",
        ),
        (
            inner(n1="NoSessionException", n2="ErrorManagerCaughtException"),
            BackendError,
            "manager_refused",
        ),
        (inner(n1="SubManagerException"), BackendUnavailableError, "node_unreachable"),
        (inner(n1="ConnectionRefusedError"), BackendUnavailableError, "node_unreachable"),
        (inner(n1="RestClientException"), BackendUnavailableError, "node_unreachable"),
        (inner(n1="SessionAlreadyExistsException"), ConflictError, "session_exists"),
        (inner(n1="InvalidSessionState"), BackendError, "session_state"),
        (inner(n1="ErrorManagerCaughtException"), BackendError, "manager_refused"),
        ({"type": "NoSessionException", "args": ["s"]}, BackendError, "session_absent"),
        ({"type": "SubManagerException", "args": "?"}, BackendUnavailableError, "node_unreachable"),
        ({"type": "SubManagerException", "args": {"n": 1}}, BackendError, "manager_refused"),
        ({"type": "RestClientException", "args": []}, BackendUnavailableError, "node_unreachable"),
        ({"error": "?"}, BackendUnavailableError, "backend_nonsense"),
        ("<html>", BackendUnavailableError, "backend_nonsense"),
        ("", BackendUnavailableError, "backend_nonsense"),
    ],
)
@pytest.mark.parametrize("status", [404, 500, 555, 556])
def test_an_error_is_what_its_text_says_whatever_its_status(
    status: int, body: object, kind: type[BeampipeError], code: str
) -> None:
    with pytest.raises(kind) as caught:
        answering(status, body).graph_status("s")
    assert caught.value.code == code
    assert caught.value.hint


@pytest.mark.parametrize(
    "body", [{"type": "InvalidGraphException", "args": ["Drop a ..."]}, inner(n="BadDropException")]
)
def test_a_graph_that_is_refused_is_the_graphs_fault(body: object) -> None:
    with pytest.raises(GraphError) as caught:
        answering(400, body).append("s", [DROP])
    assert caught.value.code == "graph_refused"


def test_success_must_be_said() -> None:
    for call in (IslandManager.cancel, IslandManager.delete):
        with pytest.raises(BackendUnavailableError):
            call(answering(200, {"Status": "?"}), "s")
    with pytest.raises(BackendUnavailableError):
        answering(200, {"sessionId": "another"}).create("s")
    with pytest.raises(BackendUnavailableError):
        answering(200, {}).nodes()
    with pytest.raises(BackendUnavailableError):
        answering(200, "true").graph_size("s")


@pytest.mark.parametrize("kind", ["html", "done_html", "cut", "done_cut", "done_555", "node_down"])
def test_a_deployment_that_fails_in_the_middle_is_uncertain(
    fake: FakeDaliuge, manager: IslandManager, kind: str
) -> None:
    manager.create("s")
    manager.append("s", [DROP])
    fake.plan.on("deploy", Fault(kind))
    with pytest.raises(SubmissionUncertainError):
        manager.deploy("s", ["a"])


def test_a_deployment_that_takes_too_long_is_uncertain(fake: FakeDaliuge, manager: IslandManager) -> None:
    manager.create("s")
    manager.append("s", [DROP])
    fake.plan.on("deploy", Fault("slow", seconds=1.0))
    with pytest.raises(SubmissionUncertainError) as caught:
        manager.deploy("s", ["a"])
    assert caught.value.details["sent"] is True


def test_a_deployment_that_was_never_sent_started_nothing(fake: FakeDaliuge, manager: IslandManager) -> None:
    fake.manager.stop()
    with pytest.raises(BackendUnavailableError) as caught:
        manager.deploy("s", ["a"])
    assert caught.value.details["sent"] is False


@pytest.mark.parametrize(
    "call",
    [
        lambda manager: manager.status("s"),
        lambda manager: manager.nodes(),
        lambda manager: manager.cancel("s"),
        lambda manager: manager.delete("s"),
        lambda manager: manager.drop_log("s", "a"),
    ],
)
def test_a_manager_that_is_down_says_where(
    fake: FakeDaliuge, manager: IslandManager, call: Callable[[IslandManager], object]
) -> None:
    fake.manager.stop()
    with pytest.raises(BackendUnavailableError, match="cannot be reached") as caught:
        call(manager)
    assert fake.manager_url in caught.value.message


def log_of(*lines: tuple[str, str]) -> str:
    logs = [{"Level": level, "Message": f"<pre>{text}\n</pre>"} for level, text in lines]
    return answering(200, {"logs": logs}).drop_log("s", "a")


def test_a_log_is_plain_text_with_the_errors_first() -> None:
    link = "see\n <a href=http://x target='_blank'>http://x</a>"
    text = log_of(("INFO", "began"), ("ERROR", "a < b && <c>"), ("USER", link), ("INFO", ""))
    assert text == "ERROR: a < b && <c>\nUSER: see\n http://x\nINFO: began"


def test_letters_that_the_engine_broke_are_mended() -> None:
    assert log_of(("ERROR", "Jy·km/s".encode().decode("latin-1"))) == "ERROR: Jy·km/s"
    assert log_of(("ERROR", "Ωmega")) == "ERROR: Ωmega"


def test_a_long_log_keeps_its_beginning_and_its_end() -> None:
    text = log_of(("ERROR", f"first {'å€' * 5000} last"))
    assert len(text.encode()) <= 2048
    assert text.startswith("ERROR: first")
    assert text.endswith("last")


@pytest.mark.parametrize("body", [{}, [], {"logs": None}, {"logs": [1, None]}, "null"])
def test_a_drop_without_a_log_has_an_empty_one(body: object) -> None:
    assert answering(200, body).drop_log("s", "a") == ""


def test_a_url_is_made_from_host_and_port() -> None:
    assert manager_url("dim", 8001) == "http://dim:8001"
    assert manager_url("dim", 80) == "http://dim"
    assert manager_url("dim", 443, https=True) == "https://dim:443"


def test_a_node_lists_its_sessions_with_their_states(manager: IslandManager) -> None:
    manager.create("s-1")
    manager.create("s-2")
    manager.append("s-2", [DROP])
    assert manager.node_sessions(NODE) == {"s-1": 0, "s-2": 1}
    with pytest.raises(BackendUnavailableError):
        manager.node_sessions("127.0.0.1:1:2:3")


@pytest.mark.parametrize(
    "body", [{}, [1], [{"status": 3}], [{"sessionId": "a", "status": 3}, {"sessionId": 4}]]
)
def test_half_a_listing_is_no_listing(body: object) -> None:
    with pytest.raises(BackendUnavailableError) as caught:
        answering(200, body).node_sessions(NODE)
    assert caught.value.code == "backend_nonsense"


def test_an_error_page_is_told_by_its_words_and_no_more_than_its_beginning() -> None:
    page = f"<html><head><style>p {{}}</style></head><body><h1>502</h1>\n<p>{'no upstream ' * 5000}</p></body></html>"
    with pytest.raises(BackendUnavailableError) as caught:
        answering(502, page).nodes()
    assert "DALiuGE island manager: 502 no upstream no upstream" in caught.value.message
    assert "<" not in caught.value.message
    assert len(caught.value.message) < 300
    assert len(caught.value.details["answer"]) <= 300


@pytest.mark.parametrize("status", [401, 403, 407])
def test_a_proxy_that_lets_nobody_in_is_named_as_such(status: int) -> None:
    with pytest.raises(BackendUnavailableError) as caught:
        answering(status, "<h1>Sign in</h1>").nodes()
    assert caught.value.code == "backend_not_authorised"
    assert "BEAMPIPE_DALIUGE_AUTH_HEADER" in caught.value.hint


@given(st.text())
def test_the_words_of_any_answer_are_one_line(text: str) -> None:
    assert plain_text(text) == " ".join(plain_text(text).split())
