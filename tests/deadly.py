"""Work that ends its process; a module of its own, so that worker processes load nothing else."""

import os
import signal
import time

from filip_jax.errors import UserError


def by_signal(number):
    """Of item 1 by a signal."""
    return lambda item: os.kill(os.getpid(), number) if item == 1 else item


def by_itself(code):
    """Of any item, with this exit code."""
    return lambda item: os._exit(code)


def out_of_memory(*_):
    """Return a function that dies at its first item, as the kernel kills a process without memory."""
    return lambda item: os.kill(os.getpid(), signal.SIGKILL)


def endless():
    """Of any item; it never ends by itself."""
    return lambda item: time.sleep(3600)


def broken():
    """Fails for want of a key, which is no mistake of a user."""
    return lambda item: {}[item]


def refuse(words):
    """Fails before there is a function of an item."""
    raise UserError(words)
