"""What looks like a secret, and what only talks about one."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.config.secrets import find_secrets, secret_in


@pytest.mark.parametrize(
    "text",
    [
        "-----BEGIN PRIVATE KEY-----",
        "a\n-----BEGIN OPENSSH PRIVATE KEY-----\nb",
        "https://me:hunter2@archive.example/tap",
        "ghp_0123456789abcdefghij",
        "github_pat_11ABCDEFG0123456789_abc",
        "glpat-abcdefghijklmnopqrst",
        "xoxb-123456789012-abcdef",
        "AKIAIOSFODNN7EXAMPLE",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc",
        "Authorization: Bearer abcdefgh12345",
        "export CASDA_PASSWORD=hunter2",
        "api_key = 'abc'",
        "TOKEN=abc; srun x",
        "curl --password hunter2",
        "--token 'abc'",
    ],
)
def test_the_usual_shapes_of_secrets_are_found(text: str) -> None:
    assert secret_in(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "srun -l",
        "/home/me/.ssh/id_ed25519",
        "https://archive.example:8443/tap",
        "https://me@archive.example/tap",
        "ssh://host/path@2:3",
        "export CASDA_PASSWORD=$CASDA_PASSWORD",
        'export CASDA_PASSWORD="$(cat ~/.password)"',
        "export TOKEN=`cat token`",
        "export TOKEN=<your token>",
        "export TOKEN_FILE=/run/token",
        "export PASSWORD=",
        "a == b and token == c",
        "the token is in the environment",
        "Bearer $TOKEN",
        "--password $PASSWORD",
        "--password --other",
        "SELECT o.secret FROM t WHERE o.token = {x}",
        "-----BEGIN CERTIFICATE-----",
        "-----BEGIN PUBLIC KEY-----",
    ],
)
def test_what_only_speaks_of_secrets_is_left_alone(text: str) -> None:
    assert secret_in(text) is None


def test_secrets_are_found_at_any_depth_in_the_order_of_the_document() -> None:
    value: JsonValue = {"b": ["x", {"c": "TOKEN=abc"}], "a": {"password": "x", "tokens": ["y"]}}
    assert [path for path, _ in find_secrets(value, keys=True)] == [
        ("b", 1, "c"),
        ("a", "password"),
        ("a", "tokens", 0),
    ]
    assert [path for path, _ in find_secrets(value, keys=False)] == [("b", 1, "c")]


@pytest.mark.parametrize(
    ("key", "secret"),
    [
        ("password", True),
        ("smtp_password", True),
        ("apiKey", True),
        ("api-key", True),
        ("ssh_private_key", True),
        ("accessToken", True),
        ("Authorization", True),
        ("passphrase", True),
        ("tokenizer", False),
        ("secretary", False),
        ("keyword", False),
        ("monkey", False),
        ("num_tokens_max", False),
    ],
)
def test_a_key_makes_a_secret_of_its_text_when_it_is_the_name_of_one(key: str, *, secret: bool) -> None:
    assert bool([*find_secrets({key: "x"}, keys=True)]) is secret
    assert [*find_secrets({key: " "}, keys=True)] == []
    assert [*find_secrets({key: 5}, keys=True)] == []


@given(st.text())
def test_any_text_can_be_looked_at(text: str) -> None:
    assert secret_in(text) is None or isinstance(secret_in(text), str)


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        "token",
        "token=$",
        "://",
        "://a:",
        "eyJ",
        "eyJaaaaaaaaaa.",
        "bearer ",
        "-----BEGIN ",
        "ghp_",
        "--token ",
    ],
)
def test_no_text_takes_long(piece: str) -> None:
    text = piece * (500_000 // len(piece))
    begin = time.process_time()
    secret_in(text)
    assert time.process_time() - begin < 2
