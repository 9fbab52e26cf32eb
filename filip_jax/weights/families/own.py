"""Our own exchange format: `filip export --format=safetensors`, parameters by their paths."""

from collections.abc import Iterable, Mapping
from typing import Any

from filip_jax.data.tokenizer import Tokenizer
from filip_jax.errors import UserError
from filip_jax.inference.run import TOKENIZER
from filip_jax.models import make_model, portable
from filip_jax.objectives.total import make_objectives
from filip_jax.saved_config import check_format
from filip_jax.small_files import read_own
from filip_jax.weights.mapping import Rule
from filip_jax.weights.plan import Evidence, Family, ModelSource, Plan

CONFIG, WEIGHTS, MODEL_TYPE = "config.json", "model.safetensors", "filip_jax"
SIMILARITY = ("cls_in_similarity", "bos_in_similarity", "eos_in_similarity")
SECTIONS = ("model", "objectives", "tokenizer")


def rules(paths: Iterable[str]) -> list[Rule]:
    """Return the table of names, which are the paths."""
    return [Rule(path, (path,)) for path in sorted(paths)]


def are_names(tensors: Mapping[str, Any]) -> bool:
    """Return whether these are its names."""
    return "image/patch_embedding/kernel" in tensors


def plan(source: ModelSource) -> Plan:
    """Return what to do with such a folder."""
    if source.folder is None or CONFIG not in source.configs:
        raise UserError(
            f"{source.place} comes without {CONFIG} and {TOKENIZER}: name the folder with all that was exported"
        )
    content = source.configs[CONFIG]
    check_format(content, source.folder / CONFIG)
    model, objectives, tokenizer = (_section(source, content, name) for name in SECTIONS)
    image, text = (_section(source, model, side) for side in ("image", "text"))
    sizes = (image, "image_size"), (text, "length"), (model, "embed_dim")
    if not all(type(section.get(name)) is int for section, name in sizes):
        raise UserError(f"{source.folder / CONFIG} is damaged: it lacks one of {', '.join(name for _, name in sizes)}")
    parts = make_objectives(objectives)
    paths = make_model(parts.needs, **portable(model)).metadata.keys() | parts.metadata.keys()
    pieces = Tokenizer(read_own(source.folder / TOKENIZER))
    return Plan(
        image=image,
        text=text,
        embed_dim=model["embed_dim"],
        objectives=objectives,
        rules=rules(paths),
        evidence=[Evidence("model", "as it was trained", CONFIG)],
        similarity={name: model[name] for name in SIMILARITY},
        tokenizer=(pieces, tokenizer, [Evidence("tokenizer", "the run's", TOKENIZER)]),
    )


def _section(source: ModelSource, content: Mapping[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(section := content.get(name), dict):
        raise UserError(f"{source.place}: {CONFIG} is damaged: it has no section {name}")
    return section


FAMILY = Family(CONFIG, (MODEL_TYPE,), are_names, (WEIGHTS,), plan)
