"""Access control: only the page's own requests, sent to an address of this machine, are answered.

Other websites in the same browser can send requests here too: from forms and scripts (cross-site requests), or under a
host name of theirs that resolves to this machine (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.responses import PlainTextResponse

MAX_BYTES = 2**20  # of a request; the page's own have a few hundred
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
# Keeps the browser from sending any request of the page to another server.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' ws: wss: data: blob:; "
    "form-action 'self'; base-uri 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
}
UNUSED = ("upload", "proxy=", "file=", "stream")  # routes of Gradio under /gradio_api/ that this page does not need


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address `host`."""
    if host in LOOPBACK:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_names(host: str) -> frozenset[str]:
    """Host names that requests to a page served at `host` may have, besides numeric addresses."""
    own = LOOPBACK | {host.lower()}
    if is_loopback(host):
        return own
    machine = socket.gethostname().lower()
    return own | {machine, f"{machine}.local", socket.getfqdn().lower()}


class RequestFilter:
    """ASGI middleware that refuses foreign requests with a line of text, and adds HEADERS to every response.

    It refuses requests to another host name or from another site, uploads, and large requests. The headers keep the
    browser from sending requests to other servers and from showing the page in a frame.

    Args:
        app: the application behind it.
        names: allowed host names, see `host_names`.
    """

    def __init__(self, app, names: frozenset[str]):
        self.app, self.names = app, names

    async def __call__(self, scope, receive, send):
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        status, refusal = self._refusal(scope)
        if refusal and scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008, "reason": refusal})
        if refusal:
            return await PlainTextResponse(refusal + "\n", status, HEADERS)(scope, receive, send)

        async def send_with_headers(message):
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *own]
            await send(message)

        return await self.app(scope, receive, send_with_headers)

    def _refusal(self, scope) -> tuple[int, str]:
        """Status and text of a refusal; the text is empty if the request is allowed."""
        headers = {name.lower().decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if not self._is_own(host):
            return 403, f"This page is not served as {host[:80]!r}. Use the address that the command printed."
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return 403, "Requests from other sites are refused."
        is_visit = scope.get("method") == "GET" and headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none") and not is_visit:
            return 403, "Requests from other sites are refused."
        if scope["path"].partition("/gradio_api/")[2].startswith(UNUSED):
            return 403, "This page neither serves files nor accepts uploads."
        if scope.get("method") not in (None, "GET", "HEAD", "OPTIONS"):
            length = headers.get("content-length", "")
            if not length.isdecimal():
                return 411, "The request has no Content-Length."
            if int(length) > MAX_BYTES:
                return 413, "The request is too large."
        return 200, ""

    def _is_own(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name.lower() in self.names:
            return True
        try:
            ipaddress.ip_address(name)  # a numeric address cannot be rebound
        except ValueError:
            return False
        return True
