"""A tokenizer.json of Hugging Face, as SigLIP 2 and most public text towers have it, applied by the package `tokenizers`.

The file may be a stranger's. So it is bounded by counts, and only those of its parts are made again whose cost is in
proportion to the text: no regular expression but well-known ones, no replacement that lets a text grow without bound, nothing
at random. What it pads, cuts and puts around a text is left out: BOS, EOS and pads are the config's.
"""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from filip_jax.data.charsmap import growth_of
from filip_jax.data.merges import MERGES, SPACES, WORDS, of_merges
from filip_jax.data.public_files import Files, fast_files
from filip_jax.data.sentence_json import BLANKS, ENDS
from filip_jax.errors import UserError
from filip_jax.extras import extra_module
from filip_jax.plain import one_line
from filip_jax.small_files import parse

T = TypeVar("T")
EXTRA, NEEDS = "tokenizers", "tokenizer.name='tokenizer_json' needs"
MAX_FILE_BYTES = 1 << 26
MAX_CHARACTERS = 1 << 11  # of a text that are read, many times what a text tower's context holds
MAX_PIECES = 1 << 20
MAX_PIECE_CHARACTERS = 256
MAX_ADDED_TOKENS = 1 << 13
MAX_PARTS = 32  # of a normalizer, and of a pre-tokenizer
MAX_GROWTH = 32  # of a text by all of a file's replacements
MAX_WORD_CHARACTERS = 1000  # of a word that WordPiece cuts, which takes their square
# The parts that are made: their fields, and the arguments that these are.
NORMALIZERS: dict[str, dict[str, str]] = {
    **{name: {} for name in ("NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "StripAccents", "ByteLevel")},
    "BertNormalizer": {name: name for name in ("clean_text", "handle_chinese_chars", "strip_accents", "lowercase")},
    "Strip": {"strip_left": "left", "strip_right": "right"},
    "Prepend": {"prepend": "prepend"},
    "Replace": {"pattern": "pattern", "content": "content"},
    "Precompiled": {"precompiled_charsmap": "precompiled_charsmap"},
}
PRE_TOKENIZERS: dict[str, dict[str, str]] = {
    **{name: {} for name in ("Whitespace", "WhitespaceSplit", "BertPreTokenizer", "UnicodeScripts")},
    "ByteLevel": {name: name for name in ("add_prefix_space", "trim_offsets", "use_regex")},
    "Metaspace": {name: name for name in ("replacement", "prepend_scheme", "split")},
    "Punctuation": {"behavior": "behavior"},
    "Digits": {"individual_digits": "individual_digits"},
    "CharDelimiterSplit": {"delimiter": "delimiter"},
    "Split": {name: name for name in ("pattern", "behavior", "invert")},
}
OF_BPE = ("merges", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback")
MODELS: dict[str, dict[str, str]] = {
    "BPE": {name: name for name in ("vocab", *OF_BPE, "ignore_merges")},
    "Unigram": {name: name for name in ("vocab", "unk_id", "byte_fallback")},
    "WordPiece": {
        name: name for name in ("vocab", "unk_token", "max_input_chars_per_word", "continuing_subword_prefix")
    },
}
OF_ADDED = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
PATTERNS = (  # of CLIP, as transformers and tokenizers write it; of GPT-4 and Llama 3; of sentencepiece models, converted
    SPACES,
    WORDS,
    WORDS.removeprefix(r"<\|startoftext\|>|<\|endoftext\|>|"),
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    BLANKS,
    ENDS,  # as filip export converts them
)


class TokenizerJson:
    """Applies a tokenizer.json; a text's own characters never become one of its special tokens.

    Args:
        model: what `read_tokenizer_json` returns.

    Raises:
        UserError: it is not that, or the extra `tokenizers` is not installed.
    """

    def __init__(self, model: bytes):
        library = extra_module("tokenizers", EXTRA, NEEDS)
        try:
            content = parse(model)
            spec, names, lower_case = content["tokenizer"], content["special"], content["lower_case"]
            bos, eos, pad = (str(name) for name in names)
            _check_model(spec["model"])
            _check_added(spec["added_tokens"] or [])
            normalizers = list(_parts("normalizer", spec["normalizer"], "normalizers", NORMALIZERS))
            cutters = list(_parts("pre_tokenizer", spec["pre_tokenizer"], "pretokenizers", PRE_TOKENIZERS))
            _check_growth(normalizers)
        except UserError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"it is no tokenizer.json that can be applied: {error!r:.200}") from error
        parts = [{"type": "Lowercase"}] * bool(lower_case) + normalizers, cutters
        self.spec, self.names, self.lower_case = spec, {"bos": bos, "eos": eos, "pad": pad}, bool(lower_case)
        self.model, self.tokenizer = model, _guarded(lambda: _made(library, spec, *parts))
        self.bos = self._id("bos", bos) if bos else None
        self.eos, self.pad = self._id("eos", eos), self._id("pad", pad)
        self.size = max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        added = {n for n, token in self.tokenizer.get_added_tokens_decoder().items() if token.special}
        # Any other piece may be the pad, as CLIP's "!": pads count behind a text's end alone, where its EOS stands.
        self.unknown = _unknown(spec["model"], self.tokenizer)
        self.special = (added - {self.unknown}) | {self.bos, self.eos}

    def __reduce__(self):
        return TokenizerJson, (self.model,)

    def _id(self, option: str, name: str) -> int:
        if (found := self.tokenizer.token_to_id(name)) is None:
            raise UserError(f"tokenizer.{option}={name!r:.100} is none of its tokens")
        return found

    def public_files(self, length: int) -> Files:
        """Return the files by which transformers cuts texts likewise; see `Tokenizer.public_files`."""
        own = [self.spec["normalizer"]] * bool(self.spec["normalizer"])
        lowered = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *own]}
        spec = self.spec | ({"normalizer": lowered} if self.lower_case else {})
        special = {key: (name, self._id(key, name)) for key, name in self.names.items() if name}
        return fast_files(spec, special, length)

    def ids(self, text: str) -> list[int]:
        """Ids of a text's pieces."""
        return [n for n, _ in self._pieces(text)]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The characters text[start:end] that each piece stands for."""
        return [span for _, span in self._pieces(text)]

    def _pieces(self, text: str) -> list[tuple[int, tuple[int, int]]]:
        found = _guarded(lambda: self.tokenizer.encode(text[:MAX_CHARACTERS], add_special_tokens=False))
        return [(n, span) for n, span in zip(found.ids, found.offsets) if n not in self.special]


def read_tokenizer_json(
    source: Any, path: str, *, eos: str, pad: str, bos: str = "", lower_case: bool = False
) -> bytes:
    """Return the tokenizer of a tokenizer.json; no data is read.

    Args:
        eos, pad, bos: the names of its tokens that end, fill and begin a text; `bos` "" is none.
        lower_case: whether texts are lower-cased first, as SigLIP 2's; a file may do so itself.

    Raises:
        UserError: no such file, another one, one beyond the limits of this module, or the extra `tokenizers` is not installed.
    """
    extra_module("tokenizers", EXTRA, NEEDS)
    if not path:
        raise UserError("tokenizer.name='tokenizer_json' needs its file: set tokenizer.path to a tokenizer.json")
    try:
        spec = of_merges(Path(path), bos, eos) if Path(path).name == MERGES else _read(path)
        kept = {name: spec.get(name) for name in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"tokenizer.path={path!r} cannot be read: {error}") from error
    content = {"name": "tokenizer_json", "special": [bos, eos, pad], "lower_case": lower_case, "tokenizer": kept}
    try:
        model = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        TokenizerJson(model)
    except (UserError, UnicodeEncodeError) as error:  # half a character is in none of its texts
        raise UserError(f"tokenizer.path={path!r}: {error}") from error
    return model


def _read(path: str) -> Any:
    with Path(path).open("rb") as handle:
        data = handle.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"it has more than {MAX_FILE_BYTES} bytes")
    return parse(data)


def _guarded(work: Callable[[], T]) -> T:
    """Return what calls of the package return; whatever they raise becomes one line."""
    try:
        return work()
    except BaseException as error:  # a panic in Rust is no Exception
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise UserError(f"the package tokenizers cannot apply it: {one_line(str(error), 200)}") from error
        raise


def _made(library: Any, spec: dict[str, Any], normalizers: list[dict[str, Any]], cutters: list[dict[str, Any]]) -> Any:
    """Return the package's tokenizer: each part made by its constructor, of fields that are known."""
    fields = dict(spec["model"])
    if fields["type"] == "Unigram":
        fields["vocab"] = [(piece, score) for piece, score in fields["vocab"]]
    if fields["type"] == "BPE":
        fields["merges"] = [
            tuple(each.split(" ")) if isinstance(each, str) else tuple(each) for each in fields["merges"]
        ]
    tokenizer = library.Tokenizer(_part(library, library.models, fields, MODELS))
    for name, module, kind, known in (
        ("normalizer", library.normalizers, normalizers, NORMALIZERS),
        ("pre_tokenizer", library.pre_tokenizers, cutters, PRE_TOKENIZERS),
    ):
        if kind:
            setattr(tokenizer, name, module.Sequence([_part(library, module, part, known) for part in kind]))
    added = spec["added_tokens"] or []
    tokenizer.add_tokens(
        [library.AddedToken(**{name: token[name] for name in OF_ADDED if name in token}) for token in added]
    )
    for token in added:
        if tokenizer.token_to_id(token["content"]) != token["id"]:
            raise ValueError(f"the added token {token['content']!r:.100} cannot have the number {token['id']}")
    tokenizer.encode_special_tokens = True  # what looks like one in a text is text
    return tokenizer


