from __future__ import annotations

from pathlib import Path

import pytest
import requests

from beampipe_dagster.clock import ManualClock
from beampipe_dagster.config.validation import load_project
from beampipe_dagster.discovery.archives import TapArchives
from beampipe_dagster.discovery.credentials import BearerAuth, OwnHostAuth, archive_auth
from beampipe_dagster.discovery.tap import TapArchive
from beampipe_dagster.discovery.tap_session import TapSession
from beampipe_dagster.errors import ConfigError
from beampipe_dagster_tests.support.fake_tap import rows
from beampipe_dagster_tests.support.fake_uws import FakeUws

DEMO = Path(__file__).resolve().parents[2] / "projects" / "wallaby_demo" / "wallaby_demo.yaml"
HERE = "https://archive.example/tap"
BASIC = "Basic bWU6aHVudGVyMg=="


def header(environ: dict[str, str], url: str = HERE) -> str | None:
    auth = archive_auth("casda", environ)
    request = requests.Request("GET", url).prepare()
    return (OwnHostAuth(auth, HERE)(request) if auth else request).headers.get("Authorization")


def secret(tmp_path: Path, text: str = "hunter2\n", mode: int = 0o600) -> str:
    path = tmp_path / "secret"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_there_are_none_unless_they_are_set() -> None:
    assert archive_auth("casda", {"BEAMPIPE_VIZIER_TAP_TOKEN": "x", "BEAMPIPE_CASDA_TAP_TOKEN": " "}) is None


def test_user_and_password_and_token_come_from_variables_or_files(tmp_path: Path) -> None:
    name = "BEAMPIPE_CASDA_TAP"
    file = secret(tmp_path)
    assert header({f"{name}_USERNAME": "me", f"{name}_PASSWORD": "hunter2"}) == BASIC
    assert header({f"{name}_USERNAME": "me", f"{name}_PASSWORD_FILE": file}) == BASIC
    assert header({f"{name}_TOKEN": "hunter2"}) == "Bearer hunter2"
    assert header({f"{name}_TOKEN_FILE": file}) == "Bearer hunter2"


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"USERNAME": "me"}, "archive_credentials_missing"),
        ({"PASSWORD": "hunter2"}, "archive_credentials_missing"),
        ({"TOKEN": "hunter2", "USERNAME": "me"}, "archive_credentials_ambiguous"),
        ({"TOKEN": "hunter2", "TOKEN_FILE": "/x"}, "archive_credentials_ambiguous"),
        ({"TOKEN_FILE": "/no/such/file"}, "archive_credentials_missing"),
        ({"TOKEN": "hun\nter2"}, "archive_credentials_invalid"),
    ],
)
def test_what_cannot_be_meant_is_refused_without_saying_the_secret(given: dict[str, str], code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        archive_auth("casda", {f"BEAMPIPE_CASDA_TAP_{key}": value for key, value in given.items()})
    assert caught.value.code == code
    assert "ter2" not in str(caught.value.as_dict())


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620])
def test_a_file_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError) as caught:
        archive_auth("casda", {"BEAMPIPE_CASDA_TAP_TOKEN_FILE": secret(tmp_path, mode=mode)})
    assert caught.value.code == "archive_credentials_exposed"


@pytest.mark.parametrize("text", ["", "\n", "x" * 20_000])
def test_a_file_has_one_secret_of_bounded_length(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        archive_auth("casda", {"BEAMPIPE_CASDA_TAP_TOKEN_FILE": secret(tmp_path, text)})
    assert caught.value.code == "archive_credentials_invalid"


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("https://archive.example/tap/async/1", True),
        ("https://archive.example:443/elsewhere", True),
        ("http://archive.example/tap", False),
        ("https://archive.example:8443/tap", False),
        ("https://archive.example.evil.example/tap", False),
        ("https://evil.example/tap?https://archive.example", False),
    ],
)
def test_they_go_to_their_own_host_only(url: str, *, sent: bool) -> None:
    assert (header({"BEAMPIPE_CASDA_TAP_TOKEN": "hunter2"}, url) is not None) is sent


def test_an_archive_of_the_settings_gets_those_of_its_name(clock: ManualClock) -> None:
    config = load_project(DEMO.read_bytes())
    with FakeUws(rows([{"a": "1"}])) as tap:
        environ = {"BEAMPIPE_CASDA_TAP_USERNAME": "me", "BEAMPIPE_CASDA_TAP_PASSWORD": "hunter2"}
        archives = TapArchives(urls={"casda": tap.url, "vizier": tap.url}, clock=clock, environ=environ)
        archives.get(config, "casda").query_async("SELECT a FROM t")
        mine, tap.asked = tap.asked, []
        archives.get(config, "vizier").query_async("SELECT a FROM t")
    assert {request.authorization for request in mine} == {BASIC}
    assert {request.authorization for request in tap.asked} == {None}


def test_no_repr_has_them() -> None:
    assert "hunter2" not in repr(OwnHostAuth(BearerAuth("hunter2"), HERE)) + repr(BearerAuth("hunter2"))


def test_a_job_gets_them_and_a_result_on_another_host_does_not(clock: ManualClock) -> None:
    good = rows([{"a": "1"}])
    with FakeUws(good) as other, FakeUws(good, elsewhere=other) as tap:
        session = TapSession(timeout_seconds=5.0)
        session.auth = OwnHostAuth(BearerAuth("hunter2"), tap.url)
        archive = TapArchive(
            adapter="casda", url=tap.url, timeout_seconds=5.0, retries=0, clock=clock, session=session
        )
        answer = archive.query_async("SELECT a FROM t")
    assert {request.authorization for request in tap.asked} == {"Bearer hunter2"}
    assert [request.authorization for request in other.asked] == [None]
    assert "hunter2" not in str(answer.evidence.as_dict())
