"""Deployment profiles: defaults, digest, and everything that is wrong at once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from beampipe_dagster.config.profile import (
    RestRemote,
    SlurmRemote,
    load_profile,
    profile_warnings,
)
from beampipe_dagster.errors import ConfigError


def rest(**changes: Any) -> dict[str, Any]:
    deployment = {"kind": "rest_remote", "deploy_host": "dim", **changes.pop("deployment", {})}
    return {"name": "rest", "translation": {}, "deployment": deployment, **changes}


def slurm(**deployment: Any) -> dict[str, Any]:
    base = {
        "kind": "slurm_remote",
        "login_node": "login",
        "account": "a",
        "home_dir": "/h",
        "log_dir": "/h/log",
        "dlg_root": "/h/dlg",
    }
    return {"name": "slurm", "translation": {}, "deployment": {**base, **deployment}}


def paths(value: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_profile(value, name="p.json")
    assert caught.value.code == "invalid_profile"
    assert caught.value.message.startswith("p.json: ")
    assert caught.value.hint
    return [item["path"] for item in caught.value.details["diagnostics"]]


def test_defaults_are_filled_in() -> None:
    profile = load_profile(json.dumps(rest()))
    assert isinstance(profile.deployment, RestRemote)
    assert profile.deployment.deploy_port == 8001
    assert profile.translation.algo == "metis"
    assert profile.max_concurrent_executions is None


def test_the_digest_does_not_depend_on_key_order_or_spelled_out_defaults() -> None:
    wanted = load_profile(rest()).spec_sha256
    spelled = rest(translation={"num_par": 1}, is_default=False, deployment={"use_https": False})
    assert load_profile(dict(reversed(spelled.items()))).spec_sha256 == wanted
    assert load_profile(rest(is_default=True)).spec_sha256 != wanted


def test_a_snapshot_gives_the_same_profile_again() -> None:
    for value in (rest(max_concurrent_executions=2), slurm(resources={"nodes": 2})):
        profile = load_profile(value)
        snapshot = {**profile.as_json(), "id": "x", "revision": 3, "spec_sha256": profile.spec_sha256}
        assert type(profile).from_snapshot(snapshot) == profile


def test_what_counts_for_a_slurm_job_is_the_more_special_field() -> None:
    deployment = load_profile(slurm(num_nodes=2, num_islands=3, job_duration_minutes=4)).deployment
    assert isinstance(deployment, SlurmRemote)
    assert (
        deployment.effective_nodes,
        deployment.effective_islands,
        deployment.effective_wall_time_minutes,
    ) == (2, 3, 4)
    special = load_profile(
        slurm(resources={"nodes": 5, "wall_time_minutes": 7}, manager_topology={"islands": 6})
    ).deployment
    assert isinstance(special, SlurmRemote)
    assert (
        special.effective_nodes,
        special.effective_islands,
        special.effective_wall_time_minutes,
    ) == (5, 6, 7)


def test_all_that_is_wrong_is_reported_at_once_in_the_order_of_the_rules() -> None:
    value = rest(
        name="a b",
        max_concurrent_executions=0,
        translation={"num_par": 0, "num_islands": -1},
        deployment={"dim_port_for_tm": 0, "deploy_port": 65536, "deploy_host": None},
    )
    assert paths(value) == [
        "name",
        "translation.num_par",
        "max_concurrent_executions",
        "translation.num_islands",
        "deployment.dim_port_for_tm",
        "deployment.deploy_port",
        "deployment.deploy_host",
    ]


@pytest.mark.parametrize(
    ("deployment", "path"),
    [
        ({"login_node": " "}, "login_node"),
        ({"ssh_port": 0}, "ssh_port"),
        ({"ssh_credential": "a..b"}, "ssh_credential"),
        ({"ssh_credential": ""}, "ssh_credential"),
        ({"ssh_credential": "a\n"}, "ssh_credential"),
        ({"dlg_root": "///"}, "dlg_root"),
        ({"dlg_root": ""}, "dlg_root"),
        ({"home_dir": "h"}, "home_dir"),
        ({"num_nodes": 0}, "resources.nodes"),
        ({"manager_topology": {"islands": 0}}, "manager_topology.islands"),
        ({"manager_topology": {"nodes": 0}}, "manager_topology.nodes"),
        ({"job_duration_minutes": 0}, "resources.wall_time_minutes"),
        ({"resources": {"tasks": 0}}, "resources.tasks"),
        ({"resources": {"cpus_per_task": 0}}, "resources.cpus_per_task"),
        ({"resources": {"quality_of_service": ""}}, "resources.quality_of_service"),
    ],
)
def test_a_slurm_deployment_that_cannot_run_is_refused(deployment: dict[str, Any], path: str) -> None:
    assert paths(slurm(**deployment)) == [f"deployment.{path}"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (rest(extra=1), ["extra"]),
        (rest(translation={"num_part": 1}), ["translation.num_part"]),
        (rest(translation={"algo": "fast"}), ["translation.algo"]),
        (rest(deployment={"kind": "k8s"}), ["deployment"]),
        (rest(deployment={"deploy_port": "8001"}), ["deployment.deploy_port"]),
        (
            slurm(resources={"gpus": 1, "tasks": 1.5}),
            ["deployment.resources.tasks", "deployment.resources.gpus"],
        ),
        ({"name": "x"}, [".", "."]),
        ([], ["."]),
        (None, ["."]),
    ],
)
def test_a_value_of_the_wrong_shape_is_refused_with_its_path(value: Any, expected: list[str]) -> None:
    assert paths(value) == expected


def test_a_misspelt_field_has_the_nearest_known_one_as_its_hint() -> None:
    with pytest.raises(ConfigError) as caught:
        load_profile(slurm(resources={"partitions": "work"}))
    assert "partition" in caught.value.hint


def test_a_field_that_nothing_reads_is_warned_of() -> None:
    value = rest(deployment={"verifyssl": False})
    assert load_profile(value) == load_profile(rest())
    (warning,) = profile_warnings(value)
    assert warning.path == "deployment.verifyssl"
    assert warning.hint == "Did you mean verify_ssl?"
    assert profile_warnings(rest()) == ()


def test_text_that_is_not_json_is_refused_as_such() -> None:
    with pytest.raises(ConfigError) as caught:
        load_profile("{", name="p.json")
    assert caught.value.code == "invalid_json"


def test_an_error_stands_at_the_line_and_column_of_its_value() -> None:
    text = json.dumps(slurm(resources={"nodes": 0}, home_dir="h"), indent=2)
    with pytest.raises(ConfigError) as caught:
        load_profile(text, name="p.json")
    lines = text.splitlines()
    for item in caught.value.details["diagnostics"]:
        key = item["path"].rsplit(".", 1)[1]
        assert lines[item["line"] - 1][item["column"] - 1 :].startswith(f'"{key}"')


def test_a_profile_whose_places_cannot_be_known_is_refused_without_them() -> None:
    with pytest.raises(ConfigError) as caught:
        load_profile(
            '{"name": "a b", "name": "a b", "translation": {}, "deployment": {"kind": "rest_remote"}}'
        )
    assert all("line" not in item for item in caught.value.details["diagnostics"])


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (rest(description="login with --password hunter2"), "description"),
        (rest(translation={"tm_url": "http://me:hunter2@tm"}), "translation.tm_url"),
        (rest(deployment={"password": "hunter2"}), "deployment.password"),
        (rest(deployment={"headers": {"Authorization": "hunter2"}}), "deployment.headers.Authorization"),
        (slurm(environment_setup="module load x\nexport TOKEN=hunter2"), "deployment.environment_setup"),
        (slurm(slurm_template="-----BEGIN RSA PRIVATE KEY-----\nhunter2"), "deployment.slurm_template"),
        (slurm(ssh_private_key="hunter2"), "deployment.ssh_private_key"),
    ],
)
def test_a_profile_that_holds_a_secret_is_refused_without_repeating_it(
    value: dict[str, Any], path: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_profile(json.dumps(value))
    (item,) = caught.value.details["diagnostics"]
    assert (item["code"], item["path"]) == ("inline_secret", path)
    assert "ssh_credential" in item["hint"]
    assert "hunter2" not in str(caught.value.as_dict())


def test_the_name_of_a_slot_is_no_secret() -> None:
    assert load_profile(slurm(ssh_credential="setonix-token")).deployment


def test_a_secret_is_told_after_what_else_is_wrong() -> None:
    assert paths(rest(name="a b", deployment={"password": "hunter2"})) == ["name", "deployment.password"]
    assert paths(rest(extra="TOKEN=abc")) == ["extra", "extra"]


def test_what_an_execution_was_admitted_with_is_not_judged_again() -> None:
    snapshot = load_profile(rest()).as_json()
    snapshot["description"] = "TOKEN=abc"
    profile = type(load_profile(rest())).from_snapshot({**snapshot, "id": "x"})
    assert profile.description == "TOKEN=abc"


@pytest.mark.parametrize(
    ("deployment", "expected"),
    [
        ({}, []),
        ({"num_nodes": 2, "num_islands": 2}, []),
        ({"num_nodes": 2, "num_islands": 3}, [("deployment.num_islands", "islands_exceed_nodes")]),
        (
            {"resources": {"nodes": 1}, "num_nodes": 9, "manager_topology": {"islands": 2}},
            [("deployment.manager_topology.islands", "islands_exceed_nodes")],
        ),
        (
            {"num_nodes": 3, "resources": {"tasks": 2}},
            [("deployment.resources.tasks", "fewer_tasks_than_nodes")],
        ),
        ({"num_nodes": 3, "resources": {"tasks": 3}}, []),
    ],
)
def test_a_job_whose_managers_do_not_fit_is_warned_of_and_still_loads(
    deployment: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    value = slurm(**deployment)
    load_profile(value)
    assert [(item.path, item.code) for item in profile_warnings(value)] == expected


def test_a_warning_stands_at_its_line_where_the_text_is_known() -> None:
    text = json.dumps(slurm(num_islands=2), indent=1)
    (warning,) = profile_warnings(json.loads(text), text=text)
    assert warning.line is not None
    assert '"num_islands"' in text.splitlines()[warning.line - 1]
