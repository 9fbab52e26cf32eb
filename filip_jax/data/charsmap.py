"""The table by which a sentencepiece model replaces characters, as a tokenizer.json holds it; checked before it is applied.

It is a double-array trie of the replaced characters' bytes (darts-clone's units), then the texts that replace them, each ended by a zero.
"""

import base64

import numpy as np

from filip_jax.errors import UserError


def growth_of(encoded: str) -> int:
    """Return by how much a text may grow: the characters of the longest replacement.

    Raises:
        UserError: a table by which a reader would leave it.
    """
    try:
        table = base64.b64decode(encoded, validate=True)
        size = int.from_bytes(table[:4], "little")
        units, texts = np.frombuffer(table, "<u4", size // 4, 4), table[4 + size :]
        longest = max(map(len, texts.decode("utf-8").split("\0")))
    except ValueError as error:
        raise UserError(f"its precompiled_charsmap is damaged: {error}") from error
    offsets = (units >> 10) << ((units & 512) >> 6)
    bases = np.arange(len(units), dtype=np.int64) ^ offsets.astype(np.int64)
    inner = units < 1 << 31  # the others are values, at which no walk goes on
    inner[:1] = True  # where all begin
    first = bases[inner & (units & 256 > 0)]  # where the values of those that end a key stand
    if not len(units) or (bases[inner] | 255).max(initial=0) >= len(units):
        raise UserError("its precompiled_charsmap is damaged: a unit points beyond the last one")
    begins = np.frombuffer(texts, np.uint8) & 0xC0 != 0x80
    values = units[first] & 0x7FFFFFFF
    if values.max(initial=0) >= len(texts) or not begins[values].all():
        raise UserError("its precompiled_charsmap is damaged: a value points at no text")
    return max(longest, 1)
