"""Write a run's features of fixed pictures and texts, for check_exports.py: beside its exported folder, or printed against goldens.

    python benchmarks/own_features.py runs/mine exported/mine        writes exported/mine/outputs.npz
    python benchmarks/own_features.py runs/imported tests/weights/hf_clip_gelu --compare

The arrays have the names of public_models.py. `--compare` takes images and ids from the folder's outputs.npz, prints the
largest differences and writes nothing. Computed in float32 by this environment's JAX; torch is not needed.
"""

import argparse
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from PIL import Image

from filip_jax.inference import Run
from filip_jax.models.dual_encoder import DualEncoder
from filip_jax.sections import call

TEXTS = [
    "dog", "a red cat, and the blue dog", "A photo of an ASTRONAUT, 1969!", "café au lait", "naïve ﬁne print",
    "two  spaces\tand a tab", "“curly” quotes – and ’apostrophes’", "tom &amp; jerry &lt;3", "猫和狗", "猫 and 犬",
    "🐶 and 🐱 at 10:30", "STRASSE, straße, İstanbul", "don't", "<|endoftext|> in a text", "x" * 90, "word " * 100,
]  # fmt: skip


def outputs(run: Run, images: np.ndarray, ids: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return the features of uint8 images of the model's size and of token ids, under the names of public_models.py."""
    parameters = run.load().parameters
    config = dict(run.config["model"], dtype="float32")

    def build(key):
        return call(DualEncoder, config, "model", needs=run.objectives.needs, rngs=nnx.Rngs(key))

    graphdef, shapes = nnx.split(nnx.eval_shape(build, jax.random.key(0)))
    names = nnx.to_pure_dict(shapes)

    @jax.jit
    def encode(own, images, ids):
        model, kept = nnx.merge(graphdef, nnx.restore_int_paths(own)), []
        model.image.post_norm = _Kept(model.image.post_norm, kept)
        sides = dict(image=model.image(images)) | ({} if ids is None else dict(text=model.text(ids)))
        found = dict(image_tokens=kept[0])
        for side, features in sides.items():
            project = getattr(model, f"{side}_pooled_projection") or getattr(model, f"{side}_projection")
            found |= {f"{side}_pooled": features.pooled, f"{side}_features": project(features.pooled)}
        return found | (dict(text_tokens=sides["text"].tokens) if "text" in sides else {})

    with jax.default_matmul_precision("highest"):
        found = encode({name: parameters[name] for name in names}, images, ids)
    return {name: np.asarray(value, np.float32) for name, value in found.items()}


class _Kept:
    """A norm whose outputs are kept: the tower hands on no class token or register."""

    def __init__(self, norm, kept):
        self.norm, self.kept = norm, kept

    def __call__(self, x):
        self.kept.append(self.norm(x))
        return self.kept[-1]


def picture() -> np.ndarray:
    rows, columns = np.mgrid[:300, :400]
    waves = (
        np.sin(rows / 23) + np.cos(columns / 31),
        np.sin((rows + columns) / 7) * 2,
        (rows // 40 + columns // 50) % 2 * 3,
    )
    return np.uint8(np.clip(127.5 + 60 * np.stack(waves, 2), 0, 255))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--compare", action="store_true")
    arguments = parser.parse_args()
    run = Run(arguments.workdir)
    model = run.load()
    if arguments.compare:
        with np.load(arguments.folder / "outputs.npz") as file:
            golden = dict(file)
        found = outputs(run, golden["images"], golden.get("ids"))
        found["picture_resized"] = next(model.views([Image.fromarray(golden["picture"])]))
        for name in found:
            if name in golden:
                difference = np.abs(golden[name].astype(np.float64) - found[name])
                print(f"{name}: {difference.max():.1e}, in the mean {difference.mean():.1e}")
        return
    images = np.random.default_rng(0).integers(0, 256, (3, model.image_size, model.image_size, 3), dtype=np.uint8)
    ids, _ = model.tokenizer.encode(TEXTS, model.text_length)
    found = dict(images=images, ids=ids, texts=np.array(TEXTS), picture=picture()) | outputs(run, images, ids)
    found["picture_resized"] = next(model.views([Image.fromarray(found["picture"])]))
    np.savez_compressed(arguments.folder / "outputs.npz", **found)
    print(f"{arguments.folder / 'outputs.npz'}: {', '.join(found)}")


if __name__ == "__main__":
    main()
