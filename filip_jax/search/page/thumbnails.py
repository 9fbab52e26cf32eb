"""Pictures of an index at the size at which the page shows them."""

import io
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

from PIL import Image

SIDE = 448  # pixels of the shorter side
MAX_SIDE = 4096  # of the longer one
QUALITY = 88  # of JPEG
MAX_CACHE_BYTES = 1 << 26


class Thumbnails:
    """Thumbnails of rows, as JPEG; the last ones are kept. Threads may ask at the same time.

    Args:
        picture: gives the decoded picture of a row, upright.
    """

    def __init__(self, picture: Callable[[int], Image.Image]):
        self.picture = picture
        self._kept, self._bytes, self._lock = OrderedDict[int, bytes](), 0, Lock()

    def of(self, row: int) -> bytes:
        """Return the encoded thumbnail of a row; raises what `picture` does."""
        with self._lock:
            if row in self._kept:
                self._kept.move_to_end(row)
                return self._kept[row]
        data = encoded(self.picture(row))
        with self._lock:
            if row not in self._kept:
                self._kept[row], self._bytes = data, self._bytes + len(data)
            while self._bytes > MAX_CACHE_BYTES:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return data


def encoded(picture: Image.Image) -> bytes:
    """Return a picture as JPEG, whole, its shorter side at most SIDE pixels; it holds nothing but the pixels."""
    scale = min(SIDE / min(picture.size), MAX_SIDE / max(picture.size), 1.0)
    if scale < 1:
        width, height = (max(round(side * scale), 1) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    picture.convert("RGB").save(out, "JPEG", quality=QUALITY)
    return out.getvalue()
