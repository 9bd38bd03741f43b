"""``beampipe slurm``: the credentials of login nodes, and whether they let us in."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Final

import asyncssh
import click
from rich.console import Console

from beampipe_dagster.assembly import ssh_pool
from beampipe_dagster.backends.transport.credentials import KEY_NAMES, CredentialStore
from beampipe_dagster.backends.transport.target import SshTarget
from beampipe_dagster.cli.core import EXIT_FAILED, Context, Group, pass_context
from beampipe_dagster.cli.render import cell, emit, table
from beampipe_dagster.config.profile import SAFE_NAME, DeploymentProfile, SlurmRemote, load_profile
from beampipe_dagster.errors import BeampipeError, ConfigError, ConflictError, InputError, NotFoundError
from beampipe_dagster.ledger import profiles

_SECRET: Final = 0o600
_DIRECTORY: Final = 0o700


@click.group(cls=Group)
def slurm() -> None:
    """Clusters: credentials of their login nodes, and whether they let us in."""


@slurm.group(cls=Group)
def credentials() -> None:
    """Credential slots: the directories that a profile's ssh_credential names."""


@credentials.command("init")
@click.argument("slot")
@click.option("--comment", default="beampipe", help="What the public key says that it is for.")
@pass_context
def init(context: Context, slot: str, comment: str) -> None:
    """Make a slot with a new key (Ed25519); its public half goes to the cluster."""
    store = CredentialStore(environ=context.environ)
    key = asyncssh.generate_private_key("ssh-ed25519", comment=comment)
    directory = _new_key(store, slot, key.export_private_key())
    public = _public(directory, key)
    data = {"slot": slot, "directory": str(directory), "public_key": public}

    def people(out: Console) -> None:
        out.print(
            f"The slot {slot} is {directory}. Put this line into ~/.ssh/authorized_keys on the cluster:"
        )
        out.print(public, soft_wrap=True, highlight=False, markup=False)
        if not (directory / "known_hosts").exists() and not (store.root / "known_hosts").exists():
            out.print("Put the login node's line, as the site publishes it, into known_hosts of the slot.")

    emit(context, data, people)


@credentials.command("import")
@click.argument("slot")
@click.argument("key", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--known-hosts", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="A file.")
@click.option("--passphrase-stdin", is_flag=True, help="Read the key's passphrase from the standard input.")
@pass_context
def import_(
    context: Context, slot: str, key: Path, known_hosts: Path | None, *, passphrase_stdin: bool
) -> None:
    """Copy a private key, and the hosts that are known, into a new slot."""
    store = CredentialStore(environ=context.environ)
    passphrase = sys.stdin.readline().rstrip("\r\n") if passphrase_stdin else None
    try:
        data = key.read_bytes()
        loaded = asyncssh.import_private_key(data, passphrase)
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError, OSError, ValueError) as error:
        raise InputError(
            f"{key} cannot be read as a private key",
            code="ssh_credential_invalid",
            hint="is it the private half? with a passphrase: --passphrase-stdin",
        ) from error
    directory = _new_key(store, slot, data)
    _public(directory, loaded)
    if passphrase is not None:
        _write(directory / "passphrase", passphrase.encode() + b"\n", _SECRET)
    if known_hosts is not None:
        _write(directory / "known_hosts", known_hosts.read_bytes(), _SECRET)
    found = _state(store, slot)
    emit(
        context,
        found,
        lambda out: out.print(f"The slot {slot} is {directory}: {found['problem'] or 'ready'}"),
    )


@credentials.command("list")
@pass_context
def listing(context: Context) -> None:
    """The slots, and what is wrong with them."""
    store = CredentialStore(environ=context.environ)
    found = [_state(store, slot) for slot in store.slots()]

    def people(out: Console) -> None:
        if not found:
            out.print(f"There is no slot in {store.root}. Make one: beampipe slurm credentials init NAME")
            return
        rows = table("slot", "key", "hosts", "state")
        for item in found:
            style = "red" if item["problem"] else "green"
            state = cell(item["problem"] or "ready", style)
            rows.add_row(cell(item["slot"], "bold"), cell(item["fingerprint"]), cell(item["hosts"]), state)
        out.print(rows)

    emit(context, {"directory": str(store.root), "slots": found}, people)


@credentials.command("check")
@click.argument("slot", required=False)
@pass_context
def check(context: Context, slot: str | None) -> int:
    """Whether a slot (all, without a name) can be used; no host is asked. Exit code 1 when one cannot."""
    store = CredentialStore(environ=context.environ)
    found = [_state(store, name) for name in ([slot] if slot else store.slots())]

    def people(out: Console) -> None:
        for item in found:
            out.print(f"{item['slot']}: {item['problem'] or 'ready'}", markup=False)
            if item["hint"]:
                out.print(f"  {item['hint']}", markup=False)

    emit(context, {"slots": found}, people)
    return EXIT_FAILED if any(item["problem"] for item in found) else 0


