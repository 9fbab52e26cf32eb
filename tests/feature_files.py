"""Stored features without a model: unit tokens around concepts, as a trained model's lie, of images or of texts."""

from pathlib import Path

import numpy as np

from filip_jax.features import Features, FeatureWriter, Manifest, open_features

DIGESTS = {name: 64 * sign for name, sign in (("config", "a"), ("checkpoint", "b"), ("tokenizer", "c"))}


def manifest_of(side: str = "image", grid=(3, 4), dimension: int = 8, **changes) -> Manifest:
    """Return the manifest of features of no run."""
    known = dict(
        side=side, dimension=dimension, model=DIGESTS | {"step": 12, "average": False}, image_size=24, text_length=16,
        framing={"resize": "shortest", "crop": 1.0}, grid=grid if side == "image" else None, dtype="float32",
        source={"section": {"name": "folder", "path": "/pictures"}, "identity": "{}"},
    )  # fmt: skip
    return Manifest(**known | changes)


def tokens_of(manifest: Manifest, rows: int, seed: int = 0, concepts: int = 20):
    """Return (tokens [n, p, d] of length 1, mask [n, p]); texts have 1 to p tokens, images all."""
    rng = np.random.default_rng(seed)
    p = manifest.text_length if manifest.grid is None else manifest.grid[0] * manifest.grid[1]
    centers = rng.normal(size=(concepts, manifest.dimension))
    tokens = centers[rng.integers(0, concepts, (rows, p))] + 0.3 * rng.normal(size=(rows, p, manifest.dimension))
    lengths = np.full(rows, p) if manifest.grid else rng.integers(1, p + 1, rows)
    mask = np.arange(p) < lengths[:, None]
    return (tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)).astype(np.float32), mask


def fields_of(rows: int, first: int = 0) -> list[dict]:
    """Return what rows are of."""
    return [
        dict(
            key=f"picture {n}.jpg", shard=f"{n % 3:05d}.tar", index=n, width=640 + n, height=480,
            orientation=1 + n % 8, caption=f"a dog, the {n}th ü 中",
        )
        for n in range(first, first + rows)
    ]  # fmt: skip


def write_features(folder: str | Path, rows: int = 10, part: int = 4, removed=(), seed: int = 0, **options) -> Features:
    """Write features, so many rows in a part, and return them opened.

    Args:
        removed: numbers of rows.
        options: of `manifest_of`.
    """
    manifest = manifest_of(**options)
    tokens, mask = tokens_of(manifest, rows, seed)
    fields = fields_of(rows)
    with FeatureWriter(folder, manifest) as writer:
        for start in range(0, rows, part):
            some = slice(start, start + part)
            writer.add(tokens[some], mask[some], fields[some])
            writer.flush()
        writer.flush(lambda now: now.with_removed(np.array(removed, int)))
    return open_features(folder)
