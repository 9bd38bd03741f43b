"""The texts of a DALiuGE session on a Slurm cluster: its files, the script that makes its job, and sbatch.

Nothing is sent here: every function is from values to text. DALiuGE's ``create_dlg_job`` makes the job script
from a partitioned graph and an INI file; ``sbatch`` then gets the job script that it names.

The INI file is read by Python's :class:`configparser.ConfigParser` with ``ExtendedInterpolation``, where ``$``
begins a reference to another value: a ``$`` that is meant for the job's shell is written twice. Further lines
of a value are indented, so that no value can begin a section or another key.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import Final

from beampipe_dagster.config.profile import SlurmRemote
from beampipe_dagster.errors import ConfigError

INDENT: Final = "    "
ACCOUNT_VARIABLE: Final = "BEAMPIPE_SLURM_ACCOUNT"
IMAGE_VARIABLE: Final = "BEAMPIPE_ASKAPSOFT_SIF"
"""Path of a container image, which graphs may need; exported when ``environment_setup`` mentions it."""
STAGING_VARIABLE: Final = "WALLABY_HIRES_STAGING_ROOT"
STAGING_DIRECTORY: Final = "wallaby-staging"

# What no line of an INI file, of a script or of an argument may hold; tabs and line ends are dealt with.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x85\u2028\u2029]")
_SESSION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True, slots=True)
class SessionFiles:
    """Where the files of a session are on the cluster.

    Parameters
    ----------
    graph, ini, template
        Absolute paths of the partitioned graph, of the INI file, and of the job script's template, which
        only profiles with a ``slurm_template`` have.
    """

    graph: str
    ini: str
    template: str | None


def session_name(execution_id: str) -> str:
    """The session of an execution, which is also the name of its job: ``BeampipeExecution_<execution>``."""
    return f"BeampipeExecution_{execution_id}"


def session_files(slurm: SlurmRemote, session: str) -> SessionFiles:
    """The paths of a session's files, below ``dlg_root/staging``.

    Raises
    ------
    ConfigError
        ``invalid_session_name``.
    """
    base = f"{slurm.dlg_root.rstrip('/')}/staging/{_checked_session(session)}"
    template = f"{base}.slurm" if slurm.slurm_template is not None else None
    return SessionFiles(f"{base}.pgt.graph", f"{base}.ini", template)


def ini_text(slurm: SlurmRemote, session: str, *, user: str) -> str:
    """The INI file of a session.

    Parameters
    ----------
    slurm
        The profile's deployment.
    session
        The session's name.
    user
        The user on the cluster.

    Raises
    ------
    ConfigError
        ``unwritable_value``: a value holds a control character; ``invalid_session_name``.
    """
    engine: list[tuple[str, str]] = [
        ("NUM_NODES", str(slurm.effective_nodes)),
        ("NUM_ISLANDS", str(slurm.effective_islands)),
        ("JOB_DUR", str(slurm.effective_wall_time_minutes)),
        ("MAX_THREADS", str(slurm.max_threads)),
        ("VERBOSE_LEVEL", str(slurm.verbose_level)),
        ("ALL_NICS", str(slurm.all_nics)),
    ]
    facility: list[tuple[str, str]] = [
        ("USER", user),
        ("ACCOUNT", slurm.account),
        ("LOGIN_NODE", slurm.login_node),
        ("HOME_DIR", slurm.home_dir),
        ("DLG_ROOT", slurm.dlg_root),
        ("LOG_DIR", slurm.log_dir),
        ("EXEC_PREFIX", slurm.exec_prefix),
    ]
    facility.extend(
        (name, value)
        for name, value in (("MODULES", slurm.modules), ("VENV", slurm.venv))
        if value is not None and value.strip()
    )
    sections: list[tuple[str, list[tuple[str, str]]]] = [
        # The job is made on the cluster itself, and submitted by us.
        ("DEPLOYMENT", [("remote", "False"), ("submit", "False")]),
        ("ENGINE", engine),
        ("GRAPH", [("PHYSICAL_GRAPH", session_files(slurm, session).graph)]),
        ("FACILITY", facility),
    ]
    return "\n".join(
        f"[{section}]\n" + "".join(f"{name} = {_ini_value(name, value)}\n" for name, value in values)
        for section, values in sections
    )


def job_script_command(slurm: SlurmRemote, session: str, *, image: str | None = None) -> str:
    """The shell script that makes the session's job script, without submitting it.

    It prints a line ``Created job submission script PATH``, which names the script for sbatch.

    Parameters
    ----------
    slurm
        The profile's deployment.
    session
        The session's name.
    image
        Path of the container image, for profiles whose ``environment_setup`` mentions
        :data:`IMAGE_VARIABLE`.

    Raises
    ------
    ConfigError
        ``unwritable_value``, ``invalid_session_name``.
    """
    files = session_files(slurm, session)
    account = f"export {ACCOUNT_VARIABLE}={_quoted('account', slurm.account)}"
    lines = ["set -euo pipefail", account]
    if image is not None and needs_image(slurm):
        lines.append(f"export {IMAGE_VARIABLE}={_quoted(IMAGE_VARIABLE, image)}")
    for name, value in (("modules", slurm.modules), ("venv", slurm.venv)):
        if value is not None and value.strip():
            # Scripts of module systems and of virtual environments use variables that are not set.
            lines += ["set +u", *_lines(name, value), "set -u"]
    if slurm.environment_setup is not None and slurm.environment_setup.strip():
        lines += _lines("environment_setup", slurm.environment_setup)
    lines += [account, f"export DLG_ROOT={_quoted('dlg_root', slurm.dlg_root)}"]
    command = ["python3", "-m", "dlg.deploy.create_dlg_job", "--action", "submit", "-f", slurm.facility]
    command += ["-P", files.graph, "--config_file", files.ini]
    if files.template is not None:
        command += ["--slurm_template", files.template]
    lines.append(" ".join(_quoted("facility", word) for word in command))
    return "\n".join(lines) + "\n"


def sbatch_arguments(slurm: SlurmRemote, session: str, *, job_script: str) -> tuple[str, ...]:
    """The words of the sbatch call; the first is ``sbatch``.

    Parameters
    ----------
    slurm
        The profile's deployment.
    session
        The session's name, which becomes the job's.
    job_script
        Path of the job script.

    Raises
    ------
    ConfigError
        ``unwritable_value``, ``invalid_session_name``.
    """
    exported = [ACCOUNT_VARIABLE, STAGING_VARIABLE]
    if needs_image(slurm):
        exported.append(IMAGE_VARIABLE)
    resources = slurm.resources
    options: list[tuple[str, str | int | None]] = [
        ("job-name", _checked_session(session)),
        ("account", slurm.account),
        ("nodes", slurm.effective_nodes),
        ("time", wall_time(slurm.effective_wall_time_minutes)),
        ("partition", resources.partition),
        ("mem", resources.memory),
        ("constraint", resources.constraint),
        ("qos", resources.quality_of_service),
        ("ntasks", resources.tasks),
        ("cpus-per-task", resources.cpus_per_task),
    ]
    words = ["sbatch", f"--export={','.join(exported)}", "--parsable"]
    words += [f"--{name}={value}" for name, value in options if value is not None]
    words.append(job_script)
    for word in words:
        _no_control("an argument of sbatch", word, also="\t\r\n")
    return tuple(words)


def sbatch_line(slurm: SlurmRemote, session: str, *, job_script: str) -> str:
    """:func:`sbatch_arguments` as a line for a POSIX shell."""
    return shlex.join(sbatch_arguments(slurm, session, job_script=job_script))


def needs_image(slurm: SlurmRemote) -> bool:
    """Whether the profile's ``environment_setup`` mentions the container image."""
    return IMAGE_VARIABLE in (slurm.environment_setup or "")


