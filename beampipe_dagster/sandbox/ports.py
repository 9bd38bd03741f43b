"""Which TCP ports are free, and who holds one that is not."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from pathlib import Path

from beampipe_dagster.errors import ConfigError

LOOPBACK = "127.0.0.1"

_LISTEN = "0A"
"""The state of a listening socket in ``/proc/net/tcp``."""


def check_ports(
    ports: Mapping[str, int],
    *,
    host: str = LOOPBACK,
    flags: Mapping[str, str] | None = None,
) -> None:
    """See that every port is one, is wanted once, and that nobody listens there.

    Parameters
    ----------
    ports
        Port by what it is for, in words.
    host
        The address that will be listened at.
    flags
        The command-line option or setting that changes a port, by the same words.

    Raises
    ------
    ConfigError
        ``port_invalid``, ``port_twice`` or ``port_taken``; the first problem of each port, one line
        each. ``details["ports"]`` has the numbers.
    """
    flags = flags or {}
    wanted: dict[int, str] = {}
    problems: list[tuple[str, int, str]] = []
    for use, port in ports.items():
        change = f"; {flags[use]} changes it" if use in flags else ""
        if not 0 < port < 65_536:
            problems.append(("port_invalid", port, f"{port} ({use}) is no port{change}"))
        elif port in wanted:
            text = f"port {port} is wanted for {wanted[port]} and for {use}{change}"
            problems.append(("port_twice", port, text))
        elif not _can_listen(host, port):
            who = holder(port)
            by = f" by {who}" if who else ""
            text = f"port {port} of {host} ({use}) is taken{by}{change}"
            problems.append(("port_taken", port, text))
        wanted.setdefault(port, use)
    if problems:
        text = "; ".join(problem for _, _, problem in problems)
        raise ConfigError(
            f"{text[:1].upper()}{text[1:]}.",
            code=problems[0][0],
            hint="Stop the process that listens there, or choose another port.",
            details={"ports": [port for _, port, _ in problems]},
        )


def free_port(host: str = LOOPBACK) -> int:
    """A port that nobody listens at now."""
    with socket.create_server((host, 0)) as server:
        port: int = server.getsockname()[1]
        return port


def holder(port: int) -> str | None:
    """The process that listens at a port, as ``pid 42 (its command)``; ``None`` when unknown.

    Linux tells it to root and to the process's own user.
    """
    inodes = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    if not inodes:
        return None
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            held = any(str(link.readlink()) in inodes for link in (entry / "fd").iterdir())
            if held:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                return f"pid {entry.name} ({_short(command)})"
        except (OSError, UnicodeDecodeError):  # it ended, or it is another user's
            continue
    return None


def _listening_inodes(port: int) -> set[str]:
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(fields[9])
    return inodes


def _short(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _can_listen(host: str, port: int) -> bool:
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    except ValueError:
        family = socket.AF_INET
    with socket.socket(family) as probe:
        # As servers do: a connection of an earlier one that is still being closed is no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
