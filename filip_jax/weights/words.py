"""The tokenizer that comes with public weights: the file that is read, and the section `tokenizer` for it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filip_jax.data.merges import MERGES, VOCABULARY
from filip_jax.data.public_files import ANY
from filip_jax.data.vocabularies import CLIP, in_packages
from filip_jax.errors import UserError
from filip_jax.plain import one_line
from filip_jax.small_files import read_json
from filip_jax.weights.plan import Evidence, ModelSource

JSON, MODELS = "tokenizer.json", ("spiece.model", "tokenizer.model")
CONFIG = "tokenizer_config.json"
CLIP_IDS = 49_408
FIRST = "!"  # the piece with the number 0
SPECIALS = {"bos": "<|startoftext|>", "eos": "<|endoftext|>"}  # of CLIP
GEMMA = {"eos": "<eos>", "pad": "<pad>"}  # of SigLIP 2

Words = tuple[dict[str, Any], list[Evidence]]


def of_clip(source: ModelSource, ids: int, given: str = "", *, sees_pads: bool = False) -> Words:
    """Return the section of a model with CLIP's tokenizer, or with another of so many ids.

    Args:
        ids: rows of the token embeddings.
        given: the file that the option --tokenizer names.
        sees_pads: whether a tokenizer of transformers fills the texts, and attention sees what it fills them with.

    Raises:
        UserError: there is neither tokenizer.json nor merges.txt, and the ids are not CLIP's or no package has its pieces; or
            texts are filled with another piece than CLIP's.
    """
    file = _file(source, given, (JSON, MERGES))
    if sees_pads:
        _check_pad(source, FIRST if ids == CLIP_IDS or file is None else _first_piece(file))
    if ids == CLIP_IDS:
        if not (file or in_packages(CLIP)):
            raise UserError(
                f"{source.place} comes without a tokenizer: give CLIP's {CLIP.file}, its {MERGES} or {JSON}, with --tokenizer=FILE"
            )
        origin = f"{ids} ids, CLIP's; pieces of " + (f"{file}" if file else "an installed package")
        return dict(name="clip", path=str(file or "")), [Evidence("tokenizer", "clip", origin)]
    if file is None or (file.suffix != ".json" and file.name != MERGES):
        raise UserError(
            f"{source.place} has {ids} ids, which are not CLIP's {CLIP_IDS}: give its tokenizer.json, or merges.txt beside vocab.json, with --tokenizer=FILE"
        )
    ends = None if file.name == MERGES else _ends(file)
    return _of_json(source, file, SPECIALS | {"pad": _first_piece(file)}, ids, ends)


def of_siglip(source: ModelSource, ids: int, given: str = "") -> Words:
    """Return the section of a SigLIP (sentencepiece, texts without capitals and punctuation) or SigLIP 2 (tokenizer.json).

    Raises:
        UserError: there is neither file.
    """
    file = _file(source, given, (*MODELS, JSON))
    if file is None:
        raise UserError(f"{source.place} has neither {MODELS[0]} nor {JSON}: give its tokenizer with --tokenizer=FILE")
    _check_lower_case(source)
    if file.suffix == ".json":
        ends, is_plain = _ends(file), source.configs.get(CONFIG, {}).get("tokenizer_class") == ANY
        return _of_json(source, file, {"bos": ends[0], **GEMMA}, ids, ends, lower_case=not is_plain)
    _check_config(source, "", "</s>")
    section = dict(name="sentencepiece", path=str(file), vocab_size=ids, canonicalize=True, bos=False, eos_as_pad=True)
    return section, [Evidence("tokenizer", "sentencepiece, texts canonicalized, EOS as pad", f"pieces of {file}")]


def _file(source: ModelSource, given: str, names: Sequence[str]) -> Path | None:
    """Return the file that was given, or the first of these names in the folder."""
    if given:
        return Path(given)
    return (
        next((source.folder / name for name in names if (source.folder / name).is_file()), None)
        if source.folder
        else None
    )


def _of_json(
    source: ModelSource, file: Path, specials: Mapping[str, str], ids: int, put: tuple[str, str] | None, **options: Any
) -> Words:
    """Return the section of a tokenizer.json, with the names of its special tokens as tokenizer_config.json states them.

    Args:
        put: the pieces that it puts around a text; None where the family tells.
    """
    stated = {name: source.configs.get(CONFIG, {}).get(f"{name}_token") for name in ("bos", "eos") if specials[name]}
    names = {name: each.get("content") if isinstance(each, dict) else each for name, each in stated.items()}
    section = dict(name="tokenizer_json", path=str(file), **options, **specials)
    section |= {name: each for name, each in names.items() if isinstance(each, str)}
    ends = (section["bos"], section["eos"])
    if put is not None and put != ends:
        raise UserError(
            f"{file} puts {put[0]!r:.60} before a text and {put[1]!r:.60} behind it where {ends[0]!r:.60} and {ends[1]!r:.60} "
            "belong: its post_processor is of another model"
        )
    _check_config(source, *ends)
    shown = ", ".join(f"{name} {section[name]!r:.40}" for name in ("bos", "eos", "pad") if section[name])
    return section, [Evidence("tokenizer", f"tokenizer_json, {shown}", f"pieces of {file}, {ids} ids")]


def _check_config(source: ModelSource, bos: str, eos: str) -> None:
    """Raise a UserError where tokenizer_config.json asks for other ends of a text, on which versions of transformers disagree."""
    for name, is_put in (("add_bos_token", bool(bos)), ("add_eos_token", bool(eos))):
        if (value := source.configs.get(CONFIG, {}).get(name)) not in (None, is_put):
            raise UserError(
                f"{source.place}: {CONFIG} says that {name} is {value!r:.60}, the tokenizer's own file {is_put}: make it {is_put} "
                "if the model was trained so"
            )


def _check_pad(source: ModelSource, pad: str) -> None:
    stated = source.configs.get(CONFIG, {}).get("pad_token")
    if (stated.get("content") if isinstance(stated, dict) else stated) != pad:
        raise UserError(
            f"{source.place}: its texts see what fills them, {stated!r:.60} as {CONFIG} states, but filip_jax fills those of "
            f"open_clip with {pad!r:.60}"
        )


def _check_lower_case(source: ModelSource) -> None:
    if (value := source.configs.get(CONFIG, {}).get("do_lower_case")) not in (None, True):
        raise UserError(
            f"{source.place}: {CONFIG} says do_lower_case={value!r:.60}, but a SigLIP's texts have no capitals: make it true if "
            "the model was trained so"
        )


def _ends(file: Path) -> tuple[str, str]:
    """Return the pieces that a tokenizer.json puts before and behind a text, "" for none.

    Raises:
        UserError: it puts several there, or says so in a way that is not read.
    """
    whole = read_json(file).get("post_processor")
    try:
        parts = [] if whole is None else whole["processors"] if whole["type"] == "Sequence" else [whole]
        begin, end = list[str](), list[str]()
        for part in parts:
            if part["type"] in ("RobertaProcessing", "BertProcessing"):
                begin, end = [*begin, part["cls"][0]], [part["sep"][0], *end]
            elif part["type"] == "TemplateProcessing":
                pieces = [each["SpecialToken"]["id"] if "SpecialToken" in each else "" for each in part["single"]]
                place = pieces.index("")
                begin, end = [*begin, *pieces[:place]], [*pieces[place + 1 :], *end]
            elif part["type"] != "ByteLevel":  # which changes no ids
                raise ValueError(f"{part['type']!r:.60} is unknown here")
        if len(begin) > 1 or len(end) > 1:
            raise ValueError("it puts several tokens at one end")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"{file}: its post_processor is not read: {one_line(str(error), 100)}") from error
    return next(iter(begin), ""), next(iter(end), "")


def _first_piece(file: Path) -> str:
    """Return the piece with the number 0, by which OpenAI's texts are filled."""
    whole = file.name != MERGES
    vocabulary = (read_json(file).get("model") or {}).get("vocab") if whole else read_json(file.with_name(VOCABULARY))
    pieces = vocabulary.items() if isinstance(vocabulary, dict) else ()
    if (first := next((piece for piece, number in pieces if number == 0), None)) is None:
        raise UserError(f"{file} has no piece with the number 0, which fills the ends of CLIP's texts")
    return first
