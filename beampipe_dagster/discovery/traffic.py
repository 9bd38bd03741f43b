"""What stands between a TAP client and its archive: whoever is responsible for the traffic of this thread.

A client sends through a :class:`PoliteSession`. Around a query there is somebody who knows whether a request may
be sent now and who wants to see what came back; around a look whether the archive is there at all there is nobody.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import requests

from beampipe_dagster.discovery.tap_session import TapSession


class Traffic(Protocol):
    """Who is responsible."""

    def request(self) -> AbstractContextManager[None]:
        """Around one HTTP request and the redirects that it leads to.

        Raises
        ------
        ArchiveError
            It may not be sent.
        """
        ...

    def saw(self, response: requests.Response) -> None:
        """Look at the head of a response; redirects count."""
        ...


_responsible: ContextVar[Traffic | None] = ContextVar("archive_traffic", default=None)


@contextmanager
def traffic(responsible: Traffic | None) -> Iterator[None]:
    """Make somebody responsible for what this thread sends."""
    before = _responsible.set(responsible)
    try:
        yield
    finally:
        _responsible.reset(before)


class _Within:
    """The redirects of a request that was let through."""

    def __init__(self, outer: Traffic) -> None:
        self._outer = outer

    @contextmanager
    def request(self) -> Iterator[None]:
        """Let it through."""
        yield

    def saw(self, response: requests.Response) -> None:
        """Hand it on."""
        self._outer.saw(response)


class PoliteSession(TapSession):
    """A session that asks whoever is responsible before it sends."""

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:  # noqa: ANN401  # as requests
        """:meth:`requests.Session.send`, when it may be sent.

        Raises
        ------
        ArchiveError
            It may not.
        """
        responsible = _responsible.get()
        if responsible is None:
            return super().send(request, **kwargs)
        with responsible.request(), traffic(_Within(responsible)):
            response = super().send(request, **kwargs)
            responsible.saw(response)
            return response
