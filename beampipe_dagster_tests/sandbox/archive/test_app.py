from __future__ import annotations

from typing import Any

import httpx
import pytest

from beampipe_dagster.sandbox.archive.server import ArchiveServer


def deposit(server: ArchiveServer, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.base_url}/sandbox/deposits", json=body)


def test_a_deposit_over_http_is_found_by_the_next_query(server: ArchiveServer) -> None:
    answer = deposit(server, source_identifier="HIPASSJ1320-12", beams=3, sbid=None)
    assert answer.status_code == 201
    added = answer.json()
    assert added["sbids"] == [73_100]
    assert len(added["files"]) == 3
    adql = "SELECT filename FROM ivoa.obscore WHERE filename LIKE 'HIPASSJ1320-12%'"
    parameters = {"LANG": "ADQL", "QUERY": adql, "FORMAT": "csv"}
    found = httpx.get(f"{server.casda_url}/sync", params=parameters)
    assert found.text.split() == ["filename", *(file["filename"] for file in added["files"])]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "source_identifier"),
        ({"source_identifier": None}, "source_identifier"),
        ({"source_identifier": "x'; DROP"}, "source_identifier"),
        ({"source_identifier": "x", "beams": 0}, "beams"),
        ({"source_identifier": "x", "sbid": "1"}, "sbid"),
        ({"source_identifier": "x", "beam": 1}, "beam"),
    ],
)
def test_a_deposit_that_cannot_be_made_says_why(
    shared: ArchiveServer, body: dict[str, Any], words: str
) -> None:
    answer = deposit(shared, **body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "invalid_deposit"
    assert words in error["message"]
    assert error["hint"]


def test_too_many_beams_are_a_conflict(server: ArchiveServer) -> None:
    deposit(server, source_identifier="x", sbid=5, beams=36)
    answer = deposit(server, source_identifier="x", sbid=5, beams=1)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "too_many_beams")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"{", "application/json"),
        (b"[" * 50_000, "application/json"),
        (b" " * 100_001, "application/json"),
        (b"{}", "text/plain"),
        (b"\xff\xfe{", "application/json"),
    ],
    ids=["broken", "deep", "large", "not json", "not utf-8"],
)
def test_a_body_that_is_not_json_is_refused(shared: ArchiveServer, content: bytes, kind: str) -> None:
    url = f"{shared.base_url}/sandbox/deposits"
    answer = httpx.post(url, content=content, headers={"content-type": kind})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] in {"invalid_json", "invalid_deposit"}


def test_faults_are_set_read_and_cleared(server: ArchiveServer) -> None:
    root = f"{server.base_url}/sandbox/faults"
    assert httpx.put(f"{root}/casda", json={"overflow": 3}).json() == {"overflow": 3}
    httpx.put(f"{root}/vizier", json={"empty": True})
    assert httpx.get(root).json() == {"casda": {"overflow": 3}, "vizier": {"empty": True}}
    httpx.delete(f"{root}/casda")
    assert httpx.get(root).json() == {"casda": {}, "vizier": {"empty": True}}
    httpx.delete(root)
    assert httpx.get(root).json() == {"casda": {}, "vizier": {}}


def test_wrong_faults_are_refused(shared: ArchiveServer) -> None:
    root = f"{shared.base_url}/sandbox/faults"
    assert httpx.put(f"{root}/simbad", json={}).status_code == 404
    answer = httpx.put(f"{root}/casda", json={"latency": "long"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_fault"


def test_the_page_shows_tables_deposits_and_switches(server: ArchiveServer) -> None:
    deposit(server, source_identifier="HIPASSJ1320-12")
    httpx.put(f"{server.base_url}/sandbox/faults/casda", json={"busy": "<b>wait</b>"})
    adql = "SELECT '<script>alert(1)</script>' FROM tap_schema.schemas"
    httpx.get(f"{server.vizier_url}/sync", params={"LANG": "ADQL", "QUERY": adql})
    page = httpx.get(f"{server.base_url}/")
    assert page.headers["content-type"].startswith("text/html")
    assert "HIPASSJ1320-12_SB73100_F00_B01.ms.tar" in page.text
    assert "VIII/73/hicat" in page.text
    assert "1,000" in page.text
    assert server.casda_url in page.text
    assert "&lt;b&gt;wait" in page.text
    assert "<script>alert" not in page.text


def test_unknown_places_are_404(shared: ArchiveServer) -> None:
    assert httpx.get(f"{shared.base_url}/casda/tap/nothing").status_code == 404
    assert httpx.get(f"{shared.casda_url}/async/none").status_code == 404
