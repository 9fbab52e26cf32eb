"""Public weights as a workdir: `filip import`."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from filip_jax.console import show
from filip_jax.data.sentence_pieces import train_sentence_pieces
from filip_jax.data.tokenizer import Tokenizer, make_tokenizer
from filip_jax.errors import UserError
from filip_jax.models import Model, make_model
from filip_jax.objectives.total import Objectives, init_parameters, make_objectives
from filip_jax.paths import flatten
from filip_jax.plain import command
from filip_jax.small_files import read_json
from filip_jax.user_paths import from_user
from filip_jax.weights import report
from filip_jax.weights.families import FAMILIES
from filip_jax.weights.mapping import take
from filip_jax.weights.output import CONFIGS, MAX_CONFIG_BYTES, Imported, check_output, write_workdir
from filip_jax.weights.plan import Evidence, ModelSource, Plan
from filip_jax.weights.positions import at_size
from filip_jax.weights.tensors import Weights, open_weights, weights_file

HUB = "https://huggingface.co/"
SNAPSHOTS = "snapshots"  # the folder of the Hub's cache with a model's versions
HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
# Of LoRA and the like: the file by which transformers changes the weights beside it, and parts of names.
ADAPTER, ADAPTED = "adapter_config.json", re.compile(r"\.(lora_\w+|base_layer|modules_to_save)\.")
# What stands beside an image tower that came alone: `init_from` takes the tower, and a run has its own text tower.
TEXT = dict(kind="transformer", vocab_size=300, length=32, width=64, depth=1, heads=1, activation="gelu")
EMBED_DIM = 64
ALPHABET = ("abcdefghijklmnopqrstuvwxyz", "0123456789")
SIMILARITY = dict(cls_in_similarity=False, bos_in_similarity=True, eos_in_similarity=True)  # where source does not say


def import_weights(source: str, output: str, **options: Any) -> None:
    """Make a workdir of public weights, and say what became of every name.

    Args:
        source: a file of weights, or a folder with their config.
        output: the workdir; nothing is there yet.
        options: of `read_weights`.

    Raises:
        UserError: source is none of these, damaged, or holds names that the family does not have. Nothing is written.
    """
    place = check_output(output)
    write_workdir(place, read_weights(source, show, **options))
    show(f"wrote {output}: for filip eval, filip align, filip embed, load_model and filip train --init_from")


def read_weights(
    path: str,
    say: Callable[..., None],
    *,
    family: str = "",
    model: str = "",
    tokenizer: str = "",
    tokens: str = "",
    image_size: int = 0,
    pieces: Tokenizer | None = None,
) -> Imported:
    """Return what a workdir is written of.

    Args:
        path: of a file of weights, or of a folder with their config.
        say: takes the choices and all names, a line each.
        family: one of `FAMILIES`, where the folder does not tell.
        model: a name of open_clip's, or a JSON file of its model_configs, where the folder does not tell.
        tokenizer: the file of the tokenizer, where the folder has none.
        tokens: of the images, "last" or "value", see `Vit`; "" is what the config says, else "last".
        image_size: pixels of a side; 0 is the size that the source's preprocessing makes. Positions are resampled to it.
        pieces: the tokenizer, instead of a file.

    Raises:
        UserError: see `import_weights`.
    """
    where = _place(path)
    folder = where if where.is_dir() else None
    configs = _configs(where) if folder else {}
    name, origin = _by_config(where, configs, family)
    file = weights_file(where, FAMILIES[name].files if name else ()) if folder else where
    with open_weights(file) as weights:
        if any(map(ADAPTED.search, weights.tensors)):
            raise _adapter(file, "names of LoRA")
        if family or not name:
            name, origin = _by_names(where, weights, family), origin or "the names of its tensors"
        source = ModelSource(where, folder, configs, weights.tensors, from_user(model))
        plan, weights.tensors = at_size(FAMILIES[name].plan(source), weights.tensors, image_size)
        chosen = (pieces, {}, []) if pieces else plan.tokenizer or _tokenizer(plan, source, from_user(tokenizer))
        config = _config(plan, chosen[1], tokens)
        network, objectives, shapes = _network(config)
        patches = Evidence("image tokens", config["model"]["image"]["tokens"], "--tokens" if tokens else "the default")
        shown = [Evidence("family", name, origin), *plan.evidence, patches, *chosen[2]]
        unused = report.account_for_names(plan, shapes, weights, shown, say)
        parameters = _read(plan, shapes, weights) | _fresh(plan, shapes, network, objectives)
        notes = {
            "family": name,
            "choices": shown,
            "differs": list(plan.differs),
            "unused": unused,
            "types": Counter(weights.tensors[each].dtype for each in weights.tensors if each not in unused),
        }
        metadata = network.metadata | objectives.metadata
        return Imported(config, parameters, metadata, chosen[0].model, weights.files, folder, notes)


def _place(source: str) -> Path:
    place = Path(from_user(source))
    if place.is_dir():
        if place.resolve().parent.name == SNAPSHOTS and any(entry.is_symlink() for entry in place.iterdir()):
            copy = command(["cp", "-rL", str(place), "copy"])
            raise UserError(
                f"{place} is of the Hub's cache, whose files are links to elsewhere: run {copy} and import copy"
            )
        if (place / SNAPSHOTS).is_dir() and not any((place / name).is_file() for name in CONFIGS):
            raise UserError(f"{place} is of the Hub's cache: name the folder of a snapshot in {place / SNAPSHOTS}")
        return place
    if place.exists():
        return place.resolve()
    hub_id = source.removeprefix(HUB).rstrip("/")
    if not HUB_ID.fullmatch(hub_id):
        raise UserError(f"{source}: no such file or folder; give a model that lies on this machine")
    name = hub_id.rpartition("/")[2]
    words = command(["hf", "download", hub_id, f"--local-dir={name}"])
    raise UserError(f"{source}: no such file or folder. filip downloads nothing: run {words} and import {name}")


def _configs(folder: Path) -> dict[str, dict[str, Any]]:
    if (folder / ADAPTER).is_file():
        raise _adapter(folder, ADAPTER)
    return {name: read_json(folder / name, most=MAX_CONFIG_BYTES) for name in CONFIGS if (folder / name).is_file()}


def _adapter(place: Path, what: str) -> UserError:
    return UserError(
        f"{place} holds {what}: a PEFT adapter is no part of what is imported. Merge it into the model with PEFT's "
        "merge_and_unload(), save that with save_pretrained, and import it"
    )


def _by_config(place: Path, configs: Mapping[str, Any], given: str) -> tuple[str, str]:
    """Return the family's name and the evidence, of the option or the folder's config; "" where neither tells."""
    stated = configs.get("config.json", {}).get("model_type")
    matches = {name: origin for name, family in FAMILIES.items() if (origin := family.origin(configs))}
    if given:
        if given not in FAMILIES:
            raise UserError(f"--family={given} is not one of {', '.join(FAMILIES)}")
        against = f", though config.json says model_type={stated!r:.100}" if stated and given not in matches else ""
        return given, f"--family={given}{against}"
    if len(matches) > 1:
        reasons = "; ".join(matches.values())
        raise UserError(f"{place} can be read as {' or '.join(matches)} ({reasons}): choose one with --family")
    if stated and not matches:
        raise UserError(f"{place}: config.json says model_type={stated!r:.100}, of which no family is read; {_known()}")
    return next(iter(matches.items()), ("", ""))


def _by_names(place: Path, weights: Weights, given: str) -> str:
    """Return the family that the names of tensors tell, or the given one unless they are of another."""
    matches = [name for name, family in FAMILIES.items() if family.names(weights.tensors)]
    if given and (not matches or given in matches):
        return given  # where some name is missing, its plan says which
    advice = f"leave out --family={given}, which they contradict" if given else _known()
    if given or len(matches) != 1:
        families = " and ".join(matches) or "no family"
        raise UserError(f"{place} holds names of {families}, such as {report.some(weights.tensors, 4)}; {advice}")
    return matches[0]


def _known() -> str:
    return f"families are {', '.join(FAMILIES)} (--family)"


def _tokenizer(plan: Plan, source: ModelSource, given: str) -> tuple[Tokenizer, dict[str, Any], list[Evidence]]:
    """Return the tokenizer, its section and the evidence; of images alone one that knows the letters."""
    if plan.text is None or plan.words is None:
        if given:
            raise UserError(f"--tokenizer={given}: {source.place} holds images alone: leave it out")
        pieces = Tokenizer(train_sentence_pieces(ALPHABET, TEXT["vocab_size"]))  # type: ignore[arg-type]
        return pieces, dict(name="sentencepiece", path="", vocab_size=TEXT["vocab_size"]), []
    if given and not Path(given).is_file():
        raise UserError(f"--tokenizer={given}: no such file")
    section, evidence = plan.words(source, plan.text["vocab_size"], given)
    pieces, words = Tokenizer(make_tokenizer(source=None, **section)), section["path"] or "its tokenizer"
    if pieces.vocab_size > plan.text["vocab_size"]:
        raise UserError(
            f"{words} has {pieces.vocab_size} ids, the weights {plan.text['vocab_size']}: it is of another model"
        )
    pad_id = plan.text.setdefault("pad_id", pieces.pad_id)
    if pad_id != pieces.pad_id:
        raise UserError(
            f"{words} fills texts with the id {pieces.pad_id}, the model with {pad_id}: it is of another model"
        )
    eos_id = pieces.vocab_size - 1 if plan.eos_id is None else plan.eos_id
    if plan.text["pooling"] == "eos" and pieces.pieces.eos != eos_id:
        raise UserError(
            f"{words} ends texts with the id {pieces.pieces.eos}, but the model pools them at {eos_id}: "
            "it is of another model"
        )
    return pieces, section, [*evidence, Evidence("pad_id", f"{pad_id}", "the tokenizer's")]


def _config(plan: Plan, tokenizer: Mapping[str, Any], tokens: str) -> dict[str, Any]:
    """Return the config of a run that has trained nothing."""
    text = plan.text or dict(TEXT)
    model = dict(
        embed_dim=plan.embed_dim if plan.text else EMBED_DIM,
        dtype="float32",
        **(SIMILARITY | plan.similarity),
        attention="xla",
        scan=True,
        remat=False,
        image={"tokens": "last"} | plan.image | ({"tokens": tokens} if tokens else {}),
        text=text,
    )
    return dict(
        total_steps=0,
        tokenizer=dict(tokenizer),
        data=dict(image_size=plan.image["image_size"], text_length=text["length"]),
        model=model,
        objectives=plan.objectives or dict(clip=dict(kind="clip", weight=1.0)),
        evals={},
    )


def _network(config: Mapping[str, Any]) -> tuple[Model, Objectives, report.Shapes]:
    """Return what a config describes, and the shapes of its parameters by path."""
    objectives = make_objectives(config["objectives"])
    network = make_model(objectives.needs, **config["model"])
    shapes = jax.eval_shape(partial(init_parameters, network, objectives), jax.random.key(0))
    return network, objectives, flatten(shapes)


def _read(plan: Plan, shapes: report.Shapes, weights: Weights) -> dict[str, np.ndarray]:
    return {rule.path: take(rule, shapes[rule.path].shape, weights.tensors) for rule in plan.rules}


def _fresh(plan: Plan, shapes: report.Shapes, network: Model, objectives: Objectives) -> dict[str, np.ndarray]:
    """Return the parameters that a source of images alone does not have, as a new run has them."""
    if not (fresh := sorted(shapes.keys() - {rule.path for rule in plan.rules})):
        return {}

    def init(key):  # of the rest nothing is computed
        parameters = flatten(init_parameters(network, objectives, key))
        return {path: parameters[path] for path in fresh}

    return {path: np.asarray(value) for path, value in jax.jit(init)(jax.random.key(0)).items()}
