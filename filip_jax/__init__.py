"""filip_jax: FILIP, token-wise contrastive language-image pre-training, in JAX."""

__all__ = ["load_model"]
__version__ = "0.1.0"


def __getattr__(name: str):
    """Imports `load_model` when asked for, so that the losses alone import fast."""
    if name == "load_model":
        from filip_jax.inference import load_model

        return load_model
    raise AttributeError(f"module 'filip_jax' has no attribute {name!r}")
