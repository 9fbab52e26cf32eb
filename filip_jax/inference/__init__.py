"""Trained models as a user meets them: images and texts in, tokens, scores, best answers and alignments out."""

from filip_jax.inference.alignment import Alignment, align
from filip_jax.inference.embedder import Embedder
from filip_jax.inference.ranking import top_k
from filip_jax.inference.run import Run, load_model
from filip_jax.inference.scoring import similarity_blocks, similarity_matrices

__all__ = ["Alignment", "Embedder", "Run", "align", "load_model", "similarity_blocks", "similarity_matrices", "top_k"]
