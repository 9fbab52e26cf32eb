"""The formats that weights are exported in: each is a file and a line here."""

from collections.abc import Callable
from typing import NamedTuple

from filip_jax.weights.exported_run import ExportedRun, Target
from filip_jax.weights.formats import hf_clip, hf_siglip, open_clip, own


class Format(NamedTuple):
    """A format.

    Attributes:
        misfits: (what leaves) -> the options of the run by which this format's model would compute something else.
        make: (what leaves) -> what is written.
    """

    misfits: Callable[[ExportedRun], list[str]]
    make: Callable[[ExportedRun], Target]


FORMATS: dict[str, Format] = {
    "hf_clip": Format(hf_clip.misfits, hf_clip.make),
    "hf_siglip": Format(hf_siglip.misfits, hf_siglip.make),
    "open_clip": Format(open_clip.misfits, open_clip.make),
    "safetensors": Format(own.misfits, own.make),
}