def wall_time(minutes: int) -> str:
    """Minutes as sbatch takes a time limit: ``HH:MM:00``, with as many digits of hours as it takes."""
    return f"{minutes // 60:02}:{minutes % 60:02}:00"


def _ini_value(name: str, value: str) -> str:
    return f"\n{INDENT}".join(line.replace("$", "$$") for line in _lines(name, value))


def _lines(name: str, value: str) -> list[str]:
    """The lines of a value that are not blank, whatever ends them."""
    _no_control(name, value)
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", value)]
    return [line for line in lines if line] or [""]


def _quoted(name: str, value: str) -> str:
    _no_control(name, value, also="\t\r\n")
    return shlex.quote(value)


def _no_control(name: str, value: str, *, also: str = "") -> None:
    if _CONTROL.search(value) or any(character in value for character in also):
        raise ConfigError(
            f"{name} holds a control character: {value!r}",
            code="unwritable_value",
            hint=f"Correct {name} in the deployment profile.",
        )


def _checked_session(session: str) -> str:
    if not _SESSION.fullmatch(session):
        raise ConfigError(
            f"{session!r} cannot be the name of a session",
            code="invalid_session_name",
            hint="A name has 1 to 200 of the characters A-Z a-z 0-9 . _ -.",
        )
    return session
