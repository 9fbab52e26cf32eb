"""How long `filip import` takes and how much memory it needs, on a CLIP of random weights: a ViT-L/14 has 1.7 GB.

    python benchmarks/import_weights.py                 ViT-L/14: minutes on two cores, 4 GB of disk in --folder
    python benchmarks/import_weights.py --small         a tiny one, in seconds

Writes a folder as transformers does, imports it in a process of its own, and prints the process's peak memory and time beside
the time that reading the file and hashing it takes.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import report
from safetensors.numpy import save_file

from filip_jax.weights.families.hf_clip import RULES
from filip_jax.weights.mapping import LAYER

VOCABULARY, LENGTH = 49_407, 77  # one id less than CLIP's, so that any tokenizer.json serves
TOKENIZER = report.ROOT / "tests/weights/hf_clip_gelu/tokenizer.json"
LARGE = dict(image=(1024, 24, 16), text=(768, 12, 12), patch=14, grid=16, embed_dim=768)
SMALL = dict(image=(32, 2, 2), text=(16, 2, 2), patch=8, grid=2, embed_dim=8)


def shape_of(name, sizes):
    """The shape of a tensor of CLIPModel."""
    width, _, _ = sizes["image" if name.startswith("vision") else "text"]
    shapes = {
        "token_embedding": (VOCABULARY, width),
        "text_model.embeddings.position": (LENGTH, width),
        "vision_model.embeddings.position": (sizes["grid"] ** 2 + 1, width),
        "patch_embedding": (width, 3, sizes["patch"], sizes["patch"]),
        "fc1.weight": (4 * width, width),
        "fc1.bias": (4 * width,),
        "fc2.weight": (width, 4 * width),
        "proj.weight": (width, width),
        "visual_projection": (sizes["embed_dim"], sizes["image"][0]),
        "text_projection": (sizes["embed_dim"], width),
        "logit_scale": (),
    }
    return next((shape for part, shape in shapes.items() if part in name), (width,))


def write(folder, sizes):
    """Write the folder; return the bytes of its weights."""
    random, tensors = np.random.default_rng(0), {}
    for rule in RULES:
        depth = sizes["image" if rule.path.startswith("image") else "text"][1]
        for layer in range(depth if rule.stacked else 1):
            for name in (name.replace(LAYER, str(layer)) for name in rule.names):
                tensors[name] = np.asarray(random.standard_normal(shape_of(name, sizes), np.float32) * np.float32(0.02))
    save_file(tensors, folder / "model.safetensors")
    sections = {"vision_config": "image", "text_config": "text"}
    config = {
        section: dict(
            hidden_size=sizes[side][0],
            intermediate_size=4 * sizes[side][0],
            num_hidden_layers=sizes[side][1],
            num_attention_heads=sizes[side][2],
        )
        for section, side in sections.items()
    }
    config["text_config"] |= dict(vocab_size=VOCABULARY)
    config["vision_config"] |= dict(patch_size=sizes["patch"], image_size=sizes["grid"] * sizes["patch"])
    (folder / "config.json").write_text(json.dumps(dict(model_type="clip", **config)))
    return sum(array.nbytes for array in tensors.values())


def measure(sizes, place):
    with tempfile.TemporaryDirectory(dir=place) as name:
        folder = Path(name) / "clip"
        folder.mkdir()
        size = write(folder, sizes)
        started = time.perf_counter()
        with (folder / "model.safetensors").open("rb") as file:
            hashlib.file_digest(file, "sha256")
        reading = time.perf_counter() - started
        command = [
            sys.executable,
            "-m",
            "filip_jax",
            "import",
            str(folder),
            f"--output={name}/run",
            f"--tokenizer={TOKENIZER}",
        ]
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"JAX_PLATFORMS": "cpu"})
        seconds = time.perf_counter() - started
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print("| weights GB | import s | CPU s | reading and hashing s | peak memory GiB |\n|" + " --- |" * 5)
    print(
        f"| {size / 1e9:.2f} | {seconds:.1f} | {used.ru_utime + used.ru_stime:.1f} | {reading:.1f} | {used.ru_maxrss / 2**20:.2f} |"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--folder", help="for temporary files (default: the system's)")
    report.add_output(parser)
    a = parser.parse_args()
    with report.recorded(a.output, "safetensors"):
        measure(SMALL if a.small else LARGE, a.folder)
