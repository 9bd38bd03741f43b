"""`beampipe profile`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from beampipe_dagster_tests.cli.support import DEMO, Beampipe

FILE = DEMO / "profile.json"


def _changed(tmp_path: Path, **deployment: Any) -> str:
    document = json.loads(FILE.read_text())
    document["deployment"] |= deployment
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(document))
    return str(path)


def test_a_changed_profile_gets_the_next_revision_and_the_same_one_does_not(
    beampipe: Beampipe, tmp_path: Path
) -> None:
    assert "local-daliuge is at revision 1 now" in beampipe.ok("profile", "add", str(FILE))
    assert "has not changed" in beampipe.ok("profile", "add", str(FILE))
    answer = beampipe.json("profile", "add", _changed(tmp_path, deploy_port=8002))
    assert (answer["revision"], answer["changed"]) == (2, True)


def test_a_wrong_profile_is_refused_with_the_field(beampipe: Beampipe, tmp_path: Path) -> None:
    text = beampipe.refused("profile", "add", _changed(tmp_path, deploy_port=0), code="invalid_profile")
    assert "deploy_port" in text
    assert beampipe.json("profile", "list") == {"profiles": []}


def test_a_field_that_nothing_reads_is_warned_of_beside_the_result(
    beampipe: Beampipe, tmp_path: Path
) -> None:
    path = _changed(tmp_path, deploy_prot=1)
    result = beampipe("profile", "add", path)
    assert result.exit_code == 0
    assert "deploy_prot" in result.stderr
    assert "deploy_prot" not in result.stdout
    (warning,) = beampipe.json("profile", "add", path)["warnings"]
    assert warning["code"] == "unknown_field"


def test_the_list_and_the_page_say_where_it_runs(beampipe: Beampipe) -> None:
    assert "beampipe profile add FILE" in beampipe.ok("profile", "list")
    beampipe.ok("profile", "add", str(FILE))
    row = beampipe.ok("profile", "list").splitlines()[1]
    assert "all projects" in row
    assert "http://127.0.0.1:8001" in row
    page = beampipe.ok("profile", "show", "local-daliuge")
    assert "verify_ssl" in page
    assert "metis" in page
    assert beampipe.json("profile", "show", "local-daliuge")["spec"]["deployment"]["kind"] == "rest_remote"


def test_an_unknown_profile_is_told_with_the_known_ones(beampipe: Beampipe) -> None:
    beampipe.ok("profile", "add", str(FILE))
    text = beampipe.refused("profile", "show", "setonix", code="profile_not_found")
    assert "known profiles: local-daliuge" in text
