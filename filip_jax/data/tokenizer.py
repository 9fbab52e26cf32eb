"""Text to token ids: [BOS] pieces [EOS] and pads. A new kind of pieces is a file beside this and a line in `TOKENIZERS`."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from filip_jax import storage
from filip_jax.console import show
from filip_jax.data.public_files import Files
from filip_jax.data.record import CAPTION_BYTES, BadRecord, that_say
from filip_jax.data.sentence_pieces import SentencePieces, canonical, train_sentence_pieces, with_options
from filip_jax.data.sources import Source
from filip_jax.data.tokenizer_json import TokenizerJson, read_tokenizer_json
from filip_jax.data.vocabularies import BERT, CLIP, Vocabulary, read_vocabulary
from filip_jax.errors import UserError
from filip_jax.progress import Progress
from filip_jax.sections import at_least, check, choose
from filip_jax.user_paths import from_user, is_remote

MAX_MODEL_BYTES = 1 << 26  # of a tokenizer's file; those of 250,000 pieces have up to half of it


class Tokenizer:
    """A vocabulary and how texts are cut into its pieces.

    Args:
        model: the bytes of a sentencepiece .model file, or JSON with the name of another kind.

    Attributes:
        sha256: hash of `model`; a run refuses to go on with another tokenizer.
        vocab_size: number of ids.
        pad_id: the id behind the last token of a text.
        has_bos: whether a text begins with BOS.
        eos_is_pad: whether EOS and pads are one id, as SigLIP's: then EOS counts as a pad and takes no part in late interaction.

    Raises:
        UserError: it is neither.
    """

    def __init__(self, model: bytes):
        self.pieces = _opened(model)(model)
        self.model = model
        self.sha256 = hashlib.sha256(model).hexdigest()
        self.vocab_size, self.pad_id = self.pieces.size, self.pieces.pad
        self.has_bos, self.eos_is_pad = self.pieces.bos is not None, self.pieces.eos == self.pieces.pad

    def encode(self, texts: Sequence[str], length: int) -> tuple[Int[np.ndarray, "n length"], Bool[np.ndarray, " n"]]:
        """Ids of each text, and which texts were longer and lost the pieces before their EOS.

        Of a text its first CAPTION_BYTES characters are read.
        """
        ids = np.full((len(texts), length), self.pad_id, np.int32)
        truncated = np.zeros(len(texts), bool)
        begin, most = [self.pieces.bos] if self.has_bos else [], length - 1 - self.has_bos
        for row, text in enumerate(texts):
            pieces = self.pieces.ids(text[:CAPTION_BYTES])
            truncated[row] = len(pieces) > most
            pieces = [*begin, *pieces[:most], self.pieces.eos]
            ids[row, : len(pieces)] = pieces
        return ids, truncated

    def knows(self, text: str) -> bool:
        """Return whether a piece of the text is one of the vocabulary, and not the one that stands for what it lacks."""
        ids, unknown = self.pieces.ids(text[:CAPTION_BYTES]), self.pieces.unknown
        spans = self.pieces.offsets(text[:CAPTION_BYTES])
        return any(n != unknown and text[start:end].strip() for n, (start, end) in zip(ids, spans))

    def public_files(self, length: int) -> Files | None:
        """Return by name the files by which the library transformers cuts texts of `length` tokens; None if it cannot."""
        return self.pieces.public_files(length)

    def spans(self, text: str, length: int) -> list[tuple[int, int]]:
        """For each token of `encode([text], length)` but pads, the characters text[start:end] it stands for.

        BOS and EOS stand for none: (0, 0) and (len(text), len(text)).
        """
        offsets = self.pieces.offsets(text[:CAPTION_BYTES])[: length - 1 - self.has_bos]
        return [*[(0, 0)] * self.has_bos, *offsets, (len(text), len(text))]


def make_tokenizer(*, source: Source | None, name: str, path: str = "", **options: Any) -> bytes:
    """Return the tokenizer of a config's `tokenizer` section, as `Tokenizer` takes it.

    Args:
        source: None where no captions are at hand; then `path` names a file.
        name: "sentencepiece", "clip" (49,408 byte pairs), "bert" (word pieces; Wukong's, with the
            Chinese vocabulary), "tokenizer_json" (a file of Hugging Face; SigLIP 2's) or "kept" (the tokenizer.model of
            another run, of any kind).
        path: of its file. If empty, a sentencepiece model is trained, and the others are looked for in
            installed packages.
        options: of this kind.

    Raises:
        UserError: no such file, or captions that sentencepiece cannot train on.
    """
    check_tokenizer({"name": name, "path": path, **options})
    model = TOKENIZERS[name].make(source, from_user(path), **options)
    if len(model) > MAX_MODEL_BYTES:
        raise UserError(f"the tokenizer of tokenizer.path={path!r} has more than {MAX_MODEL_BYTES} bytes as it is kept")
    return model


def sentence_pieces(
    source: Source | None, path: str, *, vocab_size: int, captions: int = 200_000, canonicalize: bool = False, bos: bool = True,
    eos_as_pad: bool = False,
) -> bytes:  # fmt: skip
    """Return a sentencepiece model, read or trained.

    Args:
        vocab_size: the most pieces that training makes.
        captions: of how many of the source's records, evenly spread over it, training reads all texts.
        canonicalize: whether texts are lower-cased and lose their punctuation first, as SigLIP's.
        bos: whether a text begins with BOS; SigLIP's does not.
        eos_as_pad: whether EOS also stands behind the end of a text, as in SigLIP, instead of the model's pad.
    """
    if path:
        model = read_model(Path(path))
    elif source is None:
        raise UserError("tokenizer.path is empty, and there are no captions to train a sentencepiece model on")
    else:
        show(f"training a tokenizer of at most {vocab_size} pieces", file=sys.stderr)
        texts = spread_captions(source, captions)
        model = train_sentence_pieces(map(canonical, texts) if canonicalize else texts, vocab_size)
    return with_options(model, canonicalize=canonicalize, bos=bos, eos_as_pad=eos_as_pad)


def kept(source: Source | None, path: str) -> bytes:
    """Return the tokenizer that a run keeps, of whatever kind, from its workdir's tokenizer.model, on a disk or in a bucket."""
    return Tokenizer(storage.read(path, 0, MAX_MODEL_BYTES + 1) if is_remote(path) else read_model(Path(path))).model


