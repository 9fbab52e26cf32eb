"""The objectives that a model can be trained for: one file each, and one line in the table below."""

from collections.abc import Callable

from filip_jax.objectives.alip import alip
from filip_jax.objectives.clip import clip
from filip_jax.objectives.distill import distill
from filip_jax.objectives.dreamlip import dreamlip
from filip_jax.objectives.filip import filip
from filip_jax.objectives.filip_sigmoid import filip_sigmoid
from filip_jax.objectives.flair import flair
from filip_jax.objectives.maxsim import maxsim
from filip_jax.objectives.objective import Objective
from filip_jax.objectives.siglip import siglip
from filip_jax.objectives.sparc import sparc
from filip_jax.objectives.superclass import superclass

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "filip": filip,
    "clip": clip,
    "siglip": siglip,
    "filip_sigmoid": filip_sigmoid,
    "maxsim": maxsim,
    "flair": flair,
    "dreamlip": dreamlip,
    "sparc": sparc,
    "superclass": superclass,
    "alip": alip,
    "distill": distill,
}
