"""One SSH connection in the process's loop: how it is made, and how a command runs on it. Coroutines only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import asyncssh

from beampipe_dagster.backends.transport import failures
from beampipe_dagster.backends.transport.credentials import Credential
from beampipe_dagster.backends.transport.framing import after_mark, framed, go, unframe
from beampipe_dagster.backends.transport.target import Command, CommandResult, Options

_CHUNK: Final = 65_536
_STDERR: Final = 65_536
_OPEN_WAIT: Final = 0.1
_ROOM_FOR_NOISE: Final = 262_144


@dataclass(slots=True)
class Link:
    """A live connection and the one that it leads through."""

    connection: asyncssh.SSHClientConnection
    through: asyncssh.SSHClientConnection | None
    host: str

    @property
    def closed(self) -> bool:
        """Whether it can no longer be used."""
        return self.connection.is_closed()

    def abort(self) -> None:
        """Close at once."""
        self.connection.abort()
        if self.through is not None:
            self.through.abort()


async def connect(host: str, port: int, user: str, credential: Credential, options: Options) -> Link:
    """Connect to one host, through the credential's jump host where there is one.

    Whatever asyncssh raises is raised; each step is bounded.
    """
    through = None
    if (jump := credential.jump) is not None:
        through = await _connect(jump.host, jump.port, jump.user or user, credential, options)
    try:
        made = await _connect(host, port, user, credential, options, through=through)
    except BaseException:
        if through is not None:
            through.abort()
        raise
    return Link(made, through, host)


async def _connect(
    host: str,
    port: int,
    user: str,
    credential: Credential,
    options: Options,
    *,
    through: asyncssh.SSHClientConnection | None = None,
) -> asyncssh.SSHClientConnection:
    if credential.key is not None:
        return await _logged_in(host, port, user, credential, options, [credential.key], through)
    # An agent's keys are named one by one: asyncssh would otherwise take those of the user's home, too.
    async with asyncssh.connect_agent(credential.agent_path or "") as agent:
        keys = list(await asyncio.wait_for(agent.get_keys(), options.connect_seconds))
        if not keys:
            raise asyncssh.PermissionDenied("the agent holds no key")
        return await _logged_in(host, port, user, credential, options, keys, through)


async def _logged_in(
    host: str,
    port: int,
    user: str,
    credential: Credential,
    options: Options,
    keys: Sequence[asyncssh.SSHKey | asyncssh.SSHKeyPair],
    through: asyncssh.SSHClientConnection | None,
) -> asyncssh.SSHClientConnection:
    trusted, authorities, revoked = credential.known_hosts.keys(host, port)
    # Nothing of the user's own files is read: what is not in the slot does not exist.
    return await asyncio.wait_for(
        asyncssh.connect(
            host,
            port,
            username=user,
            tunnel=through,
            config=None,
            client_keys=list(keys),
            agent_path=None,
            known_hosts=(trusted, authorities, revoked, [], [], [], []),
            preferred_auth="publickey",
            connect_timeout=options.connect_seconds,
            login_timeout=options.connect_seconds,
            keepalive_interval=options.keepalive_seconds,
            keepalive_count_max=3,
        ),
        options.connect_seconds * 2,
    )


class NotStartedError(Exception):
    """The connection was of no use: nothing of the command has run."""


async def run(link: Link, command: Command, token: str, *, label: str) -> CommandResult:
    """Run one command; bounded by its own seconds and bytes.

    Raises
    ------
    NotStartedError
        Nothing has run.
    BackendError
        As :mod:`failures` makes them.
    """
    began = time.monotonic()
    deadline = began + command.seconds
    process = await _opened(link, framed(command.text, token), deadline)
    talk = _Talk(process, command, token, label)
    try:
        await asyncio.wait_for(talk.all(), max(deadline - time.monotonic(), 0.01))
    except failures.TIMEOUTS as error:
        raise talk.ended_early(f"no end after {command.seconds:.0f} s", failure="timeout") from error
    except (asyncssh.Error, OSError) as error:
        raise talk.ended_early(f"the connection was lost: {failures.told(error)}") from error
    finally:
        process.close()
    return talk.result(link.host, time.monotonic() - began)


async def _opened(link: Link, line: str, deadline: float) -> asyncssh.SSHClientProcess[bytes]:
    """A channel, waited for while the server has none left; nothing runs before its token is sent."""
    while True:
        left = deadline - time.monotonic()
        if link.closed or left <= 0:
            raise NotStartedError("the connection is closed" if link.closed else "no channel in time")
        try:
            return await asyncio.wait_for(link.connection.create_process(line, encoding=None), left)
        except asyncssh.ChannelOpenError as error:
            if link.closed:
                raise NotStartedError(failures.told(error)) from error
            await asyncio.sleep(_OPEN_WAIT)
        except (asyncssh.Error, OSError, *failures.TIMEOUTS) as error:
            raise NotStartedError(failures.told(error)) from error


class _Talk:
    """One command's input and outputs."""

    def __init__(
        self, process: asyncssh.SSHClientProcess[bytes], command: Command, token: str, label: str
    ) -> None:
        self._process = process
        self._command = command
        self._token = token
        self._label = label
        self._out = bytearray()
        self._err = bytearray()
        self._sent = False
        self._begun = asyncio.Event()

    async def all(self) -> None:
        """Talk to the end of the command's output."""
        tasks = [asyncio.ensure_future(part) for part in (self._read(), self._read_errors(), self._write())]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _read(self) -> None:
        limit = self._command.max_bytes + _ROOM_FOR_NOISE
        try:
            while data := await self._process.stdout.read(_CHUNK):
                self._out += data
                if not self._begun.is_set() and unframe(bytes(self._out), self._token) is not None:
                    self._begun.set()
                if len(self._out) > limit:
                    raise failures.too_long(
                        self._label, self._command.max_bytes, effects=self._command.effects and self._sent
                    )
        finally:
            self._begun.set()

    async def _read_errors(self) -> None:
        while data := await self._process.stderr.read(_CHUNK):
            # What is too much is read and forgotten: an output that nobody reads would block the command.
            self._err += data[: max(0, 2 * _STDERR - len(self._err))]

    async def _write(self) -> None:
        if self._command.effects:
            await self._begun.wait()
            if unframe(bytes(self._out), self._token) is None:
                return
        self._sent = True
        try:
            self._process.stdin.write(go(self._token) + self._command.stdin)
            await self._process.stdin.drain()
            self._process.stdin.write_eof()
        except (BrokenPipeError, ConnectionResetError):
            return  # the command ended without reading its input

    def ended_early(self, why: str, *, failure: str = "connectivity") -> Exception:
        """The error for a command whose end was not seen; a complete frame is an end that was."""
        found = unframe(bytes(self._out), self._token)
        if self._sent or (found is not None and not self._command.effects):
            return failures.lost(self._label, why, effects=self._command.effects, failure=failure)
        return NotStartedError(why)

    def result(self, host: str, seconds: float) -> CommandResult:
        """What came of it, once the output has ended."""
        found = unframe(bytes(self._out), self._token)
        if found is None and self._process.exit_status is not None:
            raise failures.no_shell(self._label, bytes(self._out + self._err))
        if found is None or found.exit_status is None:
            raise self.ended_early("the connection was lost while the command ran")
        if len(found.output) > self._command.max_bytes:
            raise failures.too_long(self._label, self._command.max_bytes, effects=self._command.effects)
        error = after_mark(bytes(self._err), self._token)[:_STDERR]
        return CommandResult(
            exit_status=found.exit_status,
            stdout=found.output.decode(errors="replace"),
            stderr=error.decode(errors="replace"),
            host=host,
            seconds=seconds,
        )
