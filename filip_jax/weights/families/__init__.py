"""The families of public weights that are read: each is a file and a line here."""

from filip_jax.weights.families import hf_clip, hf_dinov2, hf_siglip, hf_vit, open_clip, own
from filip_jax.weights.plan import Family

FAMILIES: dict[str, Family] = {
    "open_clip": open_clip.FAMILY,
    "hf_clip": hf_clip.FAMILY,
    "hf_siglip": hf_siglip.FAMILY,
    "hf_vit": hf_vit.FAMILY,
    "hf_dinov2": hf_dinov2.FAMILY,
    "own": own.FAMILY,
}
