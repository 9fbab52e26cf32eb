"""The search page in headless Chromium: words, patches, pictures, filters and mistakes as a person meets them."""

import re
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from browser import CHROMIUM, browser
from conftest import until
from PIL import Image

pytest.importorskip("starlette", reason="the extra search is not installed")

from page_site import COLORS, NAMES, SIDE, ColorModel, write_site

from filip_jax.features import FeatureWriter, Manifest, open_features
from filip_jax.search.index import Index
from filip_jax.search.page.answers import Answers
from filip_jax.search.page.app import make_app
from filip_jax.search.page.serve import address_of, listen, make_server
from filip_jax.search.page.thumbnails import Thumbnails

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is here: apt-get install chromium"),
]
READY = "document.querySelector('#hits li') && !document.querySelector('#hits.stale')"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The address of a page about thirty pictures, every second one three times as wide as high."""
    features, drawn = write_site(tmp_path_factory.mktemp("site") / "index", 30, removed=[4], wide=90)
    with served(features, lambda row: drawn[row]) as found:
        yield found


@contextmanager
def served(features, picture):
    """The address of a page about features."""
    answers = Answers(Index(features, "exact"), ColorModel(), "thirty")
    listener = listen("127.0.0.1", 0)
    server = make_server(make_app(answers, Thumbnails(picture)))
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]))
    thread.start()
    assert until(lambda: server.started and "blue" in answers.vocabulary.words)
    try:
        yield address_of(listener, "127.0.0.1")
    finally:
        server.should_exit = True
        thread.join(60)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture
def page(chromium, address):
    """The page, opened; at the end it has asked nobody else, and nothing went wrong in it."""
    chromium.window(1280, 900)
    chromium.problems.clear(), chromium.addresses.clear()
    chromium.open(address)
    chromium.until(READY)
    yield chromium
    assert chromium.problems == []
    assert {re.match(r"(blob:)?(http://[^/]+/)", each)[2] for each in chromium.addresses} == {address}


def search(page, text):
    page.js("document.querySelector('#text').value = ''")
    page.js("document.querySelector('#text').focus()")
    page.type(text)
    page.press("Enter", 13)
    page.until(f"location.search.includes({text.split()[-1]!r}) && {READY}")


def rows(page):
    """Return the colors of the hits, by their captions."""
    return [text.split()[1] for text in page.js("[...document.querySelectorAll('.hit p')].map(p => p.textContent)")]


def brightest(page, n=0):
    """Return the patch of a hit that is darkened least."""
    return page.js(
        f"(() => {{ const c = document.querySelectorAll('#hits canvas')[{n}]; const pen = c.getContext('2d'); let best = 0, least = 256;"
        "for (let i = 0; i < 9; i++) { const [x, y] = [i % 3 + .5, Math.floor(i / 3) + .5].map(v => Math.floor(v * c.width / 3));"
        "const alpha = pen.getImageData(x, y, 1, 1).data[3]; if (alpha < least) [least, best] = [alpha, i] } return best })()"
    )


def patch_of(page, n=0):
    """Return the patch of a hit that has its color, by its key."""
    return int(re.search(r"\d+", page.js(f"document.querySelectorAll('.hit bdi')[{n}].textContent"))[0]) % 9


def test_a_word_lights_up_its_patches(page):
    search(page, "a blue thing")
    assert rows(page)[:8] == ["blue"] * 8
    assert page.js("[...document.querySelectorAll('#words button')].map(b => b.textContent)") == [
        "all words",
        "blue",
        "thing",
    ]
    page.mouse("#words button:nth-child(2)")
    page.until("document.querySelector('#legend').textContent.includes('“blue”')")
    assert page.js("document.querySelector('#low').textContent") == "≤ 0.000"
    assert page.js("document.querySelector('#high').textContent") == "1.000"
    for n in range(8):
        assert brightest(page, n) == patch_of(page, n)
        assert page.js(f"document.querySelectorAll('#hits .tag')[{n}].textContent") == "blue 1.000"
    assert page.js(
        "[...document.querySelectorAll('#hits .view')].slice(0, 8).every(view => {"
        "const [tag, best] = ['.tag', '.best'].map(name => view.querySelector(name).getBoundingClientRect());"
        "return tag.bottom <= best.top || best.bottom <= tag.top || tag.right <= best.left || best.right <= tag.left })"
    )
    page.mouse("#about")
    page.until("document.querySelector('#legend').textContent.includes('matches best')")


def test_words_answer_the_keyboard_and_a_press_keeps_the_light(page):
    search(page, "red or green")
    page.js("document.querySelector('#words button:nth-child(2)').focus()")
    page.press("Tab", 9)
    page.until("document.querySelector('#legend').textContent.includes('“green”')")
    page.press("Enter", 13)
    assert page.js("document.querySelector('#words button:nth-child(3)').getAttribute('aria-pressed')") == "true"
    page.press("Tab", 9)  # on to the first picture, whose best patch is taken
    page.until("document.querySelector('#spoken').textContent.includes('green')")
    page.press(*(("ArrowLeft", 37) if patch_of(page) % 3 else ("ArrowRight", 39)))
    page.press("Enter", 13)
    page.until("document.querySelector('#detail').open && document.querySelector('#of_patch .bar')")
    chosen = page.js("document.querySelector('#which').textContent").removeprefix("Patch in ")
    assert page.js("document.querySelector('#whole .tag').textContent").endswith(f"at {chosen}")  # framed, too
    page.press("Escape", 27)
    page.until("!document.querySelector('#detail').open")


def test_a_patch_shows_the_whole_picture_its_words_and_searches_alone(page):
    search(page, "green blue")
    page.until("[...document.querySelectorAll('#hits img')].slice(0, 4).every(i => i.complete)")
    n = page.js("[...document.querySelectorAll('#hits img')].findIndex(i => i.naturalWidth > 2 * i.naturalHeight)")
    patch = patch_of(page, n)
    page.js(f"document.querySelectorAll('#hits > li')[{n}].id = 'wide'")
    color = rows(page)[n]
    page.mouse("#wide .view", (patch % 3 + 0.5) / 3, (patch // 3 + 0.5) / 3, click=True)
    page.until("document.querySelector('#of_patch button.bar')")
    assert (
        page.js("document.querySelector('#which').textContent")
        == f"Patch in row {patch // 3 + 1}, column {patch % 3 + 1}"
    )
    view, square = (
        page.js(f"(b => [b.x, b.width])(document.querySelector('#whole {name}').getBoundingClientRect())")
        for name in (".view", ".patches")
    )
    assert square[1] == pytest.approx(view[1] / 3, abs=2) and square[0] - view[0] == pytest.approx(view[1] / 3, abs=2)
    words = page.js("[...document.querySelectorAll('#of_patch button.bar bdi')].map(b => b.textContent)")
    assert words[0] == color
    opacity = "Number(getComputedStyle(document.getElementById('by_patch')).opacity)"
    assert (
        page.js(
            f"(b => {{ b.disabled = true; const off = {opacity}; b.disabled = false; return off }})(document.getElementById('by_patch'))"
        )
        < 0.6
    )
    page.mouse("#by_patch", click=True)
    page.until(f"location.search.includes('patches={patch}') && {READY}")
    assert rows(page)[:8] == [color] * 8 and brightest(page) == patch_of(page)
    page.js("history.back()")
    page.until(f"location.search.includes('green') && {READY}")


@pytest.fixture
def blue(tmp_path):
    picture = Image.new("RGB", (SIDE, SIDE), COLORS["white"])
    picture.paste(COLORS["blue"], (0, 0, 30, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned to the right: the blue patch stands in the last column
    picture.save(tmp_path / "turned.jpg", quality=95, exif=exif)
    return tmp_path / "turned.jpg"


def test_a_picture_is_searched_by_and_a_patch_of_it(page, blue):
    page.upload("#file", blue)
    page.until(f"document.querySelector('#asked img') && {READY}")
    page.mouse("#asked .view", 0.83, 0.17, click=True)
    page.until(f"document.querySelector('#words').textContent.includes('patch') && {READY}")
    assert rows(page)[:8] == ["blue"] * 8


def test_what_is_no_picture_and_what_is_too_large_is_said(page, tmp_path):
    (tmp_path / "no.png").write_bytes(b"no picture")
    page.upload("#file", tmp_path / "no.png")
    page.until("document.querySelector('#error').textContent.includes('no picture that can be read')")
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate((1 << 24) + 1)
    page.upload("#file", tmp_path / "large.png")
    page.until("document.querySelector('#error').textContent.includes('16,777,216')")
    page.upload("#file", tmp_path / "gone.png")
    page.until("document.querySelector('#error').textContent.startsWith('gone.png cannot be read')")
    assert page.js("document.querySelectorAll('#hits li').length") == 0
    search(page, "red")
    assert page.js("document.querySelector('#error').hidden")
    page.problems.clear()  # the browser notes the answer 400


def test_a_picture_that_is_too_large_stays_said_when_a_search_before_it_ends(page, tmp_path):
    later = "(...all) => new Promise(done => setTimeout(() => done(window.plain(...all)), 400))"
    page.js(f"window.plain = window.fetch; window.fetch = {later}")
    page.js("document.querySelector('#text').value = 'red'; document.querySelector('#form').requestSubmit()")
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate((1 << 24) + 1)
    page.upload("#file", tmp_path / "large.png")
    page.until("document.querySelector('#error').textContent.includes('16,777,216')")
    page.js("new Promise(done => setTimeout(done, 800))")
    assert not page.js("document.querySelector('#error').hidden")
    page.js("window.fetch = window.plain")


def test_filters_and_their_mistakes(page):
    page.mouse("#filter", click=True)
    page.type("width > 90")
    page.press("Enter", 13)
    page.until(f"location.search.includes('where') && {READY}")
    assert page.js("[...document.querySelectorAll('#hits img')].length") == 15
    page.js("document.querySelector('#where').select()")
    page.type("widht > 90")
    page.press("Enter", 13)
    page.until("document.querySelector('#error').textContent.includes('widht')")
    page.problems.clear()  # the browser notes the answer 400


def test_texts_of_the_index_are_no_html(page):
    assert page.js("document.querySelector('.hit bdi').textContent").startswith("<b>")
    assert page.js("document.querySelectorAll('#hits script, #hits .hit bdi b').length") == 0


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_it_fits_its_window_and_can_be_read(page, width, dark):
    page.window(width, 800, dark, phone=width < 500)
    search(page, "red green blue white thing other more words than fit")
    assert page.js("document.documentElement.scrollWidth") <= width
    contrast = (
        "(element => { const rgb = c => c.match(/[\\d.]+/g).slice(0, 3).map(Number);"
        "const light = c => rgb(c).map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)"
        ".reduce((sum, v, n) => sum + v * [.2126, .7152, .0722][n], 0);"
        "let behind = element; while (/, 0\\)$|transparent/.test(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;"
        "const two = [light(getComputedStyle(element).color), light(getComputedStyle(behind).backgroundColor)].sort((a, b) => b - a);"
        "return (two[0] + .05) / (two[1] + .05) })"
    )
    for selector in (
        "#status",
        "#legend",
        ".hit p",
        ".hit bdi",
        "#about",
        "button.primary",
        "#words button",
        "#words [aria-pressed=true]",
    ):
        assert page.js(f"{contrast}(document.querySelector({selector!r}))") >= 4.5, selector
    small = "[...document.querySelectorAll('header button, #words button')].filter(b => b.offsetWidth && b.getBoundingClientRect().height < 43.5)"
    assert page.js(f"{small}.map(b => b.textContent)") == []


def test_nothing_jumps_when_hits_arrive(page):
    page.js(
        "window.shifts = 0; new PerformanceObserver(list => list.getEntries().forEach(e => { if (!e.hadRecentInput) window.shifts += e.value }))"
        ".observe({ type: 'layout-shift' })"
    )
    tops = [page.js("document.querySelector('#hits').getBoundingClientRect().top")]
    for text in ("red", "green or blue", "white"):
        search(page, text)
        tops.append(page.js("document.querySelector('#hits').getBoundingClientRect().top"))
    assert len({*tops}) == 1
    page.js("new Promise(done => setTimeout(done, 300))")
    assert page.js("window.shifts") < 0.01


def test_what_can_be_used_has_a_name(page):
    search(page, "red")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    nameless = [
        node["role"]["value"]
        for node in nodes
        if node.get("role", {}).get("value")
        in ("button", "textbox", "searchbox", "link", "application", "image", "dialog")
        and not node.get("ignored")
        and not node.get("name", {}).get("value")
    ]
    assert nameless == []


def test_a_page_without_patches_offers_no_light(chromium, tmp_path, blue):
    """Not even of a picture that is searched by."""
    manifest = Manifest(
        "image", 4, pooling="global", image_size=SIDE, text_length=16, dtype="float32", model=ColorModel.origin
    )
    with FeatureWriter(tmp_path / "index", manifest) as writer:
        fields = [dict(key=name, width=SIDE, height=SIDE, caption=f"a {name} one") for name in NAMES]
        writer.add(np.eye(4, dtype=np.float32)[:, None], np.ones((4, 1), bool), fields, np.full((4, 1), -1, np.int16))
    with served(
        open_features(tmp_path / "index"), lambda row: Image.new("RGB", (SIDE, SIDE), COLORS[NAMES[row]])
    ) as place:
        chromium.open(place)
        chromium.until(READY)
        search(chromium, "blue")
        assert chromium.js("document.querySelector('#query').getBoundingClientRect().height") == 0
        chromium.upload("#file", blue)
        chromium.until(f"document.querySelector('#asked img') && {READY}")
        assert chromium.js("document.querySelectorAll('#words button').length") == 0


def test_a_server_that_is_gone_is_said(page):
    page.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    page.js("document.querySelector('#text').value = 'red'")
    page.js("document.querySelector('#form').requestSubmit()")
    page.until("document.querySelector('#error').textContent.includes('does not answer')")
    page.call("Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    page.problems.clear()
