from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from lxml import etree

from beampipe_dagster.sandbox.archive.demo import load_demo
from beampipe_dagster.sandbox.archive.server import ArchiveServer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from astropy.table import Table
    from pyvo.dal import DALQueryError, DALServiceError, TAPService
    from pyvo.dal.exceptions import DALFormatError, DALOverflowWarning

VISIBILITY = """
SELECT o.* FROM ivoa.obscore o
INNER JOIN (
  SELECT MAX(t_max) AS mx FROM ivoa.obscore
  WHERE filename LIKE '{source_identifier}%'
  AND obs_collection IN ('ASKAP Pilot Survey for WALLABY', 'WALLABY')
) AS latest ON o.t_max = latest.mx
WHERE o.filename LIKE '{source_identifier}%'
AND o.obs_collection IN ('ASKAP Pilot Survey for WALLABY', 'WALLABY')
"""
VELOCITY = """
SELECT HIPASS, RAJ2000, DEJ2000, RV50max, RV50min, RVmom
FROM "VIII/73/hicat" WHERE HIPASS = '{source_name}'
"""
EVALUATION = """
SELECT * FROM casda.observation_evaluation_file
WHERE sbid = '{sbid}'
AND format = 'calibration'
AND filename LIKE 'calibration-metadata-processing-logs-SB{sbid}_%.tar'
"""
ALL = "SELECT filename FROM ivoa.obscore"
TWO = "SELECT * FROM ivoa.obscore WHERE filename LIKE 'HIPASSJ1318-21%'"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DALOverflowWarning)
        yield


@pytest.fixture(scope="module")
def casda_tap(shared: ArchiveServer) -> TAPService:
    return TAPService(shared.casda_url)


def tap(server: ArchiveServer) -> TAPService:
    return TAPService(server.casda_url)


def fault(server: ArchiveServer, archive: str = "casda", **switches: Any) -> None:
    url = f"{server.base_url}/sandbox/faults/{archive}"
    assert httpx.put(url, json=switches).status_code == 200


def ask(server: ArchiveServer, **parameters: str) -> httpx.Response:
    data = {"LANG": "ADQL", **parameters}
    return httpx.post(f"{server.casda_url}/sync", data=data, timeout=30)


def test_the_wallaby_queries_find_what_the_demo_says(shared: ArchiveServer) -> None:
    casda, vizier = TAPService(shared.casda_url), TAPService(shared.vizier_url)
    for source in load_demo().sources:
        name = source.source_identifier
        rows = casda.run_sync(VISIBILITY.format(source_identifier=name)).to_table()
        own = [f for f in rows["filename"] if str(f).startswith(f"{name}_")]
        assert len(own) == sum(each.beams for each in source.observations)
        flags = vizier.run_sync(VELOCITY.format(source_name=name.removeprefix("HIPASS")))
        assert len(flags) == int(source.in_hicat)
        if source.in_hicat:
            assert flags[0]["RVmom"] == pytest.approx(source.rv_kms)
        for each in source.observations:
            assert len(casda.run_sync(EVALUATION.format(sbid=each.sbid))) == 1


def test_sync_and_async_and_binary_give_the_same_rows(casda_tap: TAPService) -> None:
    table = casda_tap.run_sync(TWO).to_table()
    assert table["s_xel1"].tolist() == [None, None]
    assert table["calib_level"].tolist() == [1, 1]
    assert str(table["em_min"].unit) == "m"
    assert table["filename"].tolist() == casda_tap.run_async(TWO).to_table()["filename"].tolist()
    query = casda_tap.create_query(TWO)
    query["RESPONSEFORMAT"] = "votable/b2"
    binary = query.execute().to_table()
    assert [binary[c].tolist() for c in binary.colnames] == [table[c].tolist() for c in table.colnames]


def test_get_is_answered_as_post_is(shared: ArchiveServer) -> None:
    url = f"{shared.casda_url}/sync"
    got = httpx.get(url, params={"request": "doQuery", "lang": "ADQL", "query": TWO})
    assert got.content == ask(shared, QUERY=TWO).content
    assert got.headers["content-type"].startswith("application/x-votable+xml")


