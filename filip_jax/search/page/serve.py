"""The web server of the page: its socket, and how it runs."""

import asyncio
import errno
import math
import socket

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from filip_jax.errors import UserError
from filip_jax.search.page.limits import ip_address

MAX_CONNECTIONS = 128
MAX_PORT = (1 << 16) - 1
MAX_HEADER_BYTES = 1 << 14  # of a request's first line and headers
HEADER_SECONDS = 10.0  # until the first line and headers of a request have come
READER_SECONDS = 30.0  # in which somebody who gets an answer must have read some of it
GRACE = 5  # seconds for requests that are being answered when it ends


class DeadlineProtocol(H11Protocol):
    """HTTP of uvicorn, which waits without end, with deadlines: for the headers of a request, and for readers of an answer."""

    deadline: asyncio.TimerHandle | None = None
    reader_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._end()
        self.resume_writing()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._look_at_reader(math.inf)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.reader_deadline is not None:
            self.reader_deadline.cancel()
            self.reader_deadline = None

    def _look_at_reader(self, before: float) -> None:
        """End the connection of somebody who has read nothing since so many bytes were left."""
        left = self.transport.get_write_buffer_size()
        if left < before:
            self.reader_deadline = self.loop.call_later(READER_SECONDS, self._look_at_reader, left)
        else:
            self.transport.abort()

    def _watch(self) -> None:
        """Set the deadline where the headers of a request are awaited, and end it where they have come."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._end()
        elif self.deadline is None:
            self.deadline = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _end(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        UserError: the host is none of this machine, or the port is taken.
    """
    if not 0 <= port <= MAX_PORT:
        raise UserError(f"--port={port} must be from 0, which takes a free port, to {MAX_PORT}")
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = addresses[0]
        dual = family == socket.AF_INET6 and socket.has_dualstack_ipv6()  # :: stands for the addresses of both kinds
        return socket.create_server(address, family=family, dualstack_ipv6=dual)
    except (OSError, UnicodeError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        raise UserError(f"--host={host} --port={port}: {error}{'; --port=0 takes a free port' * taken}") from error


def address_of(listener: socket.socket, host: str) -> str:
    """Return the address that a browser on this machine opens."""
    address = ip_address(host)
    name = socket.gethostname() if address is not None and address.is_unspecified else host
    return f"http://{f'[{name}]' if ':' in name else name}:{listener.getsockname()[1]}/"


def make_server(app: ASGIApp) -> uvicorn.Server:
    """Return what answers requests once its `run(sockets=[…])` is called, until the process is interrupted.

    It logs nothing: addresses may hold a token, and strangers' mistakes would fill the terminal. `Guard` shows what fails here.
    """
    config = uvicorn.Config(
        app, loop="asyncio", http=DeadlineProtocol, ws="none", lifespan="on", log_level="critical", access_log=False,
        server_header=False, proxy_headers=False, limit_concurrency=MAX_CONNECTIONS, timeout_graceful_shutdown=GRACE,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )  # fmt: skip
    return uvicorn.Server(config)
