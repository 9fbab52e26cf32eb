"""A tokenizer trained on a source's captions, and how long texts become in it."""

from pathlib import Path

import numpy as np

from filip_jax.data.sentence_pieces import train_sentence_pieces
from filip_jax.data.sources import Source
from filip_jax.data.tokenizer import Tokenizer, spread_captions
from filip_jax.errors import UserError
from filip_jax.files import write_atomically
from filip_jax.plain import command

QUANTILES = (50, 95, 99, 100)
LENGTHS = (32, 77)  # of texts in Wukong and in FILIP
MEASURED = 10_000  # texts


def save_tokenizer(source: Source, output: Path, *, vocab_size: int, captions: int) -> str:
    """Trains a sentencepiece model and writes it; a report for people.

    Args:
        output: FILE.model.
        vocab_size: the most pieces it may have.
        captions: of how many records, evenly spread over the source, all texts are read.

    Raises:
        UserError: another ending, numbers out of range, or texts that cannot be trained on.
    """
    if output.suffix != ".model":
        raise UserError(f"--output={output}: sentencepiece's files end in .model; name it so")
    if captions < 1:
        raise UserError(f"--captions={captions} must be at least 1")
    texts = list(spread_captions(source, captions))
    model = train_sentence_pieces(texts, vocab_size)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, model)
    tokenizer = Tokenizer(model)
    some = texts[:: -(-len(texts) // MEASURED)]
    lengths = np.array([len(tokenizer.pieces.ids(text)) + 2 for text in some])
    quantiles = ", ".join(f"{q} %: {n:.0f}" for q, n in zip(QUANTILES, np.percentile(lengths, QUANTILES)))
    cut = ", ".join(f"{np.mean(lengths > most):.1%} above {most}" for most in LENGTHS)
    options = [f"--config.tokenizer.path={output}", f"--config.tokenizer.vocab_size={tokenizer.vocab_size}"]
    return (
        f"wrote {output}: {tokenizer.vocab_size} pieces from {len(texts)} texts\n"
        f"tokens of a text, BOS and EOS included: {quantiles}; {cut}\n"
        f"train with it: {command(options)}"
    )