def test_csv_is_given_when_it_is_asked_for(shared: ArchiveServer) -> None:
    answer = ask(shared, QUERY=TWO.replace("*", "obs_id, s_xel1"), FORMAT="csv")
    assert answer.text.splitlines() == ["obs_id,s_xel1", "ASKAP-72962,", "ASKAP-72962,"]


def test_pyvo_reads_the_tables_and_the_capabilities(shared: ArchiveServer) -> None:
    casda, vizier = TAPService(shared.casda_url), TAPService(shared.vizier_url)
    names = [table.name for table in casda.tables if not table.name.startswith("tap_schema")]
    assert names == ["ivoa.obscore", "casda.observation_evaluation_file"]
    assert {c.name for c in casda.tables["ivoa.obscore"].columns} >= {"filename", "quality_level"}
    assert '"VIII/73/hicat"' in list(vizier.tables.keys())
    assert (casda.maxrec, casda.hardlimit) == (20_000, 200_000)
    assert casda.get_tap_capability().get_adql().name == "ADQL"


def test_every_table_that_is_described_can_be_queried_by_its_name(shared: ArchiveServer) -> None:
    for url in (shared.casda_url, shared.vizier_url):
        service = TAPService(url)
        described = service.run_sync("SELECT table_name, column_name FROM tap_schema.columns")
        tables = {str(row["table_name"]) for row in described}
        assert tables == set(service.tables.keys())
        for table in tables:
            columns = [str(r["column_name"]) for r in described if r["table_name"] == table]
            service.run_sync(f"SELECT TOP 1 {', '.join(columns)} FROM {table}")  # noqa: S608  # a value of the test


def test_maxrec_says_overflow_at_the_end(casda_tap: TAPService) -> None:
    cut = casda_tap.run_sync(ALL, maxrec=5)
    assert (len(cut), cut.query_status) == (5, "OVERFLOW")
    whole = casda_tap.run_sync(ALL, maxrec=219)
    assert (len(whole), whole.query_status) == (219, "OK")


def test_maxrec_0_gives_the_columns_alone(shared: ArchiveServer) -> None:
    body = ask(shared, QUERY=ALL, MAXREC="0").text
    assert '<FIELD ID="c0" name="filename"' in body
    assert "<TR>" not in body


def test_a_result_of_the_archives_own_jobs_can_be_joined_by_its_url(shared: ArchiveServer) -> None:
    service = TAPService(shared.casda_url)
    job = service.submit_job("SELECT TOP 3 filename FROM ivoa.obscore")
    job.run().wait(phases={"COMPLETED"}, timeout=30)
    adql = "SELECT o.filename FROM ivoa.obscore AS o JOIN TAP_UPLOAD.u AS u ON o.filename = u.filename"
    fields = {"LANG": "ADQL", "QUERY": adql, "UPLOAD": f"u,{job.result_uri}"}
    answer = httpx.post(f"{shared.casda_url}/sync", data=fields)
    assert answer.text.count("<TR>") == 3
    for url in (f"{shared.base_url}/sandbox/log", f"{job.result_uri}/../../error", "http://192.0.2.1/t.xml"):
        refused = httpx.post(f"{shared.casda_url}/sync", data={**fields, "UPLOAD": f"u,{url}"})
        assert (refused.status_code, "own jobs" in refused.text) == (400, True)


@pytest.mark.parametrize("run", ["run_sync", "run_async"])
def test_an_upload_can_be_joined(casda_tap: TAPService, run: str) -> None:
    table = Table({"name": ["HIPASSJ1318-21", "HIPASSJ1300-13B"], "n": [1, 2]})
    adql = "SELECT u.n FROM TAP_UPLOAD.u AS u JOIN ivoa.obscore o ON o.target_name = u.name"
    found = getattr(casda_tap, run)(adql, uploads={"u": table}).to_table()
    assert sorted(found["n"].tolist()) == [1, 1, 2, 2, 2]


