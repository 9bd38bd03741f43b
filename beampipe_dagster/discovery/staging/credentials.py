"""Who we are for an archive that wants to know: read from the environment when it is needed, never kept.

``CASDA_USERNAME`` with ``CASDA_PASSWORD``, or with ``CASDA_PASSWORD_FILE``: a file that nobody else may read. What
is wrong with them is a matter of the platform, not of an execution: executions wait until it is put right.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from beampipe_dagster.errors import ConfigError, Retry

_LIMIT = 4096
_HINT = "set CASDA_USERNAME, and CASDA_PASSWORD or CASDA_PASSWORD_FILE, for the daemon and the code location"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user's name and password; the password is in no ``repr``."""

    username: str
    password: str = field(repr=False)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Credentials:
        """Read them.

        Raises
        ------
        ConfigError
            ``staging_credentials_missing``; ``staging_credentials_unusable``: both a password and a file are
            given, or the file cannot be read, or others may read it.
        """
        env = os.environ if environ is None else environ
        username = env.get("CASDA_USERNAME", "").strip()
        password, path = env.get("CASDA_PASSWORD", ""), env.get("CASDA_PASSWORD_FILE", "").strip()
        if not username or not (password or path):
            missing = "CASDA_USERNAME" if not username else "CASDA_PASSWORD"
            raise ConfigError(
                f"staging files of CASDA needs an account, and {missing} is not set",
                code="staging_credentials_missing",
                hint=_HINT,
                retry=Retry.LATER,
            )
        if password and path:
            raise _unusable("CASDA_PASSWORD and CASDA_PASSWORD_FILE are both set", "unset one of them")
        return cls(username, password or _from_file(Path(path)))


def _from_file(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise _unusable(
                    f"CASDA_PASSWORD_FILE {path} may be read by others (mode {mode:04o})",
                    f"chmod 600 {path}",
                )
            password = file.read(_LIMIT).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise _unusable(f"CASDA_PASSWORD_FILE {path} cannot be read: {reason}", _HINT) from error
    if not password:
        raise _unusable(f"CASDA_PASSWORD_FILE {path} is empty", "put the password into it, in one line")
    return password


def _unusable(message: str, hint: str) -> ConfigError:
    return ConfigError(message, code="staging_credentials_unusable", hint=hint, retry=Retry.LATER)
