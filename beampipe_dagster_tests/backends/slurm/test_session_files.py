"""The texts of a session on a Slurm cluster, read again by what reads them there."""

from __future__ import annotations

import shlex
from configparser import ConfigParser, ExtendedInterpolation
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.backends.slurm import session_files as files
from beampipe_dagster.config.profile import SlurmRemote
from beampipe_dagster.errors import ConfigError

SESSION = files.session_name("0199-a")
PLAIN: dict[str, Any] = {
    "login_node": "login.example.org",
    "account": "acct01",
    "home_dir": "/home/anna",
    "log_dir": "/scratch/anna/log",
    "dlg_root": "/scratch/anna/dlg/",
}
# What people write into a profile; a line that begins with # or ; is a comment of the INI file.
LINES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1).map(
    lambda text: f"x{text}".strip()
)


def slurm(**values: Any) -> SlurmRemote:
    return SlurmRemote.model_validate({**PLAIN, **values})


def parsed(text: str) -> ConfigParser:
    """As DALiuGE reads the file."""
    parser = ConfigParser(interpolation=ExtendedInterpolation())
    parser.read_string(text)
    return parser


def refused(action: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        action()
    return caught.value


def test_the_ini_file_says_where_the_session_runs_and_with_what() -> None:
    deployment = slurm(num_nodes=3, job_duration_minutes=90, all_nics=True, venv="source /v/bin/activate")
    assert files.ini_text(deployment, SESSION, user="anna") == (
        "[DEPLOYMENT]\nremote = False\nsubmit = False\n\n"
        "[ENGINE]\nNUM_NODES = 3\nNUM_ISLANDS = 1\nJOB_DUR = 90\nMAX_THREADS = 0\nVERBOSE_LEVEL = 1\n"
        "ALL_NICS = True\n\n"
        "[GRAPH]\nPHYSICAL_GRAPH = /scratch/anna/dlg/staging/BeampipeExecution_0199-a.pgt.graph\n\n"
        "[FACILITY]\nUSER = anna\nACCOUNT = acct01\nLOGIN_NODE = login.example.org\nHOME_DIR = /home/anna\n"
        "DLG_ROOT = /scratch/anna/dlg/\nLOG_DIR = /scratch/anna/log\nEXEC_PREFIX = srun -l\n"
        "VENV = source /v/bin/activate\n"
    )


def test_resources_and_topology_come_before_the_older_fields() -> None:
    deployment = slurm(
        num_nodes=1,
        num_islands=1,
        job_duration_minutes=30,
        resources={"nodes": 4, "wall_time_minutes": 600},
        manager_topology={"islands": 2},
    )
    engine = parsed(files.ini_text(deployment, SESSION, user="u"))["ENGINE"]
    assert (engine["num_nodes"], engine["num_islands"], engine["job_dur"]) == ("4", "2", "600")


def test_a_dollar_reaches_the_shell_of_the_job() -> None:
    modules = "module use $MYSOFTWARE/modules\nexport PATH=${HOME}/bin:$PATH # ${ACCOUNT}"
    text = files.ini_text(slurm(modules=modules, exec_prefix="srun --chdir=$DIR"), SESSION, user="u")
    assert "MODULES = module use $$MYSOFTWARE/modules\n    export PATH=$${HOME}/bin:$$PATH" in text
    facility = parsed(text)["FACILITY"]
    assert facility["modules"] == modules
    assert facility["exec_prefix"] == "srun --chdir=$DIR"


def test_no_value_can_begin_a_section_or_another_key() -> None:
    evil = "module load a\r\n\r\n[ENGINE]\nNUM_NODES = 999\nDLG_ROOT: /elsewhere"
    read = parsed(files.ini_text(slurm(modules=evil), SESSION, user="u"))
    assert read.sections() == ["DEPLOYMENT", "ENGINE", "GRAPH", "FACILITY"]
    assert read["ENGINE"]["num_nodes"] == "1"
    assert read["FACILITY"]["dlg_root"] == "/scratch/anna/dlg/"
    assert read["FACILITY"]["modules"].splitlines()[1:] == [
        "[ENGINE]",
        "NUM_NODES = 999",
        "DLG_ROOT: /elsewhere",
    ]


@given(lines=st.lists(LINES, min_size=1, max_size=4))
def test_every_value_is_read_as_it_was_written(lines: list[str]) -> None:
    text = files.ini_text(slurm(modules="\n".join(lines), account=lines[0]), SESSION, user="u")
    facility = parsed(text)["FACILITY"]
    assert facility["modules"].split("\n") == lines
    assert facility["account"] == lines[0]


@given(words=st.lists(LINES, min_size=4, max_size=4))
def test_a_shell_reads_every_word_of_the_lines_as_it_was_meant(words: list[str]) -> None:
    account, partition, root, facility = words
    deployment = slurm(
        account=account, dlg_root=f"/{root}", facility=facility, resources={"partition": partition}
    )
    line = files.sbatch_line(deployment, SESSION, job_script="/a b/$c.sh")
    assert shlex.split(line) == list(files.sbatch_arguments(deployment, SESSION, job_script="/a b/$c.sh"))
    assert f"--partition={partition}" in shlex.split(line)
    *_, export, command = files.job_script_command(deployment, SESSION).splitlines()
    assert shlex.split(export) == ["export", f"DLG_ROOT=/{root}"]
    assert shlex.split(command)[4:7] == ["submit", "-f", facility]


def test_sbatch_gets_what_the_profile_asks_for_and_nothing_else() -> None:
    assert files.sbatch_arguments(slurm(), SESSION, job_script="/j.sh") == (
        "sbatch",
        "--export=BEAMPIPE_SLURM_ACCOUNT,WALLABY_HIRES_STAGING_ROOT",
        "--parsable",
        "--job-name=BeampipeExecution_0199-a",
        "--account=acct01",
        "--nodes=1",
        "--time=00:30:00",
        "/j.sh",
    )
    resources = {
        "partition": "work",
        "nodes": 2,
        "tasks": 4,
        "cpus_per_task": 8,
        "memory": "230G",
        "wall_time_minutes": 1505,
        "constraint": "a&b",
        "quality_of_service": "high",
    }
    setup = 'export BEAMPIPE_ASKAPSOFT_SIF="$BEAMPIPE_ASKAPSOFT_SIF"'
    words = files.sbatch_arguments(
        slurm(resources=resources, environment_setup=setup), SESSION, job_script="/j.sh"
    )
    assert words[1].endswith(",BEAMPIPE_ASKAPSOFT_SIF")
    assert words[5:-1] == (
        "--nodes=2",
        "--time=25:05:00",
        "--partition=work",
        "--mem=230G",
        "--constraint=a&b",
        "--qos=high",
        "--ntasks=4",
        "--cpus-per-task=8",
    )


def test_the_script_makes_the_job_in_the_profile_s_environment() -> None:
    deployment = slurm(
        modules="module load a\nmodule load b",
        venv="source /v/bin/activate",
        environment_setup="export IMAGE=$BEAMPIPE_ASKAPSOFT_SIF",
        slurm_template="#!/bin/bash",
    )
    base = "/scratch/anna/dlg/staging/BeampipeExecution_0199-a"
    command = (
        "python3 -m dlg.deploy.create_dlg_job --action submit -f setonix "
        f"-P {base}.pgt.graph --config_file {base}.ini --slurm_template {base}.slurm"
    )
    assert files.job_script_command(deployment, SESSION, image="/i m.sif").splitlines() == [
        "set -euo pipefail",
        "export BEAMPIPE_SLURM_ACCOUNT=acct01",
        "export BEAMPIPE_ASKAPSOFT_SIF='/i m.sif'",
        "set +u",
        "module load a",
        "module load b",
        "set -u",
        "set +u",
        "source /v/bin/activate",
        "set -u",
        "export IMAGE=$BEAMPIPE_ASKAPSOFT_SIF",
        "export BEAMPIPE_SLURM_ACCOUNT=acct01",
        "export DLG_ROOT=/scratch/anna/dlg/",
        command,
    ]


def test_the_image_is_exported_only_where_it_is_used() -> None:
    assert "SIF" not in files.job_script_command(slurm(), SESSION, image="/i.sif")
    assert files.session_files(slurm(), SESSION).template is None


@pytest.mark.parametrize("bad", ["a\0b", "a\x1b[2J", "a\x0bb", "a\u2028b"])
def test_a_value_with_a_control_character_is_refused_by_its_field(bad: str) -> None:
    error = refused(lambda: files.ini_text(slurm(modules=bad), SESSION, user="u"))
    assert (error.code, error.message.split()[0]) == ("unwritable_value", "MODULES")
    assert refused(lambda: files.job_script_command(slurm(venv=bad), SESSION)).code == "unwritable_value"
    assert refused(lambda: files.sbatch_line(slurm(account=bad), SESSION, job_script="/j")).code == (
        "unwritable_value"
    )


@pytest.mark.parametrize("field", ["account", "facility", "dlg_root"])
def test_a_word_of_a_command_has_one_line(field: str) -> None:
    deployment = slurm(**{field: "/a\nrm -r /b"})
    assert refused(lambda: files.job_script_command(deployment, SESSION)).code == "unwritable_value"


@pytest.mark.parametrize("name", ["", "../x", "a b", ".hidden", "x" * 201, "a\n"])
def test_a_session_s_name_is_a_file_s_name(name: str) -> None:
    assert refused(lambda: files.session_files(slurm(), name)).code == "invalid_session_name"
