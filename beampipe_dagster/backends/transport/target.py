"""The values of the transport: where commands go, what they are, what comes back, and the bounds of all that."""

from __future__ import annotations

import getpass
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from beampipe_dagster.config.canonical import digest
from beampipe_dagster.config.profile import SlurmRemote
from beampipe_dagster.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class SshTarget:
    """A cluster's login nodes, and who we are there.

    Attributes
    ----------
    hosts
        Login nodes that are as good as each other, in the order in which they are tried.
    slot
        The credential's slot.
    """

    hosts: tuple[str, ...]
    user: str
    port: int = 22
    slot: str | None = None

    @classmethod
    def of(cls, deployment: SlurmRemote, *, environ: Mapping[str, str]) -> Self:
        """The target of a profile; ``login_node`` may name several, with commas between them.

        Raises
        ------
        ConfigError
            ``ssh_target_invalid``: no login node is named.
        """
        hosts = tuple(part for part in (p.strip() for p in deployment.login_node.split(",")) if part)
        if not hosts:
            raise ConfigError(
                "the profile names no login node",
                code="ssh_target_invalid",
                hint="give deployment.login_node; several are separated by commas",
            )
        user = deployment.remote_user or environ.get("SLURM_REMOTE_USER") or environ.get("USER") or _me()
        return cls(hosts=hosts, user=user, port=deployment.ssh_port, slot=deployment.ssh_credential)

    @property
    def key(self) -> str:
        """Fingerprint of all that makes it this target, 64 hexadecimal digits.

        With one login node it is over ``login_node``, ``ssh_port``, ``remote_user`` and ``credential_slot``.
        """
        return digest(
            {
                "login_node": ",".join(self.hosts),
                "ssh_port": self.port,
                "remote_user": self.user,
                "credential_slot": self.slot,
            }
        )

    @property
    def label(self) -> str:
        """How messages call it."""
        port = "" if self.port == 22 else f":{self.port}"  # SSH's own port
        return f"{self.user}@{','.join(self.hosts)}{port}"


class Kind(StrEnum):
    """Whether a command may be run again when nobody knows how it ended."""

    READS = "reads"
    EFFECTS = "effects"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A line for ``/bin/sh -c``.

    Attributes
    ----------
    kind
        ``effects`` unless it changes nothing.
    stdin
        What it reads; the line itself should be short (a shell takes up to 128 kB).
    seconds, max_bytes
        How long it may take, and how much it may say.
    """

    text: str
    kind: Kind
    stdin: bytes = b""
    seconds: float = 60.0
    max_bytes: int = 4 * 1024 * 1024

    @property
    def effects(self) -> bool:
        """Whether it may have changed something."""
        return self.kind is Kind.EFFECTS


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """What a command said; bytes that are no UTF-8 are replaced.

    Attributes
    ----------
    exit_status
        128 and more for a signal.
    host
        The login node that it ran on.
    """

    exit_status: int
    stdout: str
    stderr: str
    host: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Bounds of connections.

    Parameters
    ----------
    connect_seconds
        For one host, from the first packet to the end of the login.
    keepalive_seconds
        After so long a silence the server is asked whether it is there; after three it is not.
    idle_seconds
        A connection that nobody has used for so long is closed.
    max_channels
        Commands at a time on one connection; servers allow ten sessions unless told otherwise.
    """

    connect_seconds: float = 15.0
    keepalive_seconds: float = 15.0
    idle_seconds: float = 300.0
    max_channels: int = 8


def _me() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # no such user, as in some containers
        return "root"
