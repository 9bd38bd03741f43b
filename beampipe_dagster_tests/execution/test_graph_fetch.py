"""Graphs by URL, from real servers on this machine."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from beampipe_dagster.config.settings import Settings
from beampipe_dagster.errors import BeampipeError, GraphError, Retry
from beampipe_dagster.execution.graph_fetch import ALLOW_PRIVATE, MAX_REDIRECTS, GraphFetcher, is_public
from beampipe_dagster.execution.projects import ProjectService
from beampipe_dagster.ids import UuidIds
from beampipe_dagster_tests.support.platforms import Stage, ingest_graph, make_platform, survey_spec

GRAPH = json.dumps(ingest_graph()).encode()
PIN = hashlib.sha256(GRAPH).hexdigest()
CHUNK = b"x" * 65_536

Answer = Callable[[BaseHTTPRequestHandler], None]


class GraphServer:
    """A real HTTP server: a path's answer is a function; it keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, str]] = []
        self.stopping = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.asked.append((self.path, str(self.headers["Host"])))
                self.close_connection = True
                answer = outer.answers.get(self.path, missing)
                try:
                    answer(self)
                except OSError:  # the client went away, which is what some answers are for
                    return

            def log_message(self, *args: Any) -> None:
                del args

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()
        self.answers["/g.graph"] = body(GRAPH)

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])

    def url(self, path: str = "/g.graph", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def close(self) -> None:
        self.stopping.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(timeout=5)


def missing(handler: BaseHTTPRequestHandler) -> None:
    status(404)(handler)


def status(code: int, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def body(raw: bytes, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(raw)))
        handler.end_headers()
        handler.wfile.write(raw)

    return answer


@pytest.fixture
def server() -> Iterator[GraphServer]:
    made = GraphServer()
    try:
        yield made
    finally:
        made.close()


def local(**more: Any) -> GraphFetcher:
    return GraphFetcher(allow_private=True, **{"total_seconds": 10.0, **more})


def refused(fetcher: GraphFetcher, url: str, pin: str | None = PIN) -> BeampipeError:
    with pytest.raises(GraphError) as caught:
        fetcher.fetch(url, sha256=pin)
    return caught.value


def test_a_pinned_graph_is_fetched(server: GraphServer) -> None:
    assert local().fetch(server.url(), sha256=PIN) == GRAPH
    assert local().fetch(server.url(), sha256=f" {PIN.upper()} ") == GRAPH
    assert server.asked[0] == ("/g.graph", f"127.0.0.1:{server.port}")


@pytest.mark.parametrize("pin", [None, "", "  "])
def test_without_a_pin_nothing_is_fetched(server: GraphServer, pin: str | None) -> None:
    assert refused(local(), server.url(), pin).code == "graph_pin_missing"
    assert server.asked == []


def test_another_document_is_refused_and_never_quoted(server: GraphServer) -> None:
    server.answers["/g.graph"] = body(b"top secret")
    error = refused(local(), server.url())
    assert (error.code, error.retry) == ("graph_pin_mismatch", Retry.NEVER)
    assert error.details["actual"] == hashlib.sha256(b"top secret").hexdigest()
    assert "top secret" not in json.dumps(error.as_dict())


@pytest.mark.parametrize(
    ("code", "retry"),
    [(404, Retry.NEVER), (403, Retry.NEVER), (429, Retry.LATER), (500, Retry.LATER), (503, Retry.LATER)],
)
def test_a_server_that_does_not_give_it_is_told_with_its_status(
    server: GraphServer, code: int, retry: Retry
) -> None:
    server.answers["/g.graph"] = status(code)
    error = refused(local(), server.url())
    assert (error.code, error.retry) == ("graph_unreachable", retry)
    assert str(code) in error.message


def test_a_server_that_is_not_there_may_come_back() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        error = refused(local(), f"http://127.0.0.1:{taken.getsockname()[1]}/g.graph")
    assert (error.code, error.retry) == ("graph_unreachable", Retry.LATER)


def test_a_name_without_an_address_may_get_one() -> None:
    def unknown(_host: str, _port: int) -> list[str]:
        raise socket.gaierror(-2, "Name or service not known")

    error = refused(local(resolver=unknown), "https://graphs.example/g.graph")
    assert (error.code, error.retry) == ("graph_unreachable", Retry.LATER)


def test_a_declared_size_above_the_limit_is_refused_before_it_comes(server: GraphServer) -> None:
    def huge(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(10**12))
        handler.end_headers()
        server.stopping.wait(20)

    server.answers["/g.graph"] = huge
    began = time.monotonic()
    assert refused(local(), server.url()).code == "graph_too_large"
    assert time.monotonic() - began < 5


def test_an_endless_document_is_cut_off_at_the_limit(server: GraphServer) -> None:
    sent: list[int] = []

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not server.stopping.is_set():
            sent.append(handler.wfile.write(CHUNK))

    server.answers["/g.graph"] = endless
    error = refused(local(max_bytes=1_000_000), server.url())
    assert (error.code, error.retry) == ("graph_too_large", Retry.NEVER)
    assert sum(sent) < 50_000_000


@pytest.mark.parametrize("where", ["headers", "body", "silence"])
def test_a_trickle_does_not_outlast_the_time(server: GraphServer, where: str) -> None:
    stopped = threading.Event()

    def slow(handler: BaseHTTPRequestHandler) -> None:
        try:
            if where == "silence":
                server.stopping.wait(20)
                return
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
            if where == "body":
                handler.wfile.write(b"\r\n")
            while not server.stopping.wait(0.05):
                handler.wfile.write(b"X-A: b\r\n" if where == "headers" else b"x")
        finally:
            stopped.set()

    server.answers["/g.graph"] = slow
    began = time.monotonic()
    error = refused(local(total_seconds=0.5), server.url())
    assert time.monotonic() - began < 3
    assert (error.code, error.retry) == ("graph_unreachable", Retry.LATER)
    if where != "silence":
        assert stopped.wait(5), "the connection is still open"


def test_a_slow_resolver_does_not_outlast_the_time() -> None:
    release = threading.Event()

    def slow(_host: str, _port: int) -> list[str]:
        release.wait(20)
        return ["127.0.0.1"]

    began = time.monotonic()
    error = refused(local(total_seconds=0.3, resolver=slow), "http://graphs.example/g.graph")
    release.set()
    assert error.code == "graph_unreachable"
    assert time.monotonic() - began < 3


def test_redirects_are_followed_to_a_limit(server: GraphServer) -> None:
    for step in range(MAX_REDIRECTS + 2):
        following = "/g.graph" if step == 0 else f"/{step - 1}"
        server.answers[f"/{step}"] = status(302, Location=following)
    assert local().fetch(server.url(f"/{MAX_REDIRECTS - 1}"), sha256=PIN) == GRAPH
    error = refused(local(), server.url(f"/{MAX_REDIRECTS}"))
    assert (error.code, error.retry) == ("graph_unreachable", Retry.NEVER)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "10.1.2.3",
        "192.168.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "100.64.0.1",
    ],
)
def test_addresses_inside_the_network_are_refused_before_a_connection(server: GraphServer, host: str) -> None:
    error = refused(GraphFetcher(total_seconds=5), f"http://{host}:{server.port}/g.graph")
    assert (error.code, error.retry) == ("graph_address_refused", Retry.NEVER)
    assert ALLOW_PRIVATE in error.hint
    assert server.asked == []


