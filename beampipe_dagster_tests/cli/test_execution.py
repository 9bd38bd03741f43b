"""`beampipe execution`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from beampipe_dagster.cli.render import short_ids
from beampipe_dagster.config.canonical import sha256_hex
from beampipe_dagster.ledger import artifacts, projects
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.states import ArtifactKind, ControlPhase, Status, SubmissionState
from beampipe_dagster.ledger.tables import project_configs
from beampipe_dagster_tests.cli.support import LOG, SURVEY, Beampipe, World

ERROR = "drop image failed: ValueError: no"


@pytest.fixture
def runs(world: World) -> dict[str, Execution]:
    """A completed, B failed, C running."""
    for name in "ABC":
        world.looked_at(name)
    done = {name: world.submitted(world.admitted(name)) for name in "ABC"}
    done["A"] = world.ended(done["A"], Status.COMPLETED)
    done["B"] = world.ended(done["B"], Status.FAILED, error=ERROR)
    return done


def test_an_empty_list_is_told(beampipe: Beampipe) -> None:
    assert "There is no execution yet." in beampipe.ok("execution", "list")
    assert "No execution is active." in beampipe.ok("execution", "list", "--active")
    assert beampipe.json("execution", "list") == {"executions": [], "truncated": False}


def test_the_newest_is_first_with_its_whole_identifier_in_json(
    runs: dict[str, Execution], beampipe: Beampipe
) -> None:
    listed = beampipe.json("execution", "list", "-p", SURVEY)["executions"]
    assert [(item["id"], item["status"]) for item in listed] == [
        (runs["C"].id, "running"),
        (runs["B"].id, "failed"),
        (runs["A"].id, "completed"),
    ]


def test_the_list_shows_short_identifiers_and_reasons_under_it_where_it_is_narrow(
    runs: dict[str, Execution], beampipe: Beampipe
) -> None:
    narrow = beampipe.ok("execution", "list")
    assert runs["B"].id not in narrow
    assert runs["B"].id[:13] in narrow
    assert re.search(rf"Reasons\n(.*\n)*  {runs['B'].id[:13]}\S*  {re.escape(ERROR)}", narrow)
    wide = Beampipe(beampipe.home, columns=180).ok("execution", "list")
    assert "Reasons" not in wide
    line = next(line for line in wide.splitlines() if " failed " in line)
    assert ERROR in line


def test_no_line_of_a_list_is_wider_than_the_terminal(runs: dict[str, Execution], beampipe: Beampipe) -> None:
    del runs
    for args in (("execution", "list"), ("source", "list"), ("timeline", "project", SURVEY)):
        assert max(len(line) for line in beampipe.ok(*args).splitlines()) <= beampipe.columns


def test_active_ones_and_a_limit_narrow_the_list(runs: dict[str, Execution], beampipe: Beampipe) -> None:
    (active,) = beampipe.json("execution", "list", "--active")["executions"]
    assert active["id"] == runs["C"].id
    assert "Only the newest 1 are shown" in beampipe.ok("execution", "list", "--limit", "1")
    assert beampipe.json("execution", "list", "--limit", "1")["truncated"]
    beampipe.refused("execution", "list", "-p", "nope", code="project_not_found")


def test_the_page_has_axes_phases_artifacts_drops_and_the_end_of_the_log(
    runs: dict[str, Execution], beampipe: Beampipe
) -> None:
    text = beampipe.ok("execution", "show", runs["B"].id)
    assert text.startswith(f"{runs['B'].id}  failed\n")
    for part in (f"{ERROR} [session_failed]", "monitoring", "manifest", "2 datasets", "3/9", "session-"):
        assert part in text
    assert "ValueError: no" in text
    assert "frame 0" not in text
    assert "lines before; --json has them" in text


def test_the_json_has_the_run_record_the_whole_log_and_lengths_of_phases(
    runs: dict[str, Execution], beampipe: Beampipe
) -> None:
    page = beampipe.json("execution", "show", runs["B"].id)
    assert page["failed_drops"][0]["log"] == LOG
    assert page["run_record"]["dim"]["terminal"]["ledger_status"] == "failed"
    assert [phase["name"] for phase in page["phases"]] == ["admitted", "monitoring", "terminal"]
    assert page["phases"][0]["seconds"] >= 0
    assert page["phases"][-1]["seconds"] is None
    assert page["artifacts"][0]["kind"] == "manifest"
    assert page["project_id"] == SURVEY
    assert "lease_token" not in page


def test_the_last_phase_of_an_active_one_is_still_growing(
    runs: dict[str, Execution], beampipe: Beampipe
) -> None:
    page = beampipe.json("execution", "show", runs["C"].id)
    assert page["phases"][-1]["name"] == "monitoring"
    assert page["phases"][-1]["seconds"] >= 0
    assert "the session runs" in beampipe.ok("execution", "show", runs["C"].id)


def test_an_uncertain_submission_is_told_in_words(
    world: World, runs: dict[str, Execution], beampipe: Beampipe
) -> None:
    from beampipe_dagster.ledger import executions  # noqa: PLC0415  # beside its one use

    with world.platform.ledger.begin() as conn:
        values = {"submission_state": SubmissionState.UNCERTAIN}
        executions.move(conn, runs["C"], now=world.platform.clock.now(), values=values)
    assert "its session is being looked for" in beampipe.ok("execution", "show", runs["C"].id)


def test_any_unique_beginning_names_an_execution(runs: dict[str, Execution], beampipe: Beampipe) -> None:
    for name, run in runs.items():
        others = [other.id for key, other in runs.items() if key != name]
        length = next(n for n in range(1, 37) if not any(other.startswith(run.id[:n]) for other in others))
        for prefix in (run.id[:length], run.id[:length].upper(), f" {run.id} "):
            assert beampipe.json("execution", "show", prefix)["id"] == run.id


def test_an_ambiguous_beginning_lists_the_candidates(runs: dict[str, Execution], beampipe: Beampipe) -> None:
    prefix = runs["A"].id[:4]
    text = beampipe.refused("execution", "show", prefix, code="execution_ambiguous")
    assert all(run.id in text for run in runs.values())
    error = beampipe.json("execution", "show", prefix, exit_code=1)["error"]
    assert set(error["details"]["candidates"]) == {run.id for run in runs.values()}
    beampipe.refused("timeline", "execution", prefix, code="execution_ambiguous")


def test_an_unknown_or_impossible_identifier_is_refused(beampipe: Beampipe) -> None:
    for command in (("execution", "show"), ("timeline", "execution")):
        beampipe.refused(*command, "ffff", code="execution_not_found")
        for nonsense in ("", "xyz", "0%", "0_"):
            beampipe.refused(*command, nonsense, code="invalid_execution_id")


def test_short_identifiers_are_as_long_as_it_takes_to_tell_them_apart() -> None:
    one, two = "01a20d58-950d-7a23-89f7-d729f4ff3029", "01a20d58-9514-7a23-89f7-d729f4ff3029"
    assert short_ids([one, two, one]) == {one: "01a20d58-950d", two: "01a20d58-9514"}
    same_moment = "01a20d58-950d-7492-bb66-58dff4fa097a"
    assert short_ids([one, same_moment])[one] == "01a20d58-950d-7a23"
    almost = one[:-1] + "a"
    assert short_ids([one, almost]) == {one: one, almost: almost}


@pytest.fixture
def with_manifest(runs: dict[str, Execution], world: World) -> Execution:
    run = runs["A"]
    with world.platform.ledger.begin() as conn:
        artifacts.put(
            conn,
            run.id,
            ArtifactKind.MANIFEST,
            {"sources": [{"source_identifier": "Å"}]},
            phase=ControlPhase.MANIFEST_GENERATED,
            ids=world.platform.ids,
            now=world.platform.clock.now(),
        )
    return run


def test_a_document_is_printed_or_written_where_the_survey_says(
    with_manifest: Execution, beampipe: Beampipe, tmp_path: Path
) -> None:
    document = {"sources": [{"source_identifier": "Å"}]}
    assert json.loads(beampipe.ok("execution", "artifact", with_manifest.id, "manifest")) == document
    told = beampipe.json("execution", "artifact", with_manifest.id, "manifest", "-o", str(tmp_path / "out"))
    assert told["file"] == str(tmp_path / "out" / "manifest.json")
    raw = Path(told["file"]).read_bytes()
    assert sha256_hex(raw) == told["sha256"]
    assert json.loads(raw) == document


def test_a_document_that_is_not_there_is_an_error(with_manifest: Execution, beampipe: Beampipe) -> None:
    said = beampipe.refused(
        "execution", "artifact", with_manifest.id, "physical_graph", code="artifact_not_found"
    )
    assert with_manifest.id in said


@pytest.mark.parametrize("path", ["/etc/manifest.json", "../manifest.json", "a/../../b.json"])
def test_a_survey_cannot_have_a_manifest_written_outside_of_the_directory(
    with_manifest: Execution, beampipe: Beampipe, world: World, tmp_path: Path, path: str
) -> None:
    with world.platform.ledger.begin() as conn:
        revision = projects.revision(conn, with_manifest.project_config_id)
        spec: Any = {**revision.spec}
        spec["manifest"] = {**spec["manifest"], "path": path}
        conn.execute(sa.update(project_configs).values(spec=spec))
    beampipe.refused(
        "execution",
        "artifact",
        with_manifest.id,
        "manifest",
        "-o",
        str(tmp_path / "out"),
        code="unsafe_manifest_path",
    )
    assert not list(tmp_path.rglob("*.json"))
