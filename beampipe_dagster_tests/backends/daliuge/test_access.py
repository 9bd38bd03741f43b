from __future__ import annotations

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.backends.daliuge.access import Access
from beampipe_dagster.backends.daliuge.manager import IslandManager
from beampipe_dagster.backends.daliuge.translator import Translator
from beampipe_dagster.backends.provider import BackendProvider
from beampipe_dagster.clock import ManualClock
from beampipe_dagster.config.profile import load_profile
from beampipe_dagster.errors import BackendUnavailableError, ConfigError

SECRET = "Bearer s3cr3t-token"  # noqa: S105  # made up


def answering(seen: list[httpx.Request], status: int = 200, body: Any = None) -> httpx.Client:
    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(status, json=[] if body is None else body)

    return httpx.Client(transport=httpx.MockTransport(answer))


def test_every_request_carries_the_header_that_lets_in() -> None:
    seen: list[httpx.Request] = []
    headers = Access.of(header=f"Authorization: {SECRET}").headers
    IslandManager(url="http://dim:8001", client=answering(seen), headers=headers).nodes()
    Translator(url="http://tm:8084", client=answering(seen), headers=headers).available()
    assert [request.headers["Authorization"] for request in seen] == [SECRET, SECRET]


def test_a_header_is_shown_nowhere() -> None:
    access = Access.of(header=f"X-Token: {SECRET}")
    assert SECRET not in repr(access)
    client = answering([], status=401, body={"no": 1})
    with pytest.raises(BackendUnavailableError) as caught:
        IslandManager(url="http://dim:8001", client=client, headers=access.headers).nodes()
    assert caught.value.code == "backend_not_authorised"
    assert SECRET not in str(caught.value.as_dict())


@pytest.mark.parametrize(
    "line", ["Bearer x", "Authorization:", ": x", "A b: c", "A: b\nC: d", "A: \x00", "A: é"]
)
def test_what_is_no_header_line_is_refused_unseen(line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Access.of(header=line)
    assert caught.value.code == "invalid_setting"
    assert "not shown" in caught.value.message
    assert repr(line) not in str(caught.value.as_dict())


@given(st.text(max_size=30))
def test_any_text_is_a_header_that_can_be_sent_or_refused(text: str) -> None:
    try:
        headers = Access.of(header=text).headers
    except ConfigError:
        return
    request = httpx.Request("GET", "http://x", headers=headers)
    assert all(request.headers[name] == value for name, value in headers.items())


class _Secure(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"[]")

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A manager behind TLS, with a certificate of its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, both = tmp_path / "ca.pem", tmp_path / "server.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    both.write_bytes(private + pem.read_bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Secure)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server.server_address[1], pem
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("deployment", "known", "works"),
    [
        ({"verify_ssl": True}, "known", True),
        ({"verify_ssl": True}, "unknown", False),
        ({"verify_ssl": False}, "unknown", True),
    ],
    ids=str,
)
def test_a_certificate_is_checked_by_the_given_authority_unless_the_profile_says_not_to(
    secure: tuple[int, Path], deployment: dict[str, Any], known: str, works: object
) -> None:
    port, pem = secure
    profile = load_profile(
        {
            "name": "tls",
            "translation": {"algo": "metis", "num_par": 1, "num_islands": 1, "tm_url": "http://tm"},
            "deployment": {
                "kind": "rest_remote",
                "deploy_host": "localhost",
                "deploy_port": port,
                "use_https": True,
                **deployment,
            },
        }
    )
    access = Access(ca_file=pem if known == "known" else None)
    backend = BackendProvider(clock=ManualClock(), access=access).backend(profile)
    assert backend.url == f"https://localhost:{port}"
    if works:
        assert backend.nodes() == []
    else:
        with pytest.raises(BackendUnavailableError, match="certificate"):
            backend.nodes()


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_file_without_certificates_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        Access(ca_file=path).verification(verify=True)
    assert caught.value.details["path"] == str(path)
