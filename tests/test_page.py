"""The search page: who may ask it, what it answers, and what it refuses."""

import asyncio
import contextlib
import io
import json
import re
import threading
import warnings

import numpy as np
import pytest
from conftest import ROOT, examples
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("starlette", reason="the extra search is not installed")

from page_site import COLORS, SIDE, ColorModel, color_of, write_site
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from filip_jax.cli import main
from filip_jax.data.preprocess import centre_view
from filip_jax.data.record import BadRecord
from filip_jax.errors import UserError
from filip_jax.features import FeatureWriter, Manifest, open_features
from filip_jax.framing import Framing
from filip_jax.search.index import Index
from filip_jax.search.page import app as app_module
from filip_jax.search.page import limits, serve
from filip_jax.search.page.answers import Answers, seen
from filip_jax.search.page.app import make_app
from filip_jax.search.page.requests import search_request
from filip_jax.search.page.thumbnails import SIDE as THUMBNAIL
from filip_jax.search.page.thumbnails import Thumbnails, encoded

HERE = "http://127.0.0.1:8750"
TOKEN = "0123456789abcdef-x"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """(answers, thumbnails) of twelve pictures, of which the fifth was removed."""
    features, drawn = write_site(tmp_path_factory.mktemp("site") / "index", removed=[4], wide=45)

    def picture(row):
        if row == 7:
            raise BadRecord("it was moved")
        return drawn[row]

    return Answers(Index(features, "exact"), ColorModel(), "twelve"), Thumbnails(picture)


def client_of(site, host="127.0.0.1", token="", address=HERE):
    return TestClient(make_app(*site, host, token), address, raise_server_exceptions=False, follow_redirects=False)


@pytest.fixture
def client(site):
    return client_of(site)


def png(picture):
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


# ---------------------------------------------------------------- what it answers


def test_words_find_what_they_name_and_light_its_patch(client):
    answer = client.post("/api/search", json={"text": "a blue thing", "top": 5}).json()
    assert answer["query"] == {"kind": "text", "text": "a blue thing", "parts": ["blue", "thing"], "cut": False}
    assert {color_of(hit["row"]) for hit in answer["hits"][:3]} == {"blue"}
    for hit in answer["hits"][:3]:
        blue, thing = hit["maps"]
        assert len(blue) == 9 and int(np.argmax(blue)) == hit["row"] % 9 and max(blue) == 1
        assert thing == [0.5] * 9 and hit["text_to_image"] == hit["score"] == pytest.approx((4 * 0.5 + 1) / 5)
    assert client.post("/api/search", json={"text": "blue " * 20}).json()["query"]["cut"]


def test_a_patch_searches_alone_and_has_words(client):
    row = 7  # its eighth patch is blue
    answer = client.post("/api/search", json={"row": row, "patches": [7]}).json()
    assert [color_of(hit["row"]) for hit in answer["hits"][:3]] == ["blue"] * 3
    assert answer["query"]["row"] == row and answer["query"]["parts"] == ["this patch"]
    for hit in answer["hits"][:3]:
        assert int(np.argmax(hit["maps"][0])) == hit["row"] % 9
    words = client.post("/api/patch", json={"row": row, "patches": [7], "text": "green or blue"}).json()
    assert [(each["word"], each["similarity"]) for each in words["of_query"]] == [
        ("green", 0),
        ("blue", 1),
    ]
    assert words["of_captions"] == [] and words["looked_at"] == 0


def test_words_of_captions_are_embedded_beside_the_searches(site, client):
    vocabulary = site[0].vocabulary
    vocabulary.fill()
    try:
        words = client.post("/api/patch", json={"row": 3, "patches": [3]}).json()
        assert words["of_captions"][0] == {"word": "green", "similarity": 1} and words["looked_at"] == len(
            vocabulary.words
        )
        assert {"red", "green", "blue", "patch"} <= {*vocabulary.words}
        vocabulary.model.text_length = 2  # the ends; a word that is read in part is none
        assert vocabulary._frequent() == []
    finally:
        del vocabulary.model.text_length
        vocabulary.words, vocabulary.vectors = [], np.zeros((0, 4), np.float32)


