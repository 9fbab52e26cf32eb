"""A sentencepiece model as the parts of a tokenizer.json: its pieces, their merges, how texts are normalized and cut."""

import base64
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # stands for a blank in pieces
BLANKS = " {2,}"
ENDS = r"\A | \z"  # blanks alone: the part Strip takes more away
UNIGRAM, BPE = 1, 2  # of sentencepiece's model types
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of pieces
# Numbers of fields in sentencepiece_model.proto.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
PIECE, SCORE, TYPE = 1, 2, 3
MODEL_TYPE, SPACE_BEHIND = 3, 24
CHARSMAP, DUMMY_PREFIX, EXTRA_BLANKS, ESCAPED_BLANKS = 2, 3, 4, 5
VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5  # of the wire format


class Piece(NamedTuple):
    """A piece of the vocabulary."""

    text: str
    score: float
    type: int


def tokenizer_parts(model: bytes) -> dict[str, Any] | None:
    """Return normalizer, pre_tokenizer and model of a tokenizer.json that cuts texts as a .model file does.

    None where it cannot: the model is neither BPE nor unigram, has symbols that a user defined, or treats blanks otherwise
    than by default.

    Args:
        model: that sentencepiece has opened.
    """
    top = list(_fields(model))
    trainer, normalizer = (dict(_fields(b"".join(v for n, v in top if n == field))) for field in (TRAINER, NORMALIZER))
    pieces = [_piece(value) for number, value in top if number == PIECES]
    usual = not trainer.get(SPACE_BEHIND) and all(
        normalizer.get(n, 1) for n in (DUMMY_PREFIX, EXTRA_BLANKS, ESCAPED_BLANKS)
    )
    kind = trainer.get(MODEL_TYPE, UNIGRAM)
    if not usual or kind not in (UNIGRAM, BPE) or any(piece.type in (USER_DEFINED, UNUSED) for piece in pieces):
        return None
    charsmap = normalizer.get(CHARSMAP, b"")
    table = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}
    blanks = {"type": "Replace", "pattern": {"Regex": BLANKS}, "content": " "}
    strip = {"type": "Replace", "pattern": {"Regex": ENDS}, "content": ""}
    return {
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": [*[table] * bool(charsmap), blanks, strip]},
        "pre_tokenizer": {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": False},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": _bpe(pieces) if kind == BPE else _unigram(pieces),
    }  # fmt: skip


def _unigram(pieces: list[Piece]) -> dict[str, Any]:
    unknown = next(n for n, piece in enumerate(pieces) if piece.type == UNKNOWN)
    vocabulary = [[piece.text, piece.score] for piece in pieces]
    return {"type": "Unigram", "unk_id": unknown, "vocab": vocabulary, "byte_fallback": _has_bytes(pieces)}


def _bpe(pieces: list[Piece]) -> dict[str, Any]:
    """Return the pieces with the merges that make them, the best first: two neighbors become the piece of both."""
    number = {piece.text: n for n, piece in enumerate(pieces)}
    normal = {piece.text: piece.score for piece in pieces if piece.type == NORMAL}
    merges = [
        (-score, number[text[:cut]], number[text[cut:]], text[:cut], text[cut:])
        for text, score in normal.items()
        for cut in range(1, len(text))
        if text[:cut] in normal and text[cut:] in normal
    ]
    return {
        "type": "BPE", "dropout": None, "unk_token": next(p.text for p in pieces if p.type == UNKNOWN),
        "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
        "byte_fallback": _has_bytes(pieces), "ignore_merges": False, "vocab": number,
        "merges": [[left, right] for *_, left, right in sorted(merges)],
    }  # fmt: skip


def _has_bytes(pieces: list[Piece]) -> bool:
    return any(piece.type == BYTE for piece in pieces)


def _piece(data: bytes) -> Piece:
    found = dict(_fields(data))
    return Piece(found[PIECE].decode(), found.get(SCORE, 0.0), found.get(TYPE, NORMAL))


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of each field of a message; protocol buffers repeat a field by repeating its number."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            place, value, shift = place + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while place < len(data):
        number, wire = divmod(varint(), 8)
        if wire == VARINT:
            yield number, varint()
        elif wire == BYTES:
            size = varint()
            place += size
            yield number, data[place - size : place]
        else:
            size, form = (4, "<f") if wire == FOUR_BYTES else (8, "<d")
            place += size
            yield number, struct.unpack(form, data[place - size : place])[0]
