"""The TAP service of one archive: ``/tap/sync``, ``/tap/async`` and what it says of itself (TAP 1.1)."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from anyio import from_thread, to_thread
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from beampipe_dagster.clock import Clock, rfc3339
from beampipe_dagster.errors import ArchiveError, BeampipeError, InputError, NotFoundError
from beampipe_dagster.ids import Ids
from beampipe_dagster.sandbox.archive import uws, vosi
from beampipe_dagster.sandbox.archive.adql import Answer, Deadline, QueryEngine
from beampipe_dagster.sandbox.archive.columns import Archive, tables_of
from beampipe_dagster.sandbox.archive.faults import Fault, FaultSwitches
from beampipe_dagster.sandbox.archive.parameters import (
    MAX_BODY_BYTES,
    Parameters,
    TapQuery,
    read_parameters,
    read_query,
)
from beampipe_dagster.sandbox.archive.votable import MIME, write, write_error

SYNC_SECONDS = 60.0
LOG_SIZE = 200

_XML_MIME = "text/xml"
_RESULT = re.compile(r"https?://[^/?#]+/(\w+)/tap/async/([\w-]+)/results/result")
_MAINTENANCE = (
    "<!DOCTYPE html><html><head><title>Maintenance</title></head>"
    "<body><h1>The archive is under maintenance</h1><p>Please come back later.</p></body></html>"
)

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A query as the log keeps it.

    Parameters
    ----------
    time
        RFC 3339, UTC.
    kind
        ``sync`` or ``async``.
    digest
        The first 12 digits of the query's SHA-256.
    query
        Its first 400 characters.
    rows
        Rows in the answer; None when there was none.
    status
        ``ok``, ``overflow``, an error's code, or the name of the fault that hit it.
    """

    time: str
    archive: Archive
    kind: str
    digest: str
    query: str
    rows: int | None
    status: str
    seconds: float


class QueryLog:
    """The last queries of both archives, and how many there were."""

    def __init__(self) -> None:
        self._entries: deque[LogEntry] = deque(maxlen=LOG_SIZE)
        self._total = 0

    def add(self, entry: LogEntry) -> None:
        """Keep an entry; the oldest one goes when there are more than 200."""
        self._entries.append(entry)
        self._total += 1

    def clear(self) -> None:
        """Forget all and count from 0."""
        self._entries.clear()
        self._total = 0

    def as_dict(self, archive: str | None = None) -> dict[str, Any]:
        """``total``, and ``requests`` with the oldest first."""
        kept = [asdict(e) for e in self._entries if archive in {None, e.archive}]
        return {"total": self._total, "requests": kept}


class CutResponse(Response):
    """Promises the whole body, sends half of it, and closes the connection."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the head and the first half."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        half = bytes(self.body)[: len(self.body) // 2]
        await send({"type": "http.response.body", "body": half, "more_body": True})
        await _disconnect(scope, receive)


class DownResponse(Response):
    """No answer: the connection is closed."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  # ASGI
        """Close the connection, once the request has arrived as a whole: else it would be a reset."""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            if not message.get("more_body"):
                break
        await _disconnect(scope, receive)


async def _disconnect(scope: Scope, receive: Receive) -> None:
    """Close the connection by the server's own means (see the server module).

    Under a server that offers none the answer just ends too early, which makes the server close.
    """
    close = getattr(scope["app"].state, "close_connection", None)
    if close is None or not close(scope["server"], scope["client"]):
        return
    while (await receive())["type"] != "http.disconnect":
        pass


