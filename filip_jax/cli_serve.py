"""The command `filip serve`: a page on this machine that searches an index and shows what matches where."""

import re
import secrets
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filip_jax.choices import step_number
from filip_jax.cli_search import add_index_options, open_index_of
from filip_jax.console import show
from filip_jax.errors import UserError

SERVE = """Open a page that searches an index of pictures or texts and shows what matches where.

  filip serve --index=INDEX --workdir=runs/demo

prints the page's address. Type words: the patches that match them light up on every hit. Take a patch to see its best
words and to search by it alone; search by a picture of yours; filter. The same answers come as JSON, see docs/search.md.

Only this machine reaches the page. From another one, ssh -L 8750:localhost:8750 THIS_MACHINE, and open
http://localhost:8750/ there. With another --host whoever has the token can look at all pictures of the index; there is
no encryption, so this is for private networks and never for the public."""

DEFAULT_PORT = 8750


def add_serve_command(command: Callable[..., Any]) -> None:
    """Add the command; `command` makes a parser of a name, what it runs and its help."""
    serve = command("serve", _serve, SERVE)
    add_index_options(serve)
    serve.add_argument("--step", default="latest", help="latest or a number (default: latest)")
    serve.add_argument("--host", default="127.0.0.1", help="name or address to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", type=int, default=DEFAULT_PORT, help=f"0 takes a free one (default: {DEFAULT_PORT})")
    serve.add_argument(
        "--token", default="", help="that the page asks for (default: a new one for another host than this machine)"
    )


def _serve(arguments, _) -> None:
    from filip_jax.extras import extra_module

    for module in ("starlette", "uvicorn"):
        extra_module(module, "search", "filip serve needs")
    from filip_jax.inference import load_model
    from filip_jax.search.page.answers import Answers
    from filip_jax.search.page.app import make_app
    from filip_jax.search.page.limits import MIN_TOKEN, is_loopback
    from filip_jax.search.page.serve import address_of, listen, make_server
    from filip_jax.search.page.thumbnails import Thumbnails
    from filip_jax.search.pictures import open_pictures

    token = arguments.token
    if token and not re.fullmatch(rf"[A-Za-z0-9_-]{{{MIN_TOKEN},128}}", token):
        raise UserError(f"--token: give {MIN_TOKEN} to 128 letters, digits, - and _")
    if not token and not is_loopback(arguments.host):
        token = secrets.token_urlsafe(32)
    index = open_index_of(arguments)
    listener = listen(arguments.host, arguments.port)
    with listener:
        model = load_model(arguments.workdir, step_number(arguments.step))
        answers = Answers(index, model, Path(arguments.index).resolve().name, arguments.candidates)
        answers.prepare()
        warnings.simplefilter("once", UserWarning)  # of long texts, say, as often as somebody searches
        thumbnails = None
        if answers.has_pictures:
            try:
                thumbnails = Thumbnails(open_pictures(index.features))
            except UserError as error:  # scores, captions and places are of use without
                show(f"{error}. The page shows none", file=sys.stderr)
        address = address_of(listener, arguments.host)
        show(f"{address}?token={token}" if token else address, "Ctrl-C ends the page.")
        try:
            make_server(make_app(answers, thumbnails, arguments.host, token)).run(sockets=[listener])
        except KeyboardInterrupt:
            show("ended")
