"""Downloads that are encrypted, resumed and bounded.

Only HTTPS, also after a redirect (RFC 9110 section 15.4), with the certificate and the host name checked. A download
that was cut goes on where it stopped as long as the server still has the same file (RFC 9110 sections 13.1.5 and 14).
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import shutil
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
)

from MTMed3DCore.errors import ModelRefused, OutOfResources
from MTMed3DCore.progress import Progress, silent

ATTEMPTS = 4
"""How often a connection is made before the download is left for another day."""
WAIT_S = 1.0
"""Before the second attempt; twice as long before every further one."""
SILENCE_S = 30.0
"""After so long without a byte a connection counts as cut."""
CHUNK = 1 << 18
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class _Cut(Exception):
    """The connection failed in a way that another attempt may mend."""


@dataclass(frozen=True)
class Download:
    """What is downloaded, and what of it lies here already.

    Args:
        url: of the file, without credentials.
        folder: keeps the part that has come, between two attempts and between two runs.
        largest: bytes beyond which nothing is taken.
        size: expected bytes, or None.
    """

    url: str
    folder: Path
    largest: int
    size: int | None = None

    @property
    def shown(self) -> str:
        """The address for messages: without a query, which may hold a key."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"

    @property
    def part(self) -> Path:
        """File that grows."""
        return self.folder / f"{hashlib.sha256(self.url.encode()).hexdigest()[:32]}.part"

    @property
    def notes(self) -> Path:
        """File that says which version of the remote file `part` belongs to."""
        return self.part.with_suffix(".json")

    def forget(self) -> None:
        """Remove what has come."""
        self.part.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)


def download(what: Download, *, trusted: Path | None = None, progress: Progress = silent) -> Path:
    """Fetch a file, or the rest of it.

    Args:
        what: address, folder and bounds.
        trusted: PEM file of an authority to trust instead of those of the system, for a server inside a hospital.
        progress: told of the bytes, stage ``download``; whatever it raises ends the work, and what has come stays.

    Returns:
        The file, in ``what.folder``.

    Raises:
        ModelRefused: ``download-insecure``, ``download-untrusted``, ``download-refused``, ``download-size``, or
            ``download-cut`` after every attempt, with what has come kept.
        OutOfResources: ``disk-full``.
    """
    check_address(what.url)
    what.folder.mkdir(parents=True, exist_ok=True)
    opener = _opener(ssl.create_default_context(cafile=None if trusted is None else str(trusted)))
    attempt, before = 0, -1
    while True:
        try:
            _attempt(opener, what, progress)
            return what.part
        except _Cut as error:
            have = what.part.stat().st_size if what.part.exists() else 0
            attempt = 1 if have > before >= 0 else attempt + 1  # an attempt that brought something does not count
            before = have
            if attempt >= ATTEMPTS:
                text = f"{what.shown} could not be fetched: {error}; {have} bytes have come and are kept."
                remedy = "Run the command again to go on from there."
                raise ModelRefused("download-cut", text, remedy) from error
            progress("download", 0.0, f"Connection lost after {have / 1e6:.1f} MB, trying again")
            time.sleep(WAIT_S * 2 ** (attempt - 1))


