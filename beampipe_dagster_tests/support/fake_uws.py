"""A TAP service with jobs, over a real socket: it keeps them, moves them on, loses them, and fails as it is told.

Each look at a job that runs moves it one phase on; what it gives in the end, and in which of the forms
that services have, is set by the test.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Literal
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape, quoteattr

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

from beampipe_dagster_tests.support.fake_tap import VOTABLE_TYPE, Reply

Form = Literal["href", "relative", "text", "none"]

UWS = 'xmlns="http://www.ivoa.net/xml/UWS/v1.0" xmlns:xlink="http://www.w3.org/1999/xlink"'


@dataclass(slots=True)
class Job:
    """A job of the service."""

    parameters: Mapping[str, str]
    phases: list[str]
    phase: str = "PENDING"


@dataclass(frozen=True, slots=True)
class Request:
    """What came."""

    method: str
    path: str
    parameters: Mapping[str, str]
    authorization: str | None

    @property
    def short(self) -> str:
        """Method and the path below the list of jobs, job numbers left out."""
        words = self.path.partition("/tap/")[2].split("/")
        return " ".join([self.method, "/".join(["job" if word.isdigit() else word for word in words])])


@dataclass
class FakeUws:
    """The service, while the context lasts.

    Parameters
    ----------
    result
        What a completed job gives.
    phases
        The phases that a job goes through once it was told to run.
    version
        Of UWS, as documents state it; 1.0 has no long polling.
    form
        How a document names its result.
    message
        The message of a job's error.
    destruction
        When jobs are dropped, as documents state it.
    faults
        Replies that are given instead, in this order, to requests that begin with the key, e.g.
        ``{"POST async": [busy()]}``.
    elsewhere
        Another service that keeps the results.
    """

    result: Reply
    phases: tuple[str, ...] = ("QUEUED", "EXECUTING", "COMPLETED")
    version: str = "1.1"
    form: Form = "href"
    message: str = ""
    destruction: str = ""
    faults: dict[str, list[Reply]] = field(default_factory=dict)
    elsewhere: FakeUws | None = None
    jobs: dict[str, Job] = field(default_factory=dict)
    asked: list[Request] = field(default_factory=list)
    created: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.fake = self

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/tap"

    @property
    def trace(self) -> list[str]:
        """What was asked, in short."""
        with self._lock:
            return [request.short for request in self.asked]

    def __enter__(self) -> Self:
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reply_to(self, request: Request) -> Reply:
        with self._lock:
            self.asked.append(request)
            for key, replies in self.faults.items():
                if request.short.startswith(key) and replies:
                    return replies.pop(0)
            return self._answer(request)

    def _answer(self, request: Request) -> Reply:
        rest = request.path.partition("/tap/")[2].split("/")
        if rest == ["async"] and request.method == "POST":
            self.created += 1
            number = str(self.created)
            self.jobs[number] = Job(request.parameters, list(self.phases))
            return Reply(status=303, headers={"Location": f"{self.url}/async/{number}"})
        if rest[0] == "stored":
            return self.result
        job = self.jobs.get(rest[1]) if len(rest) > 1 else None
        if job is None:
            return Reply(b"no such job", status=404, content_type="text/plain")
        return self._of_job(job, rest[1], rest[2:], request)

    def _of_job(self, job: Job, number: str, rest: list[str], request: Request) -> Reply:
        if request.method == "DELETE" or request.parameters.get("ACTION") == "DELETE":
            del self.jobs[number]
            return Reply(status=303, headers={"Location": f"{self.url}/async"})
        if rest == ["phase"] and request.method == "POST":
            if request.parameters.get("PHASE") == "RUN" and job.phase == "PENDING":
                job.phase = job.phases.pop(0)
            return Reply(status=303, headers={"Location": f"{self.url}/async/{number}"})
        if rest == ["results", "result"]:
            return self.result
        if rest == ["error"]:
            return Reply(self.message.encode(), content_type="text/plain")
        document = self._document(job, number)
        if job.phase != "PENDING" and job.phases:
            job.phase = job.phases.pop(0)
        return Reply(document, content_type="text/xml")

    def _document(self, job: Job, number: str) -> bytes:
        place = f"{self.url}/async/{number}/results/result"
        if self.elsewhere is not None:
            place = f"{self.elsewhere.url}/stored/{number}"
        results = {
            "href": f'<result id="log" xlink:href="{self.url}/log"/>'
            f'<result id="result" xlink:href={quoteattr(place)}/>',
            "relative": '<result id="result" xlink:href="results/result"/>',
            "text": f'<result id="result">{escape(place)}</result>',
            "none": "",
        }[self.form]
        done = job.phase == "COMPLETED"
        error = f"<errorSummary><message>{escape(self.message)}</message></errorSummary>"
        return (
            f'<job {UWS} version="{self.version}"><jobId> {number} </jobId><phase> {job.phase}\n</phase>'
            f"<destruction>{self.destruction}</destruction>"
            f"<results>{results if done else ''}</results>"
            f"{error if job.phase == 'ERROR' and self.message else ''}</job>"
        ).encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    fake: FakeUws


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self._reply()

    def do_POST(self) -> None:
        self._reply()

    def do_DELETE(self) -> None:
        self._reply()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base's name
        """Keep the test's output clean."""

    def _reply(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode(errors="replace")
        form = {**parse_qs(urlsplit(self.path).query), **parse_qs(body)}
        request = Request(
            self.command,
            urlsplit(self.path).path,
            {key.upper(): values[-1] for key, values in form.items()},
            self.headers.get("Authorization"),
        )
        reply = self.server.fake.reply_to(request)
        content = reply.body if isinstance(reply.body, bytes) else reply.body(request.parameters)
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type or VOTABLE_TYPE)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if reply.fault == "truncate":
            content = content[: len(content) // 2]
            self.close_connection = True
        self.wfile.write(content)
