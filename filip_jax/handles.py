"""Descriptors of local files that stay open, since most files are read many times."""

import os
import threading
from collections import OrderedDict

from filip_jax.small_files import open_regular

OPEN_FILES = 256


class Handle:
    """A descriptor that closes when its last user lets it go."""

    def __init__(self, path: str):
        self.descriptor = open_regular(path)

    def __del__(self):
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


_handles: OrderedDict[str, Handle] = OrderedDict()
_lock = threading.Lock()


def open_file(path: str) -> Handle:
    """Return the file's descriptor, opened now or before; OPEN_FILES of them stay open."""
    with _lock:
        if path in _handles:
            _handles.move_to_end(path)
            return _handles[path]
    handle = Handle(path)
    with _lock:
        _handles[path] = handle
        while len(_handles) > OPEN_FILES:
            _handles.popitem(last=False)
    return handle


def forget(path: str) -> None:
    """Let a file go that another takes the place of."""
    with _lock:
        _handles.pop(path, None)