def check_address(url: str) -> None:
    """Refuse what is no plain HTTPS address.

    Raises:
        ModelRefused: ``download-insecure``.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme.lower() == "https" and parts.hostname and parts.username is None and parts.port != 0
    except ValueError:
        good = False
    if not good or any(character <= " " for character in url):
        text = f"{url.split('@')[-1].split('?')[0]!r} is no plain https address: models come encrypted or not at all."
        remedy = "Give an address that begins with https:// and holds no credentials, or a file on this machine."
        raise ModelRefused("download-insecure", text, remedy)


class _HttpsRedirects(HTTPRedirectHandler):
    max_redirections = 5

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(context: ssl.SSLContext) -> OpenerDirector:
    """An opener that knows HTTPS and nothing else, through the proxy of the environment."""
    opener = OpenerDirector()
    handlers = (
        ProxyHandler(),
        HTTPSHandler(context=context),
        HTTPDefaultErrorHandler(),
        HTTPErrorProcessor(),
        _HttpsRedirects(),
        UnknownHandler(),
    )
    for handler in handlers:
        opener.add_handler(handler)
    return opener


def _attempt(opener: OpenerDirector, what: Download, progress: Progress) -> None:
    """One connection; returns when the file is whole."""
    notes = _read_notes(what)
    have = what.part.stat().st_size if notes and what.part.exists() else 0
    headers = {"User-Agent": "mtmed3d", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": notes["validator"]}
    try:
        response = opener.open(Request(what.url, headers=headers), timeout=SILENCE_S)
    except HTTPError as error:
        error.close()
        if error.code == 416 and have and error.headers.get("Content-Range") == f"bytes */{have}":
            return  # all of it has come earlier
        raise _refusal(error, what) from error
    except URLError as error:
        if isinstance(error.reason, ssl.SSLError) and not isinstance(error.reason, ssl.SSLEOFError):
            text = f"{what.shown} is not who it says, or its certificate is unknown here: {error.reason}."
            remedy = "Check the address; a hospital's own authority must be known to this system."
            raise ModelRefused("download-untrusted", text, remedy) from error
        raise _Cut(str(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(f"{type(error).__name__}: {error}") from error
    with response:
        start = _start(response.status, response.headers, have, what)
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else None
        _check_size(what, total)
        _check_space(what, 0 if total is None else total - start)
        _write_notes(what, response.headers)
        _receive(response, what, start, total, progress)


def _refusal(error: HTTPError, what: Download) -> Exception:
    if error.code == 416:  # what lies here is no beginning of what lies there
        what.forget()
        return _Cut("the file on the server has changed")
    if error.code in _BUSY:
        return _Cut(f"the server answered {error.code}")
    text = f"{what.shown} answered {error.code} {error.reason}."
    return ModelRefused("download-refused", text, "Check the address, and whether it may be read without a password.")


def _start(status: int, headers: Message, have: int, what: Download) -> int:
    """From which byte on the answer goes."""
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise ModelRefused("download-refused", f"{what.shown} comes in the encoding {headers['Content-Encoding']!r}.")
    if status == 200:
        return 0
    found = _RANGE.fullmatch(headers.get("Content-Range", ""))
    if status != 206 or found is None or int(found[1]) != have:
        what.forget()
        raise _Cut(f"the server answered {status} {headers.get('Content-Range', '')!r} to a wish for byte {have} on")
    return have


def _check_size(what: Download, total: int | None) -> None:
    if total is None:
        return
    if what.size is not None and total != what.size:
        what.forget()
        text = f"{what.shown} has {total} bytes; {what.size} are expected."
        raise ModelRefused("download-size", text, "Check the address and the expected size.")
    if total > what.largest:
        text = f"{what.shown} has {total} bytes; at most {what.largest} are taken."
        raise ModelRefused("download-size", text, "Check the address; no model is that large.")


def _check_space(what: Download, needed: int) -> None:
    free = shutil.disk_usage(what.folder).free
    if needed > free:
        text = f"{what.shown} needs {needed / 1e6:.0f} MB in {what.folder}; {free / 1e6:.0f} MB are free."
        raise OutOfResources("disk-full", text, "Free some space.")


def _receive(response: Any, what: Download, start: int, total: int | None, progress: Progress) -> None:
    have = start
    with what.part.open("r+b" if start else "wb") as stream:
        stream.seek(start)
        stream.truncate()
        while True:
            try:
                block = response.read(CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _Cut(f"{type(error).__name__}: {error}") from error
            if not block:
                break
            have += len(block)
            if have > what.largest:
                stream.close()
                what.forget()
                _check_size(what, have)
            stream.write(block)
            whole = "" if total is None else f" of {total / 1e6:.1f}"
            progress("download", have / total if total else 0.0, f"{have / 1e6:.1f}{whole} MB")
    if total is not None and have < total:
        raise _Cut(f"the connection ended after {have} of {total} bytes")
    _check_size(what, have)


def _read_notes(what: Download) -> Mapping[str, str]:
    """Empty where nothing tells which version of the file has begun to come."""
    try:
        notes = json.loads(what.notes.read_text(encoding="utf-8"))
        return {"validator": str(notes["validator"])} if notes["validator"] else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _write_notes(what: Download, headers: Message) -> None:
    """A weak entity tag cannot promise the same bytes, so it does not count."""
    tag = headers.get("ETag", "")
    validator = tag if tag.startswith('"') else headers.get("Last-Modified", "")
    what.notes.write_text(json.dumps({"validator": validator}) + "\n", encoding="utf-8", newline="\n")
