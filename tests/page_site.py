"""The search page without a trained model: pictures of colored patches, and a model that knows these colors."""

import re
from types import SimpleNamespace

import numpy as np
from PIL import Image

from filip_jax.data.decode import decode
from filip_jax.features import FeatureWriter, Manifest, open_features
from filip_jax.framing import CLIP_FRAMING
from filip_jax.inference import Embedder

COLORS = {"red": (220, 40, 40), "green": (40, 160, 60), "blue": (50, 80, 220), "white": (245, 245, 240)}
NAMES = list(COLORS)
GRID, SIDE, PATCH = (3, 3), 90, 30
ORIGIN = dict(config=64 * "a", checkpoint=64 * "b", tokenizer=64 * "c", step=12, average=False)


def colored(n: int, wide: int = 0) -> Image.Image:
    """Return a white picture whose patch n % 9 has the color n % 3, with `wide` white pixels on either side."""
    picture = Image.new("RGB", (SIDE + 2 * wide, SIDE), COLORS["white"])
    left, top = wide + n % 3 * PATCH, n % 9 // 3 * PATCH
    picture.paste(COLORS[NAMES[n // 3 % 3]], (left, top, left + PATCH, top + PATCH))
    return picture


def color_of(n: int) -> str:
    """Return the color of the one patch that is not white."""
    return NAMES[n // 3 % 3]


class ColorModel(Embedder):
    """A token is the color that a word names or a patch has; other words are between all of them."""

    grid, image_size, text_length, framing, pooling, step = GRID, SIDE, 16, CLIP_FRAMING, "tokens", 12
    tokenizer = SimpleNamespace(
        has_bos=True,
        spans=lambda text, length: [*_spans(text)[:-1][: length - 1], _spans(text)[-1]],
        knows=lambda text: text != "xyzzy",
    )
    origin = ORIGIN

    def __init__(self):
        """Do without functions and parameters."""

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
            spans = self.tokenizer.spans(text, self.text_length)
            mask[n, : len(spans)] = True
            for k, (start, end) in enumerate(spans):
                if text[start:end] in NAMES:
                    tokens[n, k] = np.eye(4)[NAMES.index(text[start:end])]
        return tokens, mask


def _spans(text):
    return [(0, 0), *(match.span() for match in re.finditer(r"\w+", text)), (len(text), len(text))]


def write_site(folder, rows: int = 12, removed=(), wide: int = 0):
    """Write the features of so many pictures; every second one is wider by `wide` pixels on either side."""
    manifest = Manifest(
        side="image", dimension=4, grid=GRID, image_size=SIDE, text_length=16, dtype="float32",
        model=ORIGIN,
        framing={"resize": "shortest", "crop": 1.0},
    )  # fmt: skip
    drawn = [colored(n, wide * (n % 2)) for n in range(rows)]
    with FeatureWriter(folder, manifest) as writer:
        if rows:
            tokens = ColorModel().encode_image(drawn)
            fields = [
                dict(
                    key=f"<b>{n}<i> ü.png", shard="/pictures", index=n, width=picture.width, height=picture.height,
                    caption=f"one {color_of(n)} patch <script>alert({n})</script>",
                )
                for n, picture in enumerate(drawn)
            ]  # fmt: skip
            writer.add(tokens, np.ones(tokens.shape[:2], bool), fields)
            writer.flush(lambda now: now.with_removed(np.array(removed, int)))
    return open_features(folder), drawn
