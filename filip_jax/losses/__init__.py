"""What the two towers are trained on: similarities of token sets and losses over the global batch."""

from filip_jax.losses.contrastive import clip_loss, filip_loss, similarity_loss
from filip_jax.losses.similarity import token_similarity

__all__ = ["clip_loss", "filip_loss", "similarity_loss", "token_similarity"]
