"""Deployment profiles: where an execution's graph is translated, and where it runs.

A profile is a JSON document. Its digest is over the typed profile, so that key order and defaults that
are spelled out do not change it; it identifies the revision that an execution was admitted with.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from beampipe_dagster.config.canonical import JsonValue, digest, parse_json
from beampipe_dagster.config.diagnostics import (
    Diagnostic,
    Severity,
    dotted,
    nearest,
    structure_problems,
)
from beampipe_dagster.config.secrets import find_secrets
from beampipe_dagster.config.yaml_loader import load_yaml
from beampipe_dagster.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from beampipe_dagster.config.yaml_loader import Path, YamlDocument

SAFE_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,50}")
"""What names of profiles and of SSH credentials are made of; they become parts of paths."""
PORT_MAX: Final = 65_535

_I64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
# What is out of bounds is read, so that all of it can be named at once; the schema says what is valid.
_Count = Annotated[_I64, WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 2**63 - 1})]
_Port = Annotated[_I64, WithJsonSchema({"type": "integer", "minimum": 1, "maximum": PORT_MAX})]
MAX_DIAGNOSTICS: Final = 200
"""Most errors that are told of one profile."""

_NAMES: Final = frozenset({("deployment", "ssh_credential")})
_STAMP = frozenset({"id", "revision", "spec_sha256"})


class _Part(BaseModel):
    """A part of a profile: frozen, strict about types, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Translation(_Part):
    """How the translator makes a physical graph of a logical one."""

    algo: Literal["metis", "mysarkar"] = Field(
        "metis", description="How the translator distributes drops over the nodes"
    )
    num_par: _Count = Field(1, description="Partitions of the physical graph; 1 keeps a session on one node")
    num_islands: _I64 = Field(0, description="Data islands that the translator plans for")
    tm_url: str | None = Field(
        None, description="Base URL of the translator; unless given, the platform's own"
    )


class RestRemote(_Part):
    """An island manager that is asked over HTTP.

    Fields that are not known are ignored here, as in :class:`SlurmRemote`: profiles are shared with
    systems that have more of them. :func:`profile_warnings` names them.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    kind: Literal["rest_remote"] = Field("rest_remote", description="An island manager over HTTP")
    dim_host_for_tm: str | None = Field(
        None, description="The manager's host as the translator sees it, if that differs"
    )
    dim_port_for_tm: _Port = Field(8001, description="The manager's port as the translator sees it")
    deploy_host: str | None = Field(None, description="Host of the island manager; required")
    deploy_port: _Port = Field(8001, description="Port of the island manager")
    use_https: bool = Field(False, description="Whether the manager is asked over TLS")
    verify_ssl: bool = Field(True, description="Whether its certificate must be valid")


class SlurmResources(_Part):
    """What a Slurm job asks for."""

    partition: str | None = Field(None, description="Partition (queue) of the job")
    nodes: _Count | None = Field(None, description="Nodes of the job; before num_nodes")
    tasks: _Count | None = Field(None, description="Tasks of the job")
    cpus_per_task: _Count | None = Field(None, description="Processor cores for each task")
    memory: str | None = Field(None, description="Memory of the job, as sbatch takes it")
    wall_time_minutes: _Count | None = Field(None, description="Longest run; before job_duration_minutes")
    constraint: str | None = Field(None, description="Features that the nodes must have")
    quality_of_service: str | None = Field(None, description="Quality of service (QOS)")


class ManagerTopology(_Part):
    """Where DALiuGE's managers go within a job."""

    nodes: _Count | None = Field(None, description="Nodes with a node manager")
    islands: _Count | None = Field(None, description="Data islands; before num_islands")
    co_host_dim: bool = Field(
        False, description="Whether an island manager shares its node with a node manager"
    )


class SlurmRemote(_Part):
    """A Slurm cluster that is reached over SSH."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    kind: Literal["slurm_remote"] = Field("slurm_remote", description="A Slurm cluster over SSH")
    login_node: str = Field(description="Host that sbatch is called on")
    ssh_port: _Port = Field(22, description="Port of its SSH service")
    remote_user: str | None = Field(None, description="User there; unless given, that of the process")
    ssh_credential: str | None = Field(
        None, description="Name of the slot with key and known hosts; never a key"
    )
    account: str = Field(description="Account that the job is charged to")
    home_dir: str = Field(description="Directory of the user, absolute")
    log_dir: str = Field(description="Directory of the logs, absolute")
    exec_prefix: str = Field("srun -l", description="What starts the managers within the job")
    dlg_root: str = Field(description="DALiuGE's directory for sessions, absolute")
    venv: str | None = Field(None, description="Python environment with DALiuGE")
    modules: str | None = Field(None, description="Modules to load, as a shell line")
    facility: str = Field("setonix", description="Name of the facility for DALiuGE")
    job_duration_minutes: _Count = Field(30, description="Longest run of the job")
    num_nodes: _Count = Field(1, description="Nodes of the job")
    num_islands: _Count = Field(1, description="Data islands")
    verbose_level: _I64 = Field(1, description="How much DALiuGE logs")
    max_threads: _I64 = Field(0, description="Threads of a node manager; 0 leaves it to DALiuGE")
    all_nics: bool = Field(False, description="Whether managers listen on all network interfaces")
    zerorun: bool = Field(False, description="Kept for other systems; no effect")
    sleepncopy: bool = Field(False, description="Kept for other systems; no effect")
    check_with_session: bool = Field(False, description="Kept for other systems; no effect")
    verify_ssl: bool | None = Field(None, description="Whether the translator's certificate must be valid")
    slurm_template: str | None = Field(None, description="Text of the job script's template")
    resources: SlurmResources = Field(SlurmResources(), description="What the job asks Slurm for")
    manager_topology: ManagerTopology = Field(ManagerTopology(), description="Where the managers go")
    container_runtime: str | None = Field(None, description="Kept for other systems; no effect")
    environment_setup: str | None = Field(None, description="Shell lines before the managers start")

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

    name: str = Field(description="Identity: 1 to 50 of the characters A-Z a-z 0-9 . _ -")
    description: str | None = Field(None, description="A sentence for people")
    project_module: str | None = Field(
        None, description="The only survey that may use it; unless given, any may"
    )
    is_default: bool = Field(False, description="Whether it is taken where a survey names none")
    max_concurrent_executions: _Count | None = Field(
        None, description="Executions with this profile at a time"
    )
    translation: Translation = Field(description="From the logical to the physical graph")
    deployment: Annotated[RestRemote | SlurmRemote, Field(discriminator="kind")] = Field(
        description="Where the physical graph runs"
    )

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
        # What an execution was admitted with is not judged again by rules about files.
        return _checked(value, "profile snapshot", positions=_Positions(None), found=[])


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
        while ``details["diagnostics"]`` has all of them, with line and column where the text is known.
    """
    value = parse_json(text, name=name) if isinstance(text, str | bytes) else text
    secrets = [_secret(path, kind) for path, kind in find_secrets(value, keys=True) if path not in _NAMES]
    return _checked(value, name, positions=_Positions(text), found=secrets)


