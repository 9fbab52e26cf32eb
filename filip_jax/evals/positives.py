"""Extended positives: which texts suit which images beyond their own, as far as people have looked.

Of COCO's test pictures a caption often suits others, too; recall against its own picture alone counts those as wrong. ECCV
Caption (Chun et al., ECCV 2022, arXiv 2204.03359) lists the right answers of 1,261 pictures and 1,332 captions.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from filip_jax import storage
from filip_jax.errors import UserError
from filip_jax.extras import extra_folder
from filip_jax.inference.ranking import Ranking

ECCV = "eccv_caption"
NAMED = "the source `annotations`, or what `filip data convert` makes of it,"  # whose texts have keys
WAYS = ("image_to_text", "text_to_image")
FILE_BYTES = 1 << 28  # of a file of positives

Lists = Mapping[str, Sequence[str]]  # the right answers of each query, by their keys


@dataclass(frozen=True)
class Positives:
    """Right answers of some queries, each way.

    Attributes:
        outside: answers that count as missed where the source lacks them.
    """

    name: str
    image_to_text: Lists
    text_to_image: Lists
    outside: frozenset[str] = frozenset()


def read_positives(name: str) -> Positives:
    """Those of ECCV Caption ("eccv_caption"; extra `eval`), or of a JSON file.

    Args:
        name: a file holds {"image_to_text": {image key: [caption keys]}, "text_to_image": {caption key: [image keys]}}.

    Raises:
        UserError: no such file, or one of another form; the package is not installed.
    """
    if name != ECCV:
        lists = _read(name, name)
        if lists.keys() != set(WAYS):
            raise UserError(
                f"positives={name!r} has the keys {', '.join(lists) or 'none'}; it needs {' and '.join(WAYS)}"
            )
        to_text, to_image = (_lists(lists[way], f"{name}: {way}") for way in WAYS)
        return Positives(name, to_text, to_image)
    folder = extra_folder(ECCV, "eval", f"positives={ECCV!r} needs") / "data"
    names = ("eccv_image_to_caption", "eccv_caption_to_image", "original_caption_to_image")
    texts, images, gallery = (_lists(_read(str(folder / f"{each}.json"), name), f"{name}: {each}") for each in names)
    # Two captions that it lists are not among the 25,000 that it ranks; the package counts them as missed.
    return Positives(name, texts, images, frozenset(key for keys in texts.values() for key in keys).difference(gallery))


class ExtendedRanking:
    """Ranks the whole gallery for the queries that have extended positives.

    Args:
        images, texts: the keys of all images and of all texts, in their order.

    Raises:
        UserError: keys that the source lacks or has twice.
    """

    def __init__(self, positives: Positives, images: Sequence[str], texts: Sequence[str]):
        self.ways = {
            "image_to_text": _Way(positives, "image_to_text", images, texts),
            "text_to_image": _Way(positives, "text_to_image", texts, images),
        }

    def add(
        self,
        images: Int[np.ndarray, " i"],
        texts: Int[np.ndarray, " t"],
        image_to_text: Float[np.ndarray, "i t"],
        text_to_image: Float[np.ndarray, "i t"],
    ) -> None:
        """Similarities of some images with some texts, by both rules."""
        self.ways["image_to_text"].add(images, texts, image_to_text)
        self.ways["text_to_image"].add(texts, images, text_to_image.T)

    def numbers(self) -> dict[str, float]:
        """{"image_to_text_extended_R@1", …_extended_R-precision, …_extended_mAP@R, and so on}."""
        found = {}
        for name, way in self.ways.items():
            found[f"{name}_extended_R@1"] = way.ranking.recall(1)
            found[f"{name}_extended_R-precision"] = way.ranking.r_precision()
            found[f"{name}_extended_mAP@R"] = way.ranking.average_precision()
        return found


class _Way:
    """One way: of its rows only those of the queries are ranked."""

    def __init__(self, positives: Positives, way: str, queries: Sequence[str], answers: Sequence[str]):
        lists: Lists = getattr(positives, way)
        said = f"positives={positives.name!r}: {way}"
        row, column = _numbers(queries, said), _numbers(answers, said)
        _check(lists, row, said)
        _check([key for keys in lists.values() for key in keys if key not in positives.outside], column, said)
        for key in sorted(positives.outside):
            column.setdefault(key, len(column))  # beyond the last answer: never met, never found
        pairs = [(n, column[key]) for n, keys in enumerate(lists.values()) for key in dict.fromkeys(keys)]
        self.query = np.full(len(queries), -1)
        self.query[[row[key] for key in lists]] = np.arange(len(lists))
        self.ranking = Ranking(np.array(pairs), len(lists), len(column), ranks=1)

    def add(self, rows, columns, scores):
        chosen = self.query[rows] >= 0
        if chosen.any():
            self.ranking.add(self.query[rows[chosen]], columns, scores[chosen])


def _numbers(keys: Sequence[str], said: str) -> dict[str, int]:
    numbers = {key: n for n, key in enumerate(keys)}
    if len(numbers) < len(keys):
        twice = next(key for n, key in enumerate(keys) if numbers[key] != n)
        what = f"the key {twice!r} twice" if twice else f"texts without a key; {NAMED} names them"
        raise UserError(f"{said}: the source has {what}")
    return numbers


def _check(keys, known: Mapping[str, int], said: str) -> None:
    missing = [key for key in dict.fromkeys(keys) if key not in known]
    if missing:
        raise UserError(
            f"{said} names {len(missing)} keys that are not among the {len(known)} evaluated, such as "
            f"{missing[0]!r}; those are such as {next(iter(known), '')!r}"
        )


def _read(file: str, name: str) -> dict:
    try:
        content = json.loads(storage.read(file, 0, FILE_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"positives={name!r} is neither {ECCV} nor a JSON file that can be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"positives={name!r} holds {type(content).__name__}, not an object")
    return content


def _lists(lists, said: str) -> Lists:
    """Keys as texts, whether they were numbers or texts."""
    if not isinstance(lists, dict) or not lists:
        raise UserError(f"positives={said} is not an object of lists")
    for key, keys in lists.items():
        if not isinstance(keys, list) or not keys or not all(isinstance(each, str | int) for each in keys):
            raise UserError(f"positives={said}: of {key!r} it has {keys!r:.100}, not a list of keys")
    return {key: [str(each) for each in keys] for key, keys in lists.items()}