def test_a_whole_picture_searches_by_its_row_or_uploaded(client):
    ours = client.post("/api/search", json={"row": 6}).json()
    uploaded = client.post("/api/upload?top=24", content=png(Image.new("RGB", (SIDE, SIDE), COLORS["blue"]))).json()
    assert ours["hits"][0]["row"] == 6 and {color_of(hit["row"]) for hit in uploaded["hits"][:3]} == {"blue"}
    assert uploaded["query"]["kind"] == "picture" and uploaded["query"]["square"] == pytest.approx([0, 0, 1, 1])
    patch = client.post("/api/upload?patches=[0]&top=2", content=png(Image.new("RGB", (SIDE, SIDE), COLORS["red"])))
    assert [color_of(hit["row"]) for hit in patch.json()["hits"]] == ["red", "red"]


def test_without_a_query_rows_are_shown_and_removed_ones_never(client):
    answer = client.post("/api/search", json={"top": 50}).json()
    assert [hit["row"] for hit in answer["hits"]] == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]
    assert client.get("/api/info").json()["rows"] == 11


def test_vectors_come_with_their_places(client):
    (hit,) = client.post("/api/search", json={"text": "red", "top": 1, "vectors": True}).json()["hits"]
    assert np.array(hit["tokens"]).shape == (9, 4) and hit["positions"] == [*range(9)]
    found = client.post("/api/search", json={"tokens": [[9.0, 0, 0, 0]]}).json()
    assert found["hits"][0]["row"] == hit["row"] and found["hits"][0]["score"] == 1
    huge = client.post("/api/search", json={"tokens": [[1e300, 0, 0, 0]]}).json()
    assert huge["hits"] == found["hits"]


def test_numbers_of_a_stranger_are_null(site, client, monkeypatch):
    tokens = site[0].features.tokens

    def spoilt(rows):
        found, mask = tokens(rows)
        found[:, :2] = np.array([np.inf, np.nan])[:, None]
        return found, mask

    monkeypatch.setattr(site[0].features, "tokens", spoilt)
    monkeypatch.setattr(site[0].vocabulary, "words", ["blue"])
    monkeypatch.setattr(site[0].vocabulary, "vectors", np.ones((1, 4), np.float32))
    for request in ({"vectors": True}, {"text": "blue"}, {"row": 3}, {"row": 3, "patches": [5]}):
        answer = client.post("/api/search", json=request)
        assert answer.status_code == 200, answer.text
        assert all(hit["maps"] == [] or hit["maps"][0][1] is None for hit in answer.json()["hits"])
    for patch in range(3):
        answer = client.post("/api/patch", json={"row": 3, "patches": [patch], "text": "blue"})
        if patch < 2:
            assert answer.status_code == 400 and "row 3 is damaged" in answer.json()["error"]
        else:
            similarities = [each["similarity"] for name in ("of_query", "of_captions") for each in answer.json()[name]]
            assert len(similarities) == 2 and None not in similarities


def test_the_square_is_what_the_model_sees_of_a_picture(client):
    hits = client.post("/api/search", json={}).json()["hits"]
    for hit, square in zip(hits, ([0, 0, 1, 1], [0.25, 0, 0.75, 1])):
        assert hit["square"] == pytest.approx(square, abs=1e-3)


def test_an_uploaded_picture_is_turned_as_its_camera_says(client):
    picture = Image.new("RGB", (SIDE, SIDE), COLORS["white"])
    picture.paste(COLORS["green"], (0, 0, 30, 30))
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # shown turned to the right
    picture.save(out, "JPEG", quality=95, exif=exif)
    for patch, color in ((2, "green"), (0, "white")):
        hits = client.post(f"/api/upload?patches=[{patch}]", content=out.getvalue()).json()["hits"]
        assert {color_of(hit["row"]) for hit in hits if hit["score"] == 1} == (
            {"green"} if color == "green" else {"red", "green", "blue"}
        )


