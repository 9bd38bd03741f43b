"""Which host keys are believed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import asyncssh
import pytest

from beampipe_dagster.backends.transport.known_hosts import KnownHosts, host_matches
from beampipe_dagster.errors import ConfigError

KEY = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()
OTHER = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()


def trusted(text: str, host: str, port: int = 22) -> int:
    return len(KnownHosts.parse(text).keys(host, port)[0])


def test_names_that_openssh_has_hashed_are_found(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(f"login.example,10.0.0.1 {KEY}\n[login.example]:2222 {OTHER}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(path)], check=True, capture_output=True)
    text = path.read_text()
    assert "login" not in text
    assert (trusted(text, "login.example"), trusted(text, "10.0.0.1"), trusted(text, "other.example")) == (
        1,
        1,
        0,
    )
    ((key,), _, _) = KnownHosts.parse(text).keys("login.example", 2222)
    assert key.export_public_key().decode().split()[:2] == OTHER.split()[:2]


def test_a_port_of_its_own_is_looked_for_before_the_host_alone() -> None:
    assert trusted(f"login.example {KEY}\n", "login.example", 2222) == 1
    assert trusted(f"[login.example]:2222 {KEY}\n", "login.example") == 0


def test_a_key_that_is_revoked_for_a_host_is_so_on_all_of_its_ports() -> None:
    text = f"[login.example]:2222 {KEY}\n@revoked login.example {OTHER}\n"
    assert [len(keys) for keys in KnownHosts.parse(text).keys("login.example", 2222)] == [1, 0, 1]


def test_what_is_excluded_is_excluded_wherever_it_stands() -> None:
    assert host_matches(["*", "!bad.example"], "good.example")
    assert not host_matches(["!bad.example", "*"], "bad.example")
    assert not host_matches(["!bad.example"], "good.example"), "an exclusion alone names nobody"
    assert not host_matches(["a.b"], "axb"), "a dot is a dot"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        f"@revoked * {KEY}\n",
        f"@trusted * {KEY}\n",
        "login.example ssh-ed25519\n",
        "login.example ssh-ed25519 AAAA\n",
        f"|1|not|base64! {KEY}\n",
        f"|2|AAAA|AAAA {KEY}\n",
        "@revoked\n",
    ],
    ids=[
        "empty",
        "comment",
        "revoked-only",
        "marker",
        "no-key",
        "bad-key",
        "bad-hash",
        "hash-kind",
        "marker-only",
    ],
)
def test_a_file_that_cannot_be_read_whole_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        KnownHosts.parse(text)
    assert caught.value.code == "ssh_known_hosts_invalid"
