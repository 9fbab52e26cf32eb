"""The command `filip import`: public weights become a workdir."""

from collections.abc import Callable
from typing import Any

IMPORT = """Make a workdir of public weights, for eval, align, load_model and init_from.

  filip import clip-vit-base-patch32 --output=runs/clip
  filip import ViT-B-32.safetensors --output=runs/clip --model=ViT-B-32-quickgelu

SOURCE is a folder as its model's repository has it, with config.json or open_clip_config.json beside the weights, or a file
of weights: safetensors, an index of several, or a zip of torch.save, of which no code runs. The families are those of OpenAI's
CLIP and open_clip (MetaCLIP, DFN, LAION; epoch_N.pt of its training), and of transformers CLIP, SigLIP, SigLIP 2 of a
fixed resolution, ViT and DINOv2; see docs/weights.md. Every choice is printed with its evidence, and every name with what
became of it; a name that nothing explains ends the import, and nothing is written."""


def add_weights_command(command: Callable[..., Any]) -> None:
    """Adds it; `command` makes a parser of a name, what it runs and its help."""
    parser = command("import", _import, IMPORT, workdir=False)
    parser.add_argument("weights", metavar="SOURCE", help="a folder or a file of weights")
    parser.add_argument("--output", required=True, help="the workdir, which is not there yet")
    parser.add_argument("--family", default="", help="open_clip, hf_clip …, where SOURCE does not tell")
    parser.add_argument(
        "--model", default="", metavar="NAME", help="of open_clip, as ViT-B-32 or ViT-B-32-quickgelu, or its FILE.json"
    )
    parser.add_argument("--tokenizer", default="", metavar="FILE", help="of the tokenizer, where SOURCE has none")
    parser.add_argument(
        "--tokens",
        default="last",
        choices=("last", "value"),
        help="value: tokens of patches from the last block's values, nearer to words (default: last)",
    )
    parser.add_argument(
        "--image_size", type=int, default=0, metavar="N",
        help="pixels of a side, to which positions are resampled (default: as SOURCE's preprocessing makes images)",
    )  # fmt: skip


def _import(arguments, _) -> None:
    from filip_jax.weights.load import import_weights

    options = {name: getattr(arguments, name) for name in ("family", "model", "tokenizer", "tokens", "image_size")}
    import_weights(arguments.weights, arguments.output, **options)