@examples(40)
@given(
    width=st.integers(40, 400), height=st.integers(40, 400), resize=st.sampled_from(["shortest", "squash"]),
    crop=st.sampled_from([1.0, 0.875, 0.5]),
)  # fmt: skip
def test_the_square_is_that_of_the_view(width, height, resize, crop):
    """Coordinates as colors: what the view's middle and corners show lies where the square says."""
    framing = Framing(resize=resize, crop=crop, interpolation="bilinear")
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    picture = Image.fromarray((255 * np.stack([x, y, 0 * x], axis=-1)).round().astype(np.uint8))
    view = centre_view(picture, 48, framing) / 255
    left, top, right, bottom = seen(width, height, framing)
    shares = (np.arange(48) + 0.5) / 48
    inner = slice(4, 44)  # at a border the filter has one side only
    np.testing.assert_allclose(view[24, inner, 0], (left + shares * (right - left))[inner], atol=0.03)
    np.testing.assert_allclose(view[inner, 24, 1], (top + shares * (bottom - top))[inner], atol=0.03)


def test_pictures_are_thumbnails_without_what_a_file_says(client):
    answer = client.get("/api/picture/1?version=x")
    picture = Image.open(io.BytesIO(answer.content))
    assert picture.format == "JPEG" and picture.size == (180, 90) and not picture.getexif()
    assert answer.headers["content-type"] == "image/jpeg" and "private" in answer.headers["cache-control"]
    assert Image.open(io.BytesIO(encoded(Image.new("RGB", (3000, 900))))).size == (
        round(3000 * THUMBNAIL / 900),
        THUMBNAIL,
    )
    assert Image.open(io.BytesIO(encoded(Image.new("RGB", (20_000, 1))))).size[0] == 4096


def test_thumbnails_are_kept_within_bounds(monkeypatch):
    asked = []
    kept = Thumbnails(lambda row: asked.append(row) or Image.new("RGB", (9, 9)))
    monkeypatch.setattr("filip_jax.search.page.thumbnails.MAX_CACHE_BYTES", 3 * len(kept.of(0)))
    for row in (1, 2, 0, 3, 0, 1):
        kept.of(row)
    assert asked == [0, 1, 2, 3, 1]


def test_an_empty_index_is_shown_as_one(tmp_path):
    features, _ = write_site(tmp_path / "none", 0)
    answers = Answers(Index(features, "exact"), ColorModel())
    answers.vocabulary.fill()
    client = client_of((answers, Thumbnails(len)))
    assert client.post("/api/search", json={}).json()["hits"] == [] and client.get("/api/info").json()["rows"] == 0
    answer = client.post("/api/search", json={"text": "red"})
    assert answer.status_code == 400 and "has no rows to search" in answer.json()["error"]
    assert client.get("/api/picture/0").status_code == 404


