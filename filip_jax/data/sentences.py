"""Long captions cut into sentences, and sentences merged to shorter captions, as DreamLIP and FLAIR draw them."""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from filip_jax.data.record import Caption

MAX_MERGED = 3  # sentences of a caption that FLAIR draws
TRIES = 4  # of a draw that gives a text again, for each text that is wanted
# DreamLIP cuts at every full stop; one between digits, as in 3.5, is none.
END = re.compile(r"\n|</s>|(?<!\d)\.|\.(?!\d)")
SPLITS = ("", "sentences", "diverse")


def split_caption(text: str) -> list[str]:
    """Return the sentences of a text without their full stops; the text itself where none has a letter or digit."""
    parts = (part.strip() for part in END.split(text))
    return [part for part in parts if any(map(str.isalnum, part))] or [text]


def sentences_of(captions: Sequence[Caption]) -> tuple[Caption, ...]:
    """Return each sentence of the captions as a caption of its own, with the weight of the one that it is from.

    So a long caption is drawn from more often than a short one, as in DreamLIP (Zheng et al. 2024, arXiv 2403.17007).
    """
    return tuple(replace(caption, text=text) for caption in captions for text in split_caption(caption.text))


def draw_merged(captions: Sequence[Caption], rng: np.random.Generator, count: int) -> list[str]:
    """Return `count` different texts of one to MAX_MERGED sentences, or fewer where the sentences do not give as many.

    The number of sentences is drawn evenly. Half of the texts of several are sentences that follow each other in the
    captions as they stand, the others any different ones in any order (FLAIR's diverse sampling, Xiao et al. 2025,
    arXiv 2412.03561, section 3.1). The first of those that follow each other, and each of the others, is drawn by weight.

    Args:
        captions: at least one.
    """
    sentences = sentences_of(captions)
    weights = np.array([sentence.weight for sentence in sentences])
    texts: list[str] = []
    for _ in range(TRIES * count):
        merged = min(int(rng.integers(1, MAX_MERGED + 1)), len(sentences))
        if merged > 1 and rng.random() < 0.5:
            starts = weights[: len(sentences) - merged + 1]
            first = int(rng.choice(len(starts), p=starts / starts.sum()))
            chosen = range(first, first + merged)
        else:
            chosen = rng.choice(len(sentences), merged, replace=False, p=weights / weights.sum()).tolist()
        text = ". ".join(sentences[n].text for n in chosen)
        if text not in texts:
            texts.append(text)
        if len(texts) == count:
            break
    return texts
