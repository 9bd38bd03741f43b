"""Marks around what commands print, so that nothing which a login shell says is taken for an answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from beampipe_dagster.errors import BackendUnavailableError, InputError

_NONCE: Final = re.compile(r"[A-Za-z0-9]{8,64}")
PRELUDE: Final = "LC_ALL=C SLURM_TIME_FORMAT=%s TZ=UTC; export LC_ALL SLURM_TIME_FORMAT TZ\n"
"""Words in English, times as seconds: what the parsers read."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What one command of a script printed.

    Parameters
    ----------
    text
        Both of its streams.
    code
        Its exit code; 124 and 137 are those of ``timeout``.
    """

    text: str
    code: int


def checked_nonce(nonce: str) -> str:
    """A word that no answer holds by chance, fit for every shell.

    Raises
    ------
    InputError
        ``invalid_nonce``.
    """
    if not _NONCE.fullmatch(nonce):
        raise InputError(
            f"{nonce!r} cannot mark an answer", code="invalid_nonce", hint="Give 8 to 64 letters and digits."
        )
    return nonce


def framed(name: str, nonce: str) -> str:
    """Shell lines that print ``$bp_out`` and ``$bp_rc`` as a frame."""
    mark = checked_nonce(nonce)
    return f'printf \'\\n@{mark}@{name}\\n%s\\n@{mark}@end %s\\n\' "$bp_out" "$bp_rc"\n'


def frames(output: str, nonce: str) -> dict[str, Frame]:
    """The frames of an output, by name; a frame without an end is left out."""
    mark = re.escape(f"@{checked_nonce(nonce)}@")
    form = re.compile(rf"^{mark}(?!end )(\w+)\n(.*?)\n{mark}end (\d+)$", re.DOTALL | re.MULTILINE)
    return {found[1]: Frame(found[2] + "\n", int(found[3])) for found in form.finditer(output)}


def the_frame(output: str, nonce: str, name: str) -> Frame:
    """A frame that must be there.

    Raises
    ------
    BackendUnavailableError
        ``incomplete_answer``.
    """
    found = frames(output, nonce).get(name)
    if found is None:
        raise BackendUnavailableError(
            f"the login node's answer holds no complete result of {name}: {output[-200:]!r}",
            code="incomplete_answer",
            hint="The connection or the command was cut; the next tick asks again.",
        )
    return found
