"""Checkpoints: <workdir>/checkpoints/<step>/, whole or invisible, restored onto any mesh.

A step's folder holds what Orbax wrote (state/) and manifest.json, which is written last: it names
every file with its size and hash, the tree of the state, the config, and the position in the data.
Without it, or with a file that is not as it says, there is no checkpoint.
"""

from filip_jax.checkpoint.reader import Checkpoints, abstract, find_checkpoint

__all__ = ["CheckpointWriter", "Checkpoints", "abstract", "find_checkpoint"]


def __getattr__(name: str):
    """Imports `CheckpointWriter` when asked for, so that looking at a checkpoint needs no JAX."""
    if name == "CheckpointWriter":
        from filip_jax.checkpoint.writer import CheckpointWriter

        return CheckpointWriter
    raise AttributeError(f"module 'filip_jax.checkpoint' has no attribute {name!r}")
