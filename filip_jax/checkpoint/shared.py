"""A checkpoint read by all processes of a run, each its share."""

import jax

from filip_jax.checkpoint.reader import Checkpoints
from filip_jax.cluster import service


def find_damage(checkpoints: Checkpoints, step: int) -> str:
    """Which file of a checkpoint is not as it was written, and how; "" if all are well. All processes call it.

    Raises:
        UserError: the disk or the bucket cannot be asked.
    """
    mine: list[str] = []
    service.together(lambda: mine.append(checkpoints.damage(step, jax.process_index(), jax.process_count())))
    return next(filter(None, service.gather(mine[0])), "")
