"""Hard negatives of the demo's captions: read by a parser of its own, each is false of its scene, of the grammar, and there where it should."""

import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from filip_jax.data.emoji_negatives import hard_negatives
from filip_jax.data.emoji_scenes import BACKGROUNDS, BIG, SMALL, EmojiScenes

TRAIN = EmojiScenes(split="train", seed=0, scenes=10**6)
THING = rf"an? (?:small |big )?(?:{'|'.join(map(re.escape, sorted(TRAIN.class_names, key=len, reverse=True)))})"
JOINT = r", | and | to the left of | to the right of | above | below "
GRAMMAR = re.compile(rf"({THING})(?:({JOINT})({THING}))?(?:( and )({THING}))?(?: on a (\w+) background)?")
HOLDS = {
    " to the left of ": lambda a, b: a[0] < b[0],
    " to the right of ": lambda a, b: a[0] > b[0],
    " above ": lambda a, b: a[1] < b[1],
    " below ": lambda a, b: a[1] > b[1],
}


def is_true(text, record):
    """Return whether a text of the grammar is true of a scene, by the boxes and the color of its picture."""
    found = GRAMMAR.fullmatch(text)
    assert found, text
    boxes = {record.caption[region.start : region.end]: region.box for region in record.regions}
    phrases = [re.fullmatch(r"an? (small |big )?(.*)", phrase).groups() for phrase in found.group(1, 3, 5) if phrase]
    if any(name not in boxes for _, name in phrases):
        return False
    for size, name in phrases:
        left, top, right, bottom = boxes[name]
        side = max(right - left, bottom - top)
        if (size == "small " and side > SMALL) or (size == "big " and side < BIG):
            return False
    centers = [np.add(boxes[name][:2], boxes[name][2:]) / 2 for _, name in phrases]
    if found[2] in HOLDS and not HOLDS[found[2]](*centers):
        return False
    free = np.ones(record.image.shape[:2], bool)
    for left, top, right, bottom in boxes.values():
        free[top:bottom, left:right] = False
    color = record.image[free][0].astype(int)
    return found[6] is None or np.abs(color - BACKGROUNDS[found[6]]).max() <= 15


@given(index=st.integers(0, 10**6 - 1))
def test_every_negative_is_false_and_the_caption_true(index):
    record = TRAIN[index]
    negatives = hard_negatives(record, TRAIN.class_names)
    assert is_true(record.caption, record) and negatives.keys() == {"attribute", "relation", "count"}
    for texts in negatives.values():
        assert len(set(texts)) == len(texts) and not any(is_true(text, record) for text in texts)
    words, things = record.caption.split(), len(record.regions)
    number = (len(BACKGROUNDS) - 1) * (words[-1] == "background") + len(
        re.findall(r"\ban? (?:small|big) ", record.caption)
    )
    assert len(negatives["attribute"]) == number
    related = any(word in record.caption for word in HOLDS)
    assert len(negatives["relation"]) == 2 * related
    expected = 0 if things == 3 or related else len(TRAIN.class_names) - things
    assert len(negatives["count"]) == expected
    for kind in ("attribute", "relation"):
        assert all(len(text.split()) == len(words) for text in negatives[kind])
