"""Logical graphs by URL: fetched once, pinned, bounded in time and size, and never from inside the network.

A survey's file is written by people who may not open connections from this machine, so a URL in it must not
become a way into the network that the machine stands in. Each hop's host name is resolved here, every
address that it has must be a public one, and the connection goes to an address that was looked at: nobody
can answer the check with one address and the connection with another. Redirects are followed here too, so
that each of them is looked at in the same way; proxies of the environment are not used, since they would
resolve names themselves.

What remains: a public address may still forward to a private service (a reverse proxy), and a network may
use public addresses behind its own firewall. Neither can be told from outside. What limits the harm is the
pin: nothing but a document of known SHA-256 is ever kept or shown, and errors never quote an answer's body.

``BEAMPIPE_ALLOW_PRIVATE_GRAPH_URLS=true`` allows private addresses, for graphs on the institute's own server.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import httpx

from beampipe_dagster.errors import BeampipeError, GraphError, Retry
from beampipe_dagster.execution.graph import MAX_GRAPH_BYTES

TOTAL_SECONDS: Final = 30.0
"""Longest time from the first look at the host's name to the last byte."""
CONNECT_SECONDS: Final = 10.0
MAX_REDIRECTS: Final = 5
ALLOW_PRIVATE: Final = "BEAMPIPE_ALLOW_PRIVATE_GRAPH_URLS"
"""The environment variable that allows private addresses."""

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver: TypeAlias = Callable[[str, int], Sequence[str]]

_PORTS: Final = {"http": 80, "https": 443}
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")


def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, by the machine's own resolver."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(item[4][0]) for item in found))


@dataclass(slots=True)
class _Fetch:
    """One fetch, shared by the thread that does it and the one that waits for it."""

    url: str
    cancelled: threading.Event = field(default_factory=threading.Event)
    client: httpx.Client | None = None
    raw: bytes | None = None
    error: Exception | None = None
    received: int = 0


