"""Exported folders as other people's tools meet them: loaded by transformers 5 and open_clip 3.3, and compared.

    pip install "torch==2.14.*" "transformers==5.24.*" open_clip_torch==3.3.* sentencepiece     an environment of its own
    python benchmarks/check_exports.py exported/* --output=benchmarks/results/exports

A folder holds what an export wrote and `outputs.npz`, which own_features.py wrote beside it (or make_weight_goldens.py: its
folders pass as they are). It fails where a name is missing or unexpected, a shape differs, a feature differs by more than
`--limit`, or ids differ; the last row of the table says how many folders passed. Columns: the largest difference of all
tokens, of the projected features, of these normalized, of the logits / 100; texts with the same ids up to their end, and
which differ; the largest difference in a picture's bytes after resizing, and the mean.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
import public_models
import report
from PIL import Image

LOGIT_SCALE = 100  # at most: logits are compared as cosines
COLUMNS = (
    "folder | loaded by | tensors | image tokens | text tokens | features | normalized | logits | same ids | resized"
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--limit", type=float, default=1e-5, help="largest difference of a token or a feature")
    parser.add_argument("--differ", nargs="*", default=[], help="texts whose ids are known to differ")
    report.add_output(parser)
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    failures = []
    with report.recorded(arguments.output, "torch", "transformers", "open_clip_torch", "safetensors", "tokenizers"):
        print(f"| {COLUMNS} |\n|{' --- |' * (COLUMNS.count('|') + 1)}")
        for folder in arguments.folders:
            cells, faults = check(folder, arguments.limit, set(arguments.differ))
            print(f"| {folder.name} | {' | '.join(cells)} |", flush=True)
            failures += [f"{folder.name}: {fault}" for fault in faults]
        print(f"\n{len(arguments.folders)} folders, {len(failures)} faults", *failures, sep="\n")
    sys.exit(bool(failures))


def check(folder: Path, limit: float, known: set[str]) -> tuple[list[str], list[str]]:
    """Return the cells of a folder's row and what is wrong with it."""
    with np.load(folder / "outputs.npz") as file:
        own = dict(file)
    try:
        model, *_ = public_models.load(folder)
        public = public_models.outputs(folder, own["images"], own.get("ids"))
        resized = public_models.preprocessed(folder, Image.fromarray(own["picture"]))
    except (AssertionError, RuntimeError, ValueError, OSError, KeyError, TypeError) as error:
        return ["not loaded"] + ["-"] * 8, [f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"]
    cells, faults = [type(model).__name__, str(len(model.state_dict()))], []
    features = [key for key in ("image_features", "text_features") if key in own and key in public]
    columns = {
        "image tokens": [(own[key], public[key]) for key in ("image_tokens",) if key in own],
        "text tokens": [(own[key], public[key]) for key in ("text_tokens",) if key in own],
        "features": [(own[key], public[key]) for key in features],
        "normalized features": [(normalized(own[key]), normalized(public[key])) for key in features],
        "logits": [(own["logits"] / LOGIT_SCALE, public["logits"] / LOGIT_SCALE)] if "logits" in own else [],
    }
    for name, pairs in columns.items():
        worst = max((float(np.abs(ours - theirs).max()) for ours, theirs in pairs), default=None)
        cells.append("-" if worst is None else f"{worst:.1e}")
        if worst is not None and not worst <= limit:
            faults.append(f"{name} differ by {worst:.1e}")
    cells.append(same_ids(folder, own, known, faults))
    difference = np.abs(resized.astype(int) - own["picture_resized"])
    return [*cells, f"{difference.max()}, {difference.mean():.2f}"], faults


def normalized(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def same_ids(folder: Path, own: dict, known: set[str], faults: list[str]) -> str:
    """Return how many texts the folder's tokenizer gives the ids that ours did, up to their ends."""
    if "texts" not in own:
        return "-"
    texts, length = [str(text) for text in own["texts"]], own["ids"].shape[1]
    rows = tokenize(folder, texts, length)
    if rows is None:
        return "-"
    # Behind the end pads stand, which are the end again in transformers' CLIP and 0 in ours.
    differ = [text for text, row, ids in zip(texts, rows, own["ids"]) if content(row) != content(ids)]
    faults += [f"other ids: {text!r}" for text in differ if text not in known]
    return f"{len(texts) - len(differ)} of {len(texts)}" + "".join(f", not {text[:24]!r}" for text in differ)


def tokenize(folder: Path, texts: list[str], length: int) -> np.ndarray | None:
    """Return the ids by the library's tokenizer as the folder names it, padded; None where it has none."""
    if (folder / "open_clip_config.json").exists():
        import open_clip

        config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
        if not config.get("hf_tokenizer_name") and config["vocab_size"] != 49408:
            return None  # a tiny model, whose ids open_clip's own vocabulary does not give
        return open_clip.get_tokenizer(f"local-dir:{folder}")(texts, context_length=length).numpy()
    if not (folder / "tokenizer_config.json").exists():
        return None
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="np")["input_ids"]


def content(ids: np.ndarray) -> list[int]:
    """Return the ids without what is repeated at the end, and the first of that."""
    ids = [int(value) for value in ids]
    while len(ids) > 1 and ids[-1] == 0:
        ids.pop()
    while len(ids) > 1 and ids[-1] == ids[-2]:
        ids.pop()
    return ids


if __name__ == "__main__":
    main()
