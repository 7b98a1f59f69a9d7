"""Access control: only the page's own requests, sent to an address of this machine, are answered.

Other websites in the same browser can send requests here too: from forms and scripts (cross-site requests), or under a
host name of theirs that resolves to this machine (DNS rebinding). A page that other machines can reach needs a token as
well, a secret in the address that the command prints, which the browser keeps as a cookie.
"""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
import socket
from collections.abc import Callable
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse

MAX_BYTES = 2**20  # of a request; an image to project has up to 800,000, others a few hundred
Health = Callable[[], tuple[int, str]]
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
# Routes of Gradio under /gradio_api/ that the page needs. Others serve files, take uploads, or write to the disk.
ROUTES = ("queue/", "heartbeat/", "cancel", "reset", "startup-events")
START = "/gradio_api/startup-events"  # requested by the server itself, once; later requests do nothing
HEALTH = "/health"


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


def address(host: str, port: int, token: str = "") -> str:
    """URL of a page that is served at `host`. For all addresses, 0.0.0.0, it has the machine's name."""
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/" + (f"?token={token}" if token else "")


def reachability(host: str) -> str:
    """A sentence that says who can reach a page that is served at `host`."""
    if is_loopback(host):
        return "only this machine can reach it"
    return (
        "warning: everyone who can reach this machine over the network and has this address with its token can use the "
        "page; the connection is not encrypted"
    )


def new_token() -> str:
    """A token that cannot be guessed."""
    return secrets.token_urlsafe(24)


class RequestFilter:
    """ASGI middleware that refuses foreign requests with a line of text, and adds HEADERS to every response.

    It refuses requests to another host name or from another site, without the token, to routes that the page does not
    need, and large ones. The headers keep the browser from sending requests to other servers and from showing the page
    in a frame.

    Args:
        app: the application behind it.
        names: allowed host names, see `host_names`.
        token: what visitors have to know; "" for a page that only this machine can reach.
        health: HTTP status and text of the answer to GET /health.
    """

    def __init__(self, app, names: frozenset[str], token: str = "", health: Health | None = None):
        self.app, self.names, self.token, self.health = app, names, token, health
        self.cookie = f"fastgan-{hashlib.sha256(token.encode()).hexdigest()[:8]}"  # pages on other ports have others

    async def __call__(self, scope, receive, send):
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = {name.lower().decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        status, refusal = self._refusal(scope, headers)
        if not refusal and self.token and not self._has_cookie(headers) and scope["path"] != START:
            is_known = self._has_token(scope)
            if is_known and scope["path"] != HEALTH:
                return await self._welcome(scope)(scope, receive, send)
            if not is_known:
                status, refusal = 401, "Use the whole address that the command printed, with its token."
        if refusal and scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008, "reason": refusal})
        if refusal:
            return await PlainTextResponse(refusal + "\n", status, HEADERS)(scope, receive, send)
        if scope["path"] == HEALTH and self.health is not None:
            status, text = self.health()
            return await PlainTextResponse(text + "\n", status, HEADERS)(scope, receive, send)

        async def send_with_headers(message):
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *own]
            await send(message)

        return await self.app(scope, receive, send_with_headers)

    def _refusal(self, scope, headers: dict[str, str]) -> tuple[int, str]:
        """Status and text of a refusal; the text is empty if the request is allowed."""
        host = headers.get("host", "")
        if not self._is_own(host):
            return 403, f"This page is not served as {host[:80]!r}. Use the address that the command printed."
        origin = headers.get("origin")
        if origin is not None and not _is_from(origin, host):
            return 403, "Requests from other sites are refused."
        is_visit = scope.get("method") == "GET" and headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none") and not is_visit:
            return 403, "Requests from other sites are refused."
        if "/gradio_api/" in scope["path"] and not scope["path"].partition("/gradio_api/")[2].startswith(ROUTES):
            return 403, "This page neither serves files nor accepts uploads."
        if scope.get("method") not in (None, "GET", "HEAD", "OPTIONS"):
            length = headers.get("content-length", "")
            if not length.isdecimal():
                return 411, "The request has no Content-Length."
            if int(length) > MAX_BYTES:
                return 413, "The request is too large."
        return 200, ""

    def _has_cookie(self, headers: dict[str, str]) -> bool:
        return self._is_token(cookie_parser(headers.get("cookie", "")).get(self.cookie, ""))

    def _has_token(self, scope) -> bool:
        return scope.get("method") == "GET" and any(
            name == "token" and self._is_token(value) for name, value in _query(scope)
        )

    def _is_token(self, text: str) -> bool:
        return secrets.compare_digest(text.encode(), self.token.encode())

    def _welcome(self, scope) -> RedirectResponse:
        """Gives the visitor the cookie, and takes the token out of the address."""
        query = urlencode([(name, value) for name, value in _query(scope) if name != "token"])
        response = RedirectResponse("/" + (f"?{query}" if query else ""), 303, HEADERS)
        response.set_cookie(self.cookie, self.token, httponly=True, samesite="lax")
        return response

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


def _is_from(origin: str, host: str) -> bool:
    try:
        return urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:  # no URL
        return False


def _query(scope) -> list[tuple[str, str]]:
    return parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