class GraphFetcher:
    """Fetches pinned graphs.

    Parameters
    ----------
    allow_private
        Whether private, loopback and link-local addresses may be connected to.
    total_seconds
        Longest time of one fetch, redirects included.
    max_bytes
        Largest graph.
    resolver
        Addresses of a host name; the machine's resolver, unless a test has its own.
    """

    def __init__(
        self,
        *,
        allow_private: bool = False,
        total_seconds: float = TOTAL_SECONDS,
        max_bytes: int = MAX_GRAPH_BYTES,
        resolver: Resolver = resolve,
    ) -> None:
        self._allow_private = allow_private
        self._total_seconds = total_seconds
        self._max_bytes = max_bytes
        self._resolve = resolver

    def fetch(self, url: str, *, sha256: str | None) -> bytes:
        """The bytes behind a URL, which have the given SHA-256.

        Parameters
        ----------
        url
            ``https://`` or ``http://``, without credentials.
        sha256
            The pin, 64 hex digits; without one nothing is fetched.

        Raises
        ------
        GraphError
            ``graph_pin_missing``; ``invalid_graph_url``; ``graph_address_refused``; ``graph_too_large``;
            ``graph_pin_mismatch``; ``graph_unreachable``, which may pass, unless the server says that the
            document is not there.
        """
        pin = (sha256 or "").strip().lower()
        if not pin:
            raise GraphError(
                f"the graph at {_shown(url)} has no pin",
                code="graph_pin_missing",
                hint="Give graph.sha256, as sha256sum prints it: what a URL answers can change at any time.",
            )
        raw = self._in_time(url)
        actual = hashlib.sha256(raw).hexdigest()
        if actual != pin:
            raise GraphError(
                f"{_shown(url)}: the graph's SHA-256 is {actual}, but the project pins {pin}",
                code="graph_pin_mismatch",
                hint="If the new graph is what you want, put its SHA-256 into graph.sha256. A page to log in, "
                "or a page about the file instead of the file itself, has another one too.",
                details={"expected": pin, "actual": actual, "bytes": len(raw)},
            )
        return raw

    def _in_time(self, url: str) -> bytes:
        """Fetch in a thread of its own: neither a resolver nor a trickling server can hold the caller."""
        fetch = _Fetch(url)
        worker = threading.Thread(target=self._run, args=(fetch,), name="graph-fetch", daemon=True)
        worker.start()
        worker.join(self._total_seconds)
        if worker.is_alive():
            fetch.cancelled.set()
            if fetch.client is not None:
                with contextlib.suppress(
                    Exception
                ):  # its connections go; what it says about them does not matter
                    fetch.client.close()
            raise _unreachable(
                url, f"it was not whole after {self._total_seconds:g} s ({fetch.received} bytes came)"
            )
        if isinstance(fetch.error, BeampipeError):
            raise fetch.error
        if fetch.error is not None or fetch.raw is None:
            reason = f"{type(fetch.error).__name__}: {fetch.error}" if fetch.error else "nothing came"
            raise _unreachable(url, reason) from fetch.error
        return fetch.raw

    def _run(self, fetch: _Fetch) -> None:
        timeout = httpx.Timeout(self._total_seconds, connect=min(CONNECT_SECONDS, self._total_seconds))
        try:
            # No connection is used twice: one was opened for its own host's certificate.
            limits = httpx.Limits(max_keepalive_connections=0)
            with httpx.Client(timeout=timeout, limits=limits, trust_env=False) as client:
                fetch.client = client
                fetch.raw = self._follow(client, fetch)
        except Exception as error:  # noqa: BLE001  # told by the thread that waits
            fetch.error = error

    def _follow(self, client: httpx.Client, fetch: _Fetch) -> bytes:
        url = fetch.url
        for _ in range(MAX_REDIRECTS + 1):
            request = self._request(client, url)
            if fetch.cancelled.is_set():
                break
            response = client.send(request, stream=True)
            try:
                location = response.headers.get("location") if response.is_redirect else None
                if location is None:
                    return self._read(response, url, fetch)
            finally:
                response.close()
            try:
                url = str(httpx.URL(url).join(location))
            except httpx.InvalidURL as error:
                raise _invalid(location) from error
        raise _unreachable(fetch.url, f"it was redirected more than {MAX_REDIRECTS} times", retry=Retry.NEVER)

    def _request(self, client: httpx.Client, url: str) -> httpx.Request:
        """A request to an address that was looked at, for the host that the URL names."""
        parts = _parsed(url)
        host, port = parts.raw_host.decode("ascii"), parts.port or _PORTS[parts.scheme]
        address = self._address(url, host, port)
        literal = f"[{address}]" if address.version == 6 else str(address)
        return client.build_request(
            "GET",
            parts.copy_with(host=literal, fragment=None),
            headers={"Host": parts.netloc.decode("ascii"), "Accept-Encoding": "identity"},
            extensions={"sni_hostname": host},
        )

    def _address(self, url: str, host: str, port: int) -> Address:
        try:
            found = [ipaddress.ip_address(text) for text in self._resolve(host, port)]
        except (OSError, UnicodeError, ValueError) as error:
            raise _unreachable(url, f"the host {host!r} has no address: {error}") from error
        if not found:
            raise _unreachable(url, f"the host {host!r} has no address")
        refused = [address for address in found if not self._allow_private and not is_public(address)]
        if refused:
            raise GraphError(
                f"the graph's URL {_shown(url)} leads to {refused[0]}, which is not a public address",
                code="graph_address_refused",
                hint=f"Give graph.path, or a URL outside; {ALLOW_PRIVATE}=true allows the institute's own servers.",
                details={"host": host, "address": str(refused[0])},
            )
        return found[0]

    def _read(self, response: httpx.Response, url: str, fetch: _Fetch) -> bytes:
        status = response.status_code
        if not response.is_success:
            gone = 400 <= status < 500 and status not in {408, 425, 429}
            retry = Retry.NEVER if gone else Retry.LATER
            raise _unreachable(url, f"the server answers HTTP {status}", retry=retry)
        if response.headers.get("content-encoding", "identity").lower() not in {"", "identity"}:
            raise _unreachable(url, "the server compresses what was asked for as it is", retry=Retry.NEVER)
        declared = response.headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and int(declared[:20]) > self._max_bytes:
            raise self._too_large(url, f"{declared[:20]} bytes")
        chunks: list[bytes] = []
        for chunk in response.iter_raw():
            if fetch.cancelled.is_set():
                raise _unreachable(url, "it took too long")
            fetch.received += len(chunk)
            if fetch.received > self._max_bytes:
                raise self._too_large(url, f"more than {self._max_bytes} bytes")
            chunks.append(chunk)
        return b"".join(chunks)

    def _too_large(self, url: str, size: str) -> GraphError:
        return GraphError(
            f"{_shown(url)}: the graph has {size}; the limit is {self._max_bytes}",
            code="graph_too_large",
            hint="Save the logical graph, not a physical one, and keep data out of its fields.",
            details={"limit": self._max_bytes},
        )


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public Internet, also when it only wraps an IPv4 address.

    IPv6 has several ways to say an IPv4 address (6to4, RFC 3056; Teredo, RFC 4380; NAT64, RFC 6052); a
    private one stays private in each of them. Mapped and compatible ones (RFC 4291) belong into no DNS.
    """
    reserved = address.is_reserved and address not in _NAT64
    if not address.is_global or address.is_multicast or reserved:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return True
    if address in _NAT64:
        return is_public(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
    inner = [address.sixtofour, *(address.teredo or ())]
    return all(is_public(one) for one in inner if one is not None)


def _parsed(url: str) -> httpx.URL:
    try:
        parts = httpx.URL(url.strip())
    except httpx.InvalidURL as error:
        raise _invalid(url) from error
    if parts.scheme not in _PORTS or not parts.host or parts.userinfo:
        raise _invalid(url)
    return parts


def _invalid(url: str) -> GraphError:
    return GraphError(
        f"{_shown(url)} is not the URL of a graph",
        code="invalid_graph_url",
        hint="Give an http(s) URL without user name and password: URLs are kept in the ledger.",
    )


def _unreachable(url: str, reason: str, *, retry: Retry = Retry.LATER) -> GraphError:
    hint = "Try again later; or download the graph and give graph.path, the pin stays the same."
    if retry is Retry.NEVER:
        hint = "Check the URL; or download the graph and give graph.path, the pin stays the same."
    return GraphError(
        f"the graph at {_shown(url)} cannot be had: {reason}",
        code="graph_unreachable",
        hint=hint,
        retry=retry,
    )


def _shown(url: str) -> str:
    """A URL for people: without what may be secret in it (user name, password, query)."""
    head, _, _ = url.strip().partition("?")
    scheme, separator, rest = head.partition("://")
    authority, slash, path = rest.partition("/")
    text = f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}" if separator else head
    return text if len(text) <= 200 else f"{text[:197]}..."
