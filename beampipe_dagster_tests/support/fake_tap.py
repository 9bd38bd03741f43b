"""A TAP service that answers what it is told to, over a real socket, in real VOTable.

A test gives it a script: one reply for each synchronous query, the last one again and again. The
service keeps what it was asked. MAXREC is honoured as DALI has it: rows beyond it are cut off and
an OVERFLOW follows the table.

    with FakeTap(rows([{"a": "1"}])) as tap:
        TapArchive(url=tap.url, ...)
"""

from __future__ import annotations

import io
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Literal
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape, quoteattr

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

Serialisation = Literal["tabledata", "binary", "binary2"]
Fault = Literal["reset", "truncate", "reset_in_body", "trickle"]

VOTABLE_TYPE = "application/x-votable+xml"


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer: ``body`` may depend on the request's parameters."""

    body: bytes | Callable[[Mapping[str, str]], bytes] = b""
    status: int = 200
    content_type: str = VOTABLE_TYPE
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_seconds: float = 0.0
    fault: Fault | None = None
    chunked: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """One request that came."""

    method: str
    path: str
    parameters: Mapping[str, str]
    user_agent: str


def rows(
    table: Sequence[Mapping[str, str | None]],
    *,
    types: Mapping[str, str] | None = None,
    serialisation: Serialisation = "tabledata",
    status: str | None = "OK",
    tail: str = "",
) -> Reply:
    """A result; columns are those of the first row, or of ``types`` (``{"ra": "double"}``).

    ``status`` is the QUERY_STATUS before the table, ``tail`` XML after it.
    """
    kinds = dict(types or {})
    names = list(table[0]) if table else list(kinds)

    def body(parameters: Mapping[str, str]) -> bytes:
        maxrec = int(parameters.get("MAXREC", "1000000000"))
        after = tail
        if len(table) > maxrec:
            after = '<INFO name="QUERY_STATUS" value="OVERFLOW"/>' + tail
        document = votable(names, table[:maxrec], kinds, status=status, tail=after)
        return document if serialisation == "tabledata" else reserialised(document, serialisation)

    return Reply(body)


def votable(
    names: Sequence[str],
    table: Sequence[Mapping[str, str | None]],
    types: Mapping[str, str],
    *,
    status: str | None = "OK",
    tail: str = "",
) -> bytes:
    """A VOTable document with TABLEDATA; types are ``char`` unless given, NULLs are empty cells."""
    info = f'<INFO name="QUERY_STATUS" value={quoteattr(status)}/>' if status else ""
    fields = "".join(_field(name, types.get(name, "char")) for name in names)
    cells = "".join(
        "<TR>" + "".join(f"<TD>{escape(row.get(name) or '')}</TD>" for name in names) + "</TR>"
        for row in table
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<VOTABLE version="1.4" xmlns="http://www.ivoa.net/xml/VOTable/v1.3">'
        f'<RESOURCE type="results">{info}<TABLE>{fields}'
        f"<DATA><TABLEDATA>{cells}</TABLEDATA></DATA></TABLE>{tail}</RESOURCE></VOTABLE>"
    ).encode()


def _field(name: str, kind: str) -> str:
    datatype, _, arraysize = kind.partition("[")
    size = arraysize.rstrip("]") or ("*" if datatype in {"char", "unicodeChar"} else "")
    array = f' arraysize="{size}"' if size else ""
    # The binary serialisation has no other way to say NULL; DaCHS does it like this.
    null = '<VALUES null="-1"/>' if datatype in {"short", "int", "long"} else ""
    return f'<FIELD name={quoteattr(name)} datatype="{datatype}"{array}>{null}</FIELD>'


def reserialised(document: bytes, serialisation: Serialisation) -> bytes:
    """The same VOTable in another serialisation, as astropy writes it."""
    from astropy.io.votable import parse  # noqa: PLC0415  # slow to import

    out = io.BytesIO()
    parse(io.BytesIO(document)).to_xml(out, tabledata_format=serialisation)
    return out.getvalue()


def error_document(message: str, *, status: int = 200) -> Reply:
    """An error as DALI has it: a VOTable, on many services with HTTP 200."""
    body = (
        '<?xml version="1.0"?><VOTABLE version="1.4" xmlns="http://www.ivoa.net/xml/VOTable/v1.3">'
        f'<RESOURCE type="results"><INFO name="QUERY_STATUS" value="ERROR">{escape(message)}</INFO>'
        "</RESOURCE></VOTABLE>"
    )
    return Reply(body.encode(), status=status)


def error_after_rows(table: Sequence[Mapping[str, str | None]], message: str) -> Reply:
    """A service that fails while it sends rows: OK, some rows, ERROR."""
    info = f'<INFO name="QUERY_STATUS" value="ERROR">{escape(message)}</INFO>'
    return rows(table, tail=info)


