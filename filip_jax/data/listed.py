"""Files that a list of the data names."""

import errno
import re

from filip_jax import storage
from filip_jax.data.record import BadRecord
from filip_jax.errors import UserError

FROM = "; if paths start elsewhere, say images=FOLDER"
COUNTED = re.compile(r"#\d+$")
ABSENT = (
    errno.ENOENT,
    errno.EINVAL,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EACCES,
    errno.EPERM,
)


def read_listed(folder: str, name: str, most: int, hint: str = "") -> bytes:
    """The first bytes of a file that a list names.

    Where no file has exactly this name, a backslash stands for "/", as Windows writes it, and "#0" at its end counts the
    image's captions, as in Flickr8k's and Flickr30k's lists.

    Args:
        hint: what may help, for the message.

    Raises:
        BadRecord: it is not there, cannot be named or may not be read, or lies on the web, from which
            nothing is downloaded.
        OSError: the disk or the bucket fails.
    """
    try:
        return _read(folder, name, most, hint)
    except BadRecord:
        other = COUNTED.sub("", name.replace("\\", "/"))
        if other == name:
            raise
        return _read(folder, other, most, hint)


def _read(folder: str, name: str, most: int, hint: str) -> bytes:
    path = storage.join(folder, name)
    if storage.is_remote(path) and path.split("://")[0] not in storage.DRIVERS:
        raise BadRecord(f"images are not downloaded from the web: {path}")
    try:
        return storage.read(path, 0, most)
    except UserError:
        raise
    except ValueError as error:  # a NUL in the name
        raise BadRecord(f"no such file: {path!r}") from error
    except OSError as error:
        if error.errno not in ABSENT and not isinstance(error, FileNotFoundError):
            raise
        raise BadRecord(f"no such file: {path[:300]}{hint}") from error
