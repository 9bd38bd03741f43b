"""`beampipe slurm`: slots, and whether a cluster lets us in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from beampipe_dagster_tests.cli.support import Beampipe
from beampipe_dagster_tests.support.sshd import Sshd, sshd

__all__ = ["sshd"]


class Calls:
    def __init__(self, home: Path) -> None:
        self.root = home / "ssh"
        self.beampipe = Beampipe(home)

    def __call__(self, *args: str, exit_code: int = 0, stdin: str | None = None) -> Any:
        env = {"BEAMPIPE_SSH_CREDENTIALS_DIR": str(self.root)}
        result = self.beampipe("slurm", *args, "--json", env=env, stdin=stdin)
        assert result.exit_code == exit_code, result.output
        return json.loads(result.stdout or result.stderr)


@pytest.fixture
def calls(tmp_path: Path) -> Calls:
    return Calls(tmp_path)


def test_a_new_slot_has_a_key_of_its_own_that_nobody_else_may_read(calls: Calls) -> None:
    made = calls("credentials", "init", "hpc")
    assert made["public_key"].startswith("ssh-ed25519 ")
    assert (calls.root / "hpc" / "private_key").stat().st_mode & 0o777 == 0o600
    calls("credentials", "init", "hpc", exit_code=1)
    (found,) = calls("credentials", "check", "hpc", exit_code=1)["slots"]
    assert found["code"] == "ssh_known_hosts_missing"


def test_a_key_is_imported_with_its_passphrase_and_hosts(calls: Calls, tmp_path: Path) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    (tmp_path / "key").write_bytes(key.export_private_key("pkcs8-pem", "two words"))
    (tmp_path / "hosts").write_text(f"login.example {key.export_public_key().decode()}")
    args = ("credentials", "import", "hpc", str(tmp_path / "key"), "--known-hosts", str(tmp_path / "hosts"))
    calls(*args, exit_code=1)
    found = calls(*args, "--passphrase-stdin", stdin="two words\n")
    assert (found["problem"], found["fingerprint"]) == (None, key.get_fingerprint())
    assert [item["slot"] for item in calls("credentials", "list")["slots"]] == ["hpc"]
    calls("credentials", "remove", "hpc", "--yes")
    assert calls("credentials", "list")["slots"] == []


@pytest.mark.parametrize("name", ["..", ".", "a/b", "../x"])
def test_a_name_that_leads_elsewhere_is_no_slot(calls: Calls, name: str) -> None:
    calls("credentials", "remove", name, "--yes", exit_code=1)
    calls("credentials", "init", name, exit_code=1)


def test_a_ping_says_whether_the_cluster_lets_us_in(calls: Calls, tmp_path: Path, sshd: Sshd) -> None:
    public = calls("credentials", "init", "hpc")["public_key"]
    sshd.allow(asyncssh.generate_private_key("ssh-ed25519"))
    sshd.start()
    (calls.root / "hpc" / "known_hosts").write_text(sshd.known_hosts())
    (calls.root / "hpc" / "known_hosts").chmod(0o600)
    profile = tmp_path / "profile.json"
    deployment = {
        "kind": "slurm_remote",
        "login_node": "127.0.0.1",
        "ssh_port": sshd.port,
        "remote_user": sshd.user,
        "ssh_credential": "hpc",
        "account": "a",
        "home_dir": "/h",
        "log_dir": "/l",
        "dlg_root": "/d",
    }
    profile.write_text(json.dumps({"name": "hpc", "translation": {}, "deployment": deployment}))
    refused = calls("ping", str(profile), exit_code=1)
    assert refused["error"]["code"] == "ssh_needs_login"
    sshd.authorized.write_text(public + "\n")
    assert calls("ping", str(profile))["answered"] is True