@credentials.command("remove")
@click.argument("slot")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_context
def remove(context: Context, slot: str, *, yes: bool) -> None:
    """Delete a slot and the key in it; the public half stays on the cluster until it is removed there."""
    directory = _directory(CredentialStore(environ=context.environ), slot)
    if not directory.is_dir() or directory.is_symlink():
        raise NotFoundError(
            f"there is no slot {slot!r}",
            code="ssh_slot_not_known",
            hint="see: beampipe slurm credentials list",
        )
    if not yes:
        click.confirm(f"Delete {directory} and the key in it?", abort=True, err=True)
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            raise ConflictError(
                f"{directory} holds a directory, {path.name}: it is no slot of ours",
                code="ssh_slot_not_empty",
                hint="look at it, and remove it by hand",
            )
    for path in list(directory.iterdir()):
        path.unlink()
    directory.rmdir()
    emit(context, {"slot": slot, "removed": True}, lambda out: out.print(f"The slot {slot} is gone."))


@slurm.command("ping")
@click.argument("profile")
@pass_context
def ping(context: Context, profile: str) -> int:
    """Log in with a profile (a name, or a JSON file), also where a cluster is left alone at the moment.

    Exit code 1 when it does not let us in.
    """
    target = SshTarget.of(_deployment(context, profile), environ=context.environ)
    pool = ssh_pool(context.settings, ledger=context.platform.ledger, environ=context.environ)
    error: BeampipeError | None = None
    data: dict[str, Any] = {"target": target.label, "key": target.key, "answered": True}
    try:
        answer = pool.ping(target)
        data |= {"host": answer.host, "milliseconds": round(answer.seconds * 1000)}
        words = f"{target.label} lets us in ({answer.stdout.strip()}, {data['milliseconds']} ms)."
    except BeampipeError as caught:
        error = caught
        data |= {"answered": False, "error": error.as_dict()}
        words = f"{error.message}\n  {error.hint}"
    finally:
        pool.close()
    emit(context, data, lambda out: out.print(words, markup=False))
    return EXIT_FAILED if error else 0


def _deployment(context: Context, name: str) -> SlurmRemote:
    path = Path(name)
    if path.is_file():
        profile = load_profile(path.read_bytes(), name=name)
    else:
        with context.platform.ledger.read() as conn:
            profile = DeploymentProfile.from_snapshot(profiles.by_name(conn, name).spec)
    if isinstance(profile.deployment, SlurmRemote):
        return profile.deployment
    raise InputError(
        f"the profile {profile.name!r} is of kind {profile.deployment.kind}",
        code="profile_not_slurm",
        hint="only profiles of kind slurm_remote are reached over SSH",
    )


def _directory(store: CredentialStore, slot: str) -> Path:
    if not SAFE_NAME.fullmatch(slot) or ".." in slot or slot == ".":
        raise InputError(
            f"{slot!r} is no name of a slot",
            code="ssh_credential_invalid",
            hint="1 to 50 of A-Z a-z 0-9 . _ -, without two dots in a row",
        )
    return store.root / slot


def _new_key(store: CredentialStore, slot: str, data: bytes) -> Path:
    directory = _directory(store, slot)
    if any((directory / name).exists() for name in KEY_NAMES):
        raise ConflictError(
            f"the slot {slot!r} has a key",
            code="ssh_slot_taken",
            hint=f"take another name, or first: beampipe slurm credentials remove {slot}",
        )
    try:
        directory.mkdir(mode=_DIRECTORY, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{directory} cannot be made: {error.strerror}",
            code="ssh_credentials_dir_missing",
            hint="set BEAMPIPE_SSH_CREDENTIALS_DIR to a directory that you may write to",
        ) from error
    _write(directory / KEY_NAMES[0], data, _SECRET)
    return directory


def _public(directory: Path, key: asyncssh.SSHKey) -> str:
    public = key.export_public_key().decode().strip()
    _write(directory / f"{KEY_NAMES[0]}.pub", public.encode() + b"\n", 0o644)
    return public


def _write(path: Path, data: bytes, mode: int) -> None:
    # Closed to others from its first byte on, and never through a link that somebody left there.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    try:
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, flags, mode), "wb") as file:
            file.write(data)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}",
            code="ssh_credentials_dir_missing",
            hint="the directory must belong to the user who writes there",
        ) from error


def _state(store: CredentialStore, slot: str) -> dict[str, Any]:
    data: dict[str, Any] = {"slot": slot, "fingerprint": None, "hosts": None, "problem": None, "hint": None}
    try:
        found = store.load(slot)
    except ConfigError as error:
        return data | {"problem": error.message, "code": error.code, "hint": error.hint}
    return data | {"fingerprint": found.fingerprint, "hosts": len(found.known_hosts.entries)}
