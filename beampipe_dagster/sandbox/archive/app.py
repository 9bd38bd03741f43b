"""The sandbox archive as an ASGI application.

``/casda/tap`` and ``/vizier/tap`` are two TAP services over one store, ``/casda/login``, ``/casda/datalink`` and
``/casda/data`` stage files, ``/sandbox/...`` holds the switches of faults and of staging, the deposits and the query
log, and ``/`` is a page for people.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from anyio import to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route

from beampipe_dagster.clock import Clock, SystemClock
from beampipe_dagster.errors import (
    ArchiveError,
    BeampipeError,
    ConflictError,
    InputError,
    NotFoundError,
)
from beampipe_dagster.ids import Ids, UuidIds
from beampipe_dagster.sandbox.archive.adql import QueryEngine
from beampipe_dagster.sandbox.archive.columns import ARCHIVES
from beampipe_dagster.sandbox.archive.datalink import DatalinkService, StagingScript, Tokens
from beampipe_dagster.sandbox.archive.faults import FaultSwitches, check_archive
from beampipe_dagster.sandbox.archive.page import render_page
from beampipe_dagster.sandbox.archive.service import QueryLog, TapService
from beampipe_dagster.sandbox.archive.soda import SodaService
from beampipe_dagster.sandbox.archive.store import ArchiveStore

MAX_JSON_BYTES = 100_000

_DEPOSIT_KEYS = ("source_identifier", "sbid", "beams", "quality", "collection", "count")

_STATUS = {InputError: 400, NotFoundError: 404, ConflictError: 409, ArchiveError: 503}

Handler = Callable[[Request], Awaitable[Response]]


def create_app(
    store: ArchiveStore,
    faults: FaultSwitches,
    *,
    clock: Clock | None = None,
    ids: Ids | None = None,
) -> Starlette:
    """The application over a store and its fault switches.

    Parameters
    ----------
    store
        The data.
    faults
        The switches.
    clock, ids
        Times in documents and the log; identifiers of jobs. The machine's by default.

    Returns
    -------
    Starlette
        Its ``state.stop()``, called in the event loop, ends jobs, queries and waits at once.
    """
    clock, ids = clock or SystemClock(), ids or UuidIds()
    log = QueryLog()
    engines = {name: QueryEngine(archive=name, attachments=store.attachments(name)) for name in ARCHIVES}
    services = [
        TapService(
            archive=name,
            engine=engines[name],
            faults=faults,
            log=log,
            clock=clock,
            ids=ids,
        )
        for name in ARCHIVES
    ]

    def stop() -> None:
        for service in services:
            service.close()

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        stop()

    script, tokens = StagingScript(), Tokens()
    links = DatalinkService(engine=engines["casda"], script=script, tokens=tokens)
    soda = SodaService(script=script, tokens=tokens, clock=clock, ids=ids)
    sandbox = _Sandbox(store=store, faults=faults, log=log, script=script, links=links, soda=soda)
    staging = Mount("/casda", routes=[*links.routes(), *soda.routes(), *services[0].routes()])
    others = [
        Mount(f"/{name}", routes=service.routes())
        for name, service in zip(ARCHIVES, services, strict=True)
        if name != "casda"
    ]
    mounts = [staging, *others]
    app = Starlette(routes=[*sandbox.routes(), *mounts], lifespan=lifespan)
    app.state.stop = stop
    return app


class _Sandbox:
    """The page, the switches, the deposits and the log."""

    def __init__(
        self,
        *,
        store: ArchiveStore,
        faults: FaultSwitches,
        log: QueryLog,
        script: StagingScript,
        links: DatalinkService,
        soda: SodaService,
    ) -> None:
        self._script = script
        self._links = links
        self._soda = soda
        self._store = store
        self._faults = faults
        self._log = log

    def routes(self) -> list[Route]:
        """Everything outside of the two archives."""
        return [
            Route("/", _guarded(self._page), methods=["GET"]),
            Route("/sandbox/faults", _guarded(self._get_faults), methods=["GET"]),
            Route("/sandbox/faults", _guarded(self._clear_faults), methods=["DELETE"]),
            Route("/sandbox/faults/{archive}", _guarded(self._set_faults), methods=["PUT"]),
            Route("/sandbox/faults/{archive}", _guarded(self._clear_faults), methods=["DELETE"]),
            Route("/sandbox/deposits", _guarded(self._deposit), methods=["POST"]),
            Route("/sandbox/log", _guarded(self._get_log), methods=["GET"]),
            Route("/sandbox/log", _guarded(self._clear_log), methods=["DELETE"]),
            Route("/sandbox/staging", _guarded(self._get_staging), methods=["GET"]),
            Route("/sandbox/staging", _guarded(self._set_staging), methods=["PUT"]),
        ]

    async def _page(self, request: Request) -> Response:
        counts, latest = await to_thread.run_sync(
            lambda: (self._store.row_counts(), self._store.latest_files(12))
        )
        page = render_page(
            base_url=str(request.base_url).rstrip("/"),
            counts=counts,
            latest=latest,
            faults=self._faults.as_dict(),
            queries=self._log.as_dict(),
        )
        return HTMLResponse(page)

    async def _get_faults(self, _request: Request) -> Response:
        return JSONResponse(self._faults.as_dict())

    async def _set_faults(self, request: Request) -> Response:
        body = await _json(request)
        fault = self._faults.set(request.path_params["archive"], body)
        return JSONResponse(fault.as_dict())

    async def _clear_faults(self, request: Request) -> Response:
        self._faults.clear(request.path_params.get("archive"))
        return JSONResponse(self._faults.as_dict())

    async def _deposit(self, request: Request) -> Response:
        body = await _json(request)
        if not isinstance(body, dict) or "source_identifier" not in body:
            raise InputError(
                "A deposit needs a JSON object with a source_identifier.",
                code="invalid_deposit",
                hint=f"Keys: {', '.join(_DEPOSIT_KEYS)}.",
            )
        unknown = sorted(set(body) - set(_DEPOSIT_KEYS))
        if unknown:
            raise InputError(
                f"A deposit has no {unknown[0][:60]!r}.",
                code="invalid_deposit",
                hint=f"Keys: {', '.join(_DEPOSIT_KEYS)}.",
                details={"field": unknown[0][:60]},
            )
        given: dict[str, Any] = {k: v for k, v in body.items() if v is not None}
        source = given.pop("source_identifier", None)
        deposit = await to_thread.run_sync(lambda: self._store.deposit(source, **given))
        return JSONResponse(deposit.as_dict(), status_code=201)

    async def _get_log(self, request: Request) -> Response:
        archive = request.query_params.get("archive")
        return JSONResponse(self._log.as_dict(check_archive(archive) if archive else None))

    async def _get_staging(self, _request: Request) -> Response:
        logins = {"logins": self._links.logins, "refused_logins": self._links.refused}
        return JSONResponse({**self._soda.as_dict(), **logins})

    async def _set_staging(self, request: Request) -> Response:
        self._script.update(await _json(request))
        return await self._get_staging(request)

    async def _clear_log(self, _request: Request) -> Response:
        self._log.clear()
        return JSONResponse(self._log.as_dict())


async def _json(request: Request) -> object:
    """The JSON of a request.

    Only ``application/json`` is taken: a browser asks before it sends that for a page of another site.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_JSON_BYTES:
            break
    try:
        if kind != "application/json" or len(body) > MAX_JSON_BYTES:
            raise ValueError(f"{kind or 'no content type'}, {len(body)} bytes")  # noqa: TRY301  # one error for all
        value: object = json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"The request's body cannot be read: {str(error)[:120]}.",
            code="invalid_json",
            hint=f"Send JSON as application/json, at most {MAX_JSON_BYTES} bytes.",
        ) from error
    return value


def _guarded(handler: Handler) -> Handler:
    """A handler whose errors become JSON."""

    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except BeampipeError as error:
            return JSONResponse({"error": error.as_dict()}, _STATUS.get(type(error), 500))

    return handle
