from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from beampipe_dagster.clock import ManualClock
from beampipe_dagster.discovery.staging.client import StagingClient, failure_text
from beampipe_dagster.discovery.staging.credentials import Credentials
from beampipe_dagster.errors import ArchiveError, BeampipeError, ConfigError, Retry
from beampipe_dagster.sandbox.archive.server import ArchiveServer

WHO = Credentials("astronomer", "canary-word")
TOKEN = "canary-token"  # noqa: S105  # of this test
Answer = tuple[int, dict[str, str], bytes]


class _Handler(BaseHTTPRequestHandler):
    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length).decode()
        server: Any = self.server
        seen = {"method": self.command, "path": self.path, "body": body, **dict(self.headers.items())}
        server.seen.append(seen)
        found: Answer | None = server.reply(seen)
        if found is None:
            self.close_connection = True
            return
        status, headers, content = found
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = answer  # noqa: N815  # the names that http.server calls

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""


@contextmanager
def serving(reply: Callable[[dict[str, str]], Answer | None]) -> Iterator[tuple[str, list[dict[str, str]]]]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.reply, server.seen = reply, []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def client(base: str, **changes: Any) -> StagingClient:
    values = {"login_url": f"{base}/login", "timeout_seconds": 5.0, **changes}
    return StagingClient(credentials=lambda: WHO, clock=ManualClock(), **values)


def caught(action: Callable[[], object]) -> BeampipeError:
    with pytest.raises(BeampipeError) as raised:
        action()
    error = raised.value
    assert "canary" not in f"{error} {error.details} {error.as_dict()}"
    return error


def test_the_whole_way_at_the_sandbox(tmp_path: Path) -> None:
    with ArchiveServer(tmp_path, seed="empty") as server:
        made = server.store.deposit("A", sbid=7)
        httpx.put(f"{server.base_url}/sandbox/staging", json={"delay_seconds": 0.0})
        mine = StagingClient(
            credentials=lambda: Credentials("sandbox", "sandbox"),
            login_url=f"{server.base_url}/casda/login",
            clock=ManualClock(),
        )
        did = made.files[0].obs_publisher_did
        link = mine.link(f"{server.base_url}/casda/datalink/links?ID={did}", name="A")
        job_url = mine.create(link.service_url, [link.token])
        assert mine.job(job_url).phase == "PENDING"
        assert mine.job(job_url).identifiers == {link.token}
        mine.run(job_url)
        mine.run(job_url)
        assert mine.job(job_url).phase == "COMPLETED"
        names = {one.result_id for one in mine.results(job_url)}
        scan = did.split("-")[1]
        assert names == {f"visibility-{scan}", f"visibility-{scan}.checksum"}
        (listed,) = mine.jobs(link.service_url) or ()
        assert listed.url == job_url
        mine.close()


