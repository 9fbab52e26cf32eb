"""Labelled images from any source: the class of each record stands in one of its texts."""

import dataclasses
import re
import warnings

from filip_jax.data.identity import digest, extend
from filip_jax.data.record import BadRecord, Caption, Record
from filip_jax.data.text_lists import read_texts
from filip_jax.data.tfds import in_words
from filip_jax.errors import UserError, one_line


class Labelled:
    """A source whose records have a label, and the class's name as their text.

    Args:
        source: of any kind.
        label: the origin of the texts that hold the class, as a number from 0 or as its name; "" where the source has
            labels of its own, whose classes get other names.
        class_names: a text file with one name on each line, in the order of the numbers, or FILE.json:NAME, see
            `read_texts`; "" takes the source's own, or those that the texts hold, sorted.

    Raises:
        UserError: names that cannot be read, too few of them, or no record with a class.
    """

    def __init__(self, source, *, label: str, class_names: str):
        self.source, self.label = source, label
        self.by_number = label in getattr(source, "label_names", ())  # where a class may be called "1" and be no. 0
        names = read_names(class_names) if class_names else None
        if not label:
            own = getattr(source, "class_names", None)
            if own is None:
                raise UserError("class_names: the source has no labels; say which text holds them: label=cls")
            names = own if names is None else names
            if len(names) != len(own):
                raise UserError(
                    f"class_names={class_names!r} has {len(names)} names, but the source {len(own)} classes"
                )
        elif names is None and self.by_number:
            names = in_words(source.label_names[label])
        elif names is None and getattr(source, "label", None) == label:
            names = source.class_names
        elif names is None:
            names = self._classes()
            if all(name.isdecimal() for name in names):
                raise UserError(
                    f"label={label!r} holds numbers: say what they mean, class_names=FILE with a name a line"
                )
        self.class_names = names
        self.numbers = {name: number for number, name in enumerate(names)}
        self.doubled = {name for number, name in enumerate(names) if self.numbers[name] != number}
        self.shard_sizes, self.seen = source.shard_sizes, source.seen
        self.identity = extend(source.identity, label=label, class_names=digest(names))
        self.left_out = getattr(source, "left_out", {})
        if hasattr(source, "image_head"):
            self.image_head = source.image_head

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        record = self.source[index]
        label = self._number(self._of(record.captions)) if self.label else record.label
        return dataclasses.replace(record, label=label, captions=self._named(record.captions, label))

    def captions(self, index: int) -> tuple[Caption, ...]:
        if not self.label:
            return self[index].captions
        captions = self.source.captions(index)
        return self._named(captions, self._number(self._of(captions)))

    def where(self, index: int) -> tuple[str, str]:
        return self.source.where(index)

    def _named(self, captions, label):
        others = tuple(caption for caption in captions if caption.origin != self.label and self.label)
        return (Caption(self.class_names[label], self.label or "label"), *others)

    def _classes(self) -> list[str]:
        """The classes that the texts hold, sorted. Raises a UserError if none do."""
        names, bare, some = set(), 0, ""
        for index in range(len(self.source)):
            try:
                names.add(self._of(self.source.captions(index)))
            except BadRecord as error:
                bare, some = bare + 1, some or f"record {' '.join(self.source.where(index))}: {error}"
        if not names:
            raise UserError(some)
        if bare:
            warnings.warn(one_line(f"{bare} of {len(self.source)} records have no class: {some}"), stacklevel=4)
        return sorted(names)

    def _of(self, captions) -> str:
        for caption in captions:
            if caption.origin == self.label and caption.text.strip():
                return re.sub(r"^(\d+)\.0+$", r"\1", caption.text.strip())  # 3.0, as pandas writes a 3 beside a gap
        raise BadRecord(f"no class in {self.label!r}")

    def _number(self, text: str) -> int:
        number = int(text) if text.isdecimal() and len(text) < 10 else -1
        if not self.by_number:
            if text in self.doubled:
                raise BadRecord(f"{self.label}={text[:100]!r} names several classes")
            number = self.numbers.get(text, number)
        if not 0 <= number < len(self.class_names):
            raise BadRecord(f"{self.label}={text[:100]!r} is none of {len(self.class_names)} classes")
        return number


def read_names(place: str) -> list[str]:
    """The class names of a file, none empty; some may be alike, as two of ImageNet's are in CLIP's list.

    Args:
        place: as of `read_texts`.

    Raises:
        UserError: it cannot be read, or breaks this.
    """
    names = read_texts(place, "class_names")
    if not names or "" in names:
        what = "an empty line" if names else "no name"
        raise UserError(f"class_names={place!r} has {what}; it needs one name on each line")
    return names