@pytest.mark.parametrize("side, pooling", [("text", "tokens"), ("text", "global"), ("image", "global")])
def test_what_has_no_patches_is_searched_all_the_same(tmp_path, side, pooling):
    """Texts by a picture and by words; pooled vectors of pictures by both."""
    model, names = ColorModel(), ["red", "blue", "green"]
    grid = model.grid if side == "image" else None
    manifest = Manifest(
        side, 4, pooling=pooling, grid=grid, image_size=SIDE, text_length=16, dtype="float32", model=model.origin
    )
    with FeatureWriter(tmp_path / "index", manifest) as writer:
        tokens = np.eye(4, dtype=np.float32)[[0, 2, 1]][:, None]
        place = np.full((3, 1), -1, np.int16)
        writer.add(tokens, np.ones((3, 1), bool), [dict(key=name, caption=f"a {name} one") for name in names], place)
    thumbnails = Thumbnails(lambda row: Image.new("RGB", (9, 9))) if side == "image" else None
    client = client_of((Answers(Index(open_features(tmp_path / "index"), "exact"), model), thumbnails))
    assert client.get("/api/info").json()["grid"] is None
    assert client.get("/api/picture/0").status_code == (200 if side == "image" else 404)
    blue = png(Image.new("RGB", (SIDE, SIDE), COLORS["blue"]))
    for answer in (client.post("/api/upload", content=blue), client.post("/api/search", json={"text": "blue"})):
        hits = answer.json()["hits"]
        assert [hits[0][name] for name in ("key", "caption", "maps")] == ["blue", "a blue one", []]
        assert ("picture" in hits[0]) == (side == "image")
    for path, request in (("search", {"row": 0, "patches": [0]}), ("patch", {"row": 0, "patches": [0]})):
        answer = client.post(f"/api/{path}", json=request)
        assert answer.status_code == 400 and "patch" in answer.json()["error"]


# ---------------------------------------------------------------- what it refuses

MISTAKES = {
    "[]": "no JSON object", "{": "no JSON that can be read", '{"text": 5}': "text=5 is not a text", '{"texts": "x"}': "unknown key",
    '{"top": 0}': "top=0 is not a whole number from 1", '{"top": true}': "top=True", '{"row": 99}': "12 rows, numbered from 0",
    '{"row": -1}': "row=-1 is not", '{"row": 4}': "was removed", '{"row": 1, "patches": [9]}': "a row has 9, numbered",
    '{"patches": [1]}': "give one", '{"text": "a", "row": 1}': "text and row are given", '{"tokens": [[1, 2]]}': "has not 4 numbers",
    '{"tokens": [[0, 0, 0, 0]]}': "has length 0", '{"tokens": [[1e999, 0, 0, 0]]}': "no JSON that can be read", '{"tokens": []}': "is not a list of 1",
    '{"where": "typo"}': "typo", '{"text": "a", "where": "width >"}': "width", '{"text": "xyzzy"}': "knows no word",
    '{"text": "\\ud800"}': "not valid Unicode", '{"row": 1, "patches": [' + 1024 * "1, " + "1]}": "a list of at most 1024",
    '{"tokens": [[NaN, 0, 0, 0]]}': "no JSON that can be read", '{"row": 1e9}': "is not the number of a row",
}  # fmt: skip


@pytest.mark.parametrize("body", MISTAKES)
def test_a_wrong_request_is_one_line(client, body):
    answer = client.post("/api/search", content=body)
    assert answer.status_code == 400 and MISTAKES[body] in answer.json()["error"] and "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    "body",
    [
        '{"row": 1}',
        '{"row": 1, "patches": [1], "text": "\\ud800"}',
        '{"row": 1, "patches": [1, 2]}',
        '{"row": 1, "patches": [1], "top": 2}',
        "5",
    ],
)
def test_a_wrong_request_for_a_patch_is_one_line(client, body):
    assert client.post("/api/patch", content=body).status_code == 400


BOMB = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\1\0\0\0\1\0\0\x08\2\0\0\0" + b"\0" * 64


@pytest.mark.parametrize("image", [b"", b"no picture", b"\xff\xd8\xff", BOMB, png(Image.new("RGB", (5, 5)))[:40]])
def test_a_bad_upload_is_one_line(client, image):
    answer = client.post("/api/upload", content=image)
    assert answer.status_code == 400 and "picture" in answer.json()["error"]


@pytest.mark.parametrize("option", ["top=abc", "top=1.5", "top=", "patches=[", "vectors=yes"])
def test_a_wrong_option_of_an_upload_is_named(client, option):
    answer = client.post(f"/api/upload?{option}", content=png(Image.new("RGB", (SIDE, SIDE), COLORS["blue"])))
    assert answer.status_code == 400 and answer.json()["error"].startswith(option.split("=")[0] + "=")