def test_a_wrong_query_is_an_error_votable_with_its_place(
    shared: ArchiveServer, casda_tap: TAPService
) -> None:
    answer = ask(shared, QUERY="SELECT nope FROM ivoa.obscore")
    assert answer.status_code == 400
    assert 'value="ERROR"' in answer.text
    with pytest.raises(DALQueryError, match=r"no such column: nope \(line 1, column 8\)"):
        casda_tap.run_sync("SELECT nope FROM ivoa.obscore")
    with pytest.raises(DALQueryError, match="no such column: nope"):
        casda_tap.run_async("SELECT nope FROM ivoa.obscore")


@pytest.mark.parametrize("adql", ["SELECT 1; DROP TABLE ivoa.obscore", "ATTACH 'x' AS y", "PRAGMA x"])
def test_an_injection_is_refused_and_the_service_lives(casda_tap: TAPService, adql: str) -> None:
    with pytest.raises(DALQueryError):
        casda_tap.run_sync(adql)
    assert len(casda_tap.run_sync(TWO)) == 2


def test_a_job_goes_through_its_life(casda_tap: TAPService) -> None:
    job = casda_tap.submit_job(TWO)
    assert job.phase == "PENDING"
    job.run().wait(timeout=20)
    assert job.phase == "COMPLETED"
    assert len(job.fetch_result()) == 2
    url = job.url
    job.delete()
    assert httpx.get(url).status_code == 404


def test_a_running_job_can_be_aborted(shared: ArchiveServer, casda_tap: TAPService) -> None:
    slow = "SELECT COUNT(*) FROM ivoa.obscore a, ivoa.obscore b, ivoa.obscore c, ivoa.obscore d"
    job = casda_tap.submit_job(slow).run()
    started = time.monotonic()
    held = httpx.get(job.url, params={"WAIT": "1"}, timeout=20)
    assert time.monotonic() - started > 0.9
    assert "<uws:phase>EXECUTING</uws:phase>" in held.text
    job.abort()
    assert job.phase == "ABORTED"
    assert httpx.get(f"{job.url}/results/result").status_code == 404
    listed = httpx.get(f"{shared.casda_url}/async", params={"PHASE": "ABORTED"}).text
    assert job.job_id in listed


def test_a_jobs_parts_have_their_own_places(casda_tap: TAPService) -> None:
    job = casda_tap.submit_job(TWO)
    for part, expected in (("phase", "PENDING"), ("executionduration", "60"), ("quote", "")):
        assert httpx.get(f"{job.url}/{part}").text == expected
    httpx.post(f"{job.url}/executionduration", data={"EXECUTIONDURATION": "5"})
    assert httpx.get(f"{job.url}/executionduration").text == "5"
    httpx.post(f"{job.url}/parameters", data={"QUERY": ALL})
    assert ALL in httpx.get(f"{job.url}/parameters").text
    wrong = httpx.post(f"{job.url}/destruction", data={"DESTRUCTION": "tomorrow"})
    assert wrong.status_code == 400
    httpx.post(f"{job.url}/destruction", data={"DESTRUCTION": "2020-01-01T00:00:00Z"})
    assert httpx.get(job.url).status_code == 404


def test_a_job_that_takes_longer_than_its_duration_fails(casda_tap: TAPService) -> None:
    slow = "SELECT COUNT(*) FROM ivoa.obscore a, ivoa.obscore b, ivoa.obscore c, ivoa.obscore d"
    job = casda_tap.submit_job(slow)
    httpx.post(f"{job.url}/executionduration", data={"EXECUTIONDURATION": "1"})
    job.run().wait(timeout=20)
    assert job.phase == "ERROR"
    assert "more than 1 s" in httpx.get(f"{job.url}/error").text


def test_documents_are_well_formed_xml(shared: ArchiveServer) -> None:
    for path in ("capabilities", "availability", "tables", "async"):
        answer = httpx.get(f"{shared.casda_url}/{path}")
        assert answer.headers["content-type"].startswith("text/xml")
        etree.fromstring(answer.content)


def test_down_closes_the_connection(server: ArchiveServer) -> None:
    fault(server, down=True)
    with pytest.raises(httpx.RemoteProtocolError):
        ask(server, QUERY=TWO)
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"{server.casda_url}/capabilities")
    assert len(TAPService(server.vizier_url).run_sync('SELECT TOP 1 * FROM "VIII/73/hicat"')) == 1
    httpx.delete(f"{server.base_url}/sandbox/faults")
    assert len(tap(server).run_sync(TWO)) == 2


