"""The networks. Flax stays in this package: outside of it a model is pure functions of nested dicts."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

import jax
from flax import nnx

from filip_jax.errors import UserError
from filip_jax.models.dual_encoder import POOLINGS, DualEncoder
from filip_jax.models.tower import ImageInput, TextInput
from filip_jax.models.transformer import ATTENTIONS
from filip_jax.paths import Metadata, flatten, unflatten
from filip_jax.sections import call

LARGEST = 2**20  # of a model's numbers
METHODS = ("encode_image", "encode_text", "embed_images", "embed_texts", "image_features")  # of a `DualEncoder`
MAY_BE_ZERO = ("class_tokens", "registers", "pad_id", "patch_dropout")
MAX_PARAMETERS = 2**40

__all__ = ["POOLINGS", "Model", "check_platform", "make_model", "portable"]


@dataclass(frozen=True)
class Model:
    """A dual encoder as pure functions.

    Attributes:
        init: key -> parameters, nested dicts of float32 arrays.
        encode_image: (parameters, images uint8 [b, h, w, 3], pooling=None, noise=None, patch_mask=None) -> tokens
            [b, p, d].
        encode_text: (parameters, ids [b, t], pooling=None) -> (tokens [b, k, d], mask [b, k]).
        embed_images, embed_texts: (parameters, images, noise=None, patch_mask=None), (parameters, ids) -> what
            objectives need, by its name in `Encoded`.
        image_features: (parameters, images uint8 [b, h, w, 3], pooling=None) -> [b, width of the image tower], for
            linear probes, see `DualEncoder`.
        pooling: "tokens" or "global": what the encoders give when asked for no other.
        sizes: embed_dim and vocab_size, for heads that objectives have.
        noise_size: numbers per image in `noise` [b, noise_size], which chooses the patches that are
            dropped; 0 for a model that drops none.
        image, text: what the towers take.
        metadata: of every parameter, by its path.
        ends_in_similarity: whether BOS and EOS take part in the late interaction.
    """

    init: Callable[..., dict[str, Any]]
    encode_image: Callable[..., jax.Array]
    encode_text: Callable[..., tuple[jax.Array, jax.Array]]
    embed_images: Callable[..., dict[str, jax.Array]]
    embed_texts: Callable[..., dict[str, jax.Array]]
    image_features: Callable[..., jax.Array]
    pooling: str
    sizes: dict[str, int]
    noise_size: int
    image: ImageInput
    text: TextInput
    metadata: dict[str, Metadata]
    ends_in_similarity: tuple[bool, bool] = (True, True)


def make_model(needs: Collection[str], **config) -> Model:
    """Return a `DualEncoder` of this `model` section as pure functions; allocates nothing.

    Args:
        needs: of the objectives, "tokens", "pooled" or both.

    Raises:
        UserError: a section with a missing, unknown or impossible key.
    """
    for path, value in flatten(config).items():
        least = 0 if path.endswith(MAY_BE_ZERO) else 1
        if type(value) is int and not least <= value <= LARGEST:
            raise UserError(f"model.{path.replace('/', '.')}={value} must be at least {least} and at most {LARGEST}")

    def build(key):
        return call(DualEncoder, config, "model", needs=frozenset(needs), rngs=nnx.Rngs(key))

    module = nnx.eval_shape(build, jax.random.key(0))
    graphdef, shapes = nnx.split(module)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    if count > MAX_PARAMETERS:
        raise UserError(
            f"model: these widths and depths make {count:.1e} parameters; at most {MAX_PARAMETERS:.1e} are built"
        )

    names = nnx.to_pure_dict(shapes).keys()

    def init(key):
        return unflatten({path: parameter[...] for path, parameter in _by_path(nnx.state(build(key))).items()})

    def method(name):
        def run(parameters, *inputs, **options):  # the parameters may hold those of objectives, too
            own = nnx.restore_int_paths({name: parameters[name] for name in names})
            return getattr(nnx.merge(graphdef, own), name)(*inputs, **options)

        return run

    return Model(
        init=init,
        **{name: method(name) for name in METHODS},
        pooling=module.pooling,
        sizes={"embed_dim": config["embed_dim"], "vocab_size": module.text.input.vocab_size},
        noise_size=module.image.noise_size,
        image=module.image.input,
        text=module.text.input,
        metadata={path: _metadata(parameter) for path, parameter in _by_path(shapes).items()},
        ends_in_similarity=(module.bos_in_similarity, module.eos_in_similarity),
    )


def _by_path(state: Any) -> dict[str, Any]:
    """Return the parameters of a state; the numbers of a list become texts, as in files."""
    return {"/".join(map(str, path)): parameter for path, parameter in nnx.to_flat_state(state)}


def _metadata(parameter: Any) -> Metadata:
    """Return what its owner says of a parameter; matrices and kernels decay where it says nothing."""
    names = [field.name for field in fields(Metadata) if parameter.has_metadata(field.name)]
    given = {name: parameter.get_metadata(name) for name in names}
    return Metadata(**{"decay": len(parameter.shape) - given.get("stacked", False) > 1} | given)


def portable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `model` section with the same parameters and the same function, computed on any device."""
    return {**config, "attention": next(name for name, platform in ATTENTIONS.items() if not platform)}


def check_platform(config: Mapping[str, Any], platform: str) -> None:
    """Raise a UserError if a model, of a `model` section that can be built, does not run on JAX's `platform`."""
    attention, instead = config["attention"], portable(config)["attention"]
    if ATTENTIONS[attention] not in ("", platform):
        raise UserError(
            f"model.attention={attention!r} needs the platform {ATTENTIONS[attention]}, not {platform}: take {instead!r}"
        )