def test_a_form_is_told_that_the_picture_comes_alone(client):
    answer = client.post("/api/upload", files={"image": ("a.png", png(Image.new("RGB", (5, 5))))})
    assert answer.status_code == 400 and "--data-binary" in answer.json()["error"]


def test_bodies_are_bounded_whatever_they_say_of_their_length(client, monkeypatch):
    monkeypatch.setattr(app_module, "MAX_UPLOAD_BYTES", 1000)
    assert client.post("/api/upload", content=b"x" * 1001).status_code == 413
    assert client.post("/api/upload", content=(b"x" * 100 for _ in range(11))).status_code == 413
    assert client.post("/api/upload", content=b"x" * 1000).status_code == 400
    assert client.post("/api/search", content=b" " * (app_module.MAX_REQUEST_BYTES + 1)).status_code == 413


def test_a_body_that_never_comes_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.01)

    async def receive():
        await asyncio.sleep(60)

    request = Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)
    with pytest.raises(limits.Refused, match="not complete"):
        asyncio.run(limits.read_body(request, 10))


@pytest.mark.skipif(not limits.socket.has_dualstack_ipv6(), reason="this system has no IPv6")
def test_all_addresses_are_those_of_both_kinds():
    try:
        listener = serve.listen("::", 0)
    except UserError:
        pytest.skip("this machine has no IPv6")
    with listener, limits.socket.create_connection(("127.0.0.1", listener.getsockname()[1])):
        pass


async def answered(app, talk):
    """Serve an application, and return what talk(port) does."""

    async def begun():
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            return await talk(listener.getsockname()[1])
        finally:
            server.should_exit = True

    with limits.socket.create_server(("127.0.0.1", 0)) as listener:
        server = serve.make_server(app)
        server.config.lifespan = "off"
        server.install_signal_handlers = lambda: None
        client = asyncio.create_task(begun())
        await server.serve(sockets=[listener])
        return await client


def test_headers_that_never_end_are_not_waited_for(monkeypatch):
    """At first, and after a request that was answered; what is slow to answer is waited for."""
    monkeypatch.setattr(serve, "HEADER_SECONDS", 0.2)

    async def app(scope, receive, send):
        if scope["type"] == "http":
            await asyncio.sleep(0.5)
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    async def all_of_them(port):
        request, answers = b"GET / HTTP/1.1\r\nHost: a\r\n", []
        for sent, more in ((b"", b""), (request, b""), (request + b"\r\n", request)):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            answers.append(await reader.readuntil(b"\r\n\r\n") if more else b"")
            writer.write(more)
            assert await asyncio.wait_for(reader.read(), 60) == b""  # closed
            writer.close()
        return answers

    assert [answer[:12] for answer in asyncio.run(answered(app, all_of_them))] == [b"", b"", b"HTTP/1.1 204"]


def test_an_answer_that_nobody_reads_is_not_held(monkeypatch):
    """But one that is read slowly is given to its end."""
    monkeypatch.setattr(serve, "READER_SECONDS", 0.2)
    size = 1 << 25  # more than the system holds

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
        await send({"type": "http.response.body", "body": bytes(size)})

    async def talk(port):
        lengths = []
        for pause in (2.0, 0.01):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            length = 0
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n\r\n")
                while length < size:
                    await asyncio.sleep(pause if not length or pause < 1 else 0)
                    length += len(await reader.readexactly(min(1 << 20, size - length)))
            lengths.append(length)
            writer.close()
        return lengths

    unread, read = asyncio.run(answered(app, talk))
    assert unread < size == read


@pytest.mark.parametrize("path", [
    "/api/picture/99", "/api/picture/4", "/api/picture/7", "/api/picture/-1", "/api/picture/..%2f..%2fetc%2fpasswd",
    "/api/picture/1/../../../etc/passwd", "/page.py", "/..%2fapp.py", "/%2e%2e/app.py", "/static/../app.py", "/api/picture/",
    "/api/picture/" + "9" * 5000,
])  # fmt: skip
def test_nothing_but_the_pictures_of_live_rows_is_served(client, path):
    answer = client.get(path)
    assert answer.status_code in (400, 404) and "error" in answer.json() and b"root:" not in answer.content


