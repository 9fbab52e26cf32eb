"""The names and configs of open_clip's models: each that a tower can compute is mapped, all others name the option in one line."""

import pytest

from filip_jax.errors import UserError
from filip_jax.weights.open_clip_config import of_config, of_name


@pytest.mark.parametrize("name, width", [("ViT-L-14", 1280), ("ViT-H-14", 1664), ("", 1408)])
def test_a_name_of_another_width_is_refused(name, width):
    """Heads of the wrong number would divide such a width, too, and compute something else."""
    image = dict(patch_size=14, image_size=224, width=width)
    with pytest.raises(UserError, match="the weights have the width of a ViT-"):
        of_name(name, f"--model={name}", image, dict(width=1024))


def test_options_of_open_clips_tokenizers_are_refused():
    content = {"text_cfg": {"tokenizer_kwargs": {"clean": "canonicalize"}}}
    with pytest.raises(UserError, match="tokenizer_kwargs=.*asks for what filip_jax does not compute"):
        of_config("model.json", content, dict(width=768), {})
