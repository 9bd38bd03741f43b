"""Deployment profiles: where an execution's graph is translated, and where it runs.

A profile is a JSON document. Its digest is over the typed profile, so that key order and defaults that
are spelled out do not change it; it identifies the revision that an execution was admitted with.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from beampipe_dagster.config.canonical import JsonValue, digest, parse_json
from beampipe_dagster.config.diagnostics import (
    Diagnostic,
    Severity,
    dotted,
    nearest,
    structure_problems,
)
from beampipe_dagster.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SAFE_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,50}")
"""What names of profiles and of SSH credentials are made of; they become parts of paths."""
PORT_MAX: Final = 65_535

_I64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
_STAMP = frozenset({"id", "revision", "spec_sha256"})


class _Part(BaseModel):
    """A part of a profile: frozen, strict about types, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Translation(_Part):
    """How the translator makes a physical graph of a logical one."""

    algo: Literal["metis", "mysarkar"] = "metis"
    num_par: _I64 = 1
    num_islands: _I64 = 0
    tm_url: str | None = None


class RestRemote(_Part):
    """An island manager that is asked over HTTP.

    Fields that are not known are ignored here, as in :class:`SlurmRemote`: profiles are shared with
    systems that have more of them. :func:`profile_warnings` names them.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    kind: Literal["rest_remote"] = "rest_remote"
    dim_host_for_tm: str | None = None
    dim_port_for_tm: _I64 = 8001
    deploy_host: str | None = None
    deploy_port: _I64 = 8001
    use_https: bool = False
    verify_ssl: bool = True


class SlurmResources(_Part):
    """What a Slurm job asks for."""

    partition: str | None = None
    nodes: _I64 | None = None
    tasks: _I64 | None = None
    cpus_per_task: _I64 | None = None
    memory: str | None = None
    wall_time_minutes: _I64 | None = None
    constraint: str | None = None
    quality_of_service: str | None = None


class ManagerTopology(_Part):
    """Where DALiuGE's managers go within a job."""

    nodes: _I64 | None = None
    islands: _I64 | None = None
    co_host_dim: bool = False


