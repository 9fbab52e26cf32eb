"""The pictures that rows of stored features are of, read where their source has them."""

from collections.abc import Callable
from functools import cache

from PIL import Image

from filip_jax.data.decode import decode
from filip_jax.data.index_folder import sources_of_others
from filip_jax.data.record import BadRecord
from filip_jax.data.sources import make_source
from filip_jax.errors import UserError
from filip_jax.features import Features
from filip_jax.search.collection import Uncaptioned, image_of, place_of


def open_pictures(features: Features) -> Callable[[int], Image.Image]:
    """Return a function of a row that gives its picture, upright, in RGB.

    It raises BadRecord for a row of texts and if the source has the row's record no more, ValueError for one that is no
    picture, OSError if the disk or the bucket fails.

    Raises:
        UserError: the source that the features are of cannot be opened.
    """
    if features.manifest.side == "text":
        return _no_picture
    section = features.manifest.source.get("section", {})
    try:
        with sources_of_others():  # the folder may have come from a stranger
            source = make_source(section, "source")
    except UserError as error:
        raise UserError(
            f"the pictures of {features.folder}: {error}. If they lie elsewhere now, name the place by filip embed --moved"
        ) from error

    bare = Uncaptioned(source, section)

    @cache
    def records() -> dict[tuple[str, str], int]:
        """Return the number of each record; asked for only if the source has changed."""
        return {place_of(source, section, index): index for index in reversed(range(len(source)))}

    def picture(row: int) -> Image.Image:
        (known,) = features.fields([row])
        place, index = (known["shard"], known["key"]), known["index"]
        if index >= len(source) or place_of(source, section, index) != place:
            index = records().get(place, -1)
        if index < 0:
            raise BadRecord(f"the source has no record {known['key']!r} any more")
        with sources_of_others():
            image, _, _ = image_of(source, bare, index)
        return decode(image)

    return picture


def _no_picture(row: int) -> Image.Image:
    raise BadRecord(f"row {row} is a text")
