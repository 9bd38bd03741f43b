"""What an execution with a deployment profile would call, and with what: a preview that calls nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from beampipe_dagster.backends.daliuge.manager import manager_url
from beampipe_dagster.backends.slurm import session_files as slurm_files
from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.config.profile import DeploymentProfile, RestRemote, SlurmRemote
from beampipe_dagster.execution.submission import session_id, session_pattern
from beampipe_dagster.ledger.execution_values import Execution

EXECUTION: Final = "<execution>"
CREATED: Final = "<created>"
ATTEMPT: Final = "<attempt>"
USER: Final = "<user>"
IMAGE: Final = "<image>"
JOB_SCRIPT: Final = "<job script>"
NOT_SUBMITTED: Final = (
    "This version does not submit to Slurm: an execution with this profile is refused (backend_unsupported). "
    "This is what its files and calls would be."
)
_NO_TRANSLATOR: Final = (
    "The profile names no translator and BEAMPIPE_TM_URL is not set: nothing can be translated."
)
_BLANK_EXECUTION: Final = "EXECUTION"
"""An execution's place in a session's name on Slurm, where no characters of a placeholder are allowed."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request.

    Parameters
    ----------
    method, url
        What is asked for.
    parameters
        Fields of the form, or the JSON body; what is only known then is in angle brackets.
    body
        ``form``, ``json`` or ``none``.
    purpose
        What it is for.
    """

    method: str
    url: str
    parameters: JsonValue
    body: str
    purpose: str

    def as_dict(self) -> dict[str, JsonValue]:
        """The call as JSON."""
        return {
            "method": self.method,
            "url": self.url,
            "body": self.body,
            "parameters": self.parameters,
            "purpose": self.purpose,
        }


@dataclass(frozen=True, slots=True)
class SlurmPreview:
    """The texts of a session on a Slurm cluster.

    Parameters
    ----------
    where
        User, login node and port.
    files
        The paths of its files there.
    ini
        Text of the INI file.
    script
        The shell script that makes the job script.
    sbatch
        The line that submits it.
    """

    where: str
    files: slurm_files.SessionFiles
    ini: str
    script: str
    sbatch: str

    def as_dict(self) -> dict[str, JsonValue]:
        """The texts as JSON."""
        return {
            "where": self.where,
            "files": {"graph": self.files.graph, "ini": self.files.ini, "template": self.files.template},
            "ini": self.ini,
            "script": self.script,
            "sbatch": self.sbatch,
        }


@dataclass(frozen=True, slots=True)
class Preview:
    """What an execution with a profile would do.

    Parameters
    ----------
    profile, kind
        The profile's name, and the kind of its deployment.
    session
        The name of the session, or the pattern that it is made by.
    calls
        Requests in their order.
    slurm
        For a profile of kind ``slurm_remote``.
    notes
        What a reader should know besides.
    """

    profile: str
    kind: str
    session: str
    calls: tuple[Call, ...]
    slurm: SlurmPreview | None = None
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, JsonValue]:
        """The preview as JSON."""
        return {
            "profile": self.profile,
            "kind": self.kind,
            "session": self.session,
            "calls": [call.as_dict() for call in self.calls],
            "slurm": self.slurm.as_dict() if self.slurm else None,
            "notes": [*self.notes],
        }


def preview(
    profile: DeploymentProfile,
    execution: Execution | None = None,
    *,
    tm_url: str | None = None,
    user: str | None = None,
    image: str | None = None,
) -> Preview:
    """Say what would be called.

    Parameters
    ----------
    profile
        The profile.
    execution
        One whose identifiers are filled in; its next attempt is meant.
    tm_url
        The platform's translator, for profiles that name none.
    user
        Who logs in to the cluster where the profile names nobody.
    image
        Path of the container image, where the profile's ``environment_setup`` needs it.

    Raises
    ------
    ConfigError
        ``unwritable_value``: a value that no file or command line can hold.
    """
    execution_id = execution.id if execution is not None else EXECUTION
    translation = _translation(profile, execution_id, tm_url)
    notes = [] if tm_url or profile.translation.tm_url else [_NO_TRANSLATOR]
    deployment = profile.deployment
    if isinstance(deployment, RestRemote):
        session = (
            session_pattern(EXECUTION, CREATED, ATTEMPT)
            if execution is None
            else session_id(execution, execution.attempt + 1)
        )
        calls = (translation, *_rest_calls(deployment, session))
        return Preview(profile.name, deployment.kind, session, calls, notes=tuple(notes))
    session = slurm_files.session_name(execution.id if execution is not None else _BLANK_EXECUTION)
    return Preview(
        profile.name,
        deployment.kind,
        session,
        (translation,),
        _slurm(deployment, session, user or USER, image or IMAGE),
        (NOT_SUBMITTED, *notes),
    )


def _translation(profile: DeploymentProfile, execution_id: str, tm_url: str | None) -> Call:
    base = (profile.translation.tm_url or tm_url or "<translator>").rstrip("/")
    parameters: dict[str, JsonValue] = {
        "lg_content": "<patched graph>",
        "algorithm": profile.translation.algo,
        "num_partitions": profile.translation.num_par,
        "num_islands": max(1, profile.translation.num_islands),
        "oid_prefix": execution_id,
    }
    purpose = "unroll the logical graph and partition it"
    return Call("POST", f"{base}/unroll_and_partition", parameters, "form", purpose)


def _rest_calls(deployment: RestRemote, session: str) -> tuple[Call, ...]:
    manager = manager_url(deployment.deploy_host or "", deployment.deploy_port, https=deployment.use_https)
    sessions = f"{manager}/api/sessions"
    own = f"{sessions}/{session}"
    return (
        Call("GET", f"{manager}/api/nodes", None, "none", "learn which node managers there are"),
        Call("POST", sessions, {"sessionId": session}, "json", "create the session on every node"),
        Call("POST", f"{own}/graph/append", ["<placed drops>"], "json", "hand over the physical graph"),
        Call("GET", f"{own}/graph/size", None, "none", "see that all of it is there"),
        Call("POST", f"{own}/deploy", {"completed": "<roots>"}, "form", "start it; never sent twice"),
        Call("GET", f"{own}/status", None, "none", "look at it, until it has ended"),
        Call("GET", f"{own}/graph/status", None, "none", "see that every drop was completed"),
    )


def _slurm(deployment: SlurmRemote, session: str, user: str, image: str) -> SlurmPreview:
    user = deployment.remote_user or user
    return SlurmPreview(
        where=f"{user}@{deployment.login_node}:{deployment.ssh_port}",
        files=slurm_files.session_files(deployment, session),
        ini=slurm_files.ini_text(deployment, session, user=user),
        script=slurm_files.job_script_command(deployment, session, image=image),
        sbatch=slurm_files.sbatch_line(deployment, session, job_script=JOB_SCRIPT),
    )
