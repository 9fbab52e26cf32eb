"""FILIP, token-wise contrastive language-image pre-training, in JAX.

The public names:

  load_model   load a trained model, which encodes images and texts: load_model("runs/demo/filip")
  inference    what a loaded model can do: Embedder, similarity_matrices, top_k, align
  losses       the losses and the similarity of tokens, as functions of arrays
  models       the two encoders, as functions of nested dicts
  __version__  this version

All else serves the command `filip` and may change at any time; `filip --help` lists what it does.
"""

import importlib

__all__ = ["__version__", "inference", "load_model", "losses", "models"]
__version__ = "0.1.0"


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str):
    """Import the public names when asked for, so that the losses alone import fast."""
    if name == "load_model":
        from filip_jax.inference import load_model

        return load_model
    if name in __all__:
        return importlib.import_module(f"filip_jax.{name}")  # noqa: TID251, one of the names above
    raise AttributeError(f"module 'filip_jax' has no attribute {name!r}")
