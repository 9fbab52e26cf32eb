"""Who may ask the page, with what, and how many at once.

The page reads pictures of its user and has no accounts, so other web sites that the user's browser shows must not reach
it, by its address or by a name of theirs that they point to this machine (DNS rebinding): `Guard` compares the headers
Host, Origin and Sec-Fetch-Site. Whoever can reach a port beyond this machine needs a token.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import ClientDisconnect, Request, cookie_parser
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from filip_jax.console import show_error

T = TypeVar("T")
COOKIE = "filip_token"  # … and of the token: a browser has one set of cookies for all ports of a host
MIN_TOKEN = 16  # characters
BODY_SECONDS = 30.0  # until a request's body is here
HOST = re.compile(r"(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::\d{1,5})?")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Refused(Exception):
    """A request that is not answered, with its HTTP status and one line that says why."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def refusal(_: Request, error: Exception) -> Response:
    """Return the answer to a refused request."""
    status = error.status if isinstance(error, Refused) else 500
    return JSONResponse({"error": str(error)}, status, {"Retry-After": "1"} if status == 503 else None)


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a host name or address."""
    if host == "localhost":
        return True
    address = ip_address(host)
    return address is not None and address.is_loopback


def ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address that a host is written as; None of a name."""
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


class Guard:
    """An application around another that answers only requests of the page itself, of programs, and with the token.

    Args:
        app: what answers.
        host: name or address that the server listens on.
        token: of those that may ask; "" asks nobody for one.
    """

    def __init__(self, app: ASGIApp, host: str, token: str):
        self.app, self.token, self.is_local = app, token, is_loopback(host)
        self.cookie = f"{COOKIE}_{hashlib.sha256(token.encode()).hexdigest()[:8]}"  # a host's ports share their cookies
        self.names = {"localhost", host.lower(), socket.gethostname().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        if scope["type"] != "http":  # the start and end of the server; it has no web sockets
            return await self.app(scope, receive, send)
        answer = self._refusal(scope) or self._without_token(scope) or self.app
        try:
            await answer(scope, receive, send_with_headers)
        except Exception:  # a defect of ours, which is answered already
            show_error()

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        match = HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if match is None or not self._is_own(match[1].lower()):
            return _refused(scope, "this server has another name: open the address that `filip serve` printed", 421)
        for origin in headers.getlist("origin"):
            if origin.lower() not in (f"http://{hosts[0].lower()}", f"https://{hosts[0].lower()}"):
                return _refused(scope, "other web sites may not ask this server", 403)
        opens = scope["method"] == "GET" and scope["path"] == "/"  # a link on another site may open the page
        if not opens and headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return _refused(scope, "other web sites may not ask this server", 403)
        return None

    def _is_own(self, name: str) -> bool:
        """A name of a stranger that points to this machine is not; an address cannot be pointed anywhere else."""
        if self.is_local:
            return is_loopback(name)
        address = ip_address(name)
        if address is not None:
            return not address.is_unspecified
        return name in self.names

    def _without_token(self, scope: Scope) -> Response | None:
        if not self.token:
            return None
        headers = Headers(scope=scope)
        query = QueryParams(scope["query_string"])
        if scope["path"] == "/" and self._is_token(query.get("token", "")):
            answer = RedirectResponse("/", 303)  # the token stays in no history
            answer.set_cookie(self.cookie, self.token, httponly=True, samesite="strict")
            return answer
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._is_token(given.strip()):
            return None
        if self._is_token(cookie_parser(headers.get("cookie", "")).get(self.cookie, "")):
            return None
        message = "this server asks for its token: open the whole address that `filip serve` printed"
        return _refused(scope, message, 401, {"WWW-Authenticate": "Bearer"})

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.token.encode())


def _refused(scope: Scope, message: str, status: int, headers: dict[str, str] | None = None) -> Response:
    """Return a refusal: JSON for programs, as any mistake of theirs, and text for a browser's window."""
    if scope["path"].startswith("/api/"):
        return JSONResponse({"error": message}, status, headers)
    return PlainTextResponse(message, status, headers)


class Queue:
    """Threads for work, and a bounded line before them: whoever comes when it is full is refused at once.

    Args:
        threads: that work at a time.
        waiting: requests that may wait for them.
        what: is asked for, for the refusal.
    """

    def __init__(self, threads: int, waiting: int, what: str):
        self.most, self.inside, self.what = threads + waiting, 0, what
        self.turns = asyncio.Semaphore(threads)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place in the line, from before a request's body is read until it is answered.

        Raises:
            Refused: the line is full.
        """
        if self.inside >= self.most:
            raise Refused(503, f"too many {self.what} at once; try again in a moment")
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    async def work(self, request: Request, function: Callable[..., T], *arguments: object) -> T:
        """Return what a function gives that a thread calls when it is this request's turn.

        Raises:
            Refused: who asked is gone by then, as somebody is who types on.
        """
        async with self.turns:
            if await request.is_disconnected():
                raise Refused(499, "nobody waits for the answer")
            return await asyncio.to_thread(function, *arguments)


async def read_body(request: Request, most: int) -> bytes:
    """Return the body of a request, of which never more than `most` bytes are held.

    Raises:
        Refused: it is longer, or not here after BODY_SECONDS.
    """
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > most:
        raise Refused(413, f"{length[:20]} bytes; at most {most} are read")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise Refused(413, f"more than {most} bytes, which is all that is read")
    except TimeoutError as error:
        raise Refused(408, f"the request was not complete within {BODY_SECONDS:.0f} seconds") from error
    except ClientDisconnect as error:
        raise Refused(400, "the request ended before its body") from error
    return bytes(body)