def _checked(
    value: JsonValue, name: str, *, positions: _Positions, found: list[Diagnostic]
) -> DeploymentProfile:
    try:
        profile = DeploymentProfile.model_validate(value)
    except ValidationError as error:
        problems = structure_problems(error, DeploymentProfile, value, limit=MAX_DIAGNOSTICS)
        structure = [
            Diagnostic(dotted(p.path), Severity.ERROR, "invalid_profile_structure", p.message, p.hint)
            for p in problems
        ]
        raise _invalid(
            name,
            positions.placed([*structure, *found]),
            mismatches=[{"kind": p.kind.value, "subject": p.subject} for p in problems],
        ) from None
    if wrong := [*_errors(profile), *found]:
        raise _invalid(name, positions.placed(wrong[:MAX_DIAGNOSTICS]))
    return profile


class _Positions:
    """Where things stand in a profile's text. JSON is read as the YAML that it is too, when it is needed."""

    def __init__(self, text: str | bytes | JsonValue) -> None:
        self._text = text

    def placed(self, found: list[Diagnostic]) -> list[Diagnostic]:
        """The diagnostics with line and column, as far as they can be known."""
        if not isinstance(self._text, str | bytes):
            return found
        try:
            document = load_yaml(self._text)
        except ConfigError:  # a repeated key, or white space that only JSON has
            return found
        return [self._with_place(item, document) for item in found]

    @staticmethod
    def _with_place(item: Diagnostic, document: YamlDocument) -> Diagnostic:
        path: Path = () if item.path == "." else tuple(item.path.split("."))
        place = next((p for end in range(len(path), -1, -1) if (p := document.position(path[:end]))), None)
        return item if place is None else replace(item, line=place[0], column=place[1])


def profile_warnings(value: JsonValue, *, text: str | bytes | None = None) -> tuple[Diagnostic, ...]:
    """What a valid profile says that is most likely not meant.

    Parameters
    ----------
    value
        The profile's JSON value, one that :func:`load_profile` accepts.
    text
        The text that it was read from, for line and column.

    Returns
    -------
    tuple of Diagnostic
        ``unknown_field``: a field of ``deployment`` that nothing reads. ``islands_exceed_nodes``,
        ``fewer_tasks_than_nodes``: a job whose managers would not come up.
    """
    deployment = value.get("deployment") if isinstance(value, dict) else None
    if not isinstance(deployment, dict):
        return ()
    model = SlurmRemote if deployment.get("kind") == "slurm_remote" else RestRemote
    known = list(model.model_fields)
    found = [
        Diagnostic(
            f"deployment.{key}",
            Severity.WARNING,
            "unknown_field",
            f"the field {key!r} is not known and is ignored",
            nearest(key, known),
        )
        for key in deployment
        if key not in known
    ]
    if model is SlurmRemote:
        found.extend(_topology_warnings(deployment))
    return tuple(_Positions(text).placed(found))


def _topology_warnings(deployment: JsonValue) -> Iterator[Diagnostic]:
    try:
        slurm = SlurmRemote.model_validate(deployment)
    except ValidationError:
        return
    nodes, islands, tasks = slurm.effective_nodes, slurm.effective_islands, slurm.resources.tasks
    if islands > nodes:
        given = slurm.manager_topology.islands is not None
        yield Diagnostic(
            f"deployment.{'manager_topology.islands' if given else 'num_islands'}",
            Severity.WARNING,
            "islands_exceed_nodes",
            f"{islands} data islands do not fit on {nodes} nodes: each needs a node for its manager",
            f"Give at most {nodes} islands, or more nodes.",
        )
    if tasks is not None and tasks < nodes:
        yield Diagnostic(
            "deployment.resources.tasks",
            Severity.WARNING,
            "fewer_tasks_than_nodes",
            f"{tasks} tasks leave some of the {nodes} nodes without a manager",
            f"Give at least {nodes} tasks, or leave tasks out.",
        )


def _secret(path: Path, kind: str) -> Diagnostic:
    return Diagnostic(
        dotted(path),
        Severity.ERROR,
        "inline_secret",
        f"looks like {kind}; profiles are stored, shown and copied into every execution",
        "Take it out, and change it where it is used. A profile names a slot in ssh_credential; keys and "
        "passwords are in the slot's files or in the environment of the process.",
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
