"""The folders of tiny public models in tests/weights, and the workdirs that they become."""

import functools
from pathlib import Path

import pytest

from filip_jax.weights.load import import_weights

FOLDERS = Path(__file__).parent / "weights"
NAMES = sorted(path.name for path in FOLDERS.iterdir() if path.is_dir())
TOKENIZER = str(FOLDERS / "open_clip_gelu/tokenizer.json")
OPTIONS = {  # what a source does not tell
    "hf_clip_quick_gelu": dict(tokenizer=str(FOLDERS / "hf_clip_quick_gelu/merges.txt")),  # as old folders have it
    "open_clip_openai": dict(tokenizer=TOKENIZER),
    "open_clip_openai_wide": dict(tokenizer=TOKENIZER, model="ViT-B-7-quickgelu"),
}


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Return a function: name of a golden folder -> the workdir of its import, made once."""
    folder = tmp_path_factory.mktemp("imported")

    @functools.cache
    def get(name):
        import_weights(str(FOLDERS / name), str(folder / name), **OPTIONS.get(name, {}))
        return folder / name

    return get
