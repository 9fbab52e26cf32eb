"""Pictures of the word-patch alignment of some pairs: an evaluation for the eye."""

from contextlib import closing
from itertools import islice
from pathlib import Path

import jax
from PIL import Image

from filip_jax.data.record import Record
from filip_jax.data.sources import Source
from filip_jax.evals.draw import draw_alignment
from filip_jax.evals.records import views
from filip_jax.files import write_atomically, write_png
from filip_jax.inference import Embedder
from filip_jax.inference.alignment import Alignment, align


def evaluate(model: Embedder, source: Source, output: Path, *, examples: int) -> dict:
    """Draws the first `examples` pairs as output/<n>_step_<step>.png; gives their number.

    The bare view of pair n stands beside as <n>.png, its caption as <n>.txt.
    """
    with closing(views(source, examples, model.image_size, model.batch_size, model.framing)) as records:
        for first in range(0, examples, model.batch_size):
            here = list(islice(records, model.batch_size))
            alignments = align(model, [record.image for record in here], [record.caption for record in here])
            if jax.process_index() == 0:
                output.mkdir(parents=True, exist_ok=True)
                for n, (record, alignment) in enumerate(zip(here, alignments), first):
                    _save(output, n, record, alignment, model)
    return {"pages": examples}


def pages(output: Path, step: int) -> list[Path]:
    """Those of a step that are there."""
    return sorted(output.glob(f"*_step_{step:07d}.png"))


def _save(output: Path, n: int, record: Record, alignment: Alignment, model: Embedder) -> None:
    page = draw_alignment(alignment, [region.box for region in record.regions])
    write_png(page, output / f"{n}_step_{model.step:07d}.png")
    write_png(Image.fromarray(alignment.view), output / f"{n}.png")
    write_atomically(output / f"{n}.txt", record.caption + "\n")


def baselines(source: Source, *, examples: int) -> dict[str, dict]:
    """None: there is nothing to count."""
    return {}
