from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from beampipe_dagster.backends.daliuge.rest import RestBackend
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.discovery.staging.client import StagingClient
from beampipe_dagster.errors import BeampipeError, ConflictError, Retry, SubmissionUncertainError
from beampipe_dagster.execution import run_record
from beampipe_dagster.execution.staged import survey_stages
from beampipe_dagster.execution.steps import StepReport
from beampipe_dagster.ledger import artifacts, executions
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.states import ArtifactKind, FailureClass, Status
from beampipe_dagster.ledger.tables_staging import StagingState
from beampipe_dagster_tests.support.ledgers import SURVEY, at_once
from beampipe_dagster_tests.support.platforms import INGEST
from beampipe_dagster_tests.support.staging import (
    PASSWORD,
    StagingStage,
    add_staging_survey,
    new_staging_stage,
)

CALIBRATED = {"enrichments": [{"name": "sbid_to_eval_file", "adapter": "casda", "template": "SELECT 1"}]}


@pytest.fixture
def world(ledger: Ledger, tmp_path: Path) -> Iterator[StagingStage]:
    with new_staging_stage(ledger, tmp_path) as made:
        yield made


class KilledError(BaseException):
    """The process is gone: nothing after it happens, and nothing catches it."""


def killed(world: StagingStage, execution: Execution, *, holder: str = "me") -> None:
    """The step, in a process that dies in it; its lease is over when we go on."""
    with pytest.raises(KilledError):
        world.stage_data(execution, holder=holder)
    world.stage.clock.advance(600)


def manifest_of(world: StagingStage, execution: Execution) -> Any:
    with world.stage.ledger.read() as conn:
        return artifacts.load(conn, artifacts.describe(conn, execution.id, ArtifactKind.MANIFEST).id)


def datasets_in(manifest: Any) -> list[dict[str, Any]]:
    return [d for source in manifest["sources"] for block in source["sbids"] for d in block["datasets"]]


def test_files_are_staged_by_scheduling_block_and_their_urls_reach_the_session_only(
    world: StagingStage,
) -> None:
    execution = world.admitted("A", 72962, 9001)
    report = world.until_staged(execution)
    assert report.facts["files"] == 6
    assert [job["group"] for job in report.facts["jobs"]] == [
        "visibility/9001",
        "visibility/72962",
        "evaluation",
    ]
    world.stage.submit(execution)
    kept = datasets_in(manifest_of(world, execution))
    assert all(one["staged_url"].startswith("beampipe-staged://visibility/") for one in kept)
    sent = datasets_in(world.stage.daliuge.manifest_of(world.stage.session(execution)))
    assert len(sent) == 4
    for dataset in sent:
        assert httpx.get(dataset["staged_url"]).text == f"the content of {dataset['dataset_id']}\n"
        assert dataset["dataset_id"] in dataset["checksum_url"]
        assert httpx.get(dataset["checksum_url"]).status_code == 200
        archive = httpx.get(dataset["evaluation_file_url"]).text
        assert archive.startswith(f"the content of calibration-metadata-processing-logs-SB{dataset['sbid']}_")
        assert httpx.get(dataset["evaluation_file_checksum_url"]).status_code == 200


