from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.discovery.staging.plan import (
    IDS_PER_JOB,
    SCHEME,
    filled,
    grouped,
    make_plan,
    placeholders_in,
    urls_of,
)
from beampipe_dagster.discovery.staging.results import StagedUrls
from beampipe_dagster.errors import ArchiveError, DataError


def record(sbid: str = "72962", scan: str = "9", **changes: Any) -> dict[str, Any]:
    name = f"calibration-metadata-processing-logs-SB{sbid}_2025-04-21-063210.tar"
    return {
        "sbid": sbid,
        "scan_id": f"scan-{scan}",
        "dataset_id": f"HIPASSJ1317-16_SB{sbid}_{scan}.ms.tar",
        "access_url": f"https://h/links?ID=scan-{scan}-1",
        "evaluation_file": name,
        "evaluation_file_access_url": f"https://h/links?ID=evaluation-{sbid}",
        **changes,
    }


def refused(*records: dict[str, Any], evaluation: bool = True) -> DataError:
    with pytest.raises(DataError) as caught:
        make_plan(records, evaluation=evaluation)
    return caught.value


def staged(**changes: Any) -> StagedUrls:
    one = record()
    maps: dict[str, Any] = {
        "data": {"9": "https://e/HIPASSJ1317-16_SB72962_9.ms.tar?sig=1"},
        "checksum": {"9": "https://e/HIPASSJ1317-16_SB72962_9.ms.tar.checksum"},
        "evaluation": {one["evaluation_file"]: "https://e/c.tar"},
        "evaluation_checksum": {one["evaluation_file"]: "https://e/c.tar.checksum"},
    }
    return StagedUrls(**{**maps, **changes})


def test_a_record_gets_a_placeholder_for_each_of_its_files() -> None:
    plan = make_plan([record()], evaluation=True)
    (fields,) = plan.fields
    assert fields["staged_url"] == f"{SCHEME}visibility/72962/9"
    assert fields["checksum_url"] == f"{SCHEME}visibility-checksum/72962/9"
    assert sorted(fields) == [
        "checksum_url",
        "evaluation_file_checksum_url",
        "evaluation_file_url",
        "staged_url",
    ]
    found = urls_of(plan.items, staged())
    assert filled({**fields}, found)["staged_url"].startswith("https://e/HIPASS")  # type: ignore[index,call-overload,union-attr]


def test_without_calibration_archives_only_visibilities_are_staged() -> None:
    plan = make_plan([record(evaluation_file="")], evaluation=False)
    assert [item.kind.value for item in plan.items] == ["visibility"]
    assert sorted(plan.fields[0]) == ["checksum_url", "staged_url"]


def test_blocks_are_staged_in_numeric_order() -> None:
    records = [record(sbid, str(scan)) for scan, sbid in enumerate(["10", "9", "x", "72962"])]
    plan = make_plan(records, evaluation=False)
    assert [group.key for group in grouped(plan.items, by_sbid=True)] == [
        "visibility/9",
        "visibility/10",
        "visibility/72962",
        "visibility/x",
    ]
    (together,) = grouped(plan.items, by_sbid=False)
    assert (together.key, together.sbids) == ("visibility/all", ["9", "10", "72962", "x"])


def test_a_job_has_no_more_files_than_its_creation_can_name() -> None:
    plan = make_plan([record("1", str(scan)) for scan in range(2 * IDS_PER_JOB + 1)], evaluation=True)
    groups = grouped(plan.items, by_sbid=False)
    assert [(group.key, len(group.items)) for group in groups] == [
        ("visibility/all", IDS_PER_JOB),
        ("visibility/all+1", IDS_PER_JOB),
        ("visibility/all+2", 1),
        ("evaluation", 1),
    ]
    assert {item.id for group in groups for item in group.items} == {item.id for item in plan.items}


