"""What a preview says is what is sent."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.config.profile import load_profile
from beampipe_dagster.execution.profile_preview import Call, preview
from beampipe_dagster.execution.steps import profile_of
from beampipe_dagster.ledger.states import Status
from beampipe_dagster_tests.support.fake_daliuge import FINISHED
from beampipe_dagster_tests.support.platforms import Stage

SLURM: dict[str, Any] = {
    "name": "cluster",
    "translation": {"num_par": 2},
    "deployment": {
        "kind": "slurm_remote",
        "login_node": "login.example.org",
        "account": "acct01",
        "home_dir": "/home/anna",
        "log_dir": "/scratch/log",
        "dlg_root": "/scratch/dlg",
        "environment_setup": "export A=$BEAMPIPE_ASKAPSOFT_SIF",
    },
}


def _shape(call: Call, known: JsonValue) -> tuple[str, str, JsonValue]:
    """A call without what is only known when it is made."""
    given = call.parameters
    if isinstance(given, dict) and isinstance(known, dict):
        open_fields = {name for name, value in given.items() if str(value).startswith("<")}
        shown = {name: known[name] if name in open_fields else str(value) for name, value in given.items()}
        return call.method, call.url, shown
    return call.method, call.url, known if isinstance(given, list) else given


def _sent(request: httpx.Request) -> JsonValue:
    body = request.content.decode()
    if not body:
        return None
    if request.headers["Content-Type"] == "application/json":
        sent: JsonValue = json.loads(body)
        return sent
    return {name: values[0] for name, values in parse_qs(body).items()}


def test_the_calls_of_a_preview_are_those_of_an_execution(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    execution = stage.admitted("A")
    foretold = preview(profile_of(execution), execution)
    sent: list[httpx.Request] = []
    real = httpx.Client.send

    def send(self: httpx.Client, request: httpx.Request, **options: Any) -> httpx.Response:
        request.read()
        sent.append(request)
        return real(self, request, **options)

    monkeypatch.setattr(httpx.Client, "send", send)
    stage.submit(execution)
    stage.daliuge.go(stage.session(execution), FINISHED)
    stage.poll()
    assert stage.execution(execution).status is Status.COMPLETED
    assert foretold.session == stage.session(execution)
    made = [(one.method, str(one.url), _sent(one)) for one in sent]
    assert len(made) >= len(foretold.calls)
    for call in foretold.calls:
        candidates = [one for one in made if one[:2] == (call.method, call.url)]
        assert candidates, call
        assert any(_shape(call, one[2]) == one for one in candidates), call
    order = [made.index(next(one for one in made if one[:2] == (c.method, c.url))) for c in foretold.calls]
    assert order == sorted(order)
    told = {(call.method, call.url) for call in foretold.calls}
    assert {one[:2] for one in made} <= told


def test_without_an_execution_its_names_are_placeholders() -> None:
    profile = load_profile(
        {
            "name": "p",
            "translation": {},
            "deployment": {"kind": "rest_remote", "deploy_host": "dim", "use_https": True},
        }
    )
    found = preview(profile, tm_url="http://tm:8084/")
    assert found.session == "BeampipeExecution-<execution>-<created>-a<attempt>"
    assert found.calls[0].url == "http://tm:8084/unroll_and_partition"
    assert {call.url.split("/api")[0] for call in found.calls[1:]} == {"https://dim:8001"}
    assert (found.slurm, found.notes) == (None, ())
    assert "BEAMPIPE_TM_URL" in preview(profile).notes[0]
    assert json.loads(json.dumps(found.as_dict())) == found.as_dict()


def test_a_slurm_profile_shows_its_texts_and_says_that_nothing_is_submitted(stage: Stage) -> None:
    execution = stage.admitted("A")
    found = preview(load_profile(SLURM), execution, user="anna", image="/images/a.sif")
    assert found.session == f"BeampipeExecution_{execution.id}"
    assert found.slurm is not None
    assert found.slurm.where == "anna@login.example.org:22"
    assert "does not submit to Slurm" in found.notes[0]
    assert [call.url for call in found.calls] == ["<translator>/unroll_and_partition"]
    assert f"--job-name={found.session}" in found.slurm.sbatch
    assert "export BEAMPIPE_ASKAPSOFT_SIF=/images/a.sif" in found.slurm.script
    assert f"PHYSICAL_GRAPH = {found.slurm.files.graph}\n" in found.slurm.ini
    named = preview(load_profile({**SLURM, "deployment": {**SLURM["deployment"], "remote_user": "bob"}}))
    assert named.slurm is not None
    assert named.slurm.where.startswith("bob@")
    assert "export BEAMPIPE_ASKAPSOFT_SIF='<image>'" in named.slurm.script