def test_a_name_of_which_one_address_is_private_is_refused(server: GraphServer) -> None:
    fetcher = GraphFetcher(total_seconds=5, resolver=lambda _host, _port: ["93.184.215.14", "127.0.0.1"])
    assert refused(fetcher, server.url(host="graphs.example")).code == "graph_address_refused"
    assert server.asked == []


class Doors(GraphFetcher):
    """A fetcher to which one private address is a public one: the server's own first door."""

    def _address(self, url: str, host: str, port: int) -> Any:
        if host == "public.example":
            return ipaddress.ip_address("127.0.0.1")
        return super()._address(url, host, port)


@pytest.mark.parametrize(
    "target", ["http://127.0.0.1:{port}/g.graph", "//localhost:{port}/g.graph", "http://[::1]/x"]
)
def test_a_redirect_into_the_network_is_refused(server: GraphServer, target: str) -> None:
    server.answers["/away"] = status(302, Location=target.format(port=server.port))
    error = refused(Doors(total_seconds=5), server.url("/away", host="public.example"))
    assert error.code == "graph_address_refused"
    assert [path for path, _ in server.asked] == ["/away"]


@pytest.mark.parametrize("target", ["file:///etc/passwd", "gopher://x/", "http://a:b@public.example/"])
def test_a_redirect_to_something_else_than_a_graph_is_refused(server: GraphServer, target: str) -> None:
    server.answers["/away"] = status(302, Location=target)
    assert refused(local(), server.url("/away")).code == "invalid_graph_url"


def test_the_connection_goes_to_the_address_that_was_looked_at(server: GraphServer) -> None:
    answers = iter([["127.0.0.1"], ["10.0.0.1"]])
    fetcher = local(resolver=lambda _host, _port: next(answers))
    assert fetcher.fetch(server.url(host="graphs.example"), sha256=PIN) == GRAPH
    assert server.asked == [("/g.graph", f"graphs.example:{server.port}")]
    assert list(answers) == [["10.0.0.1"]], "the name was looked up once"


@pytest.mark.parametrize(
    "url", ["", "graph", "ftp://graphs.example/g", "http://", "http://a:b@graphs.example/g", "https://x:y/g"]
)
def test_only_plain_http_urls_are_fetched(url: str) -> None:
    error = refused(local(), url)
    assert error.code == "invalid_graph_url"
    assert "a:b" not in json.dumps(error.as_dict())


