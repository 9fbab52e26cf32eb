"""An index in words: what it holds, of which model, and what its reductions cost."""

from collections.abc import Mapping
from typing import Any

from filip_jax.features import Features
from filip_jax.plain import counted, one_line
from filip_jax.search.reductions import changes


def describe(features: Features) -> list[str]:
    """Return lines that say what features hold; the parts are not read."""
    manifest, live = features.manifest, int(features.live.sum())
    removed = f", {len(features) - live:,} of them removed" if live < len(features) else ""
    size = sum(part.bytes for part in manifest.parts)
    tokens = f"up to {manifest.text_length} tokens"
    if manifest.pooling == "global":
        tokens = "one vector a row"
    elif manifest.grid:
        tokens = f"{manifest.grid[0]} x {manifest.grid[1]} patches"
    lines = [
        f"{features.folder}: {counted(len(features), 'row')} of {manifest.side}s{removed}, {size / 1e6:,.1f} MB in {counted(len(manifest.parts), 'part')}",
        f"  {manifest.pooling}: {tokens}, dimension {manifest.dimension}, {manifest.dtype}",
        f"  model: {_pairs(manifest.model) or 'not known'}",
        f"  source: {_pairs(manifest.source.get('section', {})) or 'not known'}",
    ]
    lines += [
        f"  reduction {' '.join([each['name'], _pairs(each['options'])]).strip()}: {changes(each['losses'])}"
        for each in manifest.reductions
    ]
    if manifest.progress:
        lines.append("  the embedding has not ended: the same command goes on")
    return [one_line(line) for line in lines]


def _pairs(values: Any) -> str:
    if not isinstance(values, Mapping):
        return ""
    return ", ".join(
        f"{name} {value[:12] if isinstance(value, str) and len(value) == 64 else value}"
        for name, value in values.items()
    )
