"""Files, scripts and receipts of a submission to Slurm."""

from __future__ import annotations

import configparser
import re
import shlex
from collections.abc import Callable
from typing import Any, cast

from beampipe_dagster.backends.slurm.sbatch import (
    graph_file_name,
    image_of,
    job_script_path,
    receipt,
    session_paths,
    wrapped_graph,
)
from beampipe_dagster.backends.slurm.session_files import ini_text, job_script_command, sbatch_arguments
from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.config.profile import SlurmRemote
from beampipe_dagster.errors import BeampipeError
from beampipe_dagster_tests.golden.runner import Case, Deviation

_SESSION = "session"


def _given(value: JsonValue) -> dict[str, Any]:
    return cast("dict[str, Any]", value)


def _or_error(make: Callable[[], JsonValue]) -> JsonValue:
    try:
        return make()
    except BeampipeError:
        return {"error": True}


def _slurm(given: dict[str, Any]) -> SlurmRemote:
    return SlurmRemote.model_validate(given["deployment"])


def jobsub(value: JsonValue) -> JsonValue:
    """``{stdout}`` -> the job script."""
    return _or_error(lambda: {"ok": job_script_path(_given(value)["stdout"])})


def sbatch_id(value: JsonValue) -> JsonValue:
    """``{stdout}`` -> the job's id."""
    found = receipt(_given(value)["stdout"])
    return {"uncertain": True} if found is None else {"ok": found}


def paths(value: JsonValue) -> JsonValue:
    """``{jobsub, dlg_root}`` -> the session's directories."""

    def made() -> JsonValue:
        found = session_paths(_given(value)["jobsub"], _given(value)["dlg_root"])
        return {"session_dir": found.session, "staging_root": found.staging}

    return _or_error(made)


def ini(value: JsonValue) -> JsonValue:
    """``{deployment, user, pgt}`` -> the INI file, with the graph's path that was given."""
    given = _given(value)
    text = ini_text(_slurm(given), _SESSION, user=given["user"])
    return re.sub(r"(?m)^PHYSICAL_GRAPH = .*$", lambda _: f"PHYSICAL_GRAPH = {given['pgt']}", text)


def _prelude(given: dict[str, Any]) -> str:
    slurm = _slurm(given)
    script = job_script_command(slurm, _SESSION, image=image_of(slurm, given["env"]))
    return script.partition("\nexport DLG_ROOT=")[0]


def env_prelude(value: JsonValue) -> JsonValue:
    """``{deployment, env}`` -> the lines before a command."""
    return _or_error(lambda: {"ok": _prelude(_given(value))})


def sbatch_cmd(value: JsonValue) -> JsonValue:
    """``{deployment, session, jobsub, env}`` -> the lines before sbatch, and its words."""
    given = _given(value)

    def made() -> JsonValue:
        words = sbatch_arguments(_slurm(given), given["session"], job_script=given["jobsub"])
        return {"prelude": _prelude(given), "words": [*sorted(words)]}

    return _or_error(made)


def _ini_values(text: str, *, extended: bool) -> dict[str, dict[str, list[str]]]:
    interpolation = configparser.ExtendedInterpolation() if extended else None
    parser = configparser.ConfigParser(interpolation=interpolation)
    parser.read_string(text)
    return {
        section: {name: value.splitlines() for name, value in parser.items(section)}
        for section in parser.sections()
    }


def _same_ini(case: Case, got: JsonValue) -> bool:
    return _ini_values(str(got), extended=True) == _ini_values(str(case.expected), extended=False)


def _same_call(case: Case, got: JsonValue) -> bool:
    script = shlex.split(_given(case.expected)["ok"])[2]
    prelude, _, call = script.partition("\numask 077\n")
    words = sorted(shlex.split(call.splitlines()[-1]))
    return isinstance(got, dict) and got == {"prelude": prelude, "words": words}


def _has_name_no_job_has(case: Case) -> bool:
    return case.fn == "sbatch_cmd" and not re.fullmatch(r"[A-Za-z0-9._-]+", _given(case.input)["session"])


FUNCTIONS: dict[str, Any] = {
    "jobsub": jobsub,
    "sbatch_id": sbatch_id,
    "session_paths": paths,
    "ini": ini,
    "env_prelude": env_prelude,
    "sbatch_cmd": sbatch_cmd,
    "pgt_wrap": lambda value: wrapped_graph(_given(value)["pgt"], graph_file_name(_given(value)["lg_name"])),
    "pgt_name": lambda value: graph_file_name(_given(value)["lg_name"]),
}
DEVIATIONS = [
    Deviation(
        name="the same INI file, as its reader reads it",
        reason="blank lines between sections are for people, and the reader takes a single $ for a reference",
        applies=lambda case: case.fn == "ini" and isinstance(case.expected, str),
        agrees=_same_ini,
    ),
    Deviation(
        name="no name that no job can be found by",
        reason="a session's name is looked for in the queue: one with a space is refused before anything is sent",
        applies=_has_name_no_job_has,
        agrees=lambda _, got: got == {"error": True},
    ),
    Deviation(
        name="one call under a lock",
        reason="the same lines and words, in a script that looks for an earlier attempt first",
        applies=lambda case: case.fn == "sbatch_cmd" and not _has_name_no_job_has(case),
        agrees=_same_call,
    ),
]
