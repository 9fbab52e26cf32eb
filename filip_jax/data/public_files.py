"""A tokenizer as the files that the library transformers reads: tokenizer.json or spiece.model, and tokenizer_config.json."""

import json
from collections.abc import Mapping
from typing import Any

Files = dict[str, bytes]  # by name
JSON, CONFIG, SENTENCE_PIECES = "tokenizer.json", "tokenizer_config.json", "spiece.model"
ANY = "PreTrainedTokenizerFast"  # the class that does what a tokenizer.json says


def fast_files(spec: Mapping[str, Any], special: Mapping[str, tuple[str, int]], length: int, kind: str = ANY) -> Files:
    """Return tokenizer.json and its config.

    Args:
        spec: added_tokens, normalizer, pre_tokenizer and model, as tokenizer.json has them.
        special: (piece, id) of "bos" where there is one, "eos" and "pad".
        length: tokens of the longest text.
        kind: the class that transformers takes.
    """
    added = {token["id"]: token for token in spec.get("added_tokens") or []}
    added |= {n: _special(piece, n) for piece, n in special.values() if n not in added}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added[n] for n in sorted(added)],
        "normalizer": spec.get("normalizer"),
        "pre_tokenizer": spec.get("pre_tokenizer"),
        "post_processor": _template(special),
        "decoder": spec.get("decoder"),
        "model": spec["model"],
    }
    return {JSON: _json(content), CONFIG: _json(_config(kind, special, length))}


def siglip_files(model: bytes, eos: str, unknown: str, length: int) -> Files:
    """Return a sentencepiece model whose texts are canonicalized and filled with their EOS, and its config."""
    special = {"eos": (eos, 0), "pad": (eos, 0)}
    config = _config("SiglipTokenizer", special, length) | {"unk_token": unknown, "do_lower_case": True}
    return {SENTENCE_PIECES: model, CONFIG: _json(config)}


def _config(kind: str, special: Mapping[str, tuple[str, int]], length: int) -> dict[str, Any]:
    return {
        "tokenizer_class": kind,
        **{f"{name}_token": piece for name, (piece, _) in special.items()},
        "model_max_length": length,
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # what looks like one in a text is text
    }


def _special(piece: str, n: int) -> dict[str, Any]:
    return {"id": n, "content": piece, "special": True} | dict.fromkeys(
        ("single_word", "lstrip", "rstrip", "normalized"), False
    )


def _template(special: Mapping[str, tuple[str, int]]) -> dict[str, Any]:
    """Return the part that puts BOS and EOS around a text, or around two."""
    ends = {
        name: [{"SpecialToken": {"id": special[name][0], "type_id": 0}}] for name in ("bos", "eos") if name in special
    }

    def around(*texts: str) -> list[dict[str, Any]]:
        return [*ends.get("bos", []), *({"Sequence": {"id": text, "type_id": 0}} for text in texts), *ends["eos"]]

    tokens = {
        piece: {"id": piece, "ids": [n], "tokens": [piece]} for name, (piece, n) in special.items() if name in ends
    }
    return {"type": "TemplateProcessing", "single": around("A"), "pair": around("A", "B"), "special_tokens": tokens}


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