def _part(library: Any, module: Any, part: dict[str, Any], known: dict[str, dict[str, str]]) -> Any:
    def value(name: str) -> Any:
        if name == "pattern":
            pattern = part[name]
            return library.Regex(pattern["Regex"]) if "Regex" in pattern else pattern["String"]
        if name == "behavior":  # "MergedWithPrevious" is "merged_with_previous"
            return "".join(f"_{sign.lower()}" if sign.isupper() else sign for sign in part[name]).removeprefix("_")
        return base64.b64decode(part[name]) if name == "precompiled_charsmap" else part[name]

    fields = known[part["type"]].items()
    return getattr(module, part["type"])(
        **{argument: value(name) for name, argument in fields if part.get(name) is not None}
    )


def _unknown(model: dict[str, Any], tokenizer: Any) -> int | None:
    """Return the id of the piece for what has none."""
    return model.get("unk_id") if model["type"] == "Unigram" else tokenizer.token_to_id(model.get("unk_token") or "")


def _check_model(model: Any) -> None:
    """Raise a UserError unless a file's pieces are of a kind and number that take a time in proportion to the text."""
    kind, vocab = model["type"], model["vocab"]
    names = list(vocab) if isinstance(vocab, dict) else [piece for piece, _ in vocab]
    if kind not in MODELS:
        raise UserError(f"its model {kind!r:.100} is not one of {', '.join(MODELS)}")
    if model.get("dropout"):
        raise UserError(f"its model drops merges at random (dropout={model['dropout']!r:.20}): set it to null")
    if kind == "WordPiece" and not 0 < model.get("max_input_chars_per_word", 100) <= MAX_WORD_CHARACTERS:
        raise UserError(f"its max_input_chars_per_word must be at least 1 and at most {MAX_WORD_CHARACTERS}")
    if not 0 < len(names) <= MAX_PIECES:
        raise UserError(f"it has {len(names)} pieces; 1 to {MAX_PIECES} are read")
    if max(map(len, names)) > MAX_PIECE_CHARACTERS:
        raise UserError(f"it has a piece of more than {MAX_PIECE_CHARACTERS} characters")
    if isinstance(vocab, dict) and not all(type(n) is int and 0 <= n < MAX_PIECES for n in vocab.values()):
        raise UserError(f"its pieces are not numbered from 0 to at most {MAX_PIECES - 1}")