class Kind(NamedTuple):
    """A kind of pieces: `make` has (source, path, **options) and returns its bytes, of which `open` makes the pieces."""

    make: Callable[..., bytes]
    open: Callable[[bytes], Any] | None


TOKENIZERS = {
    "sentencepiece": Kind(sentence_pieces, SentencePieces),
    "clip": Kind(partial(read_vocabulary, CLIP), partial(Vocabulary, CLIP)),
    "bert": Kind(partial(read_vocabulary, BERT), partial(Vocabulary, BERT)),
    "tokenizer_json": Kind(read_tokenizer_json, TokenizerJson),
    "kept": Kind(kept, None),  # its bytes are those of another kind
}


def _opened(model: bytes) -> Any:
    """Return what makes pieces of these bytes."""
    try:
        name = json.loads(model)["name"] if model.startswith(b"{") else "sentencepiece"
        return {name: kind.open for name, kind in TOKENIZERS.items() if kind.open}[name]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"the tokenizer's JSON is not one of filip_jax: {error!r}") from error


def read_model(file: Path) -> bytes:
    """Return the bytes of a tokenizer's file.

    Raises:
        UserError: it has more than MAX_MODEL_BYTES.
    """
    with file.open("rb") as handle:
        model = handle.read(MAX_MODEL_BYTES + 1)
    if len(model) > MAX_MODEL_BYTES:
        raise UserError(f"the tokenizer {file} has more than {MAX_MODEL_BYTES} bytes")
    return model


def check_tokenizer(section: Mapping[str, Any]) -> None:
    """Raise a UserError for an unknown name or option, a file that is not there or a number below 1."""
    check(make_tokenizer, section, "tokenizer", ("source",))
    name, path = section["name"], section.get("path", "")
    kind = choose(TOKENIZERS, name, "tokenizer.name")
    options = {option: value for option, value in section.items() if option not in ("name", "path")}
    check(kind.make, options, f"tokenizer ({name})", ("source", "path"), also=("name", "path"))
    at_least(1, "tokenizer", **{option: value for option, value in options.items() if type(value) is int})
    place = from_user(path)
    if path and not (storage.exists(place) if name == "kept" else Path(place).is_file()):
        raise UserError(f"tokenizer.path={path!r}: no such file")


def spread_captions(source: Source, records: int) -> Iterator[str]:
    """All texts of so many records, evenly spread over the source; what cannot be read is left out.

    Raises:
        UserError: behind the last record, if there was no text.
    """
    count, texts = min(records, len(source)), 0
    progress = Progress("reading captions", count)
    for index in (n * len(source) // count for n in range(count)):
        try:
            for caption in that_say(source.captions(index)):
                texts += 1
                yield caption.text
        except BadRecord:
            pass  # training names it when it is met
        progress.advance()
    if not texts:
        raise UserError(f"none of {count} records has a caption. The data is {source.seen}")
