"""The commands `filip import` and `filip export`: public weights become a workdir, and a run a folder for other tools."""

import argparse
from collections.abc import Callable
from typing import Any

from filip_jax.choices import step_number

IMPORT = """Make a workdir of public weights, for eval, align, load_model and init_from.

  filip import clip-vit-base-patch32 --output=runs/clip
  filip import ViT-B-32.safetensors --output=runs/clip --model=ViT-B-32-quickgelu

SOURCE is a folder as its model's repository has it, with config.json or open_clip_config.json beside the weights, or a file
of weights: safetensors, an index of several, or a zip of torch.save, of which no code runs. The families are those of OpenAI's
CLIP and open_clip (MetaCLIP, DFN, LAION; epoch_N.pt of its training), and of transformers CLIP, SigLIP, SigLIP 2 of a
fixed resolution, ViT and DINOv2; see docs/weights.md. Every choice is printed with its evidence, and every name with what
became of it; a name that nothing explains ends the import, and nothing is written."""

EXPORT = """Write a run as a folder that transformers or open_clip loads, and read it back.

  filip export --workdir=runs/mine --output=exported/mine --format=hf_clip
  filip export --workdir=runs/mine --output=exported/mine --format=open_clip --step=5000 --no-average

The formats are hf_clip and hf_siglip (CLIPModel and SiglipModel of transformers), open_clip (loaded as local-dir:FOLDER), and
safetensors, which holds everything of the run by our paths and which filip import reads. The folder holds weights, config,
preprocessing, tokenizer, license and origin. What the format has no place for, such as projections of tokens, goes into
filip_jax_extra.safetensors and .json beside it and is printed; a model that it would compute otherwise is refused. The folder is
read back by filip import's code: values bit by bit, features of seeded inputs, ids. See docs/weights.md."""


def add_weights_commands(command: Callable[..., Any]) -> None:
    """Add them; `command` makes a parser of a name, what it runs and its help."""
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
        default="",
        choices=("last", "value"),
        help="value: tokens of patches from the last block's values, nearer to words (default: the source's, else last)",
    )
    parser.add_argument(
        "--image_size", type=int, default=0, metavar="N",
        help="pixels of a side, to which positions are resampled (default: as SOURCE's preprocessing makes images)",
    )  # fmt: skip

    parser = command("export", _export, EXPORT)
    parser.add_argument("--output", required=True, help="the folder, which is not there yet")
    parser.add_argument("--format", required=True, help="hf_clip, hf_siglip, open_clip or safetensors")
    parser.add_argument("--step", default="latest", help="latest or a number (default: latest)")
    parser.add_argument(
        "--average",
        action=argparse.BooleanOptionalAction,
        help="write the average (EMA) of the parameters, or not (default: where the checkpoint has it)",
    )
    parser.add_argument(
        "--head",
        default="",
        help="pooled or tokens: the projections to write (default: pooled, where they were trained)",
    )


def _import(arguments, _) -> None:
    from filip_jax.weights.load import import_weights

    options = {name: getattr(arguments, name) for name in ("family", "model", "tokenizer", "tokens", "image_size")}
    import_weights(arguments.weights, arguments.output, **options)


def _export(arguments, _) -> None:
    from filip_jax.weights.save import export_weights

    step = step_number(arguments.step)
    options = {name: getattr(arguments, name) for name in ("average", "head")}
    export_weights(arguments.workdir, arguments.output, arguments.format, step=step, **options)