def test_a_secret_in_a_query_is_not_shown(server: GraphServer) -> None:
    error = refused(local(), server.url("/nothing?token=hunter2"))
    assert "hunter2" not in json.dumps(error.as_dict())


def test_a_compressed_answer_is_refused(server: GraphServer) -> None:
    server.answers["/g.graph"] = body(GRAPH, Content_Encoding="gzip")
    assert refused(local(), server.url()).code == "graph_unreachable"


def test_proxies_of_the_environment_are_not_asked(
    server: GraphServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert local().fetch(server.url(), sha256=PIN) == GRAPH


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("127.8.9.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::127.0.0.1", False),
        ("2002:7f00:1::", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::a9fe:a9fe", False),
    ],
)
def test_which_addresses_are_public(text: str, *, public: bool) -> None:
    assert is_public(ipaddress.ip_address(text)) is public


@pytest.mark.parametrize(("value", "allowed"), [("true", True), (" YES ", True), ("", False), ("no", False)])
def test_the_environment_allows_private_addresses(server: GraphServer, value: str, *, allowed: bool) -> None:
    settings = Settings.from_env({"HOME": "/h", ALLOW_PRIVATE: value})
    fetcher = GraphFetcher(allow_private=settings.allow_private_graph_urls)
    if allowed:
        assert fetcher.fetch(server.url(), sha256=PIN) == GRAPH
    else:
        assert refused(fetcher, server.url()).code == "graph_address_refused"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for graphs.example."""
    home = tmp_path_factory.mktemp("tls")
    key, cert = home / "key.pem", home / "cert.pem"
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=graphs.example",
    ]
    made += ["-addext", "subjectAltName=DNS:graphs.example", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(made, check=True, capture_output=True)
    return key, cert


def test_a_certificate_is_checked_against_the_urls_name_though_the_address_is_dialled(
    server: GraphServer, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    key, cert = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server.server.socket = context.wrap_socket(server.server.socket, server_side=True)
    fetcher = local(resolver=lambda _host, _port: ["127.0.0.1"])
    url = f"https://graphs.example:{server.port}/g.graph"
    untrusted = refused(fetcher, url)
    assert "CERTIFICATE_VERIFY_FAILED" in untrusted.message
    create = ssl.create_default_context
    monkeypatch.setattr(ssl, "create_default_context", lambda *_, **__: create(cafile=str(cert)))
    assert fetcher.fetch(url, sha256=PIN) == GRAPH
    other = refused(fetcher, f"https://other.example:{server.port}/g.graph")
    assert "CERTIFICATE_VERIFY_FAILED" in other.message


def add(stage: Stage, url: str, pin: str, fetcher: GraphFetcher, **changes: Any) -> bool:
    spec = survey_spec(pin, **changes)
    spec["graph"] = {"url": url, "sha256": pin}
    path = stage.home / "by_url.yaml"
    path.write_text(json.dumps(spec))
    service = ProjectService(
        ledger=stage.ledger, clock=stage.clock, ids=UuidIds(), home=stage.home, fetcher=fetcher
    )
    return service.add_project(path, actor="anna").changed


def test_the_platform_fetches_from_private_addresses_only_when_a_setting_says_so(
    stage: Stage, server: GraphServer
) -> None:
    other = json.dumps({**ingest_graph(), "more": 2}).encode()
    pin = hashlib.sha256(other).hexdigest()
    server.answers["/g.graph"] = body(other)
    spec = survey_spec(pin)
    spec["graph"] = {"url": server.url(), "sha256": pin}
    path = stage.home / "by_url.yaml"
    path.write_text(json.dumps(spec))
    with pytest.raises(GraphError) as caught:
        stage.platform.projects.add_project(path, actor="anna")
    assert caught.value.code == "graph_address_refused"
    allowing = make_platform(
        stage.ledger,
        home=stage.home,
        clock=stage.clock,
        archives=stage.archives,
        ids=UuidIds(),
        allow_private_graph_urls=True,
    )
    assert allowing.projects.add_project(path, actor="anna").changed


def test_a_project_with_a_url_keeps_its_graph_and_never_fetches_the_same_digest_again(
    stage: Stage, server: GraphServer
) -> None:
    other = json.dumps({**ingest_graph(), "more": 1}).encode()
    pin = hashlib.sha256(other).hexdigest()
    server.answers["/g.graph"] = body(other)
    assert add(stage, server.url(), pin, local())
    assert add(stage, server.url("/elsewhere"), pin, local())
    assert [path for path, _ in server.asked] == ["/g.graph"]
    execution = stage.submit(stage.admitted("A"), until="prepared_graph")
    assert execution.patched_graph_sha256 is not None


def test_a_graph_that_cannot_be_had_changes_nothing(stage: Stage, server: GraphServer) -> None:
    with pytest.raises(GraphError) as caught:
        add(stage, server.url("/nothing"), "0" * 64, local())
    assert caught.value.code == "graph_unreachable"
    assert len(stage.events("config.activated")) == 1
