"""The staging service of the sandbox archive: asynchronous jobs (SODA 1.0, UWS 1.1) with signed URLs.

Times come from the archive's clock: a job is over when its time is, whether anybody looks or not. The URLs of its
results carry a signature and an expiry as S3 has them, and are checked when a file is fetched.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode
from xml.sax.saxutils import escape, quoteattr

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from beampipe_dagster.clock import Clock, rfc3339
from beampipe_dagster.ids import Ids
from beampipe_dagster.sandbox.archive.datalink import StagingScript, Tokens
from beampipe_dagster.sandbox.archive.service import DownResponse

_NAMES = (
    'xmlns:uws="http://www.ivoa.net/xml/UWS/v1.0" xmlns:xlink="http://www.w3.org/1999/xlink" '
    'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
)
_XML = "text/xml"
_AMZ_TIME = "%Y%m%dT%H%M%SZ"


@dataclass(slots=True)
class StagingJob:
    """A job; ``run_at`` is empty until it is told to run."""

    job_id: str
    tokens: tuple[str, ...]
    files: tuple[tuple[str, str], ...]
    created: datetime
    fails: bool = False
    run_at: datetime | None = None
    aborted: bool = False


class SodaService:
    """Jobs that bring files online.

    Parameters
    ----------
    script
        How to behave.
    tokens
        What DataLink has given out.
    clock, ids
        Times and identifiers.
    """

    def __init__(self, *, script: StagingScript, tokens: Tokens, clock: Clock, ids: Ids) -> None:
        self._script = script
        self._tokens = tokens
        self._clock = clock
        self._ids = ids
        self._key = secrets.token_bytes(32)
        self.jobs: dict[str, StagingJob] = {}

    def routes(self) -> list[Route]:
        """Below the archive's own root."""
        job = "/data/async/{job_id}"
        return [
            Route("/data/async", self._list, methods=["GET"]),
            Route("/data/async", self._create, methods=["POST"]),
            Route(job, self._job, methods=["GET"]),
            Route(job + "/phase", self._phase, methods=["GET", "POST"]),
            Route(job + "/results", self._results, methods=["GET"]),
            Route("/data/files/{name}", self._file, methods=["GET"]),
            Route("/data/web/{job_id}/{name}", self._checksum, methods=["GET"]),
        ]

    def as_dict(self) -> dict[str, Any]:
        """The jobs, for the page and for tests."""
        return {
            "jobs": [
                {
                    "job_id": job.job_id,
                    "phase": self.phase(job),
                    "files": [file_id for file_id, _ in job.files],
                    "runs": job.run_at is not None,
                }
                for job in self.jobs.values()
            ]
        }

    def phase(self, job: StagingJob) -> str:
        """What the job says now."""
        if job.aborted:
            return "ABORTED"
        if job.run_at is None:
            return "PENDING"
        delay = self._script.delay_seconds
        gone = (self._clock.now() - job.run_at).total_seconds()
        if gone >= delay:
            return "ERROR" if job.fails else "COMPLETED"
        phases = self._script.phases or ["EXECUTING"]
        return phases[min(len(phases) - 1, int(gone / delay * len(phases)))]

    async def _list(self, request: Request) -> Response:
        if not self._script.lists:
            return PlainTextResponse("There is no list of jobs.\n", 404)
        items = "".join(
            f"<uws:jobref id={quoteattr(job.job_id)} xlink:href={quoteattr(self._url(request, job))}>"
            f"<uws:phase>{self.phase(job)}</uws:phase>"
            f"<uws:creationTime>{rfc3339(job.created)}</uws:creationTime></uws:jobref>"
            for job in reversed(self.jobs.values())
        )
        return Response(f'<uws:jobs {_NAMES} version="1.1">{items}</uws:jobs>', media_type=_XML)

    async def _create(self, request: Request) -> Response:
        tokens = _ids(request.query_params.multi_items())
        if not tokens:  # a body that is not needed is left to who loses the answer, to be read to its end
            tokens = _ids(parse_qsl((await request.body()).decode("utf-8", errors="replace")))
        files = tuple(file for token in tokens if (file := self._tokens.file(token)) is not None)
        if not files:
            return PlainTextResponse("You do not have access to any of the requested data files.", 400)
        job = StagingJob(self._ids.new(), tokens, files, self._clock.now())
        self.jobs[job.job_id] = job
        if self._script.lose_answers > 0:
            self._script.lose_answers -= 1
            return DownResponse()
        return RedirectResponse(self._url(request, job), status_code=303)

    async def _job(self, request: Request) -> Response:
        job = self.jobs.get(request.path_params["job_id"])
        if job is None:
            return _unknown()
        phase = self.phase(job)
        parameters = "".join(
            f'<uws:parameter id="id"><![CDATA[ {token} ]]></uws:parameter>' for token in job.tokens
        )
        error = '<uws:errorSummary xsi:nil="true"/>'
        if phase == "ERROR":
            error = (
                '<uws:errorSummary type="fatal" hasDetail="false">'
                f"<uws:message>{escape(self._script.error_text)}</uws:message></uws:errorSummary>"
            )
        body = (
            f'<?xml version="1.0" encoding="UTF-8"?>\n<uws:job {_NAMES}>'
            f"<uws:jobId>\n<![CDATA[ {job.job_id} ]]>\n</uws:jobId>"
            f'<uws:runId xsi:nil="true"/><uws:ownerId xsi:nil="true"/><uws:phase>{phase}</uws:phase>'
            f"<uws:parameters>{parameters}</uws:parameters>"
            f"<uws:results>{self._result_items(request, job)}</uws:results>{error}</uws:job>\n"
        )
        return Response(body, media_type=_XML)

    async def _phase(self, request: Request) -> Response:
        job = self.jobs.get(request.path_params["job_id"])
        if job is None:
            return _unknown()
        if request.method == "GET":
            return PlainTextResponse(self.phase(job))
        form = {key.upper(): value for key, value in parse_qsl((await request.body()).decode())}
        wanted = form.get("PHASE", "").upper()
        if wanted == "RUN" and job.run_at is None:
            job.run_at = self._clock.now()
            if self._script.errors > 0:
                self._script.errors -= 1
                job.fails = True
        elif wanted == "ABORT":
            job.aborted = True
        return RedirectResponse(self._url(request, job), status_code=303)

    async def _results(self, request: Request) -> Response:
        job = self.jobs.get(request.path_params["job_id"])
        if job is None:
            return _unknown()
        items = self._result_items(request, job)
        return Response(f"<uws:results {_NAMES}>{items}</uws:results>", media_type=_XML)

    def _result_items(self, request: Request, job: StagingJob) -> str:
        if self.phase(job) != "COMPLETED" or job.run_at is None:
            return ""
        ended = job.run_at + timedelta(seconds=self._script.delay_seconds)
        until = ended + timedelta(seconds=self._script.valid_seconds)
        root = f"{request.url.scheme}://{request.url.netloc}/casda/data"
        items = []
        for file_id, name in job.files:
            kind, number = file_id.split("-")[:2]
            result_id = f"{'visibility' if kind == 'scan' else kind}-{number}"
            items.append(self._item(f"{result_id}.checksum", f"{root}/web/{job.job_id}/{name}.checksum"))
            items.append(self._item(result_id, f"{root}/files/{quote(name)}?{self._query(name, until)}"))
        return "".join(items)

    def _item(self, result_id: str, url: str) -> str:
        if self._script.form == "reference":
            reference = f"<uws:reference>{escape(url)}</uws:reference>"
            return f"<uws:result id={quoteattr(result_id)}>{reference}</uws:result>"
        href = quoteattr(quote(url, safe=""))
        return f'<uws:result id={quoteattr(result_id)} xlink:type="simple" xlink:href={href}/>'

    def _query(self, name: str, until: datetime) -> str:
        now = self._clock.now()
        stamp, seconds = now.strftime(_AMZ_TIME), str(int((until - now).total_seconds()))
        return urlencode(
            {
                "response-content-disposition": f'attachment; filename ="{name}"',
                "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
                "X-Amz-Date": stamp,
                "X-Amz-SignedHeaders": "host",
                "X-Amz-Expires": seconds,
                "X-Amz-Signature": self._sign(name, stamp, seconds),
            },
            quote_via=quote,
        )

    def _sign(self, name: str, stamp: str, seconds: str) -> str:
        return hmac.new(self._key, f"{name}\n{stamp}\n{seconds}".encode(), hashlib.sha256).hexdigest()

    async def _file(self, request: Request) -> Response:
        name, query = request.path_params["name"], request.query_params
        stamp, seconds = query.get("X-Amz-Date", ""), query.get("X-Amz-Expires", "")
        if not hmac.compare_digest(self._sign(name, stamp, seconds), query.get("X-Amz-Signature", "")):
            return PlainTextResponse("SignatureDoesNotMatch\n", 403)
        begun = datetime.strptime(stamp, _AMZ_TIME).replace(tzinfo=UTC)
        if self._clock.now() > begun + timedelta(seconds=int(seconds)):
            return PlainTextResponse("AccessDenied: Request has expired\n", 403)
        return PlainTextResponse(f"the content of {name}\n")

    async def _checksum(self, request: Request) -> Response:
        name = request.path_params["name"].removesuffix(".checksum")
        return PlainTextResponse(hashlib.sha1(f"the content of {name}\n".encode()).hexdigest())  # noqa: S324  # CASDA's

    def _url(self, request: Request, job: StagingJob) -> str:
        return f"{request.url.scheme}://{request.url.netloc}/casda/data/async/{job.job_id}"


def _ids(pairs: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(value for key, value in pairs if key.upper() == "ID")


def _unknown() -> Response:
    return PlainTextResponse("There is no such job.\n", 404)
