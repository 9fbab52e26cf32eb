"""Distillation: the run's model sees the relations of a batch's images and texts as a frozen teacher does."""

import jax.numpy as jnp

from filip_jax.errors import UserError
from filip_jax.losses.relations import Relations, compare_with_teacher
from filip_jax.losses.token_wise import TokenWise
from filip_jax.objectives.contrast import CLIP_SCALE, MAX_SCALE, make_scale, show_scale
from filip_jax.objectives.objective import Objective, Pairwise, Teacher

MAX_TEACHER_SCALE = 1000.0


def distill(
    *,
    teacher_logit_scale: float = 100.0,
    logit_scale_init: float = CLIP_SCALE,
    min_logit_scale: float = 1.0,
    max_logit_scale: float = MAX_SCALE,
    dtype: str = "float32",
    exchange: str = "ring",
) -> Objective:
    """Return relational distillation of pooled vectors (CLIP-KD, Yang et al. 2024, arXiv 2307.12732, CRD).

    KL(softmax(teacher) | softmax(student)) of each image over all texts and of each text over all images of the global batch,
    the mean of both. Every caption is a text of its own. The teacher is the model that the run began with, or the one of
    `init_from.teacher`; it never changes. It encodes each batch anew: stored features are not read.

    Args:
        teacher_logit_scale: multiplier of the teacher's similarities, as it was trained with; 100 is that of public CLIPs.
        logit_scale_init, min_logit_scale, max_logit_scale: of the student's, see `make_scale`. CLIP-KD shares CLIP's.
        dtype: of the products.
        exchange: "ring" or "gather", see `BlockFunction`.

    Raises:
        UserError: an option that cannot be.
    """
    if not 0 < teacher_logit_scale <= MAX_TEACHER_SCALE:
        raise UserError(f"teacher_logit_scale={teacher_logit_scale} must be above 0, and at most {MAX_TEACHER_SCALE}")
    scale = make_scale(logit_scale_init, min_logit_scale, max_logit_scale, False, TokenWise("pooled"))
    similarity = compare_with_teacher(teacher_logit_scale, dtype, exchange)
    return Objective(
        needs=frozenset({"pooled"}),
        parameters={"logit_scale": scale},
        pairwise=Pairwise(
            similarity, Relations(), lambda parameters: {"scale": jnp.exp(parameters["logit_scale"])}, "scale"
        ),
        teacher=Teacher(decay=1.0),
        metrics=show_scale,
    )
