"""`beampipe profile`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from beampipe_dagster_tests.cli.support import DEMO, Beampipe, World

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


def test_validation_shows_every_problem_with_its_line(empty: Beampipe, tmp_path: Path) -> None:
    path = _changed(tmp_path, deploy_port=0, deploy_prot=1)
    result = empty("profile", "validate", path)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{path}:1:")
    assert "error[invalid_value]  deployment.deploy_port" in lines[0]
    assert "warning[unknown_field]" in result.stdout
    assert lines[-1].startswith("1 error, 1 warning: ")
    report = empty.json("profile", "validate", path, exit_code=1)
    assert (report["name"], report["valid"]) == ("local-daliuge", False)
    assert [(item["path"], item["line"]) for item in (*report["errors"], *report["warnings"])] == [
        ("deployment.deploy_port", 1),
        ("deployment.deploy_prot", 1),
    ]
    assert empty.ok("profile", "validate", str(FILE)).strip() == "local-daliuge is valid"
    assert not empty.home.exists()


def test_a_profile_is_rendered_from_its_file_or_by_its_name(beampipe: Beampipe, world: World) -> None:
    from_file = beampipe.json("profile", "render", str(FILE))
    assert beampipe.json("profile", "render", "local-daliuge") == from_file
    text = beampipe.ok("profile", "render", "local-daliuge")
    assert "POST http://127.0.0.1:8001/api/sessions" in text
    assert "num_partitions = 1" in text
    world.looked_at("A")
    execution = world.admitted("A")
    named = beampipe.json("profile", "render", "local-daliuge", "--execution", execution.id[:30])
    assert named["session"].startswith(f"BeampipeExecution-{execution.id}-")
    assert named["calls"][0]["parameters"]["oid_prefix"] == execution.id
    beampipe.refused("profile", "render", "nobody", code="profile_not_found")
    beampipe.refused("profile", "render", str(FILE), "--execution", "ffffffff", code="execution_not_found")


def test_a_slurm_profile_is_rendered_as_texts_that_are_not_sent(empty: Beampipe, tmp_path: Path) -> None:
    path = tmp_path / "slurm.json"
    deployment = {
        "kind": "slurm_remote",
        "login_node": "login",
        "remote_user": "anna",
        "account": "acct",
        "home_dir": "/h",
        "log_dir": "/l",
        "dlg_root": "/d",
        "modules": "module load $A",
    }
    path.write_text(json.dumps({"name": "s", "translation": {}, "deployment": deployment}))
    text = empty.ok("profile", "render", str(path))
    assert "does not submit to Slurm" in text
    assert "  MODULES = module load $$A\n" in text
    assert "  module load $A\n" in text
    assert "  sbatch --export=" in text
    assert empty.json("profile", "render", str(path))["slurm"]["where"] == "anna@login:22"
