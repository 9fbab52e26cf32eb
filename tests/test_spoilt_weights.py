"""Whole imports of spoilt folders and of mistaken commands: one line that says what to do, and nothing is left."""

import contextlib
import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from torch_writer import FOLDERS

from filip_jax.cli import main
from filip_jax.errors import UserError
from filip_jax.weights import load
from filip_jax.weights.load import import_weights, read_weights
from filip_jax.weights.plan import ModelSource
from filip_jax.weights.tensors import MAX_HEADER_BYTES
from filip_jax.weights.words import of_clip


def change_tensors(change):
    def spoil(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return spoil


def change_json(name, **changes):
    def spoil(folder):
        content = json.loads((folder / name).read_text())
        for key, value in changes.items():
            section, _, last = key.rpartition("__")
            (content[section] if section else content)[last] = value
        (folder / name).write_text(json.dumps(content))

    return spoil


def cut(folder):
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(200_000)


def large_header(folder):
    file = folder / "model.safetensors"
    with file.open("wb") as handle:
        handle.write((100_000_000).to_bytes(8, "little"))
        handle.truncate(100_000_100)


def link_out(folder):
    os.rename(folder / "model.safetensors", folder.parent / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to("../elsewhere.safetensors")


def hub_cache(folder):
    """What is copied with cp -rL is one, too, of plain files."""
    (folder / "snapshots/abc").mkdir(parents=True)
    for file in filter(os.path.isfile, list(folder.iterdir())):
        os.rename(file, folder / "snapshots/abc" / file.name)


def index(weight_map):
    def spoil(folder):
        shutil.move(folder / "model.safetensors", folder / "model-1.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return spoil


BOS, EOS, BAR = "<|startoftext|>", "<|endoftext|>", r"'<\|startoftext\|>'"
LOGIT, NORM = "logit_scale", "text_model.final_layer_norm.bias"
LAYER = "vision_model.encoder.layers.1.mlp.fc1.weight"
SPOILT = {
    "cut": (cut, "damaged"),
    "empty": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "damaged"),
    "a header of 100 MB": (large_header, f"header has 100000000 bytes; at most {MAX_HEADER_BYTES}"),
    "a tensor is missing": (change_tensors(lambda x: x.pop(NORM)), f"lacks {NORM}"),
    "the scale is missing": (change_tensors(lambda x: x.pop(LOGIT)), "no number 'logit_scale'"),
    "a layer is missing": (change_tensors(lambda x: [x.pop(n) for n in list(x) if ".layers.1.layer_norm1" in n]), "depth"),
    "a tensor more": (change_tensors(lambda x: x.update(extra=np.ones(3))), "holds extra, which the family does not know"),
    "another shape": (change_tensors(lambda x: x.update({NORM: np.ones(7, np.float32)})), r"\[7\] cannot become text/post_norm/bias \[30\]"),
    "another layer": (change_tensors(lambda x: x.update({LAYER: x[LAYER].T})), "cannot become image/transformer/blocks/mlp_in/kernel"),
    "NaN": (change_tensors(lambda x: x[LAYER].__setitem__((3, 3), np.nan)), "NaN or infinity"),
    "an infinite scale": (change_tensors(lambda x: x.update({LOGIT: np.array(np.inf, np.float32)})), "logit_scale=inf is out of range"),
    "whole numbers": (change_tensors(lambda x: x.update({NORM: np.ones(30, np.int64)})), "of the type int64"),
    "another config": (change_json("config.json", vision_config__hidden_size=60), "width=60, but the weights have 45"),
    "another activation": (change_json("config.json", text_config__hidden_act="relu"), "relu.*which a tower can have"),
    "an epsilon of text": (change_json("config.json", text_config__layer_norm_eps="1"), "is not of the type float"),
    "another EOS": (change_json("config.json", text_config__eos_token_id=98), "ends texts with the id 99, but the model pools them at 98"),
    "heads that do not divide": (change_json("config.json", text_config__num_attention_heads=7), "does not split into heads=7"),
    "a section under its older key": (change_json("config.json", text_config_dict={}), "text_config_dict says width=512, but the weights have 30"),
    "a section that is none": (change_json("config.json", text_config=[]), "is no section but list"),
    "another model type": (change_json("config.json", model_type="blip"), "model_type='blip', of which no family"),
    "two families": (
        lambda folder: (folder / "open_clip_config.json").write_text("{}"),
        "can be read as open_clip or hf_clip .*choose one with --family",
    ),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json is damaged"),
    "another scale of pixels": (change_json("processor_config.json", image_processor__rescale_factor=1.0), "is not 1/255"),
    "a deviation of 0": (change_json("processor_config.json", image_processor__image_std=[0, 0.5, 0.5]), "no deviation 0"),
    "a list for a side": (change_json("processor_config.json", image_processor__crop_size=[42, 42]), "is not one side in pixels"),
    "the longer side": (change_json("processor_config.json", image_processor__size={"longest_edge": 42}), "is neither height and width nor"),
    "a crop beyond the picture": (change_json("processor_config.json", image_processor__crop_size=84), "is larger than size"),
    "a crop of a squashed picture": (change_json("processor_config.json", image_processor__size={"height": 48, "width": 48}), "of a squashed picture"),
    "quantized": (change_json("config.json", quantization_config={"quant_method": "bitsandbytes"}), "quantized: dequantize the model"),
    "code of its own": (change_json("config.json", auto_map={"AutoModel": "modeling.Mine"}), "code of its own"),
    "an adapter": (lambda folder: (folder / "adapter_config.json").write_text("{}"), r"merge_and_unload\(\)"),
    "a cache of the Hub": (hub_cache, "name the folder of a snapshot in .*snapshots"),
    "a processor that pads": (change_json("processor_config.json", image_processor__do_pad=True), "do_pad=True asks for what"),
    "names of LoRA": (
        change_tensors(lambda x: x.update({LAYER.replace("fc1", "fc1.base_layer"): x.pop(LAYER)})),
        r"names of LoRA.*merge_and_unload\(\)",
    ),
    "a pointer of git-lfs": (lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com"), "run git lfs pull"),
    "another interpolation": (change_json("processor_config.json", image_processor__resample=1), "resample=1 is neither"),
    "fewer embeddings than ids": (change_tensors(lambda x: x.update({n: x[n][:90] for n in x if "token_embedding" in n})), "vocab_size=100, but the weights have 90"),
    "a link out": (link_out, "link that leads out of its folder"),
    "an index that leads out": (index({"a": "../elsewhere.safetensors"}), "does not name files of weights in its folder"),
    "an index of another file": (index({"a": "model-2.safetensors"}), "which is not there"),
    "an index of other names": (index({"a": "model-1.safetensors"}), "does not fit its files"),
    "an empty folder": (lambda folder: [file.unlink() for file in folder.iterdir()], "holds no weights"),
    "another end of a text": (change_json("tokenizer.json", post_processor__sep=["!", 0]), f"puts {BAR} before a text and '!' behind it where"),
    "no ends of a text": (change_json("tokenizer.json", post_processor=None), "puts '' before a text"),
    "an unknown post-processor": (change_json("tokenizer.json", post_processor={"type": "Magic"}), "post_processor is not read: 'Magic' is unknown"),
    "two ends of a text": (
        change_json("tokenizer.json", post_processor={"type": "Sequence", "processors": [{"type": "BertProcessing", "sep": ["a", 1], "cls": ["b", 2]}] * 2}),
        "it puts several tokens at one end",
    ),
    "a post-processor that is none": (change_json("tokenizer.json", post_processor=[1]), "post_processor is not read"),
    "an EOS that is not added": (change_json("tokenizer_config.json", add_eos_token=False), "add_eos_token is False, the tokenizer's own file True"),
    "several files": (lambda folder: [(folder / n).touch() for n in ("a.pt", "b.pt")] and (folder / "model.safetensors").unlink(), "several files"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    return shutil.copytree(FOLDERS / "hf_clip_gelu", tmp_path / "in/clip")


@pytest.fixture(autouse=True, scope="module")
def each_network_once():
    """Spoilt copies of a folder describe one network, which takes most of an import to build."""
    networks, build = {}, load._network

    def remembered(config):
        key = json.dumps([config["model"], config["objectives"]], sort_keys=True)
        if key not in networks:
            networks[key] = build(config)
        return networks[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "_network", remembered)
        yield


@pytest.mark.parametrize("spoil, what", [pytest.param(*row, id=name) for name, row in SPOILT.items()])
def test_a_spoilt_folder_is_one_line_and_leaves_nothing(spoil, what, folder, tmp_path):
    spoil(folder)
    with pytest.raises(UserError, match=what) as error:
        import_weights(str(folder), f"{tmp_path}/run")
    assert "\n" not in str(error.value) and [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("name, file, key, value, what", [
    ("two", "config.json", "vision_config__vision_use_head", False, "vision_use_head=False asks for what filip_jax does not compute"),
    ("two", "config.json", "text_config__projection_size", 30, "projection_size=30, but the weights have 45"),
    ("two", "tokenizer_config.json", "do_lower_case", False, "do_lower_case=False, but a SigLIP's texts have no capitals"),
    ("two", "tokenizer_config.json", "add_bos_token", True, "add_bos_token is True, the tokenizer's own file False"),
    ("two", "tokenizer_config.json", "add_eos_token", False, "add_eos_token is False, the tokenizer's own file True"),
    ("two", "tokenizer.json", "post_processor", None, "puts '' before a text and '' behind it where '' and '<eos>' belong"),
    ("one", "tokenizer_config.json", "do_lower_case", False, "do_lower_case=False, but a SigLIP's texts have no capitals"),
    ("one", "tokenizer_config.json", "add_eos_token", False, "add_eos_token is False"),
])  # fmt: skip
def test_a_siglip_that_is_none_is_refused(name, file, key, value, what, tmp_path):
    folder = shutil.copytree(FOLDERS / f"hf_siglip_{name}", tmp_path / "siglip")
    change_json(file, **{key: value})(folder)
    with pytest.raises(UserError, match=what):
        read_weights(str(folder), lambda *lines: None)


def test_a_snapshot_of_links_is_copied_first(folder):
    """One of plain files is a folder like any other, as is a folder of this name."""
    snapshot = folder.parent / "snapshots/abc"
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        (snapshot / file.name).symlink_to(file)
    with pytest.raises(UserError, match="run cp -rL .* and import copy"):
        load._place(str(snapshot))
    plain = shutil.copytree(snapshot, folder.parent / "other/snapshots/abc")
    (plain / "snapshots").mkdir()
    assert load._place(str(plain)) == plain


@pytest.mark.parametrize(
    "causal, pad, name", [(True, EOS, "."), (False, "!", "."), (False, EOS, ""), (False, EOS, ".")]
)
def test_texts_that_see_their_pads_are_filled_as_there(causal, pad, name, tmp_path):
    """open_clip fills texts with 0, but where a tokenizer of transformers cuts them with the pad of that."""
    folder = shutil.copytree(FOLDERS / "open_clip_gelu", tmp_path / "clip")
    change_json("tokenizer_config.json", pad_token=pad)(folder)
    content = json.loads((folder / "open_clip_config.json").read_text())
    content["model_cfg"]["text_cfg"] |= dict(no_causal_mask=not causal, hf_tokenizer_name=name)
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    is_other = not causal and pad == EOS and name
    with pytest.raises(UserError, match="sees? what fills them") if is_other else contextlib.nullcontext():
        read_weights(str(folder), lambda *lines: None)


TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": BOS}}, {"Sequence": {"id": "A"}}, {"SpecialToken": {"id": EOS}}],
}


@pytest.mark.parametrize("processor", [
    TEMPLATE,
    {"type": "Sequence", "processors": [{"type": "ByteLevel"}, TEMPLATE]},
    {"type": "BertProcessing", "sep": [EOS, 99], "cls": [BOS, 98]},
], ids=["template", "sequence", "bert"])  # fmt: skip
def test_the_ends_of_a_text_are_found_however_they_are_stated(processor, folder):
    change_json("tokenizer.json", post_processor=processor)(folder)
    source = ModelSource(folder, folder, {"tokenizer_config.json": {"add_bos_token": True, "add_eos_token": True}}, {})
    section, _ = of_clip(source, 100)
    assert (section["bos"], section["eos"], section["pad"]) == (BOS, EOS, "!")


def test_a_clip_without_a_tokenizer_is_told_the_option_of_its_command(tmp_path, monkeypatch):
    monkeypatch.setattr("filip_jax.weights.words.in_packages", lambda form: None)
    with pytest.raises(UserError, match=r"without a tokenizer: give CLIP's bpe_simple_vocab.* with --tokenizer=FILE$"):
        of_clip(ModelSource(tmp_path, tmp_path, {}, {}), 49_408)


def test_a_number_of_many_digits_is_read_as_a_float(folder):
    change_json("tokenizer_config.json", model_max_length=int(1e30))(folder)  # as transformers writes for none
    assert load._configs(folder)["tokenizer_config.json"]["model_max_length"] == 1e30
    change_json("tokenizer_config.json", model_max_length=10**400)(folder)
    with pytest.raises(UserError, match="tokenizer_config.json is damaged: Infinity is not a number"):
        load._configs(folder)


@pytest.mark.slow
def test_a_family_against_the_config_is_said(folder):
    change_json("config.json", model_type="chinese_clip")(folder)
    lines = []
    read_weights(str(folder), lambda *new: lines.extend(new), family="hf_clip")
    assert any("--family=hf_clip, though config.json says model_type='chinese_clip'" in line for line in lines)


@pytest.mark.parametrize("words, what", [
    (["openai/clip-vit-base-patch32"], "hf download openai/clip-vit-base-patch32 --local-dir=clip-vit-base-patch32"),
    (["https://huggingface.co/openai/clip-vit-base-patch32"], "run hf download openai/clip-vit-base-patch32 "),
    (["nothing.safetensors"], "no such file or folder"),
    (["ViT-B-32"], "give a model that lies on this machine"),
    (["FOLDER", "--family=clip"], "--family=clip is not one of open_clip, hf_clip"),
    (["FOLDER", "--family=hf_siglip"], "holds names of hf_clip, such as .* leave out --family=hf_siglip, which they contradict"),
    (["FOLDER/model.safetensors", "--family=open_clip"], "holds names of hf_clip, such as .* leave out --family=open_clip"),
    (["FOLDER/model.safetensors"], "comes without config.json"),
    (["OPENAI", "--model=ViT-B-32"], "patch_size=32, but the weights have 7"),
    (["OPENCLIP", "--model=ViT-B-32"], "has its own open_clip_config.json: leave it out"),
    (["OPENAI", "--model=RN50"], "is none of the ViTs that are known by name"),
    (["OPENAI"], "does not tell its activation"),
    (["OPENAI", "--model=ViT-B-7-quickgelu"], "not CLIP's 49408: give its tokenizer.json"),
    (["FOLDER", "--model=ViT-B-32"], "is for weights of open_clip"),
    (["VIT", "--tokenizer=nothing.json"], "holds images alone"),
    (["FOLDER", "--tokenizer=nothing.json"], "--tokenizer=nothing.json: no such file"),
    (["FOLDER", "--image_size=30"], "--image_size=30 is no multiple of 7"),
    (["FOLDER", "--output=gs://bucket/run"], "give a folder of this machine"),
    (["FOLDER", "--output=FOLDER"], "is there already"),
])  # fmt: skip
def test_mistakes_of_the_command_are_one_line(words, what, folder, tmp_path, capsys):
    places = {
        "FOLDER": str(folder),
        "OPENAI": str(FOLDERS / "open_clip_openai_wide"),
        "OPENCLIP": str(FOLDERS / "open_clip_quickgelu"),
        "VIT": str(FOLDERS / "hf_vit_small"),
    }
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    output = [] if any(word.startswith("--output") for word in words) else [f"--output={tmp_path}/run"]
    assert main(["import", *words, *output]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    with pytest.raises(UserError, match=what):
        raise UserError(said)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.slow
def test_an_import_that_cannot_be_written_leaves_nothing(folder, tmp_path, monkeypatch, capsys):
    def fail(self, *arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("filip_jax.weights.output.CheckpointWriter.save", fail)
    assert main(["import", str(folder), f"--output={tmp_path}/deep/run"]) == 2
    assert not list((tmp_path / "deep").iterdir()) and "No space" in capsys.readouterr().err
