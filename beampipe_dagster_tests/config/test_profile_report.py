from __future__ import annotations

import json
from typing import Any

import pytest

from beampipe_dagster.config.profile import load_profile
from beampipe_dagster.config.profile_report import validate_profile

GOOD: dict[str, Any] = {
    "name": "p",
    "translation": {},
    "deployment": {"kind": "rest_remote", "deploy_host": "dim"},
}


def test_a_good_profile_has_its_name_and_its_digest() -> None:
    report = validate_profile(json.dumps(GOOD))
    assert (report.valid, report.project_id, report.warnings) == (True, "p", ())
    assert report.spec_sha256 == load_profile(GOOD).spec_sha256


def test_every_error_and_every_warning_has_its_place() -> None:
    text = json.dumps({**GOOD, "name": "no name", "deployment": {"kind": "rest_remote", "prot": 1}}, indent=1)
    report = validate_profile(text, name="p.json")
    lines = text.splitlines()
    found = [(item.path, lines[(item.line or 0) - 1].strip()) for item in (*report.errors, *report.warnings)]
    assert found == [
        ("name", '"name": "no name",'),
        ("deployment.deploy_host", '"deployment": {'),
        ("deployment.prot", '"prot": 1'),
    ]
    assert not report.valid


def test_mistakes_of_structure_are_told_all_at_once() -> None:
    report = validate_profile(json.dumps({"name": 1, "deployment": {"kind": "k8s"}}))
    assert {item.path for item in report.errors} == {"name", ".", "deployment"}
    assert {item.code for item in report.errors} == {"invalid_profile_structure"}


@pytest.mark.parametrize(
    ("text", "place"),
    [('{"name":', (1, 9)), ("", (1, 1)), ('{\n "a": NaN}', (None, None)), (b"\xff", (None, None))],
)
def test_what_is_no_json_is_an_error_with_its_place(
    text: str | bytes, place: tuple[int | None, int | None]
) -> None:
    report = validate_profile(text, name="p.json")
    (error,) = report.errors
    assert (error.code, (error.line, error.column)) == ("invalid_json", place)
    assert "p.json" not in error.message
    assert len(report.spec_sha256) == 64