def test_nothing_that_is_kept_or_said_holds_a_secret(
    world: StagingStage, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG", logger="beampipe_dagster")
    world.script(errors=1, error_text="cannot read https://casda.example/x?X-Amz-Signature=canary-said")
    execution = world.submitted(world.admitted())
    (dataset, *_) = datasets_in(world.stage.daliuge.manifest_of(world.stage.session(execution)))
    url = str(dataset["staged_url"])
    assert "X-Amz-Signature=" in url
    kept = world.dump() + caplog.text + "".join(capfd.readouterr())
    assert "visibility/72962" in kept
    assert "cannot read https://casda.example/x?..." in kept
    secrets = [PASSWORD, "canary-said", "X-Amz-Signature", url.partition("?")[2]]
    tokens = _tokens(world)
    assert len(tokens) >= 3
    assert [secret for secret in [*secrets, *tokens] if secret in kept] == []


def _tokens(world: StagingStage) -> list[str]:
    found: list[str] = []
    for job in world.archive_jobs():
        text = httpx.get(f"{world.base_url}/casda/data/async/{job['job_id']}").text
        found += [part.split("]]>")[0].strip() for part in text.split("<![CDATA[")[2:]]
    return found


def test_all_visibilities_may_be_one_job(ledger: Ledger, tmp_path: Path) -> None:
    with new_staging_stage(ledger, tmp_path, stage_by_sbid=False) as world:
        execution = world.admitted("A", 72962, 9001)
        world.until_staged(execution)
        assert [job.group_key for job in world.jobs(execution)] == ["visibility/all", "evaluation"]


@pytest.mark.parametrize("form", ["href", "reference"])
def test_both_forms_of_results_are_read(world: StagingStage, form: str) -> None:
    world.script(form=form)
    assert world.until_staged(world.admitted()).facts["files"] == 3


def test_a_suspended_job_is_waited_for_over_many_runs(world: StagingStage) -> None:
    world.script(delay_seconds=7200.0, phases=["QUEUED", "SUSPENDED", "HELD", "NO_SUCH_PHASE"])
    execution = world.admitted()
    first = world.tried(execution)
    assert isinstance(first, BeampipeError)
    assert (first.code, first.retry) == ("staging_waiting", Retry.LATER)
    waiting = world.stage.execution(execution)
    assert waiting.status is Status.RUNNING
    assert waiting.lease_token is None
    assert waiting.next_launch_at is not None
    assert waiting.next_launch_at > world.stage.clock.now()
    world.until_staged(execution)
    assert len(world.archive_jobs()) == len(world.jobs(execution)) == 2
    phases = {event.payload["phase"] for event in world.stage.events("execution.staging_phase")}
    assert {"SUSPENDED", "HELD", "NO_SUCH_PHASE"} <= phases


def test_the_manifest_waits_until_all_files_are_there(world: StagingStage) -> None:
    world.script(delay_seconds=7200.0)
    execution = world.admitted()
    world.tried(execution)
    with pytest.raises(ConflictError) as caught:
        world.stage.do("workflow_manifest", execution)
    assert caught.value.code == "step_not_ready"
    assert world.stage.execution(execution).status is Status.RUNNING


def test_a_process_that_dies_between_creation_and_run_leaves_one_job_that_runs(
    world: StagingStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(_: StagingClient, job_url: str) -> None:
        raise KilledError(job_url)

    execution = world.admitted(beams=1)
    with monkeypatch.context() as patched:
        patched.setattr(StagingClient, "run", die)
        killed(world, execution)
    (job,) = world.jobs(execution)
    assert (job.state, job.job_url is not None) == (StagingState.CREATED, True)
    world.until_staged(execution)
    assert [one["runs"] for one in world.archive_jobs()] == [True, True]


def test_a_process_that_dies_after_run_goes_on_with_the_same_jobs(
    world: StagingStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = StagingClient.run

    def run_and_die(client: StagingClient, job_url: str) -> None:
        real(client, job_url)
        raise KilledError(job_url)

    execution = world.admitted()
    with monkeypatch.context() as patched:
        patched.setattr(StagingClient, "run", run_and_die)
        killed(world, execution)
    world.until_staged(execution)
    assert len(world.archive_jobs()) == 2


def test_a_creation_whose_answer_is_lost_is_found_again_and_never_repeated(
    world: StagingStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = StagingClient.create

    def create_and_die(client: StagingClient, url: str, tokens: list[str]) -> str:
        raise KilledError(real(client, url, tokens))

    execution = world.admitted()
    with monkeypatch.context() as patched:
        patched.setattr(StagingClient, "create", create_and_die)
        killed(world, execution)
    assert [job.state for job in world.jobs(execution)] == [StagingState.INTENDED]
    world.script(lose_answers=1)
    world.until_staged(execution)
    assert len(world.archive_jobs()) == len(world.jobs(execution)) == 2
    adopted = [
        one.payload["group"]
        for one in world.stage.events("execution.staging_job_created")
        if one.payload.get("adopted")
    ]
    assert adopted == ["visibility/72962", "evaluation"]


def test_without_a_list_of_jobs_another_one_is_made_after_the_deadline_and_both_are_kept(
    world: StagingStage,
) -> None:
    world.script(lists=False, lose_answers=1)
    execution = world.admitted()
    first = world.tried(execution)
    assert isinstance(first, BeampipeError)
    assert "not known whether" in first.message
    assert len([job for job in world.archive_jobs() if len(job["files"]) == 2]) == 1
    world.until_staged(execution)
    states = [job.state for job in world.jobs(execution) if job.group_key == "visibility/72962"]
    assert states == [StagingState.ABANDONED, StagingState.COMPLETED]
    assert len(world.archive_jobs()) == 3


def test_a_job_that_ends_in_error_is_made_again(world: StagingStage) -> None:
    world.script(errors=1)
    execution = world.admitted()
    world.until_staged(execution)
    tried = [job for job in world.jobs(execution) if job.group_key == "visibility/72962"]
    assert [job.state for job in tried] == [StagingState.FAILED, StagingState.COMPLETED]
    assert tried[0].error == "The files could not be brought online."


def test_files_that_fail_too_often_end_the_execution_with_the_archives_reason(world: StagingStage) -> None:
    world.script(errors=100, error_text="Tape 7 is torn.")
    execution = world.admitted("A", 72962, 9001)
    outcome: object = None
    for _ in range(20):
        outcome = world.tried(execution)
        if isinstance(outcome, BeampipeError) and outcome.retry is Retry.NEVER:
            break
        world.stage.clock.advance(300)
    assert isinstance(outcome, BeampipeError)
    assert outcome.code == "staging_failed"
    assert "SBID 72962: Tape 7 is torn." in outcome.message
    assert world.stage.execution(execution).status is Status.FAILED
    jobs = [job for job in world.jobs(execution) if job.group_key == "visibility/72962"]
    assert len(jobs) == 3
    assert world.stage.execution(execution).failure_class == FailureClass.DEPENDENCY_UNAVAILABLE


def test_a_file_without_access_is_known_before_anything_is_created(world: StagingStage) -> None:
    execution = world.admitted("A", 72962, 9001)
    (file, *_) = world.deposits[1].files
    world.script(no_access=[file.obs_publisher_did])
    outcome = world.tried(execution)
    assert isinstance(outcome, BeampipeError)
    assert outcome.code == "staging_no_access"
    assert "SBID 9001" in outcome.message
    assert "SBID 72962" not in outcome.message
    assert world.archive_jobs() == []
    failed = world.stage.execution(execution)
    assert (failed.status, failed.failure_class) == (Status.FAILED, FailureClass.AUTHORIZATION)


def test_a_wrong_password_is_tried_once_for_everybody_and_nothing_fails(
    world: StagingStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASDA_PASSWORD", "wrong-canary")
    execution = world.admitted()
    for _ in range(5):
        outcome = world.tried(execution)
        assert isinstance(outcome, BeampipeError)
        assert outcome.code == "staging_login_refused"
        assert "astronomer" in outcome.message
        world.stage.clock.advance(60)
    assert world.script()["refused_logins"] == 1
    assert "wrong-canary" not in world.dump()
    monkeypatch.setenv("CASDA_PASSWORD", PASSWORD)
    world.stage.clock.advance(900)
    world.until_staged(execution)


def test_without_credentials_it_is_said_what_to_set(
    world: StagingStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CASDA_PASSWORD")
    execution = world.admitted()
    outcome = world.tried(execution)
    assert isinstance(outcome, BeampipeError)
    assert (outcome.code, "CASDA_PASSWORD" in outcome.message) == ("staging_credentials_missing", True)
    waiting = world.stage.execution(execution)
    assert (waiting.status, waiting.last_error_code) == (Status.RUNNING, "staging_credentials_missing")
    assert waiting.next_launch_at is not None


def test_a_session_that_the_archive_forgets_is_renewed(world: StagingStage) -> None:
    world.script(forget_sessions=1)
    world.until_staged(world.admitted())
    assert world.script()["logins"] == 2


def test_files_that_expire_before_the_submission_are_staged_again_for_the_same_graph(
    world: StagingStage,
) -> None:
    world.script(valid_seconds=7200)
    execution = world.admitted()
    world.until_staged(execution)
    ready = world.stage.submit(execution, until="physical_graph")
    world.stage.clock.advance(7000)
    with pytest.raises(BeampipeError) as caught:
        world.stage.do("backend_run", execution)
    assert (caught.value.code, caught.value.retry) == ("staging_expired", Retry.LATER)
    assert world.stage.daliuge.sessions == {}
    world.stage.clock.advance(300)
    world.until_staged(execution)
    done = world.stage.submit(execution)
    assert done.physical_graph_sha256 == ready.physical_graph_sha256
    assert done.manifest_sha256 == ready.manifest_sha256
    (sent, *_) = datasets_in(world.stage.daliuge.manifest_of(world.stage.session(execution)))
    assert httpx.get(sent["staged_url"]).status_code == 200


def test_an_archive_that_is_away_at_the_submission_starts_nothing(world: StagingStage) -> None:
    execution = world.admitted()
    world.until_staged(execution)
    world.stage.submit(execution, until="physical_graph")
    world.server.stop()
    with pytest.raises(BeampipeError) as caught:
        world.stage.do("backend_run", execution)
    assert caught.value.retry is Retry.LATER
    assert world.stage.daliuge.sessions == {}
    assert world.stage.execution(execution).next_launch_at is not None


def test_what_is_staged_already_is_not_asked_for_again(world: StagingStage) -> None:
    execution = world.admitted()
    world.until_staged(execution)
    world.server.stop()
    assert isinstance(world.tried(execution, holder="me"), StepReport)


def test_a_survey_may_say_that_nothing_is_staged(world: StagingStage) -> None:
    add_staging_survey(world.stage, staging={"enabled": False})
    execution = world.admitted()
    assert world.stage_data(execution).facts == {"staging": "not wanted"}
    world.stage.submit(execution)
    assert "staged_url" not in json.dumps(manifest_of(world, execution))
    assert world.archive_jobs() == []


def test_a_launch_may_ask_for_staging_where_the_survey_does_not(world: StagingStage) -> None:
    add_staging_survey(world.stage, staging={"enabled": False})
    execution = asked(world, world.admitted(), do_stage=True)
    world.script(delay_seconds=0.0)
    world.stage.platform.staging.workflow_manifest(execution.id, holder="me")
    assert all("staged_url" in one for one in datasets_in(manifest_of(world, execution)))


def test_a_launch_may_ask_for_no_staging_where_the_survey_stages(world: StagingStage) -> None:
    execution = asked(world, world.admitted(), do_stage=False)
    assert world.stage_data(execution).facts == {"staging": "not wanted"}
    world.stage.submit(execution)
    assert world.archive_jobs() == []


def asked(world: StagingStage, execution: Execution, **options: Any) -> Execution:
    with world.stage.ledger.begin() as conn:
        return executions.move(conn, execution, now=world.stage.clock.now(), values={"options": options})


def test_two_processes_never_make_two_jobs_for_the_same_files(world: StagingStage) -> None:
    execution = world.admitted()
    outcomes = at_once(
        lambda: world.tried(execution, holder="one"), lambda: world.tried(execution, holder="two")
    )
    assert [one for one in outcomes if isinstance(one, BeampipeError) and one.code == "execution_busy"]
    world.stage.clock.advance(120)
    world.until_staged(execution)
    assert len(world.archive_jobs()) == 2


def test_a_placeholder_that_a_graph_has_changed_is_refused_before_anything_is_submitted(
    world: StagingStage,
) -> None:
    execution = world.admitted()
    world.until_staged(execution)
    strange = [{"args": "beampipe-staged://visibility/72962/1-of-mine"}]
    with pytest.raises(BeampipeError) as caught:
        world.stage.platform.staging.fill(world.stage.execution(execution), strange)
    assert (caught.value.code, "1-of-mine" in caught.value.message) == ("staged_placeholder_unknown", True)


def test_what_a_manager_says_about_a_graph_shows_no_url(
    world: StagingStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    execution = world.admitted()
    world.until_staged(execution)
    world.stage.submit(execution, until="physical_graph")
    said: list[str] = []

    def repeat(_: object, __: str, drops: list[Any], **___: object) -> None:
        (url,) = {one["staged_url"] for one in datasets_in(ingested(drops))[:1]}
        said.append(url)
        raise SubmissionUncertainError(f"cannot run {url}", details={"url": url})

    monkeypatch.setattr(RestBackend, "submit", repeat)
    with pytest.raises(SubmissionUncertainError) as caught:
        world.stage.do("backend_run", execution)
    assert "X-Amz-Signature=" in said[0]
    assert "X-Amz-Signature" not in f"{caught.value} {caught.value.details} {world.dump()}"


def ingested(drops: list[Any]) -> Any:
    (found,) = [
        json.loads(d["applicationArgs"]["manifest_path"]["value"]) for d in drops if d["name"] == INGEST
    ]
    return found


def test_what_a_drop_says_about_its_file_shows_no_url() -> None:
    log = "ERROR cannot fetch https://h/a.tar?X-Amz-Signature=canary now"
    assert run_record.headline(log) == "ERROR cannot fetch https://h/a.tar?... now"
    assert run_record.bounded(log) == "ERROR cannot fetch https://h/a.tar?... now"


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({}, False),
        ({"staging": {"enabled": True}}, True),
        ({"manifest": {"expand_from": "metadata", "dataset_template": {"url": "{staged_url}"}}}, True),
        ({"manifest": {"source_template": {"x": [{"y": "{staging.eval_url_by_sbid.7}"}]}}}, True),
        ({"manifest": {"expand_from": "metadata", "dataset_template": {"url": "{access_url}"}}}, False),
        ({"discovery": CALIBRATED}, True),
        ({"discovery": CALIBRATED, "staging": {"enabled": False}}, False),
        ({"discovery": CALIBRATED, "automation": {"execution": {"archive_name": "vizier"}}}, False),
        (
            {
                "discovery": CALIBRATED,
                "manifest": {"expand_from": "metadata", "dataset_template": {"id": "{dataset_id}"}},
            },
            False,
        ),
    ],
)
def test_a_survey_stages_when_it_says_so_or_when_its_manifest_holds_what_comes_of_it(
    changes: dict[str, Any],
    stages: bool,  # noqa: FBT001  # a case of the table above
) -> None:
    head: dict[str, Any] = {"apiVersion": "beampipe.dev/v2", "kind": "ProjectConfig", "metadata": {"id": "s"}}
    assert survey_stages(ProjectConfig.from_json({**head, **changes})) is stages


def test_the_manifest_that_is_shown_beforehand_is_the_one_that_is_made(world: StagingStage) -> None:
    world.deposit("A", 72962)
    world.stage.register("A")
    world.stage.discover()
    (shown,) = world.stage.platform.preparation.prepare(SURVEY).executions
    (execution,) = world.stage.admit()
    world.until_staged(execution)
    world.stage.do("workflow_manifest", execution)
    assert shown.manifest_sha256 == world.stage.execution(execution).manifest_sha256