def test_a_defect_says_nothing_of_the_server(client, site, monkeypatch, capsys):
    monkeypatch.setattr(site[0].index, "search_all", lambda *_, **__: 1 / 0)
    answer = client.post("/api/search", json={"text": "a"})
    assert answer.status_code == 500 and "terminal" in answer.json()["error"] and "Zero" not in answer.text
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_beyond_the_line_a_search_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(limits, "BODY_SECONDS", 60.0)
    queue, release, begun = limits.Queue(1, 2, "searches"), threading.Event(), []

    def work(number):
        begun.append(number)
        assert release.wait(60)
        return number

    async def answer(request):
        async with queue.place():
            return Response(str(await queue.work(request, work, int(request.query_params["n"]))))

    app = Starlette(routes=[Route("/", answer)], exception_handlers={limits.Refused: limits.refusal})

    async def one(number, gone=False):
        sent = []

        async def receive():
            if not gone:
                await asyncio.sleep(3600)
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/", "query_string": f"n={number}".encode(), "headers": []}
        await app(scope, receive, send)
        return sent[0]["status"], dict(sent[0]["headers"])

    async def all_of_them():
        first = asyncio.create_task(one(0))
        while not begun:
            await asyncio.sleep(0.01)
        waiting = [asyncio.create_task(one(1)), asyncio.create_task(one(2, gone=True))]
        await asyncio.sleep(0.05)
        refused = await one(3)
        release.set()
        return [await task for task in (first, *waiting)], refused, await one(4)

    answered, (status, headers), after = asyncio.run(all_of_them())
    assert [status for status, _ in answered] == [200, 200, 499] and status == 503 and headers[b"retry-after"] == b"1"
    assert after[0] == 200 and begun == [0, 1, 4]  # nobody worked for the one who was gone


# ---------------------------------------------------------------- who may ask

STRANGERS = ["evil.example", "evil.example:8750", "127.0.0.1.evil.example", "localhost.evil.example", "192.168.0.9", "", "a b", "0.0.0.0",
             "127.0.0.1@evil.example", "[::1", "127.0.0.1:port", "::1"]  # fmt: skip


@pytest.mark.parametrize("host", STRANGERS)
def test_another_name_for_this_machine_is_refused(client, host):
    """A site whose name is made to point here (DNS rebinding) sends its own name."""
    answer = client.get("/api/info", headers={"Host": host})
    assert answer.status_code == 421 and "twelve" not in answer.text and "another name" in answer.json()["error"]


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:9000", "127.0.0.1", "127.0.0.1:8750", "[::1]:8750", "LOCALHOST"]
)
def test_the_names_of_loopback_are_ours(client, host):
    assert client.get("/api/info", headers={"Host": host}).json()["name"] == "twelve"


ORIGINS = [
    "http://evil.example",
    "null",
    "http://127.0.0.1:9999",
    "http://localhost:8750",
    "https://127.0.0.1",
    "file://",
    "",
]


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize(
    "method, path", [("POST", "/api/search"), ("POST", "/api/upload"), ("GET", "/api/picture/1"), ("GET", "/")]
)
def test_other_origins_are_refused(client, origin, method, path):
    answer = client.request(method, path, headers={"Origin": origin}, content=b"{}" if method == "POST" else None)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_our_own_origin_may_ask(client):
    assert (
        client.post("/api/search", content="{}", headers={"Origin": HERE, "Sec-Fetch-Site": "same-origin"}).status_code
        == 200
    )


@pytest.mark.parametrize("site_of", ["cross-site", "same-site"])
def test_pictures_do_not_show_on_other_sites_but_a_link_opens_the_page(client, site_of):
    headers = {"Sec-Fetch-Site": site_of}
    assert client.get("/api/picture/1", headers=headers).status_code == 403
    assert client.get("/page.js", headers=headers).status_code == 403
    assert client.get("/", headers=headers).status_code == 200