def overflow(table: Sequence[Mapping[str, str | None]]) -> Reply:
    """A result that the service itself cut off."""
    return rows(table, tail='<INFO name="QUERY_STATUS" value="OVERFLOW"/>')


def too_many(retry_after: str = "1") -> Reply:
    """HTTP 429."""
    return Reply(b"slow down", status=429, content_type="text/plain", headers={"Retry-After": retry_after})


def busy(status: int = 503, message: str = "TAP service too busy! Try again later.") -> Reply:
    """TAPLib without a free database connection."""
    return error_document(message, status=status)


def html(title: str = "Scheduled maintenance", *, status: int = 200) -> Reply:
    """A page instead of an answer."""
    page = f"<!DOCTYPE html><html><head><title>{title}</title></head><body><hr></body></html>"
    return Reply(page.encode(), status=status, content_type="text/html")


def redirect(target: str) -> Reply:
    """HTTP 301."""
    return Reply(status=301, headers={"Location": target}, content_type="text/plain")


def with_fault(reply: Reply, fault: Fault) -> Reply:
    """The same reply, broken on its way."""
    return replace(reply, fault=fault)


def slow(reply: Reply, seconds: float) -> Reply:
    """The same reply, after a while."""
    return replace(reply, delay_seconds=seconds)


def availability_document(*, available: bool, note: str = "") -> Reply:
    """A VOSI availability document."""
    body = (
        '<?xml version="1.0"?><vosi:availability '
        'xmlns:vosi="http://www.ivoa.net/xml/VOSIAvailability/v1.0">'
        f"<vosi:available>{str(available).lower()}</vosi:available>"
        f"<vosi:note>{escape(note)}</vosi:note></vosi:availability>"
    )
    return Reply(body.encode(), content_type="text/xml")


class FakeTap:
    """A TAP service on a free port of the loopback, while the context lasts."""

    def __init__(self, *script: Reply, pages: Mapping[str, Reply] | None = None) -> None:
        self.script = list(script)
        self.pages = dict(pages or {})
        self.asked: list[Asked] = []
        self.failures: list[BaseException] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server = _Server(self)

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/tap"

    @property
    def queries(self) -> list[Asked]:
        """The synchronous queries that came."""
        with self._lock:
            return [asked for asked in self.asked if asked.path.endswith("/sync")]

    def __enter__(self) -> Self:
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        if self.failures:
            raise self.failures[0]

    def reply_to(self, asked: Asked) -> Reply:
        """What is due for a request."""
        with self._lock:
            self.asked.append(asked)
            if not asked.path.endswith("/sync"):
                missing = Reply(b"no such page", status=404, content_type="text/plain")
                return self.pages.get(asked.path.rsplit("/", 1)[-1], missing)
            return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    def wait(self, seconds: float) -> None:
        """Wait, but not beyond the end of the context."""
        self._closing.wait(seconds)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, tap: FakeTap) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.tap = tap

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002  # the base's
        """A client that goes away is what many tests are about; anything else is a broken fake."""
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError):
            self.tap.failures.append(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self._answer(urlsplit(self.path).query)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        self._answer(self.rfile.read(length).decode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base's name
        """Keep the test's output clean."""

    def _answer(self, form: str) -> None:
        asked = Asked(
            method=self.command,
            path=urlsplit(self.path).path,
            parameters={key.upper(): values[-1] for key, values in parse_qs(form).items()},
            user_agent=self.headers.get("User-Agent", ""),
        )
        reply = self.server.tap.reply_to(asked)
        self.server.tap.wait(reply.delay_seconds)
        body = reply.body if isinstance(reply.body, bytes) else reply.body(asked.parameters)
        if reply.fault == "reset":
            self._reset()
            return
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self._send(body, reply)

    def _send(self, body: bytes, reply: Reply) -> None:
        half = body[: len(body) // 2]
        if reply.fault in {"truncate", "reset_in_body"}:
            self._write(half, chunked=reply.chunked)
            if reply.fault == "reset_in_body":
                time.sleep(0.05)  # let the half arrive before the reset discards it
                self._reset()
            self.close_connection = True
        elif reply.fault == "trickle":
            for index in range(len(body)):
                self._write(body[index : index + 1], chunked=reply.chunked)
                self.server.tap.wait(0.05)
        else:
            self._write(body, chunked=reply.chunked)
            if reply.chunked:
                self.wfile.write(b"0\r\n\r\n")

    def _write(self, data: bytes, *, chunked: bool) -> None:
        if chunked:
            data = f"{len(data):x}\r\n".encode() + data + b"\r\n"
        self.wfile.write(data)
        self.wfile.flush()

    def _reset(self) -> None:
        self.wfile.flush()
        # Lingering for zero seconds makes close() send RST instead of FIN.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True
