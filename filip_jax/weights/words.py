"""The tokenizer that comes with public weights: the file that is read, and the section `tokenizer` for it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filip_jax.data.merges import MERGES, VOCABULARY
from filip_jax.errors import UserError
from filip_jax.small_files import read_json
from filip_jax.weights.plan import Evidence, Found

JSON, MODELS = "tokenizer.json", ("spiece.model", "tokenizer.model")
CONFIG = "tokenizer_config.json"
CLIP_IDS = 49_408
SPECIALS = {"bos": "<|startoftext|>", "eos": "<|endoftext|>"}  # of CLIP
GEMMA = {"eos": "<eos>", "pad": "<pad>"}  # of SigLIP 2

Words = tuple[dict[str, Any], list[Evidence]]


def of_clip(found: Found, ids: int, given: str = "") -> Words:
    """Return the section of a model with CLIP's tokenizer, or with another of so many ids.

    Args:
        ids: rows of the token embeddings.
        given: the file that the option --tokenizer names.

    Raises:
        UserError: the ids are not CLIP's, and there is neither tokenizer.json nor merges.txt.
    """
    file = _file(found, given, (JSON, MERGES))
    if ids == CLIP_IDS:
        why = f"{ids} ids, CLIP's; " + (f"pieces of {file}" if file else "pieces of an installed package")
        return dict(name="clip", path=str(file or "")), [Evidence("tokenizer", "clip", why)]
    if file is None or (file.suffix != ".json" and file.name != MERGES):
        raise UserError(
            f"{found.place} has {ids} ids, which are not CLIP's {CLIP_IDS}: give its tokenizer.json, or merges.txt beside vocab.json, with --tokenizer=FILE"
        )
    return _of_json(found, file, SPECIALS | {"pad": _first_piece(file)}, ids)


def of_siglip(found: Found, ids: int, given: str = "") -> Words:
    """Return the section of a SigLIP (sentencepiece, texts without capitals and punctuation) or SigLIP 2 (tokenizer.json).

    Raises:
        UserError: there is neither file.
    """
    file = _file(found, given, (*MODELS, JSON))
    if file is None:
        raise UserError(f"{found.place} has neither {MODELS[0]} nor {JSON}: give its tokenizer with --tokenizer=FILE")
    if file.suffix == ".json":
        return _of_json(found, file, {"bos": _beginning(file), **GEMMA}, ids, lower_case=True)
    section = dict(name="sentencepiece", path=str(file), vocab_size=ids, canonicalize=True, bos=False, eos_as_pad=True)
    return section, [Evidence("tokenizer", "sentencepiece, texts canonicalized, EOS as pad", f"pieces of {file}")]


def _file(found: Found, given: str, names: Sequence[str]) -> Path | None:
    """Return the file that was given, or the first of these names in the folder."""
    if given:
        return Path(given)
    return (
        next((found.folder / name for name in names if (found.folder / name).is_file()), None) if found.folder else None
    )


def _of_json(found: Found, file: Path, specials: Mapping[str, str], ids: int, **options: Any) -> Words:
    """Return the section of a tokenizer.json, with the names of its special tokens as tokenizer_config.json states them."""
    stated = {name: found.configs.get(CONFIG, {}).get(f"{name}_token") for name in ("bos", "eos") if specials[name]}
    names = {name: each.get("content") if isinstance(each, dict) else each for name, each in stated.items()}
    section = dict(name="tokenizer_json", path=str(file), **options, **specials)
    section |= {name: each for name, each in names.items() if isinstance(each, str)}
    shown = ", ".join(f"{name} {section[name]!r:.40}" for name in ("bos", "eos", "pad") if section[name])
    return section, [Evidence("tokenizer", f"tokenizer_json, {shown}", f"pieces of {file}, {ids} ids")]


def _beginning(file: Path) -> str:
    """Return the piece that a tokenizer.json puts before a text; "" if none, as SigLIP 2's."""
    template = read_json(file).get("post_processor") or {}
    parts = template.get("single") if isinstance(template, dict) else None
    first = parts[0] if isinstance(parts, list) and parts else {}
    special = first.get("SpecialToken") if isinstance(first, dict) else None
    piece = special.get("id") if isinstance(special, dict) else None
    return piece if isinstance(piece, str) else ""


def _first_piece(file: Path) -> str:
    """Return the piece with the number 0, by which OpenAI's texts are filled."""
    whole = file.name != MERGES
    vocabulary = (read_json(file).get("model") or {}).get("vocab") if whole else read_json(file.with_name(VOCABULARY))
    pieces = vocabulary.items() if isinstance(vocabulary, dict) else ()
    if (first := next((piece for piece, number in pieces if number == 0), None)) is None:
        raise UserError(f"{file} has no piece with the number 0, which fills the ends of CLIP's texts")
    return first
