"""Text to token ids by sentencepiece: [BOS] pieces [EOS], padded with zeros."""

import hashlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
from jaxtyping import Bool, Int

from filip_jax.data.sources import Source
from filip_jax.errors import UserError

PAD, UNKNOWN, BOS, EOS = 0, 1, 2, 3


class Tokenizer:
    """A sentencepiece model; lower-cases and normalises as the model says.

    Args:
        model: the bytes of a sentencepiece .model file with pad, unknown, BOS and EOS ids 0 to 3.

    Attributes:
        sha256: hash of `model`; a run refuses to go on with another tokenizer.
        vocab_size: number of ids.
    """

    def __init__(self, model: bytes):
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise UserError(f"the tokenizer is no sentencepiece model: {error}") from error
        p = self.processor
        ids = (p.pad_id(), p.unk_id(), p.bos_id(), p.eos_id())
        if ids != (PAD, UNKNOWN, BOS, EOS):
            raise UserError(f"the tokenizer's ids of pad, unknown, BOS, EOS are {ids}; they must be 0, 1, 2, 3")
        self.model = model
        self.sha256 = hashlib.sha256(model).hexdigest()
        self.vocab_size = p.vocab_size()

    def encode(self, texts: Sequence[str], length: int) -> tuple[Int[np.ndarray, "n length"], Bool[np.ndarray, "n"]]:
        """Ids of each text, and which texts were longer and lost the pieces before their EOS."""
        ids = np.full((len(texts), length), PAD, np.int32)
        truncated = np.zeros(len(texts), bool)
        for row, pieces in enumerate(map(self.processor.encode, texts)):  # a list would start threads
            truncated[row] = len(pieces) > length - 2
            pieces = [BOS, *pieces[: length - 2], EOS]
            ids[row, : len(pieces)] = pieces
        return ids, truncated

    def spans(self, text: str, length: int) -> list[tuple[int, int]]:
        """For each token of `encode([text], length)` but pads, the characters text[start:end] it stands for.

        BOS and EOS stand for none: (0, 0) and (len(text), len(text)).
        """
        offsets = self.processor.encode_as_offset_mapping(text)["offsets"][: length - 2]
        return [(0, 0), *((start, end) for start, end in offsets), (len(text), len(text))]


def make_tokenizer(*, source: Source, path: str, vocab_size: int, captions: int) -> bytes:
    """The sentencepiece model of a config's `tokenizer` section.

    Args:
        path: of a model file; if empty, one is trained.
        vocab_size: the most pieces that training makes.
        captions: how many of the source's captions, evenly spread over it, training reads.

    Raises:
        UserError: no such file, or captions that sentencepiece can not train on.
    """
    check_tokenizer_section(path, captions)
    if path:
        return Path(path).read_bytes()
    count = min(captions, len(source))
    return train_tokenizer(
        (source.captions(index * len(source) // count)[0].text for index in range(count)), vocab_size
    )


def check_tokenizer_section(path: str, captions: int) -> None:
    """Raises a UserError for a file that is not there or a number of captions to train on below 1."""
    if path and not Path(path).is_file():
        raise UserError(f"tokenizer.path={path!r}: no such file")
    if captions < 1:
        raise UserError(f"tokenizer.captions={captions} must be at least 1")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> bytes:
    """A BPE model with byte fallback, lower-casing and NFKC, as bytes; the same texts give the same bytes.

    `vocab_size` is the most it may have: few texts give fewer pieces.

    Raises:
        UserError: sentencepiece can not train on these texts.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            byte_fallback=True,
            normalization_rule_name="nmt_nfkc_cf",
            pad_id=PAD,
            unk_id=UNKNOWN,
            bos_id=BOS,
            eos_id=EOS,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(
            f"tokenizer.vocab_size={vocab_size}: sentencepiece can not train on these captions: {error}"
        ) from error
    return model.getvalue()
