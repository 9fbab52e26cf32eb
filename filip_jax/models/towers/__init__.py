"""The towers that a config can name: each is a file and a line here."""

from typing import Any

from filip_jax.models.towers.conv_vit import ConvVit
from filip_jax.models.towers.text_transformer import TextTransformer
from filip_jax.models.towers.vit import Vit

# By the modality and the name in the config. A tower is made with `execution`, `rngs` and its options; it has the attributes
# `width`, `input` and, for images, `noise_size`, and gives `Features`.
TOWERS: dict[str, dict[str, Any]] = {
    "image": {
        "vit": Vit,
        "conv_vit": ConvVit,
    },
    "text": {
        "transformer": TextTransformer,
    },
}