def _check_added(added: list[Any]) -> None:
    if len(added) > MAX_ADDED_TOKENS:
        raise UserError(f"it has {len(added)} added tokens; at most {MAX_ADDED_TOKENS} are read")
    if not all(0 < len(token["content"]) <= MAX_PIECE_CHARACTERS for token in added):
        raise UserError(f"it has an added token without a character, or of more than {MAX_PIECE_CHARACTERS}")


def _parts(name: str, whole: Any, inner: str, known: dict[str, dict[str, str]]) -> Iterator[dict[str, Any]]:
    """Yield the parts of a normalizer or pre-tokenizer in order; raise a UserError for too many, or one that is not known."""
    left, count = [whole] if whole else [], 0
    while left:
        part, count = left.pop(0), count + 1
        if count > MAX_PARTS:
            raise UserError(f"its {name} has more than {MAX_PARTS} parts")
        if part["type"] == "Sequence":
            left = [*part[inner][: MAX_PARTS + 1], *left]
            continue
        if part["type"] not in known:
            raise UserError(f"its {name} {part['type']!r:.100} is not one of {', '.join(known)}")
        pattern = part.get("pattern", {})
        if "Regex" in pattern and pattern["Regex"] not in PATTERNS:
            raise UserError(f"its {name} has a regular expression that is not applied: {pattern['Regex']!r:.100}")
        if pattern.get("String") == "":  # at which the package may panic
            raise UserError(f"its {name} looks for an empty text")
        yield part


def _check_growth(normalizers: list[dict[str, Any]]) -> None:
    growth = 1.0
    for part in normalizers:
        if part["type"] == "Replace":
            growth *= max(1.0, len(part["content"]) / max(1, len(part["pattern"].get("String", "x"))))
        elif part["type"] == "Prepend":
            growth *= 1 if len(part["prepend"]) <= MAX_PIECE_CHARACTERS else 2 * MAX_GROWTH
        elif part["type"] == "Precompiled":
            growth *= growth_of(part["precompiled_charsmap"])
        if growth > MAX_GROWTH:
            raise UserError(f"its normalizer lets a text grow more than {MAX_GROWTH} times")
