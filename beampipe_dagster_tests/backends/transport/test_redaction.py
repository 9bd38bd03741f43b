"""What lets somebody in is not shown."""

from __future__ import annotations

import asyncssh
import pytest

from beampipe_dagster.backends.transport.redaction import redacted, redacted_value, secret_paths
from beampipe_dagster.config.canonical import JsonValue


@pytest.mark.parametrize(
    "text",
    [
        "see Authorization: Bearer hunter22",
        "PASSPHRASE=hunter22 sbatch",
        "https://me:hunter22@host/path",
        "https://host/?access_token=hunter22&ok=1",
        "password: 'hunter22'",
    ],
)
def test_secrets_go_and_the_rest_stays(text: str) -> None:
    shown = redacted(f"before {text} after")
    assert "hunter22" not in shown
    assert shown.startswith("before ")
    assert shown.endswith(" after")


def test_a_private_key_goes_whole_also_when_it_is_cut_off() -> None:
    pem = asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()
    assert redacted(pem[:200]) == "[REDACTED]"
    assert redacted(f"a {pem.strip()} b") == "a [REDACTED] b"


def test_keys_name_what_is_secret_at_any_depth() -> None:
    value: JsonValue = {"a": [{"passcode": {"x": 1}}], "token": None, "plain": "b"}
    assert list(secret_paths(value)) == ["a[0].passcode"]
    assert redacted_value(value) == {"a": [{"passcode": "[REDACTED]"}], "token": None, "plain": "b"}
