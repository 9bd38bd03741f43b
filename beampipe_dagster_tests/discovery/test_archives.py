"""From an adapter's name to a service: URLs, credentials and limits, over a real socket."""

from __future__ import annotations

import base64
import json
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import pytest

from beampipe_dagster.clock import SystemClock
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.discovery.archive import Archive
from beampipe_dagster.discovery.archives import TapArchives
from beampipe_dagster.errors import ArchiveError, ConfigError
from beampipe_dagster_tests.support.fake_tap import VOTABLE_TYPE, rows

TABLE: list[Mapping[str, str | None]] = [{"name": "A"}, {"name": "B"}, {"name": "C"}]


class Tap:
    """A TAP service that keeps the Authorization and the parameters of what it was asked."""

    def __init__(self, *, wanted: str | None = None, redirect: str | None = None) -> None:
        self.authorizations: list[str | None] = []
        self.parameters: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                form = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode()
                self._answer({key.upper(): values[-1] for key, values in parse_qs(form).items()})

            def do_GET(self) -> None:
                self._answer({})

            def _answer(self, parameters: dict[str, str]) -> None:
                outer.authorizations.append(self.headers.get("Authorization"))
                outer.parameters.append(parameters)
                refused = wanted is not None and self.headers.get("Authorization") != wanted
                reply = rows(TABLE).body
                body = b"" if refused or redirect or isinstance(reply, bytes) else reply(parameters)
                self.send_response(401 if refused else 302 if redirect else 200)
                if redirect:
                    self.send_header("Location", redirect)
                self.send_header("Content-Type", VOTABLE_TYPE)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                del args

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/tap"


@contextmanager
def serving(tap: Tap) -> Iterator[Tap]:
    thread = threading.Thread(target=tap.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield tap
    finally:
        tap.server.shutdown()
        tap.server.server_close()
        thread.join(timeout=5)


def config(**adapters: Any) -> ProjectConfig:
    return ProjectConfig.from_json(
        {
            "apiVersion": "beampipe.dev/v2",
            "kind": "ProjectConfig",
            "metadata": {"id": "s"},
            "adapters": {"required": ["eso"], "tap": {"timeout_seconds": 10, "retries": 0}, **adapters},
        }
    )


def archive(
    url: str, *, urls: Mapping[str, str] | None = None, environ: Mapping[str, str] | None = None, **more: Any
) -> Archive:
    provider = TapArchives(urls=urls or {}, clock=SystemClock(), environ=environ or {})
    return provider.get(config(definitions={"eso": {"tap_url": url, **more}}), "eso")


def test_a_survey_can_name_any_service() -> None:
    with serving(Tap()) as tap:
        answer = archive(tap.url, urls={"eso": "http://127.0.0.1:1/tap"}).query("SELECT 1")
    assert len(answer.rows) == 3
    assert answer.evidence.url == f"{tap.url}/sync"
    assert tap.authorizations == [None]


def test_a_bearer_token_is_sent() -> None:
    with serving(Tap(wanted="Bearer hunter2")) as tap:
        made = archive(tap.url, environ={"ESO": " hunter2\n"}, auth_env={"token": "ESO"})
        assert len(made.query("SELECT 1").rows) == 3


def test_a_user_and_a_password_are_sent_in_utf_8() -> None:
    wanted = "Basic " + base64.b64encode("anna:gehe\u00efm".encode()).decode()
    with serving(Tap(wanted=wanted)) as tap:
        environ = {"U": "anna", "P": "gehe\u00efm"}
        made = archive(tap.url, environ=environ, auth_env={"user": "U", "password": "P"})
        assert len(made.query("SELECT 1").rows) == 3


def test_credentials_are_in_no_error_no_log_and_no_evidence(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), serving(Tap(wanted="Bearer other")) as tap:
        made = archive(tap.url, environ={"ESO": "hunter2"}, auth_env={"token": "ESO"})
        with pytest.raises(ArchiveError) as caught:
            made.query("SELECT 1")
    assert tap.authorizations == ["Bearer hunter2"]
    said = (
        json.dumps(caught.value.as_dict()) + str(caught.value) + repr(made) + repr(vars(made)) + caplog.text
    )
    assert "hunter2" not in said
    assert caught.value.code == "archive_refused"


def test_credentials_do_not_follow_to_another_host() -> None:
    with serving(Tap()) as other:
        elsewhere = other.url.replace("127.0.0.1", "localhost") + "/sync"
        with serving(Tap(redirect=elsewhere)) as tap:
            made = archive(tap.url, environ={"ESO": "hunter2"}, auth_env={"token": "ESO"})
            made.query("SELECT 1")
    assert tap.authorizations == ["Bearer hunter2"]
    assert other.authorizations == [None]


@pytest.mark.parametrize("value", ["", "  ", "two\nlines"])
def test_credentials_that_are_not_there_are_told_by_their_name(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        archive("https://tap.example/tap", environ={"ESO": value}, auth_env={"token": "ESO"})
    assert caught.value.code == "archive_credentials_missing"
    assert "ESO" in caught.value.message
    assert "lines" not in json.dumps(caught.value.as_dict()).replace("one line", "")


def test_a_services_own_row_limit_is_kept_and_reaching_it_is_an_overflow() -> None:
    with serving(Tap()) as tap:
        assert len(archive(tap.url, maxrec=10).query("SELECT 1").rows) == 3
        with pytest.raises(ArchiveError) as caught:
            archive(tap.url, maxrec=2).query("SELECT 1")
        assert caught.value.code == "archive_overflow"
        archive(tap.url, maxrec=1_000).query("SELECT 1", maxrec=50)
    assert [asked["MAXREC"] for asked in tap.parameters] == ["10", "2", "50"]


def test_a_services_own_timeout_counts() -> None:
    silent = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)  # listens, and never answers
    try:
        url = f"http://127.0.0.1:{silent.server_address[1]}/tap"
        with pytest.raises(ArchiveError) as caught:
            archive(url, timeout_seconds=1).query("SELECT 1")
    finally:
        silent.server_close()
    assert caught.value.code == "archive_timeout"


def test_one_client_serves_one_definition() -> None:
    provider = TapArchives(urls={}, clock=SystemClock(), environ={"A": "1", "B": "2"})

    def get(**more: Any) -> Archive:
        return provider.get(
            config(definitions={"eso": {"tap_url": "https://tap.example/tap", **more}}), "eso"
        )

    assert get() is get()
    made = [
        get(),
        get(maxrec=5),
        get(timeout_seconds=7),
        get(auth_env={"token": "A"}),
        get(auth_env={"token": "B"}),
    ]
    assert len({id(one) for one in made}) == len(made)


def test_without_a_definition_the_projects_url_counts_and_then_the_settings() -> None:
    provider = TapArchives(
        urls={"casda": "https://c.example/tap", "eso": "https://e.example/tap"}, clock=SystemClock()
    )
    own = config(casda_tap_url="https://own.example/tap")
    found = [provider.get(own, name) for name in ("casda", "eso")]
    assert [getattr(one, "url", None) for one in found] == [
        "https://own.example/tap",
        "https://e.example/tap",
    ]
    with pytest.raises(ConfigError) as caught:
        provider.get(own, "nobody")
    assert caught.value.code == "archive_not_configured"
    assert "adapters.definitions.nobody" in caught.value.hint
