from __future__ import annotations

from pathlib import Path

import pytest

from beampipe_dagster.discovery.staging.credentials import Credentials
from beampipe_dagster.errors import ConfigError

USER = {"CASDA_USERNAME": "me"}


def refused(environ: dict[str, str]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        Credentials.from_env(environ)
    return caught.value


def test_a_password_is_in_no_repr() -> None:
    made = Credentials.from_env({**USER, "CASDA_PASSWORD": " with blanks "})
    assert (made.username, made.password) == ("me", " with blanks ")
    assert "blanks" not in repr(made)


def test_a_password_may_be_in_a_file_that_nobody_else_may_read(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("from the file\n")
    path.chmod(0o600)
    given = {**USER, "CASDA_PASSWORD_FILE": str(path)}
    assert Credentials.from_env(given).password == "from the file"  # noqa: S105  # of this test
    for mode in (0o640, 0o604, 0o644):
        path.chmod(mode)
        error = refused(given)
        assert error.code == "staging_credentials_unusable"
        assert f"{mode:04o}" in error.message
        assert "chmod 600" in error.hint
        assert "from the file" not in str(error)


@pytest.mark.parametrize(
    ("environ", "code", "word"),
    [
        ({}, "staging_credentials_missing", "CASDA_USERNAME"),
        ({"CASDA_PASSWORD": "x"}, "staging_credentials_missing", "CASDA_USERNAME"),
        ({**USER, "CASDA_PASSWORD": ""}, "staging_credentials_missing", "CASDA_PASSWORD"),
        ({**USER, "CASDA_PASSWORD": "x", "CASDA_PASSWORD_FILE": "y"}, "staging_credentials_unusable", "both"),
        ({**USER, "CASDA_PASSWORD_FILE": "/nonexistent/p"}, "staging_credentials_unusable", "/nonexistent/p"),
    ],
)
def test_what_is_missing_is_named(environ: dict[str, str], code: str, word: str) -> None:
    error = refused(environ)
    assert (error.code, word in error.message) == (code, True)


def test_an_empty_file_is_no_password(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.touch(mode=0o600)
    assert "is empty" in refused({**USER, "CASDA_PASSWORD_FILE": str(path)}).message
