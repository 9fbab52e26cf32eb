"""The web application of `filip serve`: one page, its script and style, and a JSON API."""

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from filip_jax.data.record import BadRecord
from filip_jax.errors import UserError, one_line
from filip_jax.search.page.answers import Answers
from filip_jax.search.page.limits import Guard, Queue, Refused, read_body, refusal
from filip_jax.search.page.requests import MAX_TEXT, patch_request, search_request
from filip_jax.search.page.thumbnails import Thumbnails
from filip_jax.small_files import parse

MAX_UPLOAD_BYTES = 1 << 24  # of a picture that is searched by
MAX_REQUEST_BYTES = 1 << 22  # of a request in JSON
MAX_WAITING = 16  # searches in line
MAX_PICTURES_WAITING = 128
PARTS = {"/": "page.html", "/page.js": "page.js", "/page.css": "page.css", "/icon.svg": "icon.svg"}
KINDS = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
ROW = re.compile(r"\d{1,12}")

Handler = Callable[[Request], Awaitable[Response]]


def make_app(answers: Answers, thumbnails: Thumbnails | None, host: str = "127.0.0.1", token: str = "") -> ASGIApp:
    """Return the application.

    Args:
        answers: to searches.
        thumbnails: of the index's pictures; None of an index of texts.
        host: name or address that the server listens on.
        token: of those that may ask; "" asks nobody for one.
    """
    searches = Queue(1, MAX_WAITING, "searches")
    pictures = Queue(2, MAX_PICTURES_WAITING, "pictures")

    async def info(_: Request) -> Response:
        return _json(answers.info() | {"max_upload_bytes": MAX_UPLOAD_BYTES, "max_text": MAX_TEXT})

    async def search(request: Request) -> Response:
        async with searches.place():
            asked = search_request(_parsed(await read_body(request, MAX_REQUEST_BYTES)))
            return await searches.work(request, _answer, answers.search, asked)

    async def upload(request: Request) -> Response:
        options = _options(request)
        async with searches.place():
            image = await read_body(request, MAX_UPLOAD_BYTES)
            if not image:
                raise UserError("the picture is empty")
            if request.headers.get("content-type", "").lower().startswith("multipart/"):
                raise UserError(
                    "the body is a form: send the bytes of the picture alone, as curl does with --data-binary @FILE"
                )
            return await searches.work(request, _answer, answers.search, search_request(options, image))

    async def patch(request: Request) -> Response:
        async with searches.place():
            asked = patch_request(_parsed(await read_body(request, MAX_REQUEST_BYTES)))
            return await searches.work(request, _answer, answers.patch, *asked)

    async def picture(request: Request) -> Response:
        row = request.path_params["row"]
        if thumbnails is None or not ROW.fullmatch(row):
            return await _unknown(request)
        async with pictures.place():
            try:
                data = await pictures.work(request, thumbnails.of, answers.checked_row(int(row)))
            except (BadRecord, ValueError, OSError) as error:
                raise Refused(404, one_line(f"no picture of row {row}: {error}")) from error
        return Response(data, 200, {"Cache-Control": "private, max-age=3600"}, "image/jpeg")

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        answers.vocabulary.start()
        yield
        answers.vocabulary.stop()

    routes = [
        *(Route(path, _file(name)) for path, name in PARTS.items()),
        Route("/api/info", info),
        Route("/api/search", search, methods=["POST"]),
        Route("/api/upload", upload, methods=["POST"]),
        Route("/api/patch", patch, methods=["POST"]),
        Route("/api/picture/{row}", picture),
    ]
    handlers: dict[Any, Any] = {Refused: refusal, UserError: _mistake, 404: _unknown, 405: _unknown, Exception: _defect}
    return Guard(Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan), host, token)


def _file(name: str) -> Handler:
    """Return what answers with a file of the page, read once."""
    data = (files("filip_jax.search.page") / name).read_bytes()
    kind = KINDS[name.rpartition(".")[2]]

    async def answer(_: Request) -> Response:
        return Response(data, 200, {"Cache-Control": "no-cache"}, kind)

    return answer


def _answer(function: Callable[..., Any], *arguments: Any) -> Response:
    """Return what a function gives, as JSON, which takes its time where hits have many patches."""
    return _json(function(*arguments))


def _json(content: Any) -> Response:
    return Response(json.dumps(content, allow_nan=False).encode(), 200, media_type="application/json")


def _parsed(body: bytes) -> Any:
    try:
        return parse(body)
    except ValueError as error:
        raise UserError(f"the request is no JSON that can be read: {error}") from error


def _options(request: Request) -> dict[str, Any]:
    """Return what a request with a picture as its body says beside it, in its address."""
    options: dict[str, Any] = dict(request.query_params)
    for name in {"top", "patches", "vectors"} & options.keys():
        with suppress(ValueError):  # a word stays one, and is refused by the option's name
            options[name] = parse(options[name].encode())
    return options


async def _mistake(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 400)


async def _unknown(request: Request, _: Exception | None = None) -> Response:
    return JSONResponse({"error": one_line(f"there is no {request.method} {request.url.path}", 200)}, 404)


async def _defect(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the server failed at this; its terminal says how"}, 500)
