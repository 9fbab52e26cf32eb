"""Work that ends its process; a module of its own, so that worker processes load nothing else."""

import os

from filip_jax.errors import UserError


def by_signal(number):
    """Of item 1 by a signal."""
    return lambda item: os.kill(os.getpid(), number) if item == 1 else item


def by_itself(code):
    """Of any item, with this exit code."""
    return lambda item: os._exit(code)


def refuse(words):
    """Fails before there is a function of an item."""
    raise UserError(words)