def test_beyond_this_machine_a_token_is_asked_for(site):
    client = client_of(site, "0.0.0.0", TOKEN, "http://192.168.0.9:8750")
    for path in ("/", "/api/info", "/page.js", "/api/picture/1", f"/api/info?token={TOKEN}"):
        assert client.get(path).status_code == 401, path
    for wrong in (TOKEN[:-1], TOKEN + "x", "", "ü", TOKEN.upper()):
        answer = client.get("/", params={"token": wrong})
        assert answer.status_code == 401 and "set-cookie" not in answer.headers
        assert client.get("/api/info", headers={"Authorization": f"Bearer {wrong}".encode()}).status_code == 401
    assert client.get("/api/info", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    answer = client.get("/", params={"token": TOKEN})
    assert answer.status_code == 303 and answer.headers["location"] == "/"
    assert {"HttpOnly", "SameSite=strict"} <= set(re.split("; ", answer.headers["set-cookie"]))
    assert client.get("/").status_code == 200  # by the cookie
    other = client_of(site, "0.0.0.0", TOKEN[::-1], "http://192.168.0.9:8751")  # browsers send it cookies of all ports
    other.cookies = client.cookies
    assert other.get("/").status_code == 401 and other.get("/", params={"token": TOKEN[::-1]}).status_code == 303
    assert other.get("/").status_code == client.get("/").status_code == 200
    assert client.get("/api/info", headers={"Host": "evil.example"}).status_code == 421


def test_the_token_is_compared_in_constant_time(site, monkeypatch):
    compared = []
    monkeypatch.setattr(limits.hmac, "compare_digest", lambda a, b: compared.append(b) or False)
    assert (
        client_of(site, "127.0.0.1", TOKEN).get("/api/info", headers={"Authorization": f"Bearer {TOKEN}"}).status_code
        == 401
    )
    assert compared and {*compared} == {TOKEN.encode()}


@pytest.mark.parametrize("path", ["/", "/page.js", "/page.css", "/api/info", "/api/picture/1", "/nothing"])
def test_every_answer_says_what_a_browser_may_do_with_it(client, path):
    headers = client.get(path).headers
    assert (
        "default-src 'none'" in headers["content-security-policy"]
        and "unsafe" not in headers["content-security-policy"]
    )
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin" and "cache-control" in headers


def test_the_page_loads_nothing_from_elsewhere_and_runs_nothing_inline():
    folder = ROOT / "filip_jax/search/page"
    page, script, style = ((folder / f"page.{end}").read_text() for end in ("html", "js", "css"))
    assert not re.findall(r"\son\w+=|\sstyle=|<style|<script(?! src=\"page\.js\" type=\"module\"></script>)", page)
    assert not re.findall(r"https?:|//\w+\.\w|url\(|@import", page + style)
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|https?:|import\(", script
    )
    assert not re.findall(r"localStorage|sendBeacon|document\.cookie", script)
    used = {*re.findall(r'\$\("(\w+)"\)', script)}
    assert used <= {*re.findall(r'\bid="(\w+)"', page)}


def test_requests_may_hold_anything(site):
    client, names = client_of(site), ("text", "row", "patches", "tokens", "where", "top", "vectors")
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9), lambda x: st.lists(x, max_size=4)
    )

    @examples(60)
    @given(st.dictionaries(st.sampled_from(names), values, max_size=3))
    def any_request(content):
        answer = client.post("/api/search", content=json.dumps(content))
        assert answer.status_code in (200, 400), answer.text

    any_request()


def test_a_query_is_checked_where_it_is_made():
    assert search_request({"row": 3, "patches": [1]}).patches == (1,)
    with pytest.raises(UserError, match="image and text|text and image"):
        search_request({"text": "a"}, b"picture")


