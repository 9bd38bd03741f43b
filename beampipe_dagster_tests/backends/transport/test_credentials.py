"""Slots, their files, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import asyncssh
import pytest

from beampipe_dagster.backends.transport.credentials import Credential, CredentialStore, Jump
from beampipe_dagster.errors import ConfigError, Retry

KEY = asyncssh.generate_private_key("ssh-ed25519")
HOSTS = f"login.example {asyncssh.generate_private_key('ssh-ed25519').export_public_key().decode()}"
PEM = KEY.export_private_key()


class Slots:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.env: dict[str, str] = {"BEAMPIPE_SSH_CREDENTIALS_DIR": str(root)}

    def put(self, path: str, data: bytes | str, mode: int = 0o600) -> Path:
        made = self.root / path
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_bytes(data if isinstance(data, bytes) else data.encode())
        made.chmod(mode)
        return made

    def load(self, slot: str | None = "hpc", **env: str) -> Credential:
        return CredentialStore(environ={**self.env, **env}).load(slot)

    def refused(self, slot: str | None = "hpc", **env: str) -> str:
        with pytest.raises(ConfigError) as caught:
            self.load(slot, **env)
        assert caught.value.retry is Retry.LATER
        assert caught.value.hint
        return caught.value.code


@pytest.fixture
def slots(tmp_path: Path) -> Slots:
    made = Slots(tmp_path / "ssh")
    made.put("hpc/private_key", PEM)
    made.put("hpc/known_hosts", HOSTS)
    return made


def test_a_slot_holds_key_hosts_and_the_way(slots: Slots) -> None:
    slots.put("hpc/proxy_jump", "me@jump.example:2222\n")
    found = slots.load()
    assert found.fingerprint == KEY.get_fingerprint()
    assert found.jump == Jump("jump.example", 2222, "me")
    assert CredentialStore(environ=slots.env).slots() == ["hpc"]


def test_neither_key_nor_passphrase_is_ever_shown(slots: Slots) -> None:
    shown = repr(slots.load())
    assert "PRIVATE" not in shown
    assert "SSHKey" not in shown


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_a_key_that_others_may_read_is_refused(slots: Slots, mode: int) -> None:
    slots.put("hpc/private_key", PEM, mode)
    assert slots.refused() == "ssh_credential_exposed"


def test_hosts_that_others_may_change_are_refused(slots: Slots) -> None:
    slots.put("hpc/known_hosts", HOSTS, 0o666)
    assert slots.refused() == "ssh_credential_exposed"


@pytest.mark.skipif(os.geteuid() != 0, reason="only the super-user can give a file away")
def test_a_key_of_another_user_is_refused(slots: Slots) -> None:
    os.chown(slots.root / "hpc" / "private_key", 65534, 65534)
    assert slots.refused() == "ssh_credential_exposed"


def test_a_passphrase_keeps_its_spaces_and_loses_its_line_break(slots: Slots) -> None:
    slots.put("hpc/private_key", KEY.export_private_key("pkcs8-pem", " two words "))
    assert slots.refused() == "ssh_passphrase_wrong"
    slots.put("hpc/passphrase", "wrong\n")
    assert slots.refused() == "ssh_passphrase_wrong"
    slots.put("hpc/passphrase", " two words \n")
    assert slots.load().fingerprint == KEY.get_fingerprint()
    (slots.root / "hpc" / "passphrase").rename(slots.root / "hpc" / "passcode")
    assert slots.load().fingerprint == KEY.get_fingerprint()


def test_a_named_slot_never_takes_the_key_of_no_slot(slots: Slots) -> None:
    path = slots.put("global", PEM)
    assert slots.refused("other", SLURM_SSH_PRIVATE_KEY_PATH=str(path)) == "ssh_credential_missing"
    slots.put("known_hosts", HOSTS)
    assert slots.load(None, SLURM_SSH_PRIVATE_KEY_PATH=str(path)).fingerprint == KEY.get_fingerprint()
    own = {"SLURM_SSH_PRIVATE_KEY_PATH_MY_HPC_1": str(path)}
    assert slots.load("my-hpc.1", **own).fingerprint == KEY.get_fingerprint()


def test_a_path_is_taken_before_a_file(slots: Slots) -> None:
    slots.put("known_hosts", HOSTS)
    path = str(slots.put("global", PEM))
    found = slots.load(None, SLURM_SSH_PRIVATE_KEY_PATH=path, SLURM_SSH_PRIVATE_KEY_FILE="/nowhere")
    assert found.key is not None


def test_production_takes_no_links_no_inline_keys_and_no_home(slots: Slots, tmp_path: Path) -> None:
    production = {"BEAMPIPE_ENV": " Prod "}
    assert slots.load(**production).key is not None
    assert slots.refused(**production, SLURM_SSH_PRIVATE_KEY_HPC=PEM.decode()) == "ssh_credential_exposed"
    assert slots.load(SLURM_SSH_PRIVATE_KEY_HPC=PEM.decode()).key is not None
    key = slots.root / "hpc" / "private_key"
    key.rename(tmp_path / "moved")
    key.symlink_to(tmp_path / "moved")
    assert slots.refused(**production) == "ssh_credential_exposed"
    assert slots.load().key is not None
    with pytest.raises(ConfigError) as caught:
        CredentialStore(environ={**production, "HOME": str(tmp_path)}).load("hpc")
    assert caught.value.code == "ssh_credentials_dir_missing"


@pytest.mark.parametrize("slot", ["../hpc", "a/b", "a..b", "", "x" * 51])
def test_a_name_that_is_no_slot_reads_no_file(slots: Slots, slot: str) -> None:
    assert slots.refused(slot) == "ssh_credential_invalid"


def test_no_known_hosts_is_refused_and_the_roots_are_taken(slots: Slots) -> None:
    (slots.root / "hpc" / "known_hosts").unlink()
    assert slots.refused() == "ssh_known_hosts_missing"
    slots.put("known_hosts", HOSTS)
    assert len(slots.load().known_hosts.entries) == 1


def test_an_agent_signs_only_when_it_is_allowed_to(slots: Slots) -> None:
    (slots.root / "hpc" / "private_key").unlink()
    assert slots.refused(SSH_AUTH_SOCK="/run/agent") == "ssh_credential_missing"
    assert slots.load(SSH_AUTH_SOCK="/run/agent", BEAMPIPE_SSH_AGENT="1").agent_path == "/run/agent"