def test_the_scan_is_in_the_scan_id_or_else_in_the_publishers_identifier() -> None:
    plan = make_plan([record(scan_id="254939", obs_publisher_did="ivo://x/scan-12-3")], evaluation=False)
    assert plan.items[0].key == "12"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scan_id": "scan--3"}, "has no scan"),
        ({"scan_id": None}, "has no scan"),
        ({"access_url": ""}, "has no access_url"),
        ({"access_url": "file:///etc/passwd"}, "has no access_url"),
        ({"dataset_id": ""}, "lacks"),
    ],
)
def test_an_incomplete_record_names_its_block_and_what_it_lacks(changes: dict[str, Any], words: str) -> None:
    error = refused(record(), record("9", "8", **changes))
    assert error.code == "staging_record_incomplete"
    assert "SBID 9:" in error.message
    assert words in error.message
    assert error.details == {"sbids": ["9"]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"evaluation_file": ""}, "no evaluation_file"),
        ({"evaluation_file": "calibration-metadata-processing-logs-SB7_2025.tar"}, "is not called"),
        ({"evaluation_file": "calibration-metadata-processing-logs-SB72962_2025.tar.gz"}, "is not called"),
        ({"evaluation_file_access_url": ""}, "no evaluation_file_access_url"),
    ],
)
def test_the_calibration_archive_must_be_the_blocks_own(changes: dict[str, Any], words: str) -> None:
    error = refused(record(**changes))
    assert (error.code, words in error.message) == ("staging_evaluation_file", True)


def test_all_records_of_a_block_must_name_the_same_calibration_archive() -> None:
    other = {"evaluation_file": "calibration-metadata-processing-logs-SB72962_2026.tar"}
    assert "different" in refused(record(), record(scan="10", **other)).message


def test_two_records_of_one_scan_are_refused() -> None:
    assert refused(record(), record("8")).code == "staging_scan_twice"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {}}, "CASDA visibility result is missing"),
        ({"checksum": {}}, "visibility checksum"),
        ({"checksum": {"9": "https://e/other.checksum"}}, "visibility checksum of scan 9 is not one of"),
        ({"evaluation": {}}, "CASDA evaluation staging result is missing"),
        ({"evaluation_checksum": {}}, "CASDA evaluation staging checksum is missing"),
    ],
)
def test_a_job_must_have_given_everything(changes: dict[str, Any], words: str) -> None:
    plan = make_plan([record()], evaluation=True)
    with pytest.raises(ArchiveError) as caught:
        urls_of(plan.items, staged(**changes))
    assert caught.value.code == "staging_result_missing"
    assert words in caught.value.message
    assert caught.value.details == {"sbids": ["72962"]}


URLS = st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=0x2FF), min_size=1, max_size=40).map(
    lambda text: f"https://e/HIPASSJ1317-16_SB72962_9.ms.tar?{text}"
)


@given(url=URLS)
def test_a_filled_document_is_the_same_json_at_every_depth(url: str) -> None:
    plan = make_plan([record()], evaluation=True)
    found = urls_of(plan.items, staged(data={"9": url}))
    inner: JsonValue = {"datasets": [{**plan.fields[0]}]}
    document: JsonValue = {"args": {"value": json.dumps({"again": json.dumps(inner)})}, "other": 1}
    out: Any = filled(document, found)
    sent = json.loads(json.loads(out["args"]["value"])["again"])["datasets"][0]
    assert sent["staged_url"] == found[plan.items[0].placeholder]
    assert placeholders_in(out) == set()
    assert out["other"] == 1


@given(
    sbid=st.text(min_size=1, max_size=10).filter(str.strip), scan=st.from_regex(r"[^-]{1,8}", fullmatch=True)
)
def test_a_placeholder_is_found_whatever_its_block_and_scan_are_called(sbid: str, scan: str) -> None:
    if not scan.strip():
        return
    plan = make_plan([record(sbid, scan, dataset_id="d")], evaluation=False)
    (item,) = plan.items
    text = json.dumps([f"a {item.placeholder} b", {"c": f'"{item.checksum_placeholder}"'}])
    assert placeholders_in([text]) == {item.placeholder, item.checksum_placeholder}