class TapService:
    """One archive behind ``/<archive>/tap``.

    Parameters
    ----------
    archive
        Which one.
    engine
        Answers its queries.
    faults, log
        Shared by both archives.
    clock, ids
        Times in documents and the log; identifiers of jobs.
    """

    def __init__(
        self,
        *,
        archive: Archive,
        engine: QueryEngine,
        faults: FaultSwitches,
        log: QueryLog,
        clock: Clock,
        ids: Ids,
    ) -> None:
        self._archive: Archive = archive
        self._engine = engine
        self._faults = faults
        self._log = log
        self._clock = clock
        self._up_since = clock.now()
        self.jobs = uws.JobList(execute=self._execute, clock=clock, ids=ids, seconds=SYNC_SECONDS)
        self.closing = asyncio.Event()

    def routes(self) -> list[Route]:
        """The service's routes, below its own root."""
        job = "/tap/async/{job_id}"
        return [
            Route("/tap/sync", self._query(self._sync), methods=["GET", "POST"]),
            Route("/tap/async", self._other(self._list), methods=["GET"]),
            Route("/tap/async", self._query(self._create), methods=["POST"]),
            Route(job, self._other(self._job), methods=["GET", "POST", "DELETE"]),
            Route(job + "/results/result", self._other(self._result), methods=["GET"]),
            Route(job + "/error", self._other(self._error), methods=["GET"]),
            Route(job + "/{part}", self._other(self._part), methods=["GET", "POST"]),
            Route("/tap/capabilities", self._other(self._capabilities), methods=["GET"]),
            Route("/tap/availability", self._other(self._availability), methods=["GET"]),
            Route("/tap/tables", self._other(self._tables), methods=["GET"]),
        ]

    def close(self) -> None:
        """Stop jobs, queries and waits."""
        self.closing.set()
        self.jobs.close()
        self._engine.close()

    def _query(self, handler: Callable[[Request, Fault], Awaitable[Response]]) -> Handler:
        """A handler of queries: all faults hit it, and a counted one is counted."""

        async def handle(request: Request) -> Response:
            fault = self._faults.take(self._archive)
            if fault.latency:
                await self._sleep(fault.latency)
            replaced = _replacement(fault)
            if replaced is not None:
                adql = ""
                if not fault.down:
                    adql = (await self._parameters(request)).get("QUERY") or ""
                kind = request.url.path.rpartition("/")[2]
                self._note(kind, adql, time.monotonic(), None, ",".join(fault.names))
                return replaced
            return await _guarded(lambda: handler(request, fault))

        return handle

    def _other(self, handler: Handler) -> Handler:
        """A handler of everything else: only an archive that is away as a whole is away here too."""

        async def handle(request: Request) -> Response:
            fault = self._faults.get(self._archive)
            away = fault.down or fault.html or fault.status is not None
            if away and fault.error_rate is None and fault.count is None:
                replaced = _replacement(fault)
                if replaced is not None:
                    return replaced
            return await _guarded(lambda: handler(request))

        return handle

    async def _sleep(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self.closing.wait(), seconds)
        except TimeoutError:
            return

    async def _parameters(self, request: Request) -> Parameters:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise InputError(
                    f"The request is larger than {MAX_BODY_BYTES} bytes.",
                    code="request_too_large",
                    hint="Send a smaller upload, or a shorter query.",
                )
        kind = request.headers.get("content-type", "")
        return read_parameters(request.url.query, kind, bytes(body))

    async def _sync(self, request: Request, fault: Fault) -> Response:
        parameters = await self._parameters(request)
        body, mime = await self._answer("sync", parameters, fault, Deadline(SYNC_SECONDS))
        if fault.truncated:
            return CutResponse(body, media_type=mime)
        return Response(body, media_type=mime)

    async def _answer(
        self, kind: str, parameters: Parameters, fault: Fault, deadline: Deadline
    ) -> tuple[bytes, str]:
        """Run a request's query, with the faults that change an answer, and note it in the log."""
        started = time.monotonic()
        adql = parameters.get("QUERY") or ""
        try:
            answer, body, mime = await to_thread.run_sync(
                self._run, parameters, fault, deadline, abandon_on_cancel=True
            )
        except BeampipeError as error:
            self._note(kind, adql, started, None, error.code)
            raise
        status = "overflow" if answer.overflow else "ok"
        status = ",".join([status, *(n for n in fault.names if n not in {"latency", status})])
        self._note(kind, adql, started, len(answer.rows), status)
        return body, mime

    def _run(self, parameters: Parameters, fault: Fault, deadline: Deadline) -> tuple[Answer, bytes, str]:
        query: TapQuery = read_query(parameters, self._own_result)
        answer = self._engine.run(query.adql, maxrec=query.maxrec, deadline=deadline, uploads=query.uploads)
        if fault.empty:
            answer = replace(answer, rows=[], overflow=False)
        if fault.overflow is not None and len(answer.rows) > fault.overflow:
            answer = replace(answer, rows=answer.rows[: fault.overflow], overflow=True)
        return answer, write(answer, query.form), MIME[query.form]

    def _own_result(self, url: str) -> bytes | None:
        """The table at a URL, from this archive's own jobs: no other place is ever asked on somebody's behalf."""
        found = _RESULT.fullmatch(url)
        if found is None or found[1] != self._archive:
            return None
        return from_thread.run_sync(self.jobs.get, found[2]).body

    def _note(self, kind: str, adql: str, started: float, rows: int | None, status: str) -> None:
        digest = hashlib.sha256(adql.encode()).hexdigest()[:12]
        seconds = round(time.monotonic() - started, 4)
        now = rfc3339(self._clock.now())
        self._log.add(LogEntry(now, self._archive, kind, digest, adql[:400], rows, status, seconds))

    # -- jobs

    async def _execute(self, job: uws.Job) -> tuple[bytes, str]:
        return await self._answer("async", job.parameters, job.fault, job.deadline)

    async def _list(self, request: Request) -> Response:
        phases = {value.upper() for value in request.query_params.getlist("PHASE")}
        jobs = [job for job in self.jobs.all() if not phases or job.phase in phases]
        last = request.query_params.get("LAST", "")
        if last.isdecimal():
            jobs = jobs[: int(last)]
        return Response(uws.jobs_document(jobs, self._url(request, "async")), media_type=_XML_MIME)

    async def _create(self, request: Request, fault: Fault) -> Response:
        parameters = await self._parameters(request)
        job = self.jobs.create(parameters)
        job.fault = fault
        if (parameters.get("PHASE") or "").upper() == "RUN":
            self.jobs.run(job)
        return self._see_job(request, job)

    async def _job(self, request: Request) -> Response:
        job = self.jobs.get(request.path_params["job_id"])
        if request.method == "GET":
            query = {key.upper(): value for key, value in request.query_params.items()}
            await uws.wait_for_change(job, query.get("WAIT"), query.get("PHASE"))
            return Response(uws.job_document(job, self._job_url(request, job)), media_type=_XML_MIME)
        parameters = await self._parameters(request)
        deletes = (parameters.get("ACTION") or "").upper() == "DELETE"
        if request.method == "DELETE" or deletes:
            self.jobs.delete(job)
            return RedirectResponse(self._url(request, "async"), status_code=303)
        self._update(job, parameters)
        return self._see_job(request, job)

    async def _part(self, request: Request) -> Response:
        job = self.jobs.get(request.path_params["job_id"])
        part = request.path_params["part"]
        if request.method == "POST" and part in {
            "phase",
            "executionduration",
            "destruction",
            "parameters",
        }:
            self._update(job, await self._parameters(request))
            return self._see_job(request, job)
        texts = {
            "phase": job.phase,
            "executionduration": str(int(job.deadline.seconds)),
            "destruction": rfc3339(job.destruction),
            "quote": "",
            "owner": "",
        }
        if part in texts:
            return PlainTextResponse(texts[part])
        if part == "parameters":
            return Response(uws.parameters_document(job), media_type=_XML_MIME)
        if part == "results":
            body = uws.results_document(job, self._job_url(request, job))
            return Response(body, media_type=_XML_MIME)
        raise NotFoundError(f"A job has no {part[:40]!r}.", hint="See UWS 1.1, section 2.2.2.")

    def _update(self, job: uws.Job, parameters: Parameters) -> None:
        duration = parameters.get("EXECUTIONDURATION")
        if duration is not None:
            job.deadline.seconds = uws.parse_duration(duration)
            job.deadline.restart()
        destruction = parameters.get("DESTRUCTION")
        if destruction is not None:
            job.destruction = uws.parse_destruction(destruction, job.destruction)
        special = {"PHASE", "EXECUTIONDURATION", "DESTRUCTION", "ACTION"}
        others = tuple(pair for pair in parameters.pairs if pair[0].upper() not in special)
        if job.phase == "PENDING" and (others or parameters.files):
            job.parameters = job.parameters.updated(Parameters(others, parameters.files))
        match (parameters.get("PHASE") or "").upper():
            case "RUN":
                self.jobs.run(job)
            case "ABORT":
                self.jobs.abort(job)

    async def _result(self, request: Request) -> Response:
        job = self.jobs.get(request.path_params["job_id"])
        if job.body is None or job.phase != "COMPLETED":
            raise NotFoundError(
                f"Job {job.job_id} has no result; it is {job.phase}.",
                code="no_result",
                hint="Wait for COMPLETED; the job's error says why it failed.",
            )
        if job.fault.truncated:
            return CutResponse(job.body, media_type=job.mime)
        return Response(job.body, media_type=job.mime)

    async def _error(self, request: Request) -> Response:
        job = self.jobs.get(request.path_params["job_id"])
        if job.error is None:
            return PlainTextResponse("")
        return Response(write_error(_text(job.error)), media_type=MIME["tabledata"])

    # -- what the service says of itself

    async def _capabilities(self, request: Request) -> Response:
        body = vosi.capabilities(self._url(request, "").rstrip("/"), SYNC_SECONDS)
        return Response(body, media_type=_XML_MIME)

    async def _availability(self, _request: Request) -> Response:
        return Response(vosi.availability(self._up_since), media_type=_XML_MIME)

    async def _tables(self, _request: Request) -> Response:
        return Response(vosi.tableset(tables_of(self._archive)), media_type=_XML_MIME)

    def _url(self, request: Request, path: str) -> str:
        url = request.url
        return f"{url.scheme}://{url.netloc}/{self._archive}/tap/{path}"

    def _job_url(self, request: Request, job: uws.Job) -> str:
        return self._url(request, f"async/{job.job_id}")

    def _see_job(self, request: Request, job: uws.Job) -> Response:
        return RedirectResponse(self._job_url(request, job), status_code=303)


def _replacement(fault: Fault) -> Response | None:
    """The response that a fault puts in the place of the service's own; None when it does not."""
    if fault.down:
        return DownResponse()
    if fault.html:
        return HTMLResponse(_MAINTENANCE)
    status = fault.status or 503
    headers = {"Retry-After": str(fault.retry_after)} if status in {429, 503} else {}
    if fault.busy is not None:
        body = write_error(fault.busy)
        return Response(body, status, headers=headers, media_type=MIME["tabledata"])
    if fault.status is not None:
        text = "The sandbox archive was told to answer this.\n"
        return PlainTextResponse(text, status, headers=headers)
    return None


async def _guarded(handler: Callable[[], Awaitable[Response]]) -> Response:
    """Run a handler; an error becomes an error VOTable with a fitting HTTP status."""
    try:
        return await handler()
    except BeampipeError as error:
        status = 404 if isinstance(error, NotFoundError) else 400
        if isinstance(error, ArchiveError):
            status = 503
        body = write_error(_text(error))
        return Response(body, status, media_type=MIME["tabledata"])


def _text(error: BeampipeError) -> str:
    return f"{error.message} {error.hint}".strip()
