"""Flower's processes, started with all that phones home switched off; TLS and registered keys outside loopback."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from MTMed3DCore.errors import InputRefused, OutOfResources, WrongUse
from MTMed3DCore.federation.files import BUNDLE, COURSE, FLOWER
from MTMed3DCore.federation.flower_superlink import is_loopback

VERSION = "1.41."
"""The minor version whose messages and options `flower_app` and this module know."""
RETRY_AFTER = 65.0
"""Seconds before a lost site connects again: for two heartbeats of 30 s the server refuses it as present already."""
LOOK_EVERY = 60.0
"""Seconds between two looks whether Flower still runs the federation."""
STOP_WAIT = 10.0
CONNECTION = "federation"
_ENTRY = "from MTMed3DCore.federation.flower_app import {0}\n\napp = {0}\n"
APP = {
    "pyproject.toml": """\
[project]
name = "mtmed3d-federation"
version = "1.0.0"
description = "MTMed3D over Flower"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "mtmed3d"

[tool.flwr.app.components]
serverapp = "mtmed3d_federation.server_app:app"
clientapp = "mtmed3d_federation.client_app:app"

[tool.flwr.app.config]
folder = ""
sites = 1
patience = 600.0
""",
    "mtmed3d_federation/__init__.py": '"""MTMed3D over Flower; everything lies in the installed package."""\n',
    "mtmed3d_federation/server_app.py": _ENTRY.format("server_app"),
    "mtmed3d_federation/client_app.py": _ENTRY.format("client_app"),
}


@dataclass(frozen=True)
class Server:
    """Where a federation is served, and with what.

    Args:
        host, port: to listen at.
        certificate, key, authority: PEM files; all or none, none on loopback alone.
        site_keys: public keys of the sites; required with a certificate.
    """

    host: str
    port: int
    certificate: Path | None = None
    key: Path | None = None
    authority: Path | None = None
    site_keys: tuple[Path, ...] = ()

    def check(self) -> None:
        """Refuse what would let strangers listen or join.

        Raises:
            WrongUse: ``federation-insecure``.
            InputRefused: ``federation-file``.
        """
        files = [self.certificate, self.key, self.authority]
        if any(files) and not all(files):
            text = "A certificate, its key and the authority belong together."
            raise WrongUse("federation-insecure", text, "Give --certificate, --key and --authority.")
        if not self.secure and not is_loopback(self.host):
            text = f"{self.host} can be reached by other machines, and there is no certificate."
            raise WrongUse(
                "federation-insecure", text, "Give --certificate, --key and --authority, or --make-certificate."
            )
        if self.secure and not self.site_keys:
            text = "Without registered keys anybody could join."
            raise WrongUse("federation-insecure", text, "Give --site-keys with the public key of every site.")
        _refuse_missing([*(file for file in files if file), *self.site_keys])

    @property
    def secure(self) -> bool:
        """Whether it speaks TLS."""
        return self.certificate is not None


def check_flower() -> None:
    """Refuse an environment without the Flower that this package speaks.

    Raises:
        WrongUse: ``flower-missing``.
    """
    try:
        found = version("flwr")
    except PackageNotFoundError:
        found = ""
    if not found.startswith(VERSION):
        text = f"This needs Flower {VERSION}x, and there is {found or 'none'}."
        raise WrongUse("flower-missing", text, "In an environment of its own: pip install 'mtmed3d[federation]'.")


def quiet_environment(home: Path) -> dict[str, str]:
    """The environment of every process of Flower: no telemetry, no look for updates, settings of its own."""
    own = {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_HOME": str(home),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    return {**os.environ, **own}


def serve(server: Server, folder: Path, sites: int, patience: float, say: Callable[[str], None]) -> None:
    """Serve the federation that `Coordinator.start` has put into a folder, to its last round.

    Args:
        server: where.
        folder: of the federation.
        sites: to wait for before the first round.
        patience: seconds to wait for them.
        say: told what happens, a line each.

    Raises:
        WrongUse: ``federation-insecure``, ``flower-missing``, ``federation-address``.
        OutOfResources: ``federation-ended``, the run ended before its last round.
    """
    server.check()
    check_flower()
    if not _free(server.host, server.port):
        text = f"Something listens at {server.host}:{server.port} already."
        raise WrongUse("federation-address", text, "Stop it, or give another --address.")
    home = folder / FLOWER
    app = _write_app(home / "app")
    environment = quiet_environment(home)
    log = home / "server.log"
    command = [sys.executable, "-m", "MTMed3DCore.federation.flower_superlink", "--host", server.host]
    command += ["--port", str(server.port), "--disable-runtime-dependency-installation"]
    if server.secure:
        command += ["--ssl-certfile", str(server.certificate), "--ssl-keyfile", str(server.key)]
        command += ["--ssl-ca-certfile", str(server.authority), "--enable-supernode-auth"]
    else:
        command += ["--insecure"]
    with _running(command, environment, log) as process:
        _await_port(server, process, log)
        _write_connection(server, home)
        say(f"Serving at {server.host}:{server.port}, {'TLS and registered keys' if server.secure else 'loopback'}.")
        for key in server.site_keys:
            _call(["flwr", "supernode", "register", str(key), CONNECTION, "--name", key.stem], environment, log)
            say(f"Registered the key of {key.stem}.")
        values = [f"folder={json.dumps(str(folder.resolve()))}", f"sites={sites}", f"patience={float(patience)}"]
        _call(["flwr", "run", str(app), CONNECTION, "--run-config", " ".join(values)], environment, log)
        _follow(folder, process, log, environment, say)


def join(
    site: dict[str, str | int],
    address: str,
    folder: Path,
    *,
    authority: Path | None,
    key: Path | None,
    say: Callable[[str], None],
) -> None:
    """Take part as a site until it is stopped, and connect again whenever the connection is lost.

    Args:
        site: ``name``, ``list``, ``cache``, ``device``, ``workers``: what the client app reads.
        address: the server's, host:port.
        folder: of this site's log and settings.
        authority: certificate by which the server is recognised; may be left out on loopback alone.
        key: this site's private key.
        say: told what happens.

    Raises:
        WrongUse: ``federation-insecure``, ``flower-missing``.
    """
    host = address.rpartition(":")[0]
    if authority is None and not is_loopback(host):
        text = f"{host} is another machine, and there is no certificate to recognise it by."
        raise WrongUse(
            "federation-insecure", text, "Give --authority with the file that the server's administrator sent."
        )
    _refuse_missing([file for file in (authority, key) if file])
    check_flower()
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "site.json"
    settings.write_text(json.dumps(site, indent=1) + "\n", encoding="utf-8")
    environment = quiet_environment(folder / FLOWER)
    log = folder / "site.log"
    while True:
        command = ["flower-supernode", "--superlink", address, "--host", "127.0.0.1", "--port", str(free_port())]
        command += ["--node-config", f"site={json.dumps(str(settings.resolve()))}"]
        command += ["--insecure"] if authority is None else ["--root-certificates", str(authority)]
        if key is not None:
            command += ["--auth-supernode-private-key", str(key)]
        say(f"Connecting to {address}; the log is {log}.")
        with _running(command, environment, log) as process:
            code = process.wait()
        say(f"The connection ended (code {code}); trying again in {RETRY_AFTER:.0f} s. Stop with Ctrl-C.")
        time.sleep(RETRY_AFTER)


def _follow(
    folder: Path, server: subprocess.Popen[bytes], log: Path, environment: dict[str, str], say: Callable[[str], None]
) -> None:
    """Tell every round until the bundle is there."""
    told = _course(folder)["round"]
    bundle = folder / BUNDLE / "configs" / "metadata.json"
    before = bundle.stat().st_mtime_ns if bundle.is_file() else 0
    checked = time.monotonic()

    def written() -> bool:
        return bundle.is_file() and bundle.stat().st_mtime_ns != before

    while not written():
        course = _course(folder)
        for record in course["rounds"][told:]:
            absent = "".join(f"; without {site} ({reason})" for site, reason in record["absent"].items())
            say(f"Round {record['round']}: {', '.join(record['sites']) or 'no site'}{absent}.")
        told = course["round"]
        if server.poll() is not None:
            raise OutOfResources(
                "federation-ended", f"The server ended with code {server.returncode}; see {log}.", RESUME
            )
        if time.monotonic() - checked > LOOK_EVERY:
            checked = time.monotonic()
            if _over(_call(["flwr", "list", CONNECTION, "--format", "json"], environment, log)) and not written():
                raise OutOfResources("federation-ended", f"The run ended before its last round; see {log}.", RESUME)
        time.sleep(0.5)
    for record in _course(folder)["rounds"][told:]:
        say(f"Round {record['round']}: {', '.join(record['sites']) or 'no site'}.")


def _over(listed: str) -> bool:
    """Whether Flower lists its runs and all have finished; a server too busy to answer gives no list."""
    runs = json.loads(listed).get("runs", ())
    return bool(runs) and all(str(run["status"]).startswith("finished") for run in runs)


RESUME = "Serve it again with --resume: it goes on from its last round."


def _course(folder: Path) -> dict[str, Any]:
    course: dict[str, Any] = json.loads((folder / COURSE).read_text(encoding="utf-8"))
    return course


def _write_app(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    for name, text in APP.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def _write_connection(server: Server, home: Path) -> None:
    """What the ``flwr`` command must know of the server; it runs on the same machine."""
    host = "127.0.0.1" if server.host in ("0.0.0.0", "::") else server.host
    lines = [f"[superlink.{CONNECTION}]", f'address = "{host}:{server.port}"']
    lines += [f"root-certificates = {json.dumps(str(server.authority))}"] if server.secure else ["insecure = true"]
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


@contextmanager
def _running(command: Sequence[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process and those that it starts, ended with the block."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_WAIT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _call(command: Sequence[str], environment: dict[str, str], log: Path) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}\n")
    if done.returncode:
        text = f"`{' '.join(command[:3])}` ended with code {done.returncode}."
        raise OutOfResources("federation-ended", text, f"See {log}.")
    return done.stdout


def _await_port(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 300
    while _free(server.host, server.port):
        if process.poll() is not None or time.monotonic() > deadline:
            raise OutOfResources(
                "federation-ended", f"Flower's server did not start; see {log}.", "Read its last lines."
            )
        time.sleep(0.3)


def _free(host: str, port: int) -> bool:
    """Whether nothing listens there."""
    target = "127.0.0.1" if host in ("0.0.0.0", "::") else host.strip("[]")
    with socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((target, port)) != 0


def free_port() -> int:
    """A port of this machine at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _refuse_missing(files: Sequence[Path]) -> None:
    for file in files:
        if not file.is_file():
            raise InputRefused("federation-file", f"{file} is not there.", "Give the file's right name.")