# ---------------------------------------------------------------- the command


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """A function that runs `filip serve` on twelve pictures until it would listen, and gives (exit code, output, error)."""
    write_site(tmp_path / "twelve")
    write_site(tmp_path / "none", 0)
    listening = []
    monkeypatch.setattr("filip_jax.inference.load_model", lambda workdir, step: ColorModel())
    monkeypatch.setattr("filip_jax.search.pictures.open_pictures", lambda features: len)

    class Server:
        def run(self, sockets):
            listening.append(sockets[0].getsockname())
            raise KeyboardInterrupt

    monkeypatch.setattr("filip_jax.search.page.serve.make_server", lambda app: Server())

    def run(*words, index="twelve"):
        code = main(["serve", f"--index={tmp_path / index}", "--workdir=none", *words])
        output, error = capsys.readouterr()
        return code, output, error, listening

    return run


def test_the_command_prints_the_address_and_ends_by_an_interrupt(command):
    code, output, error, listening = command("--port=0")
    assert (code, error) == (0, "") and listening[0][0] == "127.0.0.1"
    assert output.splitlines()[0] == f"http://127.0.0.1:{listening[0][1]}/"
    assert command("--port=0", index="none")[0] == 0


def test_searches_of_strangers_do_not_fill_the_terminal(command, monkeypatch):
    class Server:
        def run(self, sockets):
            for _ in range(3):
                warnings.warn("1 of 1 texts are longer than 16 tokens and lose their end", stacklevel=1)

    monkeypatch.setattr("filip_jax.search.page.serve.make_server", lambda app: Server())
    code, _, error, _ = command("--port=0")
    assert code == 0 and error.count("lose their end") == 1


def test_a_page_of_texts_needs_no_pictures(command, monkeypatch, tmp_path):
    def gone(features):
        raise UserError("the pictures are gone")

    monkeypatch.setattr("filip_jax.search.pictures.open_pictures", gone)
    code, _, error, _ = command("--port=0")
    assert code == 0 and error == "the pictures are gone. The page shows none\n"  # scores and captions are still of use
    manifest = Manifest("text", 4, text_length=16, dtype="float32", model=ColorModel.origin)
    with FeatureWriter(tmp_path / "texts", manifest) as writer:
        writer.add(np.eye(4, dtype=np.float32)[None], np.ones((1, 4), bool), [{"key": "a", "caption": "a red one"}])
    assert command("--port=0", index="texts")[0] == 0


def test_beyond_this_machine_the_command_makes_a_token(command):
    tokens = {
        re.search(r"/\?token=([\w-]{43})$", command("--port=0", "--host=0.0.0.0")[1].splitlines()[0])[1]
        for _ in range(2)
    }
    assert len(tokens) == 2
    assert f"/?token={TOKEN}\n" in command("--port=0", f"--token={TOKEN}")[1]


def test_mistakes_of_the_command_are_one_line(command, monkeypatch):
    with limits.socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for words, index, message in (
            ([f"--port={port}"], "twelve", f"--host=127.0.0.1 --port={port}: "),
            (["--host=no.such.host.example", "--port=0"], "twelve", "--host=no.such.host.example"),
            (["--port=70000"], "twelve", "--port=70000"),
            (["--token=short"], "twelve", "--token: give 16 to 128"),
            ([f"--token={TOKEN} {TOKEN}"], "twelve", "--token: give 16 to 128"),
            (["--engine=exakt"], "twelve", "exact"),
            ([], "nothing", "is no folder"),
        ):
            code, output, error, _ = command(*words, index=index)
            assert code == 2 and output == "" and error.startswith("filip: error: ") and message in error, error
            assert error.count("\n") == 1 and TOKEN not in error
    monkeypatch.setattr(ColorModel, "origin", ColorModel.origin | {"step": 13})
    code, _, error, _ = command("--port=0")
    assert code == 2 and "of another model: the model's step 12, not 13" in error
