"""A small HTTPS server with a certificate of its own, which misbehaves as a test asks."""

from __future__ import annotations

import hashlib
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass
class Site:
    """What is served, and what was asked.

    Args:
        url: where the server listens.
        certificate: PEM file to trust.
        files: content by path.
        cuts: bytes after which each of the next connections is cut.
        redirects: target by path.
        tag: entity tag; by default made from the content, and weak if it begins with W/.
        statuses: to answer the next requests with.
        ranges: the wishes that came, None for a whole file.
        with_length: whether to tell the size.
    """

    url: str
    certificate: Path
    files: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    redirects: dict[str, str] = field(default_factory=dict)
    tag: Callable[[bytes], str] = lambda content: f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    statuses: list[int] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    with_length: bool = True


@contextmanager
def serving(folder: Path) -> Iterator[Site]:
    """A server on this machine until the block ends."""
    certificate, key = _certificate(folder)
    site = Site("", certificate)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": site}))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    site.url = f"https://localhost:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that hangs up in mid-answer is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        site = self.site
        wish = self.headers.get("Range")
        site.ranges.append(wish)
        if site.statuses:
            return self._empty(site.statuses.pop(0))
        if self.path in site.redirects:
            return self._empty(302, Location=site.redirects[self.path])
        content = site.files.get(self.path)
        if content is None:
            return self._empty(404)
        tag, start = site.tag(content), 0
        if wish and self.headers.get("If-Range") == tag:
            start = int(wish.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                return self._empty(416, **{"Content-Range": f"bytes */{len(content)}"})
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if site.with_length:
            self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", tag)
        self.end_headers()
        end = start + site.cuts.pop(0) if site.cuts else len(content)
        self.wfile.write(content[start:end])
        self.wfile.flush()
        self.close_connection = True

    def _empty(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Tests print enough."""


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(parents=True, exist_ok=True)
    pem, secret = folder / "certificate.pem", folder / "key.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return pem, secret
