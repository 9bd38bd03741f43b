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
