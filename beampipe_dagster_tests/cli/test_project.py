"""`beampipe project` and what it shows of a wrong file."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from beampipe_dagster.cli.diagnostics import show_report
from beampipe_dagster.config.validation import validate_project
from beampipe_dagster_tests.cli.support import DEMO, SURVEY, Beampipe, World

FILE = DEMO / "wallaby_demo.yaml"
PROFILE = DEMO / "profile.json"


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    """The demo survey with two mistakes."""
    path = tmp_path / "wrong.yaml"
    text = FILE.read_text()
    path.write_text(
        text.replace("batch_size: 5", "batch_size: 0").replace("[digits, trim]", "[digits, nope]")
    )
    return path


def test_a_valid_file_is_valid_without_a_ledger(empty: Beampipe) -> None:
    result = empty("project", "validate", str(FILE))
    assert (result.exit_code, result.stdout.strip()) == (0, "wallaby_demo is valid")
    assert result.stderr.startswith(
        "note: the profile 'local-daliuge' was not looked for: there is no ledger"
    )
    assert not empty.home.exists()


def test_a_profile_that_is_not_in_the_ledger_is_an_error_and_then_nothing_is_stored(
    beampipe: Beampipe,
) -> None:
    result = beampipe("project", "validate", str(FILE))
    assert result.exit_code == 1
    assert "error[profile_not_found]" in result.stdout
    report = beampipe.json("project", "validate", str(FILE), exit_code=1)
    (error,) = report["errors"]
    assert (error["path"], report["valid"]) == ("automation.execution.deployment_profile_name", False)
    text = beampipe.refused("project", "add", str(FILE), code="profile_not_found")
    assert f"{FILE}:{error['line']}:{error['column']}: " in text
    assert "beampipe profile add FILE. Known profiles: none." in text
    assert beampipe.json("project", "list") == {"projects": []}
    beampipe.ok("profile", "add", str(PROFILE))
    assert beampipe.ok("project", "validate", str(FILE)).strip() == "wallaby_demo is valid"


def test_a_profile_is_only_missed_by_a_warning_while_nothing_is_executed_by_itself(
    beampipe: Beampipe, tmp_path: Path
) -> None:
    shutil.copy(DEMO / "wallaby_demo.graph", tmp_path)
    quiet = tmp_path / "quiet.yaml"
    before, after = FILE.read_text().split("  execution:\n", 1)
    quiet.write_text(before + "  execution:\n" + after.replace("enabled: true", "enabled: false", 1))
    for command in ("validate", "add"):
        (warning,) = beampipe.json("project", command, str(quiet))["warnings"]
        assert (warning["code"], warning["severity"]) == ("profile_not_found", "warning")


def test_a_profile_of_another_project_is_refused(beampipe: Beampipe, tmp_path: Path) -> None:
    profile = json.loads(PROFILE.read_text()) | {"project_module": "another"}
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile))
    beampipe.ok("profile", "add", str(path))
    text = beampipe.refused("project", "add", str(FILE), code="profile_of_another_project")
    assert "'another'" in text


def test_advice_is_shown_with_the_other_warnings(empty: Beampipe, tmp_path: Path) -> None:
    odd = tmp_path / "odd.yaml"
    odd.write_text(FILE.read_text().replace("required: [casda, vizier]", "required: [casda]"))
    text = empty.ok("project", "validate", str(odd))
    assert "warning[adapter_not_required]" in text
    assert text.splitlines()[-1].startswith("wallaby_demo is valid, ")
    report = empty.json("project", "validate", str(odd))
    assert set(report) == {"project_id", "valid", "errors", "spec_sha256", "warnings"}
    assert {item["code"] for item in report["warnings"]} == {"adapter_not_required"}


def test_every_problem_is_shown_with_its_place_line_and_mark(empty: Beampipe, wrong: Path) -> None:
    result = empty("project", "validate", str(wrong))
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    number = next(n for n, text in enumerate(wrong.read_text().splitlines(), 1) if "nope" in text)
    place = next(n for n, text in enumerate(lines) if f"wrong.yaml:{number}:" in text)
    assert "error[unknown_transform]" in lines[place]
    assert "definitions.transforms.sbid_number.steps[1]" in lines[place]
    excerpt, mark = lines[place + 1], lines[place + 2]
    assert excerpt[mark.index("^") :].startswith("nope]")
    assert lines[-1].startswith("2 errors: ")


def test_with_json_validation_gives_its_report(empty: Beampipe, wrong: Path) -> None:
    report = empty.json("project", "validate", str(wrong), exit_code=1)
    assert report == validate_project(wrong.read_text()).as_dict()
    assert not report["valid"]


def test_a_change_that_makes_sources_run_again_is_warned_of(
    beampipe: Beampipe, world: World, tmp_path: Path
) -> None:
    del world
    changed = tmp_path / "changed.yaml"
    changed.write_text(FILE.read_text().replace("        - filesize\n", ""))
    text = beampipe.ok("project", "validate", str(changed))
    assert "warning[signature_changed]" in text
    assert text.splitlines()[-1] == "wallaby_demo is valid, 1 warning"
    assert len(beampipe.json("project", "validate", str(changed))["warnings"]) == 1


def test_a_long_line_is_cut_around_its_mark() -> None:
    text = f"apiVersion: beampipe.dev/v2\nkind: {'x' * 300}\nmetadata: {{id: a, {'y' * 200}: 1}}\n"
    report = validate_project(text)
    out = Console(width=60, file=io.StringIO(), record=True)
    show_report(out, report, name="long.yaml", text=text)
    shown = out.export_text().splitlines()
    mark = next(n for n, line in enumerate(shown) if line.rstrip().endswith("^"))
    assert len(shown[mark - 1]) <= 60
    assert shown[mark - 1][shown[mark].index("^")] == "y"


def test_a_file_that_is_not_there_is_told(empty: Beampipe, tmp_path: Path) -> None:
    for command in ("validate", "add"):
        text = empty.refused("project", command, str(tmp_path / "none.yaml"), code="file_unreadable")
        assert "No such file" in text


def test_adding_makes_the_ledger_and_says_what_comes_next(empty: Beampipe) -> None:
    empty.ok("profile", "add", str(PROFILE))
    text = empty.ok("project", "add", str(FILE))
    assert "wallaby_demo is at revision 1 now" in text
    assert "beampipe source register -p wallaby_demo" in text
    assert (empty.home / "ledger.db").is_file()


def test_adding_the_same_again_changes_nothing(beampipe: Beampipe, world: World) -> None:
    del world
    assert "has not changed" in beampipe.ok("project", "add", str(FILE))
    answer = beampipe.json("project", "add", str(FILE))
    assert (answer["version"], answer["changed"]) == (1, False)


def test_adding_a_wrong_file_shows_its_problems_and_stores_nothing(beampipe: Beampipe, wrong: Path) -> None:
    result = beampipe("project", "add", str(wrong))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "error[unknown_transform]" in result.stderr
    error = beampipe.json("project", "add", str(wrong), exit_code=1)["error"]
    assert error["code"] == "invalid_project"
    assert len(error["details"]["diagnostics"]) == 2
    assert beampipe.json("project", "list") == {"projects": []}


def test_a_graph_that_is_not_the_pinned_one_is_refused(beampipe: Beampipe, tmp_path: Path) -> None:
    beampipe.ok("profile", "add", str(PROFILE))
    text = FILE.read_text()
    (tmp_path / "wallaby_demo.graph").write_bytes((DEMO / "wallaby_demo.graph").read_bytes() + b" ")
    (tmp_path / "survey.yaml").write_text(text)
    result = beampipe("project", "add", str(tmp_path / "survey.yaml"))
    assert result.exit_code == 1
    assert result.stderr.startswith("error[graph_")
    assert beampipe.json("project", "list") == {"projects": []}


def test_the_list_has_counts_and_automation(beampipe: Beampipe, world: World) -> None:
    world.looked_at("A")
    assert "No survey" not in beampipe.ok("project", "list")
    row = beampipe.ok("project", "list").splitlines()[1].split()
    assert (row[0], row[1], row[4], row[5]) == (SURVEY, "1", "3", "1")
    (listed,) = beampipe.json("project", "list")["projects"]
    assert (listed["project_id"], listed["sources"]["registered"]) == (SURVEY, 3)


def test_an_empty_list_says_how_to_add_one(beampipe: Beampipe) -> None:
    assert "beampipe project add FILE" in beampipe.ok("project", "list")


def test_a_survey_s_page_names_queries_graph_and_automation(beampipe: Beampipe, world: World) -> None:
    del world
    text = beampipe.ok("project", "show", SURVEY)
    for part in ("visibility (casda)", "wallaby_demo.graph", "discovery every 24 h", "local-daliuge"):
        assert part in text
    assert beampipe.json("project", "show", SURVEY)["spec"]["metadata"]["id"] == SURVEY


def test_the_yaml_is_given_as_it_was_added(beampipe: Beampipe, world: World) -> None:
    del world
    added = FILE.read_text()
    assert beampipe.ok("project", "show", SURVEY, "--yaml") == added
    given = beampipe.json("project", "show", SURVEY, "--yaml")["yaml"]
    assert hashlib.sha256(given.encode()).digest() == hashlib.sha256(added.encode()).digest()