@pytest.mark.parametrize("url", ["http://data.csiro.au/login", "ftp://h/x"])
def test_a_password_never_goes_out_in_clear_text(url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        client("", login_url=url)
    assert raised.value.code == "staging_login_insecure"


def test_the_password_goes_to_the_server_that_checks_it_and_to_no_other() -> None:
    def reply(seen: dict[str, str]) -> Answer:
        return (200, {}, b"ok") if seen["path"] == "/login" else (404, {}, b"no")

    with serving(reply) as (home, asked), serving(reply) as (other, strange):
        mine = client(home)
        caught(lambda: mine.link(f"{home}/links?ID=1", name="f"))
        caught(lambda: mine.link(f"{other}/links?ID=1", name="f"))
        assert ["Authorization" in one for one in asked] == [True, True]
        assert ["Authorization" in one for one in strange] == [False]


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_login_names_the_user_and_is_asked_once(status: int) -> None:
    with serving(lambda _: (status, {}, b"<h1>No</h1>")) as (base, seen):
        error = caught(client(base).login)
        assert (error.code, error.retry) == ("staging_login_refused", Retry.LATER)
        assert "astronomer" in error.message
        assert len(seen) == 1


def test_a_passing_failure_of_a_read_is_read_again() -> None:
    answers: Iterator[Answer | None] = iter([(503, {}, b""), None, (200, {}, b"ok")])
    with serving(lambda _: next(answers)) as (base, seen):
        client(base).login()
        assert len(seen) == 3


def test_a_failure_that_stays_says_what_failed_and_with_what() -> None:
    with serving(lambda _: (502, {}, b"")) as (base, _):
        error = caught(lambda: client(base).job(f"{base}/j?ID={TOKEN}"))
        assert "CASDA poll failed: HTTP 502 Bad Gateway" in error.message
        assert error.retry is Retry.LATER
    assert failure_text("poll", 502) == "CASDA poll failed: HTTP 502 Bad Gateway"


@pytest.mark.parametrize(
    ("answer", "job"),
    [
        ((303, {"Location": "/async/1"}, b""), "/async/1"),
        ((302, {"Location": "/async/1?x=2#y"}, b""), "/async/1"),
        ((200, {}, b"<job><jobId> 1 </jobId></job>"), "/async/1"),
    ],
)
def test_a_created_job_is_known_by_its_place(answer: Answer, job: str) -> None:
    with serving(lambda _: answer) as (base, seen):
        assert client(base).create(f"{base}/async", ["a", "b"]) == f"{base}{job}"
        assert seen[0]["path"] == "/async?ID=a&ID=b"
        assert "Authorization" not in seen[0]


@pytest.mark.parametrize(
    ("answer", "code", "retry"),
    [
        (None, "staging_create_uncertain", Retry.AFTER_RECONCILE),
        ((500, {}, b"?"), "staging_create_uncertain", Retry.AFTER_RECONCILE),
        ((504, {}, b""), "staging_create_uncertain", Retry.AFTER_RECONCILE),
        ((200, {}, b"<html>"), "staging_create_uncertain", Retry.AFTER_RECONCILE),
        ((200, {}, b"<job/>"), "staging_create_uncertain", Retry.AFTER_RECONCILE),
        ((303, {"Location": "ftp://h/1"}, b""), "staging_create_uncertain", Retry.AFTER_RECONCILE),
        ((429, {}, b"slow down"), "staging_unavailable", Retry.LATER),
        ((400, {}, b"You do not have access to any of it"), "staging_no_access", Retry.NEVER),
        ((400, {}, b"bad ID"), "staging_create_refused", Retry.NEVER),
    ],
)
def test_a_creation_is_sent_once_and_what_came_of_it_has_a_class(
    answer: Answer | None, code: str, retry: Retry
) -> None:
    with serving(lambda _: answer) as (base, seen):
        error = caught(lambda: client(base).create(f"{base}/async", [TOKEN]))
        assert (error.code, error.retry) == (code, retry)
        assert len(seen) == 1


def test_without_a_connection_nothing_was_created() -> None:
    with serving(lambda _: None) as (base, _):
        pass
    error = caught(lambda: client(base).create(f"{base}/async", [TOKEN]))
    assert (error.code, error.retry) == ("staging_unavailable", Retry.LATER)


@pytest.mark.parametrize("status", [404, 410])
def test_a_job_that_was_destroyed_is_gone(status: int) -> None:
    with serving(lambda _: (status, {}, b"")) as (base, _):
        assert caught(lambda: client(base).job(f"{base}/j")).code == "staging_job_gone"


@pytest.mark.parametrize("answer", [(404, {}, b""), (405, {}, b""), (200, {}, b"<html/>")])
def test_a_service_may_have_no_list_of_jobs(answer: Answer) -> None:
    with serving(lambda _: answer) as (base, _):
        assert client(base).jobs(f"{base}/async") is None


def test_a_list_that_cannot_be_read_now_is_not_an_empty_one() -> None:
    with serving(lambda _: (503, {}, b"")) as (base, _), pytest.raises(ArchiveError):
        client(base).jobs(f"{base}/async")


def test_a_job_that_wants_to_know_who_asks_is_told_by_its_own_server_only() -> None:
    def reply(seen: dict[str, str]) -> Answer:
        known = "Authorization" in seen
        return (200, {}, b"<job><phase>HELD</phase></job>") if known else (401, {}, b"")

    with serving(reply) as (base, _):
        assert client(base).job(f"{base}/j").phase == "HELD"
        with serving(reply) as (other, strange):
            assert caught(lambda: client(base).job(f"{other}/j")).retry is Retry.LATER
            assert ["Authorization" in one for one in strange] == [False, False]
