"""Commands between marks, with a real shell."""

from __future__ import annotations

import subprocess

from hypothesis import given, settings
from hypothesis import strategies as st

from beampipe_dagster.backends.transport.framing import after_mark, begin_mark, framed, go, unframe

TOKEN = "bp-0001"  # noqa: S105  # no secret


def run(
    command: str, stdin: bytes = b"", *, token: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    line = framed(command, TOKEN)
    given_ = go(TOKEN) if token is None else token
    return subprocess.run(
        ["sh", "-c", line], input=given_ + stdin, capture_output=True, timeout=20, check=False
    )


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 255))
def test_any_output_and_any_exit_status_come_through(data: bytes, status: int) -> None:
    found = unframe(run(f"cat; exit {status}", data).stdout, TOKEN)
    assert found is not None
    assert (found.output, found.exit_status) == (data, status)


def test_without_its_token_nothing_runs() -> None:
    for token in (b"", b"other\n"):
        done = run("echo ran", token=token)
        assert b"ran" not in done.stdout
        assert unframe(done.stdout, TOKEN) is not None


def test_a_command_that_is_no_shell_ends_with_a_status_of_its_own() -> None:
    found = unframe(run("if (").stdout, TOKEN)
    assert found is not None
    assert found.exit_status not in {None, 0}


def test_quotes_dollars_and_line_breaks_are_the_command() -> None:
    found = unframe(run("x='a \"b'\nprintf '%s $0' \"$x\"").stdout, TOKEN)
    assert found is not None
    assert found.output == b'a "b $0'


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_what_comes_before_the_mark_is_left_out_and_no_end_is_no_status(noise: bytes, output: bytes) -> None:
    data = noise + begin_mark(TOKEN) + output
    assert after_mark(data, TOKEN) == output
    found = unframe(data, TOKEN)
    assert found is not None
    assert (found.output, found.exit_status) == (output, None)
    assert unframe(noise, TOKEN) is None