def test_truncated_stops_in_the_middle(server: ArchiveServer) -> None:
    fault(server, truncated=True, count=1)
    with pytest.raises(DALFormatError):
        tap(server).run_sync(TWO)
    assert len(tap(server).run_sync(TWO)) == 2


def test_busy_is_an_error_votable_with_503(server: ArchiveServer) -> None:
    fault(server, busy=True, retry_after=3)
    answer = ask(server, QUERY=TWO)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")
    with pytest.raises(DALQueryError, match="TAP service too busy"):
        tap(server).run_sync(TWO)
    fault(server, busy="Unable to check the ADQL query", status=400)
    assert ask(server, QUERY=TWO).status_code == 400


def test_a_status_comes_with_retry_after(server: ArchiveServer) -> None:
    fault(server, status=503, retry_after=2)
    answer = ask(server, QUERY=TWO)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    with pytest.raises(DALServiceError):
        tap(server).run_sync(TWO)
    assert httpx.get(f"{server.casda_url}/availability").status_code == 503


def test_html_is_a_page_with_200(server: ArchiveServer) -> None:
    fault(server, html=True)
    answer = ask(server, QUERY=TWO)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    with pytest.raises(DALFormatError):
        tap(server).run_sync(TWO)


@pytest.mark.parametrize("run", ["run_sync", "run_async"])
def test_overflow_and_empty_change_the_answer_of_both_ways(server: ArchiveServer, run: str) -> None:
    fault(server, overflow=1, count=1)
    cut = getattr(tap(server), run)(TWO)
    assert (len(cut), cut.query_status) == (1, "OVERFLOW")
    fault(server, empty=True, count=1)
    empty = getattr(tap(server), run)(TWO)
    assert (len(empty), empty.query_status) == (0, "OK")
    assert len(getattr(tap(server), run)(TWO)) == 2


def test_latency_holds_the_answer_back(server: ArchiveServer) -> None:
    fault(server, latency=0.4)
    started = time.monotonic()
    assert ask(server, QUERY=TWO).status_code == 200
    assert time.monotonic() - started >= 0.4


def test_the_log_counts_queries_and_names_what_hit_them(server: ArchiveServer) -> None:
    ask(server, QUERY=TWO)
    ask(server, QUERY="SELECT nope FROM ivoa.obscore")
    fault(server, status=500, count=1)
    ask(server, QUERY=TWO)
    fault(server, overflow=1, count=1)
    ask(server, QUERY=TWO)
    TAPService(server.vizier_url).run_async('SELECT TOP 1 * FROM "VIII/73/hicat"')
    httpx.get(f"{server.casda_url}/capabilities")
    url = f"{server.base_url}/sandbox/log"
    log = httpx.get(url).json()
    assert log["total"] == 5
    assert [(e["archive"], e["kind"], e["rows"], e["status"]) for e in log["requests"]] == [
        ("casda", "sync", 2, "ok"),
        ("casda", "sync", None, "invalid_adql"),
        ("casda", "sync", None, "status"),
        ("casda", "sync", 1, "overflow"),
        ("vizier", "async", 1, "ok"),
    ]
    digests = [e["digest"] for e in log["requests"]]
    assert digests[0] == digests[2] == digests[3] != digests[1]
    assert len(httpx.get(url, params={"archive": "vizier"}).json()["requests"]) == 1
    assert httpx.delete(url).json() == {"total": 0, "requests": []}


def test_the_log_keeps_the_last_200(server: ArchiveServer) -> None:
    with httpx.Client() as client:
        for number in range(205):
            adql = f"SELECT TOP 1 {number} FROM tap_schema.schemas"  # noqa: S608  # a value of the test
            client.get(f"{server.casda_url}/sync", params={"LANG": "ADQL", "QUERY": adql})
    log = httpx.get(f"{server.base_url}/sandbox/log").json()
    assert log["total"] == 205
    assert len(log["requests"]) == 200
    assert "TOP 1 5 " in log["requests"][0]["query"]
