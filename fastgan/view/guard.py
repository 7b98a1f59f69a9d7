"""Which requests the page answers: its own, sent to an address of this machine.

A browser that shows the page visits other websites too. These can make it send requests here, as forms and scripts
(cross-site requests), or under a name of theirs that they point to this machine (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.responses import PlainTextResponse

MOST_BYTES = 2**20  # of a request; the page's own have a few hundred
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
# No page of ours has a reason to ask another server for anything; with this a browser would not even if one did.
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
UNUSED = ("upload", "proxy=", "file=", "stream")  # what Gradio would do for other pages, behind /gradio_api/


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address `host`."""
    if host in LOOPBACK:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def names(host: str) -> frozenset[str]:
    """Names under which a page that is served at `host` may be asked for, beside any address in numbers."""
    own = LOOPBACK | {host.lower()}
    if is_loopback(host):
        return own
    machine = socket.gethostname().lower()
    return own | {machine, f"{machine}.local", socket.getfqdn().lower()}


class Guard:
    """ASGI middleware that refuses requests with a line of text, and adds HEADERS to every answer.

    Refused are requests that name another host or come from another site, uploads, and large ones. The headers tell the
    browser to ask no other server for anything, and not to frame the page.

    Args:
        app: the application behind it.
        names: of hosts, see `names`.
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
        """Status and text; the text is empty if the request is answered."""
        headers = {name.lower().decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if not self._is_own(host):
            return 403, f"This page is not served as {host[:80]!r}. Ask for it by the address that it printed."
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return 403, "Requests of other sites are not answered."
        is_visit = scope.get("method") == "GET" and headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none") and not is_visit:
            return 403, "Requests of other sites are not answered."
        if scope["path"].partition("/gradio_api/")[2].startswith(UNUSED):
            return 403, "This page has no files to give, and takes none."
        if scope.get("method") not in (None, "GET", "HEAD", "OPTIONS"):
            length = headers.get("content-length", "")
            if not length.isdecimal():
                return 411, "The request does not say how long it is."
            if int(length) > MOST_BYTES:
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
            ipaddress.ip_address(name)  # an address in numbers cannot be pointed elsewhere
        except ValueError:
            return False
        return True
