"""Flower's SuperLink, of which other machines reach nothing but what a site needs.

Flower 1.41 serves three interfaces at one address: the sites' (``/v1/fleet``), which checks registered keys; the
administrator's (``/v1/control``), which without an account service lets everybody register keys and start runs, and a
run is code that every site executes; and the server app's own (``/v1/runtime``). Here the last two answer to this
machine alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from ipaddress import ip_address
from typing import Any

OPEN = "/v1/fleet"
"""What another machine may ask for."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class LocalAdministration:
    """ASGI middleware that answers 403 to other machines outside `OPEN`.

    Args:
        app: what it stands before.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] == "lifespan" or allowed(scope):
            await self.app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"Only the server itself may ask for this.\n"})


def allowed(scope: Scope) -> bool:
    """Whether a request comes from this machine, or asks for what is open."""
    path = str(scope.get("path", ""))
    if path == OPEN or path.startswith(f"{OPEN}/"):
        return True
    client, server = scope.get("client"), scope.get("server")
    if client is None:
        return False
    return is_loopback(client[0]) or (server is not None and client[0] == server[0])


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def main() -> None:
    """``flower-superlink`` behind `LocalAdministration`, with the same arguments."""
    from flwr.superlink import extensions
    from flwr.superlink.cli.flower_superlink import flower_superlink
    from starlette.middleware import Middleware

    before = extensions.get_middleware
    extensions.get_middleware = lambda: (Middleware(LocalAdministration), *before())
    flower_superlink()


if __name__ == "__main__":
    main()
