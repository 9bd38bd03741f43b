"""The sandbox archive as a process (``python -m beampipe_dagster.sandbox.archive``) and as a test server."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast, get_args

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from beampipe_dagster.clock import Clock
from beampipe_dagster.errors import BeampipeError, ConfigError
from beampipe_dagster.sandbox.archive.app import create_app
from beampipe_dagster.sandbox.archive.faults import FaultSwitches
from beampipe_dagster.sandbox.archive.store import ArchiveStore, Seed

_START_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 5.0

# Connections by the peer's address, over all servers of the process: no two share an address.
_connections: dict[tuple[Any, ...], asyncio.Transport] = {}


class _Protocol(H11Protocol):
    """HTTP whose connections can be looked up, so that faults can close one."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Remember the connection."""
        super().connection_made(transport)
        _connections[_key(self)] = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        _connections.pop(_key(self), None)
        super().connection_lost(exc)


def _key(protocol: H11Protocol) -> tuple[Any, ...]:
    return (protocol.server, protocol.client)


class _Server(uvicorn.Server):
    """uvicorn whose stop ends jobs, queries and long polls first, and which leaves signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """No signal handlers: the owner of the process decides."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop everything that may last, then what uvicorn does."""
        self.config.app.state.stop()  # type: ignore[union-attr]
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises
    ------
    ConfigError
        ``port_taken`` naming the port, or ``invalid_address``.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # With its protocol named: only then asyncio turns off Nagle's algorithm (40 ms an answer).
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        # A restart must not wait for old connections; Linux still refuses a port that is listened on.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(128)
    except (OSError, OverflowError) as error:
        taken = isinstance(error, OSError) and "in use" in str(error)
        raise ConfigError(
            f"Port {port} on {host} is in use by another process."
            if taken
            else f"The address {host}:{port} cannot be listened on: {error}",
            code="port_taken" if taken else "invalid_address",
            hint="Give another port with --port; 0 takes a free one.",
        ) from error
    return sock


def make_server(store: ArchiveStore, *, clock: Clock | None = None) -> uvicorn.Server:
    """A server of the archive over a store, for a socket of :func:`listen`."""
    faults = FaultSwitches(store.data_dir / "faults.json")
    app = create_app(store, faults, clock=clock)
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    app.state.close_connection = _close
    return _Server(config)


def _close(server: tuple[str, int] | None, client: tuple[str, int] | None) -> bool:
    """Close a connection after what was written to it; False when it is not known."""
    transport = _connections.get((server, client))
    if transport is None:
        return False
    transport.close()
    return True


class ArchiveServer:
    """The archive on a free port in a thread of this process; a context manager.

    Parameters
    ----------
    data_dir
        Where its files are.
    seed
        ``demo`` or ``empty``.
    host, port
        Where it listens; port 0 takes a free one.
    clock
        Gives deposits their times.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        seed: Seed = "demo",
        host: str = "127.0.0.1",
        port: int = 0,
        clock: Clock | None = None,
    ) -> None:
        self.store = ArchiveStore(data_dir=data_dir, seed=seed, clock=clock)
        self._host = host
        self._port = port
        self._clock = clock
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def base_url(self) -> str:
        """The root of the service, without a slash at its end."""
        return f"http://{self._host}:{self._port}"

    @property
    def casda_url(self) -> str:
        """The TAP service that answers for CASDA."""
        return f"{self.base_url}/casda/tap"

    @property
    def vizier_url(self) -> str:
        """The TAP service that answers for VizieR."""
        return f"{self.base_url}/vizier/tap"

    def start(self) -> None:
        """Listen, and return when the service answers.

        Raises
        ------
        ConfigError
            ``port_taken``, ``invalid_address``, or ``server_not_started``.
        """
        sock = listen(self._host, self._port)
        self._port = int(sock.getsockname()[1])
        server = make_server(self.store, clock=self._clock)
        started = threading.Event()
        thread = threading.Thread(
            target=lambda: asyncio.run(_serve(server, sock, started.set)),
            name="sandbox-archive",
            daemon=True,
        )
        thread.start()
        self._server, self._thread = server, thread
        if not started.wait(_START_TIMEOUT_S):
            self.stop()
            raise ConfigError(
                f"The sandbox archive did not start on {self.base_url}.", code="server_not_started"
            )

    def stop(self) -> None:
        """Stop listening and end everything that runs; the port stays the same for a new start."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(_STOP_TIMEOUT_S)
        self._server = self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


async def _serve(server: uvicorn.Server, sock: socket.socket, ready: Callable[[], None]) -> None:
    """Run a server; ``ready()`` is called once it answers."""
    task = asyncio.create_task(server.serve(sockets=[sock]))
    while not server.started and not task.done():  # noqa: ASYNC110  # uvicorn offers a flag, no event
        await asyncio.sleep(0.005)
    if server.started:
        ready()
    await task


async def _serve_until_signal(server: uvicorn.Server, sock: socket.socket, ready: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    await _serve(server, sock, ready)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the archive until SIGTERM or SIGINT.

    Returns
    -------
    int
        0 after a clean stop, 2 when it could not start; the reason is one line on standard error.
    """
    parser = argparse.ArgumentParser(
        prog="python -m beampipe_dagster.sandbox.archive",
        description="A TAP 1.1 archive with CASDA-like and VizieR-like tables, for demos and tests.",
    )
    parser.add_argument("--data-dir", type=Path, required=True, help="made and filled when missing")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True, help="0 takes a free one")
    parser.add_argument("--seed", choices=get_args(Seed), default="demo")
    options = parser.parse_args(arguments)
    try:
        sock = listen(options.host, options.port)
        store = ArchiveStore(data_dir=options.data_dir, seed=cast("Seed", options.seed))
        server = make_server(store)
    except BeampipeError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    base = f"http://{options.host}:{sock.getsockname()[1]}"

    def ready() -> None:
        line = f"Sandbox archive ready: casda={base}/casda/tap vizier={base}/vizier/tap page={base}/\n"
        sys.stdout.write(line)
        sys.stdout.flush()

    asyncio.run(_serve_until_signal(server, sock, ready))
    return 0
