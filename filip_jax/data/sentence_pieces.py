"""Sentencepiece: a vocabulary trained on one's own captions, any language, or one that comes with public weights."""

import base64
import contextlib
import io
import json
import os
import signal
import string
import subprocess  # noqa: TID251 - to start this Python
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO, cast

import sentencepiece

from filip_jax.data.places import places
from filip_jax.data.public_files import Files, fast_files, siglip_files
from filip_jax.data.sentence_json import tokenizer_parts
from filip_jax.errors import UserError
from filip_jax.workers import lost

PAD, UNKNOWN, BOS, EOS = 0, 1, 2, 3
SMALLEST = 270  # vocabulary
REFUSED = 3  # exit code of a trainer that wrote why it cannot train
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class SentencePieces:
    """A sentencepiece model; lower-cases and normalises as the model says.

    Args:
        model: the bytes of a .model file, or what `with_options` makes of them.

    Raises:
        UserError: it is no such model, or one without an id that is needed.
    """

    def __init__(self, model: bytes):
        content, options = _unpacked(model)
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        except RuntimeError as error:
            raise UserError(f"the tokenizer is no sentencepiece model: {error}") from error
        p = self.processor
        self.content, self.canonicalize = content, options["canonicalize"]
        self.unknown = p.unk_id()
        self.bos = p.bos_id() if options["bos"] else None
        self.eos, self.pad = p.eos_id(), p.eos_id() if options["eos_as_pad"] else p.pad_id()
        if -1 in (self.bos, self.eos, self.pad):
            raise UserError(
                f"the tokenizer's ids of BOS, EOS, pad are {self.bos}, {self.eos}, {self.pad}, where -1 is none: without a "
                "BOS set tokenizer.bos=False, without a pad tokenizer.eos_as_pad=True"
            )
        self.size = p.vocab_size()

    def ids(self, text: str) -> list[int]:
        """Of a text's pieces."""
        return self.processor.encode(canonical(text) if self.canonicalize else text)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The characters text[start:end] that each piece stands for."""
        if not self.canonicalize:
            return self.processor.encode_as_offset_mapping(text)["offsets"]
        cleaned = canonical(text)
        place = places(cleaned, text)
        found = self.processor.encode_as_offset_mapping(cleaned)["offsets"]
        return [(place[start], place[end]) for start, end in found]

    def public_files(self, length: int) -> Files | None:
        """Return the files by which transformers cuts texts likewise, or None; see `Tokenizer.public_files`."""
        name = self.processor.id_to_piece
        if self.canonicalize:
            is_siglip = self.bos is None and self.pad == self.eos
            return (
                siglip_files(self.content, name(self.eos), name(self.processor.unk_id()), length) if is_siglip else None
            )
        ids = {"bos": self.bos, "eos": self.eos, "pad": self.pad}
        special = {key: (name(n), n) for key, n in ids.items() if n is not None}
        return (parts := tokenizer_parts(self.content)) and fast_files(parts, special, length)


def canonical(text: str) -> str:
    """Return the text in lower case, without ASCII's punctuation, with single spaces: SigLIP's rule (arXiv 2303.15343)."""
    return " ".join(text.lower().translate(NO_PUNCTUATION).split())


def with_options(model: bytes, *, canonicalize: bool, bos: bool, eos_as_pad: bool) -> bytes:
    """Return a .model file with how it is applied, as `SentencePieces` takes it; without other options than ours the file itself."""
    if (canonicalize, bos, eos_as_pad) == (False, True, False):
        return model
    options = {"canonicalize": canonicalize, "bos": bos, "eos_as_pad": eos_as_pad}
    content = {"name": "sentencepiece", **options, "model": base64.b64encode(model).decode()}
    return json.dumps(content).encode()


def _unpacked(model: bytes) -> tuple[bytes, dict[str, bool]]:
    """Return the bytes of a .model file and the options of `with_options`."""
    options = {"canonicalize": False, "bos": True, "eos_as_pad": False}
    if not model.startswith(b"{"):
        return model, options
    try:
        content = json.loads(model)
        return base64.b64decode(content["model"], validate=True), {name: content[name] is True for name in options}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"the tokenizer's JSON is not one of filip_jax: {error!r:.200}") from error


def train_sentence_pieces(texts: Iterable[str], vocab_size: int) -> bytes:
    """A BPE model with byte fallback, lower-casing and NFKC, as bytes; the same texts give the same bytes.

    It is trained in a process of its own, since sentencepiece lets no other thread of its process run: neither
    one that hears signals nor one that tells other processes that this one is alive.

    `vocab_size` is the most it may have: few texts give fewer pieces.

    Raises:
        UserError: sentencepiece cannot train on these texts.
        ProcessLost: its process is gone.
    """
    if vocab_size < SMALLEST:
        raise UserError(f"tokenizer.vocab_size={vocab_size} must be at least {SMALLEST}: 256 bytes, 4 signs, pieces")
    command = [sys.executable, "-m", __name__, str(vocab_size)]
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path}
    # This Python and this module.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as trainer:  # noqa: S603
        pipe = cast(IO[bytes], trainer.stdin)
        try:
            with contextlib.suppress(BrokenPipeError):  # what it ended with is told below
                for text in texts:
                    pipe.write(json.dumps(text).encode() + b"\n")
            output, _ = trainer.communicate()
        except BaseException:
            trainer.kill()
            with contextlib.suppress(OSError):  # of what was not written yet
                pipe.close()
            raise
    if trainer.returncode == 0:
        return output
    if trainer.returncode != REFUSED:  # it may have been killed while it wrote the model
        raise lost("the process that trains a tokenizer", trainer.returncode, "lower tokenizer.captions")
    said = output.decode(errors="replace")
    raise UserError(f"tokenizer.vocab_size={vocab_size}: sentencepiece cannot train on these captions: {said}")


def _train(texts: Iterable[str], vocab_size: int) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, model_type="bpe", vocab_size=vocab_size,
        hard_vocab_limit=False, byte_fallback=True, normalization_rule_name="nmt_nfkc_cf",
        pad_id=PAD, unk_id=UNKNOWN, bos_id=BOS, eos_id=EOS, num_threads=1, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


if __name__ == "__main__":
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # to the whole group: its parent decides
        signal.signal(each, signal.SIG_IGN)
    try:
        result, code = _train(map(json.loads, sys.stdin.buffer), int(sys.argv[1])), 0
    except (RuntimeError, UnicodeError) as error:
        result, code = str(error).encode(), REFUSED
    sys.stdout.buffer.write(result)
    sys.stdout.flush()
    sys.exit(code)
