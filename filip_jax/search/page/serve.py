"""The web server of the page: its socket, and how it runs."""

import socket

import uvicorn
from starlette.types import ASGIApp

from filip_jax.errors import UserError
from filip_jax.search.page.limits import ip_address

MAX_CONNECTIONS = 128
MAX_PORT = (1 << 16) - 1
MAX_HEADER_BYTES = 1 << 14  # of a request's first line and headers
GRACE = 5  # seconds for requests that are being answered when it ends


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        UserError: the host is none of this machine, or the port is taken.
    """
    if not 0 <= port <= MAX_PORT:
        raise UserError(f"--port={port} must be from 0, which takes a free port, to {MAX_PORT}")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host={host} --port={port}: {error}; --port=0 takes a free port") from error


def address_of(listener: socket.socket, host: str) -> str:
    """Return the address that a browser on this machine opens."""
    address = ip_address(host)
    name = socket.gethostname() if address is not None and address.is_unspecified else host
    return f"http://{f'[{name}]' if ':' in name else name}:{listener.getsockname()[1]}/"


def make_server(app: ASGIApp) -> uvicorn.Server:
    """Return what answers requests once its `run(sockets=[…])` is called, until the process is interrupted.

    Nothing is logged but what fails here: addresses may hold a token, and strangers' mistakes would fill the terminal.
    """
    config = uvicorn.Config(
        app, loop="asyncio", http="h11", ws="none", lifespan="on", log_level="error", access_log=False,
        server_header=False, proxy_headers=False, limit_concurrency=MAX_CONNECTIONS, timeout_graceful_shutdown=GRACE,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )  # fmt: skip
    return uvicorn.Server(config)
