"""The search page without a trained model: pictures of colored patches, and an index and a model that know these colors."""

import re
from types import SimpleNamespace

import numpy as np
from PIL import Image

from filip_jax.data.decode import decode
from filip_jax.errors import UserError
from filip_jax.features import FeatureWriter, Manifest, open_features
from filip_jax.framing import CLIP_FRAMING
from filip_jax.search.index import Hit

COLORS = {"red": (220, 40, 40), "green": (40, 160, 60), "blue": (50, 80, 220), "white": (245, 245, 240)}
NAMES = list(COLORS)
GRID, SIDE, PATCH = (3, 3), 90, 30


def colored(n: int, wide: int = 0) -> Image.Image:
    """Return a white picture whose patch n % 9 has the color n % 3, with `wide` white pixels on either side."""
    picture = Image.new("RGB", (SIDE + 2 * wide, SIDE), COLORS["white"])
    left, top = wide + n % 3 * PATCH, n % 9 // 3 * PATCH
    picture.paste(COLORS[NAMES[n // 3 % 3]], (left, top, left + PATCH, top + PATCH))
    return picture


def color_of(n: int) -> str:
    """Return the color of the one patch that is not white."""
    return NAMES[n // 3 % 3]


class ColorModel:
    """A token is the color that a word names or a patch has; other words are between all of them."""

    grid, image_size, text_length, framing, pooling, step = GRID, SIDE, 16, CLIP_FRAMING, "tokens", 12
    tokenizer = SimpleNamespace(has_bos=True, spans=lambda text, length: _spans(text)[:length])

    def encode_image(self, images, pooling=None):
        return np.stack([self._tokens(decode(image) if isinstance(image, bytes) else image) for image in images])

    def _tokens(self, picture):
        left = (picture.width - picture.height) // 2
        square = picture.crop((left, 0, left + picture.height, picture.height)).resize(GRID, Image.Resampling.BOX)
        distances = np.linalg.norm(
            np.asarray(square, float).reshape(9, 1, 3) - np.array(list(COLORS.values())), axis=-1
        )
        return np.eye(4, dtype=np.float32)[distances.argmin(axis=-1)]

    def encode_text(self, texts, pooling=None):
        tokens, mask = np.full((len(texts), self.text_length, 4), 0.5, np.float32), np.zeros((len(texts), 16), bool)
        for n, text in enumerate(texts):
            spans = _spans(text)[: self.text_length]
            mask[n, : len(spans)] = True
            for k, (start, end) in enumerate(spans):
                if text[start:end] in NAMES:
                    tokens[n, k] = np.eye(4)[NAMES.index(text[start:end])]
        return tokens, mask


def _spans(text):
    return [(0, 0), *(match.span() for match in re.finditer(r"\w+", text)), (len(text), len(text))]


class ColorIndex:
    """An index by the definition."""

    def __init__(self, features):
        self.features, self.columns = features, {"key": "text", "width": "number"}

    def search(self, model, text=None, tokens=None, top=20, where=""):
        if text is not None:
            found, mask = model.encode_text([text])
            tokens = found[0][mask[0]][1:-1]
        rows = np.array(self.sample(len(self.features), where), int)
        if not len(rows):
            return []
        stored, mask = self.features.tokens(rows)
        scores = np.where(mask[..., None], stored @ tokens.T, -1).max(axis=1).mean(axis=-1)
        order = np.argsort(-scores, kind="stable")[:top]
        names = ("key", "shard", "index", "caption", "width", "height")
        kept = [{name: each[name] for name in names} for each in self.features.fields(rows[order])]
        return [
            Hit(
                row=int(rows[n]),
                image_to_text=0.25,
                text_to_image=float(scores[n]),
                pooled=0.5,
                score=float(scores[n]),
                **known,
            )
            for n, known in zip(order, kept)
        ]

    def sample(self, top, where):
        if where not in ("", "width > 90"):
            raise UserError(f"filter: {where!r} is none of this grammar; the columns are key, width")
        rows = [row for row in np.flatnonzero(self.features.live).tolist() if not where or row % 2]
        return rows[:top]


def explain_colors(model, text, features, rows):
    """Return what explain.explain does."""
    words = [(start, end) for start, end in _spans(text) if end > start]
    found, _ = model.encode_text([text])
    answers = []
    for row in rows:
        stored, mask = features.tokens([row])
        (positions,) = features.positions([row])
        flat = np.full((len(words), 9), np.nan, np.float32)
        flat[:, positions] = (stored[0][mask[0]] @ found[0][1 : 1 + len(words)].T).T
        maps = flat.reshape(-1, *GRID)
        answers.append(
            [SimpleNamespace(word=text[start:end], similarity=each) for (start, end), each in zip(words, maps)]
        )
    return answers


def write_site(folder, rows: int = 12, removed=(), wide: int = 0):
    """Write the features of so many pictures; every second one is wider by `wide` pixels on either side."""
    manifest = Manifest(
        side="image", dimension=4, grid=GRID, image_size=SIDE, text_length=16, dtype="float32",
        model={"step": 12, "config": 64 * "a", "checkpoint": 64 * "b", "tokenizer": 64 * "c", "average": False},
        framing={"resize": "shortest", "crop": 1.0},
    )  # fmt: skip
    drawn = [colored(n, wide * (n % 2)) for n in range(rows)]
    with FeatureWriter(folder, manifest) as writer:
        if rows:
            tokens = ColorModel().encode_image(drawn)
            fields = [
                dict(
                    key=f"<b>{n}</b> ü.png", shard="/pictures", index=n, width=picture.width, height=picture.height,
                    caption=f"one {color_of(n)} patch <script>alert({n})</script>",
                )
                for n, picture in enumerate(drawn)
            ]  # fmt: skip
            writer.add(tokens, np.ones(tokens.shape[:2], bool), fields)
            writer.flush(lambda now: now.with_removed(np.array(removed, int)))
    return open_features(folder), drawn
