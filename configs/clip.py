r"""CLIP, the global baseline: FILIP's towers, schedule and data with one embedding per side.

    filip train --config=configs/clip.py:base --workdir=runs/clip_base --config.source.path=DATA

What differs from configs/filip.py stands below: the objective, which compares one pooled vector per side (the class
token of the image, the EOS token of the text), and CLIP's embedding dimensions.
"""

from ml_collections import ConfigDict

from filip_jax.configs import filip

EMBED_DIM = {"base": 512, "large": 768}
VARIANTS = tuple(EMBED_DIM)


def get_config(variant: str = "base") -> ConfigDict:
    config = filip.get_config(variant)
    options = {key: value for key, value in config.objectives.filip.items() if key not in ("keep_tokens", "selection")}
    config.objectives = ConfigDict(dict(clip=options | dict(kind="clip")))
    config.model.embed_dim = EMBED_DIM[variant]
    return config
