"""The names and configs of open_clip's models: each that a tower can compute is mapped, all others name the option in one line."""

import json

import pytest
from conftest import ROOT

from filip_jax.errors import UserError
from filip_jax.weights.open_clip_config import TEXT, VISION, of_config, of_name


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


MODELS = json.loads(
    (ROOT / "tests/golden/open_clip_models.json").read_text()
)  # the configs of open_clip 3.3.0, by name


def sizes_of(config):
    """The sizes that the shapes of such a model's weights tell."""
    vision, text = VISION | config["vision_cfg"], TEXT | config["text_cfg"]
    names = {"width": "width", "layers": "depth", "patch_size": "patch_size", "image_size": "image_size"}
    texts = {"width": "width", "layers": "depth", "vocab_size": "vocab_size", "context_length": "length"}
    return [{ours: part[its] for its, ours in table.items()} for part, table in ((vision, names), (text, texts))]


def described(function, *arguments):
    """What a model's name or config tells, and the error if it is refused."""
    try:
        return function(*arguments), ""
    except UserError as error:
        return None, str(error)


@pytest.mark.parametrize("name", MODELS)
def test_each_model_of_open_clip_is_mapped_or_refused_by_its_option(name):
    config, sizes = MODELS[name], sizes_of(MODELS[name])
    by_config, refusal = described(of_config, "model.json", config, *sizes)
    by_name, unknown = described(of_name, name, f"--model={name}", *sizes)
    if refusal:
        options = [*config.items(), *config["vision_cfg"].items(), *config["text_cfg"].items()]
        assert by_name is None and "\n" not in refusal
        assert any(f"{key}={value!r}" in refusal or f"{key!r} is unknown" in refusal for key, value in options)
    if by_name is None:
        assert "give --model=FILE.json of open_clip's model_configs" in unknown
    else:
        own = [tower | {"pad_mask": False} for tower in (by_name.image, by_name.text)]
        assert own == [tower | {"pad_mask": False} for tower in (by_config.image, by_config.text)]
        assert by_name.eos_id == by_config.eos_id


def test_so_many_models_of_open_clip_can_be_imported():
    mapped = [name for name, config in MODELS.items() if not described(of_config, "", config, *sizes_of(config))[1]]
    named = [name for name in mapped if not described(of_name, name, "", *sizes_of(MODELS[name]))[1]]
    assert (len(MODELS), len(mapped), len(named)) == (144, 37, 32)
    assert all("worldwide" in name for name in set(mapped) - set(named))
