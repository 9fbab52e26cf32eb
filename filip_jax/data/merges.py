"""CLIP's byte pairs as old folders of transformers keep them, vocab.json beside merges.txt: the tokenizer.json that is made of them."""

from pathlib import Path
from typing import Any

from filip_jax.small_files import parse

MERGES, VOCABULARY = "merges.txt", "vocab.json"
MAX_BYTES = 1 << 24  # of each
SPACES = r"\s+"
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
NORMALIZER = {
    "type": "Sequence",
    "normalizers": [
        {"type": "NFC"},
        {"type": "Replace", "pattern": {"Regex": SPACES}, "content": " "},
        {"type": "Lowercase"},
    ],
}
PRE_TOKENIZER = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Removed", "invert": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
}


def of_merges(file: Path, bos: str, eos: str) -> dict[str, Any]:
    """Return the tokenizer.json of a CLIP's merges.txt and the vocab.json beside it.

    Args:
        bos, eos: the names of its special tokens; what has no piece becomes EOS, as in CLIP.

    Raises:
        OSError, ValueError, KeyError: a file is missing, too large or not of this kind.
    """
    vocabulary = parse(_read(file.with_name(VOCABULARY)))
    lines = _read(file).decode("utf-8").split("\n")
    pairs = [line.split() for line in lines[lines[0].startswith("#version") :] if line.strip()]
    if not all(len(pair) == 2 for pair in pairs):
        raise ValueError("it has a line that is not two pieces")
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    model = {"type": "BPE", "vocab": vocabulary, "merges": pairs, "unk_token": eos, "end_of_word_suffix": "</w>"}
    added = [{"id": vocabulary[name], "content": name, **special} for name in (bos, eos)]
    return {"added_tokens": added, "normalizer": NORMALIZER, "pre_tokenizer": PRE_TOKENIZER, "model": model}


def _read(file: Path) -> bytes:
    with file.open("rb") as handle:
        data = handle.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"{file.name} has more than {MAX_BYTES} bytes")
    return data
