"""Emoji scenes: one to three emoji on a coloured background, with a caption that is true of them.

The demo's data set. The word of every object has a known place, so alignment can be measured. Some
(concept, design) cells and some whole concepts are never trained on; which ones is fixed by hash.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from filip_jax.data.emoji_art import DESIGNS, concept_name, load_concepts, sprite
from filip_jax.data.record import Caption, Record, Region
from filip_jax.errors import UserError

UNSEEN_CONCEPTS = 10  # never trained on in either design
UNSEEN_CELLS = 48  # concepts trained on in one design only; the other is the unseen cell
BACKGROUNDS = {
    "white": (245, 245, 245),
    "gray": (128, 128, 128),
    "black": (25, 25, 25),
    "red": (200, 45, 50),
    "pink": (250, 175, 200),
    "brown": (120, 75, 40),
    "yellow": (245, 225, 90),
    "green": (60, 140, 70),
    "blue": (60, 110, 200),
    "purple": (125, 75, 160),
}
SIZES = range(16, 23)  # pixels of an emoji's longer side in a scene of SCENE pixels
SMALL, BIG = 17, 21  # up to which and from which size an emoji may be called so
SCENE = 48
MOST_DISTINCT = 10_000  # scenes of "val", which are drawn when it is opened: a few seconds
SPLITS = ("train", "val", "seen_cells", "unseen_cells", "unseen_concepts")


@dataclass(frozen=True)
class Thing:
    """An emoji placed in a scene."""

    concept: int
    design: str
    size: int
    left: int
    top: int
    width: int
    height: int

    @property
    def centre(self) -> np.ndarray:
        return np.array([self.left + self.width / 2, self.top + self.height / 2])


class EmojiScenes:
    """A random-access source of scenes; scene `index` is a pure function of (split, seed, index).

    Args:
        split: "train" and "val": scenes of the trained cells, of separate streams; no two scenes of
            "val" say the same, and there are at most MOST_DISTINCT of them. "seen_cells", "unseen_cells", "unseen_concepts": one emoji on white,
            of each trained cell, each hidden cell, each cell of a concept that training never shows.
        seed: of the scenes.
        scenes: how many scenes the split has; -1 for one of each cell of the single-emoji splits.
    """

    is_generated = True

    def __init__(self, *, split: str, seed: int, scenes: int):
        if split not in SPLITS:
            raise UserError(f"emoji_scenes: split={split!r} is not one of {', '.join(SPLITS)}")
        self.split, self.seed = split, seed
        self.characters = load_concepts()
        self.class_names = [concept_name(character) for character in self.characters]
        self.cells = split_cells(self.characters)[split if split.startswith("unseen") else "train"]
        self.single = split.endswith(("cells", "concepts"))
        if scenes < 1 and not (scenes == -1 and self.single):
            raise UserError(
                f"emoji_scenes: scenes={scenes} of split={split!r} must be at least 1; all is -1, of single emoji"
            )
        if split == "val" and scenes > MOST_DISTINCT:
            raise UserError(f"emoji_scenes: scenes={scenes} of split='val' must be at most {MOST_DISTINCT}")
        self.scenes = len(self.cells) if scenes == -1 else scenes
        self.distinct = self._distinct() if split == "val" else None
        self.shard_sizes = np.array([self.scenes])
        self.identity = f"{split} {seed} {scenes}"
        self.seen = "scenes"

    def __len__(self) -> int:
        return self.scenes

    def __getitem__(self, index: int) -> Record:
        return self._scene(index if self.distinct is None else self.distinct[index])

    def captions(self, index: int) -> tuple[Caption, ...]:
        return self[index].captions

    def where(self, index: int) -> tuple[str, str]:
        return "", f"{self.split}/{self.seed}/{index}"

    def _distinct(self) -> list[int]:
        """The first scenes of the stream whose captions differ in more than the order of their words."""
        found: dict[tuple[str, ...], int] = {}
        index = 0
        while len(found) < self.scenes:
            words = tuple(sorted(self._scene(index).caption.replace(",", "").split()))
            found.setdefault(words, index)
            index += 1
        return list(found.values())

    def _scene(self, index: int) -> Record:
        rng = _rng(self.split, self.seed, index)
        if self.single:
            things = _place(rng, self.characters, [self.cells[index % len(self.cells)]])
            background, label = "white", things[0].concept
        else:
            count = rng.choice([1, 2, 3], p=[0.15, 0.45, 0.4])
            chosen = rng.permutation(len(self.cells))[: 3 * count]
            cells = list({self.cells[i][0]: self.cells[i] for i in chosen}.values())[:count]
            things = _place(rng, self.characters, cells)
            background, label = str(rng.choice(list(BACKGROUNDS))), None
        caption, regions = _describe(rng, things, self.class_names, background)
        image = _draw(rng, things, self.characters, BACKGROUNDS[background], vary=not self.single)
        key = f"{self.split}/{self.seed}/{index}"
        return Record(key, image, (Caption(caption),), label=label, regions=regions)


def split_cells(characters: list[str]) -> dict[str, list[tuple[int, str]]]:
    """The (concept, design) cells of "train", "unseen_cells" and "unseen_concepts", fixed by hash."""

    def digest(text):
        return hashlib.sha256(text.encode()).hexdigest()

    order = sorted(range(len(characters)), key=lambda concept: digest(characters[concept]))
    never, once = order[:UNSEEN_CONCEPTS], order[UNSEEN_CONCEPTS:][:UNSEEN_CELLS]
    hidden = {concept: min(DESIGNS, key=lambda design: digest(characters[concept] + design)) for concept in once}
    cells = [(concept, design) for concept in range(len(characters)) for design in DESIGNS]
    return {
        "train": [(c, d) for c, d in cells if c not in never and hidden.get(c) != d],
        "unseen_cells": [(c, d) for c, d in cells if hidden.get(c) == d],
        "unseen_concepts": [(c, d) for c, d in cells if c in never],
    }


def _rng(split: str, seed: int, index: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed * len(SPLITS) + SPLITS.index(split), index]))


def _place(rng, characters, cells) -> list[Thing]:
    """The cells as things that do not overlap: sizes are drawn, then positions until they fit."""
    while True:
        things: list[Thing] = []
        for concept, design in cells:
            size = int(rng.choice(SIZES))
            height, width = sprite(characters[concept], design, size).shape[:2]
            for _ in range(8):
                left, top = (int(rng.integers(0, SCENE - side + 1)) for side in (width, height))
                thing = Thing(concept, design, size, left, top, width, height)
                if not any(_overlap(thing, other) for other in things):
                    things.append(thing)
                    break
        if len(things) == len(cells):
            return things


def _overlap(a: Thing, b: Thing) -> bool:
    apart = (
        a.left + a.width <= b.left
        or b.left + b.width <= a.left
        or a.top + a.height <= b.top
        or b.top + b.height <= a.top
    )
    return not apart


def _draw(rng, things, characters, colour, vary: bool) -> np.ndarray:
    """The things on their background; `vary` mirrors half of them and changes their brightness."""
    jitter = rng.integers(-15, 16, size=3)
    image = np.empty((SCENE, SCENE, 3), np.int32)
    image[:] = np.clip(np.array(colour) + jitter, 0, 255)
    for thing in things:
        art = sprite(characters[thing.concept], thing.design, thing.size).astype(np.int32)
        window = image[thing.top : thing.top + thing.height, thing.left : thing.left + thing.width]
        if vary:
            art = art[:, ::-1] if rng.random() < 0.5 else art
            art = np.concatenate([np.minimum(art[..., :3] * rng.uniform(0.75, 1.25), 255), art[..., 3:]], axis=2)
        alpha = art[..., 3:]
        window[:] = (art[..., :3] * alpha + window * (255 - alpha) + 127) // 255
    return image.astype(np.uint8)


def _describe(rng, things, names, background) -> tuple[str, tuple[Region, ...]]:
    """A caption that is true of the scene, and where each object's name stands in it."""
    caption, regions = "", []
    for thing, joint in zip(things, _joints(rng, things)):
        caption += joint
        caption += with_article(_size_word(rng, thing) + names[thing.concept])
        start = len(caption) - len(names[thing.concept])
        box = (thing.left, thing.top, thing.left + thing.width, thing.top + thing.height)
        regions.append(Region(start, len(caption), box))
    if rng.random() < 0.9:
        caption += f" on a {background} background"
    return caption, tuple(regions)


def with_article(phrase: str) -> str:
    """Return "a dog" or "an apple"."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _size_word(rng, thing: Thing) -> str:
    if rng.random() < 0.5:
        return "small " if thing.size <= SMALL else "big " if thing.size >= BIG else ""
    return ""


def _joints(rng, things: list[Thing]) -> list[str]:
    """What stands before each object: commas and "and", or for two a relation that is true of them."""
    if len(things) == 3:
        return ["", ", ", " and "]
    if len(things) == 1 or rng.random() < 0.4:
        return ["", " and "]
    x, y = things[1].centre - things[0].centre
    if abs(x) > abs(y):
        relation = " to the left of " if x > 0 else " to the right of "
    else:
        relation = " above " if y > 0 else " below "
    return ["", relation]
