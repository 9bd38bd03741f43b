"""Files on login nodes by SFTP: put there whole or not at all, and read up to a bound."""

from __future__ import annotations

import asyncio
import hashlib
import posixpath
import shlex
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import asyncssh

from beampipe_dagster.backends.transport import failures
from beampipe_dagster.backends.transport.connection import Link, NotStartedError
from beampipe_dagster.backends.transport.ssh import SshPool
from beampipe_dagster.backends.transport.target import Command, Kind, SshTarget
from beampipe_dagster.errors import BackendError, BackendUnavailableError, InputError, Retry
from beampipe_dagster.ids import Ids

T = TypeVar("T")
_CHUNK: Final = 262_144
_MODE: Final = 0o600


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A file that is there, whole."""

    path: str
    size: int
    sha256: str


class RemoteFiles:
    """Puts and gets files.

    Parameters
    ----------
    pool
        The connections.
    seconds
        After which a transfer is given up.
    """

    def __init__(self, *, pool: SshPool, ids: Ids, seconds: float = 600.0) -> None:
        self._pool = pool
        self._ids = ids
        self._seconds = seconds

    def upload(self, target: SshTarget, path: str, data: bytes) -> Uploaded:
        """Put a file (mode 0600) in one step: another name first, then its digest, then its name.

        The same data may be put again: a file of that name is replaced, never half of it.

        Raises
        ------
        InputError
            ``remote_path_invalid``: the path is not absolute.
        BackendUnavailableError
            The connection was lost; nothing has that name that had not before, or the whole file has it.
        BackendError
            ``remote_file_refused`` by the server, ``remote_file_corrupt``.
        """
        _absolute(path)
        temporary = f"{path}.part-{self._ids.new()}"
        expected = hashlib.sha256(data).hexdigest()
        self._pool.use(
            target,
            lambda link: _bounded(_put(link, temporary, data), self._seconds, target.label, path),
            seconds=self._seconds,
            effects=False,
        )
        sums = Command(
            text=f"sha256sum -- {shlex.quote(temporary)}",
            kind=Kind.READS,
            seconds=self._seconds,
            max_bytes=8192,
        )
        answer = self._pool.run(target, sums)
        words = answer.stdout.removeprefix("\\").split()
        if answer.exit_status != 0 or not words or words[0] != expected:
            raise BackendError(
                f"{target.label}: {path} did not arrive as it was sent",
                code="remote_file_corrupt",
                hint="is the file system there full? the file is sent again",
                retry=Retry.LATER,
                details={"class": "dependency_unavailable"},
            )
        self._pool.use(
            target,
            lambda link: _bounded(_rename(link, temporary, path), self._seconds, target.label, path),
            seconds=self._seconds,
            effects=False,
        )
        return Uploaded(path, len(data), expected)

    def download(self, target: SshTarget, path: str, *, max_bytes: int, tail: bool = False) -> bytes | None:
        """Read a file; ``None`` when there is none.

        Parameters
        ----------
        max_bytes
            Most that is read.
        tail
            Read the end of a longer file, instead of refusing it.

        Raises
        ------
        InputError
            ``remote_path_invalid``.
        BackendError
            ``remote_file_too_long``, ``remote_file_refused``; ``ssh_lost`` when the connection was lost.
        """
        _absolute(path)
        size, data = self._pool.use(
            target,
            lambda link: _bounded(_get(link, path, max_bytes), self._seconds, target.label, path),
            seconds=self._seconds,
            effects=False,
        )
        if size is None:
            return None
        if size > max_bytes and not tail:
            raise BackendError(
                f"{target.label}: {path} has {size:,} bytes, more than {max_bytes:,}",
                code="remote_file_too_long",
                hint="read its end only",
                details={"class": "dependency_unavailable"},
            )
        return data


async def _put(link: Link, temporary: str, data: bytes) -> None:
    async with link.connection.start_sftp_client() as sftp:
        try:
            attrs = asyncssh.SFTPAttrs(permissions=_MODE)
            async with sftp.open(temporary, "xb", attrs) as file:
                for start in range(0, len(data), _CHUNK):
                    await file.write(data[start : start + _CHUNK])
                with suppress(asyncssh.SFTPOpUnsupported):  # the digest is checked anyhow
                    await file.fsync()
        except asyncssh.SFTPError:
            await _remove(sftp, temporary)
            raise


async def _rename(link: Link, temporary: str, path: str) -> None:
    async with link.connection.start_sftp_client() as sftp:
        try:
            await sftp.posix_rename(temporary, path)
        except asyncssh.SFTPError:
            await _remove(sftp, temporary)
            raise


async def _remove(sftp: asyncssh.SFTPClient, path: str) -> None:
    try:
        await sftp.remove(path)
    except (asyncssh.Error, OSError):
        return  # a part that stays is in nobody's way


async def _get(link: Link, path: str, max_bytes: int) -> tuple[int | None, bytes]:
    async with link.connection.start_sftp_client() as sftp:
        try:
            async with sftp.open(path, "rb") as file:
                size = (await file.stat()).size or 0
                await file.seek(max(0, size - max_bytes))
                return size, await file.read(max_bytes)
        except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath):
            return None, b""


async def _bounded(work: Coroutine[Any, Any, T], seconds: float, label: str, path: str) -> T:
    """The work within its time, its failures in our own words."""
    try:
        return await asyncio.wait_for(work, seconds)
    except asyncssh.ChannelOpenError as error:
        raise NotStartedError(failures.told(error)) from error
    except (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection) as error:
        raise _lost(label, path, error, "connectivity") from error
    except asyncssh.SFTPError as error:
        raise BackendError(
            f"{label}: the server refuses {path}: {failures.told(error)}",
            code="remote_file_refused",
            hint="does the directory exist, may the user write there, and is there room?",
            details={"class": "dependency_unavailable"},
        ) from error
    except failures.TIMEOUTS as error:
        raise _lost(label, path, error, "timeout") from error
    except (asyncssh.Error, OSError) as error:
        raise _lost(label, path, error, "connectivity") from error


def _lost(label: str, path: str, error: Exception, failure: str) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"{label}: the transfer of {path} was cut off: {failures.told(error)}",
        code="ssh_lost",
        hint="no file was left half: it is done again later",
        details={"class": failure},
    )


def _absolute(path: str) -> None:
    if not path.startswith("/") or posixpath.normpath(path) != path or "\0" in path:
        raise InputError(
            f"{path!r} is no absolute path of a file",
            code="remote_path_invalid",
            hint="give a path from the root, without . and ..",
        )
