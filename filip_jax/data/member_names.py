"""How the names of a tar's members make samples: a key, which members share, and a kind.

first_dot  a/000012.de.txt -> a/000012, de.txt   as webdataset splits them
last_dot   a/photo.2021.0.jpg -> a/photo.2021.0, jpg
folder     a/000012/caption.txt -> a/000012, caption.txt   a folder is a sample; images and JSON go by their ending
"""

from filip_jax.data.decode import ENDINGS
from filip_jax.walk import why_left_out

FIRST_DOT, LAST_DOT, FOLDER = KEYS = ("first_dot", "last_dot", "folder")
IMAGES = tuple(ending[1:] for ending in ENDINGS)  # an image of the first kind that a sample has is taken


def split(name: str, keys: str) -> tuple[str, str]:
    """Return (key, kind in lower case) of a member's name; one is "" where the name has none."""
    folder, _, file = name.removeprefix("./").rpartition("/")
    stem, _, kind = file.partition(".") if keys == FIRST_DOT else file.rpartition(".")
    kind = kind.lower()
    if keys == FOLDER:
        return folder, kind if kind in (*IMAGES, "json") else file.lower()
    return (f"{folder}/{stem}" if folder else stem) if stem else "", kind


def why_name_left_out(name: str) -> str:
    """Return the reason why a member of this name never counts: the rules are those of folders, as in walk.py."""
    reasons = (why_left_out(part) for part in name.split("/") if part not in (".", ".."))
    return next(filter(None, reasons), "")
