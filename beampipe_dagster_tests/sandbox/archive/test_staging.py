from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest

from beampipe_dagster.clock import ManualClock
from beampipe_dagster.discovery.staging.datalink import StagingLink, read_datalink
from beampipe_dagster.discovery.staging.results import Job, expiry, read_job
from beampipe_dagster.errors import ArchiveError
from beampipe_dagster.sandbox.archive.server import ArchiveServer

AUTH = ("sandbox", "sandbox")


class World:
    """An archive with one deposit, and somebody who is logged in."""

    def __init__(self, server: ArchiveServer, clock: ManualClock) -> None:
        self.server = server
        self.clock = clock
        self.root = f"{server.base_url}/casda"
        self.deposit = server.store.deposit("A", sbid=7, beams=2)
        self.http = httpx.Client()
        self.http.get(f"{self.root}/login", auth=AUTH).raise_for_status()

    def script(self, **values: Any) -> httpx.Response:
        return httpx.put(f"{self.server.base_url}/sandbox/staging", json=values)

    def links(self, file_id: str | None = None) -> httpx.Response:
        wanted = file_id or self.deposit.files[0].obs_publisher_did
        return self.http.get(f"{self.root}/datalink/links", params={"ID": wanted})

    def link(self) -> StagingLink:
        return read_datalink(self.links().content, name="a file")

    def create(self) -> str:
        answer = httpx.post(f"{self.root}/data/async", params={"ID": self.link().token})
        assert answer.status_code == 303
        return answer.headers["location"]

    def job(self, url: str) -> Job:
        return read_job(httpx.get(url).content, name=url)

    def run(self, url: str) -> None:
        assert httpx.post(f"{url}/phase", data={"phase": "RUN"}).status_code == 303


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    clock = ManualClock(datetime(2026, 1, 19, 2, 18, 34, tzinfo=UTC))
    with ArchiveServer(tmp_path, seed="empty", clock=clock) as server:
        made = World(server, clock)
        yield made
        made.http.close()


def test_only_who_logged_in_gets_links(world: World) -> None:
    anonymous = httpx.get(f"{world.root}/datalink/links", params={"ID": "scan-1-1"})
    assert (anonymous.status_code, "Basic" in anonymous.headers["www-authenticate"]) == (401, True)
    assert httpx.get(f"{world.root}/login", auth=("sandbox", "wrong")).status_code == 401
    assert httpx.get(f"{world.root}/login", headers={"Authorization": "Basic %%%"}).status_code == 401


def test_a_token_is_another_one_each_time(world: World) -> None:
    assert world.link().token != world.link().token
    assert world.link().service_url == f"{world.root}/data/async"


@pytest.mark.parametrize("file_id", ["scan-99-99", "evaluation-1", "scan-1-1' OR 1=1", ""])
def test_a_file_that_is_not_there_is_a_fault_in_the_document(world: World, file_id: str) -> None:
    answer = world.links(file_id) if file_id else world.http.get(f"{world.root}/datalink/links")
    with pytest.raises(ArchiveError) as caught:
        read_datalink(answer.content, name="a file")
    assert caught.value.code == "datalink_fault"


def test_a_file_may_be_denied(world: World) -> None:
    world.script(no_access=[world.deposit.files[0].obs_publisher_did])
    with pytest.raises(ArchiveError) as caught:
        world.link()
    assert caught.value.code == "staging_no_access"


def test_a_job_goes_through_its_phases_by_the_clock_once_it_was_told_to_run(world: World) -> None:
    world.script(delay_seconds=100.0, phases=["QUEUED", "SUSPENDED"])
    url = world.create()
    world.clock.advance(1000)
    assert world.job(url).phase == "PENDING"
    world.run(url)
    seen = []
    for _ in range(3):
        seen.append(world.job(url).phase)
        world.clock.advance(50)
    assert seen == ["QUEUED", "SUSPENDED", "COMPLETED"]


def test_a_signed_url_is_good_until_it_expires_and_only_as_it_is(world: World) -> None:
    world.script(delay_seconds=0.0, valid_seconds=604_800)
    url = world.create()
    world.run(url)
    results = {one.result_id: one.url for one in world.job(url).results}
    scan = world.deposit.files[0].obs_publisher_did.split("-")[1]
    data, checksum = results[f"visibility-{scan}"], results[f"visibility-{scan}.checksum"]
    assert expiry(data) == datetime(2026, 1, 26, 2, 18, 34, tzinfo=UTC)
    assert httpx.get(data).text == f"the content of {world.deposit.files[0].filename}\n"
    assert len(httpx.get(checksum).text) == 40
    assert httpx.get(data.replace("Expires=604800", "Expires=704800")).status_code == 403
    world.clock.advance(604_801)
    assert httpx.get(data).status_code == 403


def test_results_are_quoted_once_more_as_casda_does(world: World) -> None:
    world.script(delay_seconds=0.0)
    url = world.create()
    world.run(url)
    text = httpx.get(f"{url}/results").text
    assert 'xlink:href="http%3A%2F%2F' in text
    assert "X-Amz-Signature=" in unquote(text)
    world.script(form="reference")
    assert "<uws:reference>http://" in httpx.get(f"{url}/results").text


def test_a_job_may_fail_and_may_be_aborted(world: World) -> None:
    world.script(delay_seconds=0.0, errors=1, error_text="no <tape>")
    failed, aborted = world.create(), world.create()
    world.run(failed)
    assert (world.job(failed).phase, world.job(failed).error) == ("ERROR", "no <tape>")
    httpx.post(f"{aborted}/phase", data={"phase": "ABORT"})
    assert world.job(aborted).phase == "ABORTED"


def test_a_creation_can_lose_its_answer_and_still_be_listed(world: World) -> None:
    world.script(lose_answers=1)
    with pytest.raises(httpx.TransportError):
        world.create()
    assert httpx.get(f"{world.root}/data/async").text.count("<uws:jobref ") == 1
    world.script(lists=False)
    assert httpx.get(f"{world.root}/data/async").status_code == 404


def test_tokens_of_nobody_are_refused(world: World) -> None:
    answer = httpx.post(f"{world.root}/data/async", params={"ID": "made-up"})
    assert (answer.status_code, "do not have access" in answer.text) == (400, True)


@pytest.mark.parametrize(
    "values", [[], {"delay": 1}, {"errors": True}, {"errors": "1"}, {"lists": 1}, {"username": None}]
)
def test_a_switch_that_is_not_one_is_refused(world: World, values: Any) -> None:
    answer = httpx.put(f"{world.server.base_url}/sandbox/staging", json=values)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_staging")
