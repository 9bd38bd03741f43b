"""A pool on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from beampipe_dagster.backends.transport.budget import Limits, SshBudget
from beampipe_dagster.backends.transport.credentials import CredentialStore
from beampipe_dagster.backends.transport.files import RemoteFiles
from beampipe_dagster.backends.transport.ssh import SshPool
from beampipe_dagster.backends.transport.target import Command, CommandResult, Kind, Options, SshTarget
from beampipe_dagster.clock import SystemClock
from beampipe_dagster.ids import UuidIds
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster_tests.support.ledgers import new_ledger
from beampipe_dagster_tests.support.sshd import Sshd, sshd

__all__ = ["sshd"]

SLOT = "hpc"


@dataclass
class Site:
    """A server, a slot that it lets in, and pools."""

    server: Sshd
    ledger: Ledger
    root: Path
    key: asyncssh.SSHKey
    env: dict[str, str] = field(default_factory=dict)
    pools: list[SshPool] = field(default_factory=list)

    @property
    def slot(self) -> Path:
        return self.root / SLOT

    @property
    def target(self) -> SshTarget:
        return SshTarget(hosts=("127.0.0.1",), user=self.server.user, port=self.server.port, slot=SLOT)

    def write(self, name: str, text: str | bytes, mode: int = 0o600) -> Path:
        path = self.slot / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        path.chmod(mode)
        return path

    def pool(self, *, limits: Limits | None = None, **options: Any) -> SshPool:
        """A pool as another process would have it."""
        clock, ids = SystemClock(), UuidIds()
        made = SshPool(
            credentials=CredentialStore(environ={"BEAMPIPE_SSH_CREDENTIALS_DIR": str(self.root), **self.env}),
            budget=SshBudget(ledger=self.ledger, clock=clock, ids=ids, limits=limits or Limits()),
            clock=clock,
            ids=ids,
            options=Options(**{"connect_seconds": 10.0, **options}),
        )
        self.pools.append(made)
        return made

    def files(self, pool: SshPool) -> RemoteFiles:
        return RemoteFiles(pool=pool, ids=UuidIds(), seconds=30)


def reads(pool: SshPool, target: SshTarget, text: str, **values: Any) -> CommandResult:
    return pool.run(target, Command(text=text, kind=Kind.READS, **{"seconds": 20.0, **values}))


def effects(pool: SshPool, target: SshTarget, text: str, **values: Any) -> CommandResult:
    return pool.run(target, Command(text=text, kind=Kind.EFFECTS, **{"seconds": 20.0, **values}))


@pytest.fixture
def site(request: pytest.FixtureRequest, sshd: Sshd, tmp_path: Path) -> Iterator[Site]:
    """A started server that lets the slot's key in."""
    with new_ledger(request, "sqlite", tmp_path) as ledger:
        key = asyncssh.generate_private_key("ssh-ed25519")
        made = Site(sshd, ledger, tmp_path / "ssh", key)
        made.slot.mkdir(parents=True)
        made.write("private_key", key.export_private_key())
        made.write("known_hosts", sshd.known_hosts())
        sshd.allow(key)
        sshd.start()
        yield made
        for pool in made.pools:
            pool.close()
