"""Which host keys are believed: OpenSSH's ``known_hosts`` (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT), read strictly.

Plain and hashed names, wildcards and negation, ``[host]:port``, ``@cert-authority`` and ``@revoked``. A line that
cannot be read is an error, never left out: it might be the one that revokes a key. Names are compared without
regard to case, as DNS does.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import asyncssh

from beampipe_dagster.errors import ConfigError

DEFAULT_PORT: Final = 22
_MARKERS: Final = frozenset({"@cert-authority", "@revoked"})
_HASHED: Final = "|1|"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line.

    Attributes
    ----------
    marker
        Empty, ``@cert-authority`` or ``@revoked``.
    patterns
        Names, or one hashed name.
    """

    marker: str
    patterns: tuple[str, ...]
    key: asyncssh.SSHKey


class KnownHosts:
    """The lines of a file.

    Parameters
    ----------
    entries
        As :meth:`parse` reads them.
    name
        What messages call the file.
    """

    def __init__(self, entries: Sequence[Entry], *, name: str) -> None:
        self.entries = tuple(entries)
        self.name = name

    @classmethod
    def parse(cls, text: str, *, name: str = "known_hosts") -> KnownHosts:
        """Read a file's text.

        Raises
        ------
        ConfigError
            ``ssh_known_hosts_invalid``: a line cannot be read, or there is no host in the file.
        """
        lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), start=1))
        entries = [
            _entry(line, f"{name} line {number}")
            for number, line in lines
            if line and not line.startswith("#")
        ]
        if all(entry.marker == "@revoked" for entry in entries):
            raise _invalid(f"{name} names no host that is trusted")
        return cls(entries, name=name)

    def keys(
        self, host: str, port: int = DEFAULT_PORT
    ) -> tuple[list[asyncssh.SSHKey], list[asyncssh.SSHKey], list[asyncssh.SSHKey]]:
        """Keys that the host may show, keys that may sign such keys, and keys that are revoked.

        A port of its own is looked for first, then the host alone. A key that is revoked for the host is so on all
        of its ports.
        """
        exact = [entry for entry in self.entries if host_matches(entry.patterns, host, port)]
        plain = [entry for entry in self.entries if host_matches(entry.patterns, host, DEFAULT_PORT)]
        trusted = [entry for entry in exact if entry.marker != "@revoked"] or plain
        return (
            [entry.key for entry in trusted if not entry.marker],
            [entry.key for entry in trusted if entry.marker == "@cert-authority"],
            [entry.key for entry in (*exact, *plain) if entry.marker == "@revoked"],
        )


def host_matches(patterns: Sequence[str], host: str, port: int = DEFAULT_PORT) -> bool:
    """Whether a line with these names is about the host.

    Parameters
    ----------
    patterns
        ``*`` and ``?`` are wildcards, ``!`` before a pattern excludes what it matches, whatever else matches.
        On another port than 22 a host is called ``[host]:port``.
    """
    name = host.lower() if port == DEFAULT_PORT else f"[{host.lower()}]:{port}"
    found = False
    for pattern in patterns:
        excluded, plain = pattern.startswith("!"), pattern.removeprefix("!")
        if not _matches(plain, name):
            continue
        if excluded:
            return False
        found = True
    return found


def _matches(pattern: str, name: str) -> bool:
    if pattern.startswith("|"):
        salt, digest = (base64.b64decode(part) for part in pattern.removeprefix(_HASHED).split("|"))
        return hmac.compare_digest(hmac.new(salt, name.encode(), "sha1").digest(), digest)
    parts = (".*" if char == "*" else "." if char == "?" else re.escape(char) for char in pattern.lower())
    return re.fullmatch("".join(parts), name, re.DOTALL) is not None


def _entry(line: str, place: str) -> Entry:
    words = line.split()
    marker = words.pop(0) if words[0].startswith("@") else ""
    if marker and marker not in _MARKERS:
        raise _invalid(f"{place}: the marker {marker!r} is not known")
    if len(words) < 3:  # names, kind of key, key
        raise _invalid(f"{place} is not 'names kind-of-key key'")
    patterns = tuple(part for part in words[0].split(",") if part)
    if any(part.startswith("|") and not _is_hash(part) for part in patterns) or not patterns:
        raise _invalid(f"{place}: the hashed name cannot be read")
    try:
        key = asyncssh.import_public_key(" ".join(words[1:3]))
    except (asyncssh.KeyImportError, ValueError) as error:
        raise _invalid(f"{place}: the key cannot be read") from error
    return Entry(marker, patterns, key)


def _is_hash(part: str) -> bool:
    if not part.startswith(_HASHED) or part.count("|") != 3:  # |1|salt|digest
        return False
    try:
        return all(base64.b64decode(half, validate=True) for half in part.removeprefix(_HASHED).split("|"))
    except (binascii.Error, ValueError):
        return False


def _invalid(message: str) -> ConfigError:
    return ConfigError(
        message,
        code="ssh_known_hosts_invalid",
        hint="put the host's line there, compared with what the site publishes; one is read by: ssh-keyscan HOST",
    )
