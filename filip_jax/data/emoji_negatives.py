"""Hard negatives of the demo's captions: texts of the same grammar and nearly the same words that are false of their scene."""

import re
from collections.abc import Sequence

from filip_jax.data.emoji_scenes import BACKGROUNDS, with_article
from filip_jax.data.record import Record

OPPOSITES = {
    "to the left of": "to the right of",
    "to the right of": "to the left of",
    "above": "below",
    "below": "above",
}
SIZES = {"small ": "big ", "big ": "small "}
BACKGROUND = re.compile(r"(?<= on a )\w+(?= background$)")
PHRASE = re.compile(r"an? (small |big |)$")  # what stands before a thing's name


def hard_negatives(record: Record, names: Sequence[str]) -> dict[str, list[str]]:
    """Return all texts that differ from a scene's caption in one attribute, relation or number of things, by that kind.

    "attribute": another background, or the other size of a thing. "relation": the opposite one, or both things in each
    other's place. "count": a thing more, which is not in the scene; a caption that names fewer would be true.

    Args:
        record: of `EmojiScenes`; its first caption and the regions of that.
        names: of all things.
    """
    text, regions = record.captions[0].text, record.regions
    spans = [(found.start(), region.end) for region in regions if (found := PHRASE.search(text[: region.start]))]
    joint = text[spans[0][1] : spans[1][0]] if len(spans) == 2 else ""
    return {
        "attribute": _attributes(text, [region.start for region in regions]),
        "relation": _relations(text, spans, joint.strip()),
        "count": _counts(text, spans, joint, set(names) - {text[region.start : region.end] for region in regions}),
    }


def _attributes(text, starts):
    changed: list[str] = []
    if found := BACKGROUND.search(text):
        changed += [text[: found.start()] + name + text[found.end() :] for name in BACKGROUNDS if name != found[0]]
    for start in starts:
        for size, other in SIZES.items():
            if text.endswith(size, 0, start):
                changed.append(text[: start - len(size)] + other + text[start:])
    return changed


def _relations(text, spans, relation):
    if relation not in OPPOSITES:
        return []
    (first, end), (second, last) = spans
    one, other = text[first:end], text[second:last]
    return [
        f"{before} {word} {after}{text[last:]}"
        for before, word, after in ((one, OPPOSITES[relation], other), (other, relation, one))
    ]


def _counts(text, spans, joint, absent):
    things = [text[start:end] for start, end in spans]
    if len(things) > 2 or joint not in ("", " and "):
        return []
    return [f"{', '.join(things)} and {with_article(name)}{text[spans[-1][1] :]}" for name in sorted(absent)]
