"""Stored features, of any tower: token embeddings with the records that they are of, in one columnar format."""

from filip_jax.features.manifest import Manifest, Part, read_manifest
from filip_jax.features.reader import Features, open_features
from filip_jax.features.writer import FeatureWriter

__all__ = ["FeatureWriter", "Features", "Manifest", "Part", "open_features", "read_manifest"]