class SlurmRemote(_Part):
    """A Slurm cluster that is reached over SSH."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    kind: Literal["slurm_remote"] = "slurm_remote"
    login_node: str
    ssh_port: _I64 = 22
    remote_user: str | None = None
    ssh_credential: str | None = None
    account: str
    home_dir: str
    log_dir: str
    exec_prefix: str = "srun -l"
    dlg_root: str
    venv: str | None = None
    modules: str | None = None
    facility: str = "setonix"
    job_duration_minutes: _I64 = 30
    num_nodes: _I64 = 1
    num_islands: _I64 = 1
    verbose_level: _I64 = 1
    max_threads: _I64 = 0
    all_nics: bool = False
    zerorun: bool = False
    sleepncopy: bool = False
    check_with_session: bool = False
    verify_ssl: bool | None = None
    slurm_template: str | None = None
    resources: SlurmResources = SlurmResources()
    manager_topology: ManagerTopology = ManagerTopology()
    container_runtime: str | None = None
    environment_setup: str | None = None

    @property
    def effective_nodes(self) -> int:
        """Nodes of the job: ``resources.nodes``, else ``num_nodes``."""
        return _given_or(self.resources.nodes, self.num_nodes)

    @property
    def effective_islands(self) -> int:
        """Data islands: ``manager_topology.islands``, else ``num_islands``."""
        return _given_or(self.manager_topology.islands, self.num_islands)

    @property
    def effective_wall_time_minutes(self) -> int:
        """Wall time: ``resources.wall_time_minutes``, else ``job_duration_minutes``."""
        return _given_or(self.resources.wall_time_minutes, self.job_duration_minutes)


class DeploymentProfile(_Part):
    """A deployment profile."""

    name: str
    description: str | None = None
    project_module: str | None = None
    is_default: bool = False
    max_concurrent_executions: _I64 | None = None
    translation: Translation
    deployment: Annotated[RestRemote | SlurmRemote, Field(discriminator="kind")]

    def as_json(self) -> dict[str, JsonValue]:
        """The typed profile: defaults filled in, absent scalars ``null`` at the top, else left out."""
        out: dict[str, JsonValue] = {
            "name": self.name,
            "description": self.description,
            "project_module": self.project_module,
            "is_default": self.is_default,
            "max_concurrent_executions": self.max_concurrent_executions,
            "translation": self.translation.model_dump(exclude_none=True),
            "deployment": self.deployment.model_dump(exclude_none=True),
        }
        return out

    @property
    def spec_sha256(self) -> str:
        """Digest of :meth:`as_json`, 64 lower-case hex digits."""
        return digest(self.as_json())

    @classmethod
    def from_snapshot(cls, snapshot: Mapping[str, Any]) -> DeploymentProfile:
        """The profile in an execution's snapshot: :meth:`as_json` and the row's id and revision.

        Raises
        ------
        ConfigError
            ``invalid_profile``, as :func:`load_profile`.
        """
        value = {key: part for key, part in snapshot.items() if key not in _STAMP}
        return load_profile(value, name="profile snapshot")


def load_profile(text: str | bytes | JsonValue, *, name: str = "<profile>") -> DeploymentProfile:
    """Read and check a deployment profile.

    Parameters
    ----------
    text
        The JSON document as text, or its value.
    name
        What messages call the document.

    Raises
    ------
    ConfigError
        ``invalid_json``; or ``invalid_profile``, whose message shows the first thing that is wrong,
        while ``details["diagnostics"]`` has all of them.
    """
    value = parse_json(text, name=name) if isinstance(text, str | bytes) else text
    try:
        profile = DeploymentProfile.model_validate(value)
    except ValidationError as error:
        problems = structure_problems(error, DeploymentProfile, value)
        raise _invalid(
            name,
            [
                Diagnostic(dotted(p.path), Severity.ERROR, "invalid_profile_structure", p.message, p.hint)
                for p in problems
            ],
            mismatches=[{"kind": p.kind.value, "subject": p.subject} for p in problems],
        ) from None
    if found := list(_errors(profile)):
        raise _invalid(name, found)
    return profile


def profile_warnings(value: JsonValue) -> tuple[Diagnostic, ...]:
    """Fields of ``deployment`` that nothing reads, most likely misspelt ones.

    Parameters
    ----------
    value
        The profile's JSON value, one that :func:`load_profile` accepts.
    """
    deployment = value.get("deployment") if isinstance(value, dict) else None
    if not isinstance(deployment, dict):
        return ()
    model = SlurmRemote if deployment.get("kind") == "slurm_remote" else RestRemote
    known = list(model.model_fields)
    return tuple(
        Diagnostic(
            f"deployment.{key}",
            Severity.WARNING,
            "unknown_field",
            f"the field {key!r} is not known and is ignored",
            nearest(key, known),
        )
        for key in deployment
        if key not in known
    )


def _errors(profile: DeploymentProfile) -> Iterator[Diagnostic]:
    if not SAFE_NAME.fullmatch(profile.name):
        yield _wrong("name", "must be 1 to 50 of the characters A-Z a-z 0-9 . _ -")
    yield from _at_least("translation.num_par", profile.translation.num_par, 1)
    yield from _at_least("max_concurrent_executions", profile.max_concurrent_executions, 1)
    yield from _at_least("translation.num_islands", profile.translation.num_islands, 0)
    if isinstance(profile.deployment, RestRemote):
        yield from _rest_errors(profile.deployment)
    else:
        yield from _slurm_errors(profile.deployment)


def _rest_errors(deployment: RestRemote) -> Iterator[Diagnostic]:
    yield from _port("dim_port_for_tm", deployment.dim_port_for_tm)
    yield from _port("deploy_port", deployment.deploy_port)
    if not (deployment.deploy_host or "").strip():
        yield _wrong("deployment.deploy_host", "must name the host of the island manager")


def _slurm_errors(deployment: SlurmRemote) -> Iterator[Diagnostic]:
    yield from _port("ssh_port", deployment.ssh_port)
    yield from _not_blank("login_node", deployment.login_node)
    credential = deployment.ssh_credential
    if credential is not None and (not SAFE_NAME.fullmatch(credential) or ".." in credential):
        message = "must be 1 to 50 of the characters A-Z a-z 0-9 . _ -, without two dots in a row"
        yield _wrong("deployment.ssh_credential", message)
    if not deployment.dlg_root.strip().strip("/"):
        yield _wrong("deployment.dlg_root", "must be a directory below the root")
    yield from _not_blank("account", deployment.account)
    for field in ("home_dir", "log_dir", "dlg_root"):
        path = getattr(deployment, field)
        if not path.startswith("/") and not (field == "dlg_root" and not path.strip()):
            yield _wrong(f"deployment.{field}", f"must be an absolute path, not {path!r}")
    resources = deployment.resources
    yield from _at_least("deployment.resources.nodes", deployment.effective_nodes, 1)
    yield from _at_least("deployment.manager_topology.islands", deployment.effective_islands, 1)
    yield from _at_least("deployment.resources.wall_time_minutes", deployment.effective_wall_time_minutes, 1)
    yield from _at_least("deployment.resources.tasks", resources.tasks, 1)
    yield from _at_least("deployment.resources.cpus_per_task", resources.cpus_per_task, 1)
    for field in ("partition", "memory", "constraint", "quality_of_service"):
        value = getattr(resources, field)
        if value is not None:
            yield from _not_blank(f"resources.{field}", value)
    yield from _at_least("deployment.manager_topology.nodes", deployment.manager_topology.nodes, 1)


def _at_least(path: str, value: int | None, low: int) -> Iterator[Diagnostic]:
    if value is not None and value < low:
        yield _wrong(path, f"must be at least {low}, not {value}")


def _port(field: str, value: int) -> Iterator[Diagnostic]:
    if not 1 <= value <= PORT_MAX:
        yield _wrong(f"deployment.{field}", f"must be a port from 1 to {PORT_MAX}, not {value}")


def _not_blank(field: str, value: str) -> Iterator[Diagnostic]:
    if not value.strip():
        yield _wrong(f"deployment.{field}", "must not be blank")


def _wrong(path: str, message: str) -> Diagnostic:
    return Diagnostic(path, Severity.ERROR, "invalid_value", message)


def _given_or(value: int | None, default: int) -> int:
    return default if value is None else value


def _invalid(
    name: str, found: list[Diagnostic], *, mismatches: list[dict[str, str]] | None = None
) -> ConfigError:
    first, more = found[0], len(found) - 1
    rest = f" (and {more} more)" if more else ""
    details: dict[str, Any] = {"diagnostics": [diagnostic.as_dict() for diagnostic in found]}
    if mismatches:
        details["mismatches"] = mismatches
    return ConfigError(
        f"{name}: {first.path} {first.message}{rest}",
        code="invalid_profile",
        hint=first.hint or f"Correct {first.path} in the profile.",
        details=details,
    )
