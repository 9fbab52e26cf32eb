"""Runs as folders of other tools: every tensor bit by bit there and back, what a format lacks beside it, refusals that leave nothing."""

import json
import shutil

import golden_weights
import jax
import numpy as np
import pytest
from conftest import examples, slow
from golden_weights import FOLDERS, OPTIONS
from hypothesis import given
from hypothesis import strategies as st

from filip_jax.checkpoint import CheckpointWriter
from filip_jax.cli import main
from filip_jax.data.sentence_pieces import train_sentence_pieces, with_options
from filip_jax.data.tokenizer import Tokenizer
from filip_jax.data.tokenizer_json import read_tokenizer_json
from filip_jax.errors import UserError
from filip_jax.models import make_model
from filip_jax.objectives.total import init_parameters, make_objectives
from filip_jax.paths import flatten, saved_metadata
from filip_jax.saved_config import save_config
from filip_jax.weights import mapping, save
from filip_jax.weights.exported_run import ExportedRun
from filip_jax.weights.families import FAMILIES
from filip_jax.weights.formats import FORMATS
from filip_jax.weights.load import import_weights, read_weights
from filip_jax.weights.save import EXTRA, EXTRA_TOKENIZER, export_weights
from filip_jax.weights.tensors import open_weights, weights_file, write_safetensors

imported = golden_weights.imported
FAST = ("hf_clip_gelu",)
NAMES = [name if name in FAST else slow(name) for name in golden_weights.NAMES]
OTHERS = [
    slow("open_clip_quickgelu", "hf_clip"),
    slow("hf_clip_gelu", "open_clip"),
    slow("open_clip_custom_text", "hf_clip"),
]
CAPTIONS = [
    "a red dog on the grass",
    "two cats, one blue",
    "the big dog and the small cat",
    "ein roter Hund",
    "猫と犬",
] * 4
TOWER = dict(width=16, depth=2, heads=2, activation="gelu")
IMAGE = dict(kind="vit", image_size=16, patch_size=8, **TOWER)
CLIP, FILIP = dict(kind="clip", weight=1.0), dict(kind="filip", weight=1.0, logit_scale_init=20.0)


def silent(*lines):
    pass


def native(name):
    """The format of a golden folder itself; images alone have none."""
    return next((each for each in FORMATS if name.startswith(each)), "safetensors")


@pytest.fixture(scope="module")
def pieces():
    return train_sentence_pieces(CAPTIONS, 300)


def make_run(folder, pieces, objectives, *, ema=False, image=None, text=None, scale_steps=0.0):
    """A run that has trained nothing, with these options of its towers; scales of objectives are so many apart."""
    words = Tokenizer(pieces)
    sizes = dict(kind="transformer", vocab_size=words.vocab_size, length=12, **TOWER)
    similarity = dict(cls_in_similarity=False, bos_in_similarity=True, eos_in_similarity=True)
    towers = dict(image=IMAGE | (image or {}), text=sizes | {"pad_id": words.pad_id} | (text or {}))
    model = dict(embed_dim=16, dtype="float32", **similarity, attention="xla", scan=False, remat=False, **towers)
    config = dict(total_steps=7, model=model, objectives=objectives, evals={}, tokenizer=dict(name="sentencepiece"))
    config |= dict(data=dict(image_size=16, text_length=12), init_from=dict(path="", rules=()))
    parts = make_objectives(objectives)
    network = make_model(parts.needs, **model)
    parameters = jax.jit(lambda key: init_parameters(network, parts, key))(jax.random.key(3))
    for number, part in enumerate(parameters["objectives"].values()):
        part["logit_scale"] += scale_steps * number
    folder.mkdir(parents=True)
    (folder / "tokenizer.model").write_bytes(pieces)
    save_config(folder, config)
    meta = dict(samples_seen=0, tokenizer_sha256=words.sha256, parameters=saved_metadata(network.metadata))
    writer = CheckpointWriter(folder, every_steps=1, every_minutes=0.0, keep_last=1, keep_every_steps=0)
    average = {"ema": jax.tree.map(lambda x: 1.25 * x, parameters)} if ema else {}
    writer.save(7, {"params": parameters, **average}, meta, config)
    writer.wait()
    return flatten(parameters)


def tensors_of(folder, family):
    with open_weights(weights_file(folder, FAMILIES[family].files)) as weights:
        return {name: stored.read() for name, stored in weights.tensors.items()}


def check_round_trip(name, workdir, output, format):
    """Check that an export, imported again, has the same config and parameters."""
    export_weights(str(workdir), str(output), format)
    again = read_weights(str(output), silent)
    first = read_weights(str(FOLDERS / name), silent, **OPTIONS.get(name, {}))
    for path, value in first.parameters.items():
        assert again.parameters[path].tobytes() == value.tobytes(), path
    assert again.parameters.keys() == first.parameters.keys()
    assert stated(again.config["model"]) == stated(first.config["model"])


def stated(model):
    """The options of a model that are not the default; where a crop begins is the library's that loads the folder."""
    default = {"crop": 1.0, "projection": "linear", "pad_mask": not model["text"].get("causal", True)}
    towers = {
        name: {key: value for key, value in model[name].items() if key != "crop_start" and default.get(key) != value}
        for name in ("image", "text")
    }
    return json.loads(json.dumps({**model, **towers, "scan": True}))


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_of_a_source_comes_out_again_in_its_type(name, imported, tmp_path):
    format = native(name)
    check_round_trip(name, imported(name), tmp_path / "out", format)
    if format == "safetensors":
        return
    source, found = tensors_of(FOLDERS / name, format), tensors_of(tmp_path / "out", format)
    unused = json.loads((imported(name) / "origin.json").read_text())["unused"]
    assert found.keys() == source.keys() - unused.keys()
    for key, array in found.items():
        assert array.shape == source[key].shape and array.dtype == np.float32
        assert array.astype(source[key].dtype).tobytes() == source[key].tobytes(), key


@pytest.mark.parametrize("name, format", OTHERS)
def test_families_of_one_function_go_into_each_other(name, format, imported, tmp_path):
    check_round_trip(name, imported(name), tmp_path / "out", format)


@pytest.mark.slow
def test_license_and_origin_go_along(tmp_path):
    shutil.copytree(FOLDERS / "hf_clip_gelu", tmp_path / "model")
    (tmp_path / "model/README.md").write_text("---\nlicense: cc-by-4.0\nbase_model: some/one\n---\n# Mine\n")
    (tmp_path / "model/LICENSE").write_text("Do as you like.\n")
    import_weights(str(tmp_path / "model"), str(tmp_path / "run"))
    export_weights(str(tmp_path / "run"), str(tmp_path / "out"), "hf_clip")
    assert (tmp_path / "out/LICENSE").read_text() == "Do as you like.\n"
    assert "license: cc-by-4.0\nbase_model: some/one\n" in (tmp_path / "out/README.md").read_text()
    [origin] = json.loads((tmp_path / "out/origin.json").read_text())["origins"]
    assert origin["family"] == "hf_clip" and len(origin["files"]["model.safetensors"]) == 64
    assert origin["license"]["license"] == "cc-by-4.0"


def test_what_a_format_lacks_lies_beside_it(pieces, tmp_path, capsys):
    own = make_run(
        tmp_path / "run", pieces, dict(late=FILIP, whole=CLIP), ema=True, image=dict(patch_dropout=0.5, tokens="value")
    )
    command = ["export", f"--workdir={tmp_path}/run", "--format=hf_clip"]
    assert main([*command, f"--output={tmp_path}/out"]) == 0
    said = capsys.readouterr().out
    assert "warning: this model compares all tokens" in said and "their average" in said
    assert "model.image.patch_dropout=0.5" in said and "model.image.tokens='value'" in said
    extra = tensors_of_file(tmp_path / "out" / f"{EXTRA}.safetensors")
    assert extra.keys() == {"image_projection/kernel", "text_projection/kernel", "objectives/late/logit_scale"}
    listed = json.loads((tmp_path / "out" / f"{EXTRA}.json").read_text())
    assert set(listed["parameters"]) == extra.keys() and listed["model"]["image"]["patch_dropout"] == 0.5
    found = tensors_of(tmp_path / "out", "hf_clip")
    np.testing.assert_array_equal(found["visual_projection.weight"].T, 1.25 * own["image_pooled_projection/kernel"])
    assert main([*command, f"--output={tmp_path}/two", "--head=tokens", "--no-average", "--step=7"]) == 0
    found = tensors_of(tmp_path / "two", "hf_clip")
    np.testing.assert_array_equal(found["visual_projection.weight"].T, own["image_projection/kernel"])
    assert found["logit_scale"].shape == () and found["logit_scale"] == own["objectives/late/logit_scale"]
    left = tensors_of_file(tmp_path / "two" / f"{EXTRA}.safetensors")
    np.testing.assert_array_equal(left["image_pooled_projection/kernel"], own["image_pooled_projection/kernel"])


@pytest.mark.parametrize(
    "objectives", [dict(late=FILIP, whole=CLIP), slow(dict(late=FILIP)), slow(dict(one=CLIP, two=CLIP))], ids="-".join
)
def test_a_safetensors_folder_holds_every_parameter_and_nothing_beside(objectives, pieces, tmp_path, capsys):
    """Scales of several objectives, or both projections, are not exchanged: each keeps its own value under its own path."""
    own = make_run(tmp_path / "run", pieces, objectives, scale_steps=0.25)
    export_weights(str(tmp_path / "run"), str(tmp_path / "out"), "safetensors")
    found = tensors_of(tmp_path / "out", "own")
    assert found.keys() == own.keys()
    for path, value in own.items():
        assert found[path].tobytes() == value.tobytes(), path
    assert not list((tmp_path / "out").glob(f"{EXTRA}*")) and "extra: " not in capsys.readouterr().out


def exported_run_of(pieces, **towers):
    words = Tokenizer(pieces)
    text = dict(kind="transformer", vocab_size=words.vocab_size, length=12, **TOWER) | towers.get("text", {})
    model = dict(embed_dim=16, image=IMAGE | towers.get("image", {}), text=text)
    return ExportedRun(dict(model=model, objectives=dict(clip=CLIP)), {}, words, "pooled")


def test_open_clip_pools_at_our_eos(pieces):
    """The config names its number unless it is the largest id, where CLIP's own rule does the same."""
    eos = Tokenizer(pieces).pieces.eos
    for text, rule in (({}, "eos"), (dict(vocab_size=eos + 1), "argmax")):
        files = FORMATS["open_clip"].make(exported_run_of(pieces, text=text)).files
        found = json.loads(files["open_clip_config.json"])["model_cfg"]["text_cfg"]
        assert (found["pool_type"], found["eos_id"]) == (rule, eos)


def tensors_of_file(file):
    with open_weights(file) as weights:
        return {name: stored.read() for name, stored in weights.tensors.items()}


@pytest.mark.parametrize(
    "format, image, text, said",
    [
        ("open_clip", dict(class_tokens=0, pooling="mean"), {}, "model.image.class_tokens=0 (there 1)"),
        ("hf_clip", dict(registers=2), {}, "model.image.registers=2 (there 0)"),
        ("hf_clip", dict(layer_scale=0.1), {}, "model.image.layer_scale=0.1 (there None)"),
        ("hf_clip", {}, dict(pooling="last"), "model.text.pooling='last' (there 'eos')"),
        ("hf_clip", {}, dict(causal=False), "model.text.causal=False (there True)"),
        ("hf_siglip", {}, {}, "model.image.pooling='class' (there 'map')"),
        ("open_clip", {}, dict(causal=False), "model.text.pad_mask=True"),
        ("open_clip", dict(activation="quick_gelu"), {}, "in both or in none"),
    ],
)
def test_what_a_format_would_compute_otherwise_is_refused(format, image, text, said, pieces):
    run = exported_run_of(pieces, image=image, text=text)
    assert said in "; ".join(FORMATS[format].misfits(run))
    assert not FORMATS["safetensors"].misfits(run)


@pytest.mark.parametrize("format, start", [("open_clip", "floor"), ("hf_clip", "round")])
def test_a_crop_that_begins_elsewhere_is_said(format, start, pieces):
    for each in ("floor", "round"):
        differs = FORMATS[format].make(exported_run_of(pieces, image=dict(crop_start=each))).differs
        assert any(f"model.image.crop_start={start!r}" in line for line in differs) == (each == start)


def test_an_eos_that_is_the_pad_is_refused_by_formats_that_pool_there(pieces):
    """Here the last token that is no pad is pooled, which is then the one before EOS."""
    run = exported_run_of(with_options(pieces, canonicalize=False, bos=True, eos_as_pad=True))
    assert all("an EOS that is the pad" in "; ".join(FORMATS[name].misfits(run)) for name in ("hf_clip", "open_clip"))
    assert not FORMATS["safetensors"].misfits(run)


def test_a_refusal_names_formats_that_fit_and_leaves_nothing(pieces, tmp_path):
    make_run(tmp_path / "run", pieces, dict(clip=CLIP), image=dict(class_tokens=0, pooling="mean"))
    with pytest.raises(UserError, match=r"class_tokens=0 \(there 1\).*: take --format=safetensors$"):
        export_weights(str(tmp_path / "run"), str(tmp_path / "out"), "open_clip")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    "options, said",
    [
        (["--format=onnx"], "--format='onnx' is not one of hf_clip"),
        slow(["--format=hf_clip", "--step=3"], "no checkpoint of step 3"),
        (["--format=hf_clip", "--average"], "holds no average"),
        slow(["--format=hf_clip", "--head=tokens"], "--head=tokens: the run has no such head, only pooled"),
        slow(["--format=hf_clip", "--head=x"], "--head='x' is not one of pooled, tokens"),
        (["--format=safetensors", "--head=pooled"], "--format=safetensors keeps all projections: leave out --head"),
        (["--format=hf_clip", "--output={there}"], "is there already"),
    ],
)
def test_a_wrong_option_is_one_line(options, said, pieces, tmp_path, capsys):
    make_run(tmp_path / "run", pieces, dict(clip=CLIP))
    (tmp_path / "there").mkdir()
    (tmp_path / "there/mine.txt").write_text("mine")
    options = [option.replace("{there}", f"{tmp_path}/there") for option in options]
    assert main(["export", f"--workdir={tmp_path}/run", f"--output={tmp_path}/out", *options]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "there"]


def test_an_eos_that_transformers_takes_for_another_rule_is_refused(pieces, tmp_path, monkeypatch):
    make_run(tmp_path / "run", pieces, dict(clip=CLIP))
    monkeypatch.setattr("filip_jax.weights.formats.hf_clip.ARGMAX", Tokenizer(pieces).pieces.eos)
    with pytest.raises(UserError, match="pools at the largest id"):
        export_weights(str(tmp_path / "run"), str(tmp_path / "out"), "hf_clip")


def test_a_transform_that_is_not_undone_is_noticed(pieces, tmp_path, monkeypatch):
    """Reading the folder back finds q, k and v in another order, and nothing stays."""
    make_run(tmp_path / "run", pieces, dict(clip=CLIP))

    def reversed_qkv(rule, parameter):
        found = mapping.give(rule, parameter)
        names = list(found)
        is_qkv = len(rule.names) == 3
        return dict(zip(names, reversed(list(found.values())), strict=True)) if is_qkv else found

    monkeypatch.setattr(save, "give", reversed_qkv)
    with pytest.raises(UserError, match="does not read back as it was written: .*qkv"):
        export_weights(str(tmp_path / "run"), str(tmp_path / "out"), "hf_clip")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_tokenizer_with_other_ids_is_noticed(pieces, tmp_path, monkeypatch):
    """Its letters have the numbers of others; nothing else differs."""
    make_run(tmp_path / "run", pieces, dict(clip=CLIP))
    files = Tokenizer(pieces).public_files(12)
    spec = json.loads(files["tokenizer.json"])
    names, numbers = list(spec["model"]["vocab"]), list(spec["model"]["vocab"].values())
    letters = numbers.index(260)  # behind the special pieces and those of bytes
    spec["model"]["vocab"] = dict(zip(names, [*numbers[:letters], *reversed(numbers[letters:])]))
    monkeypatch.setattr(Tokenizer, "public_files", lambda *_: files | {"tokenizer.json": json.dumps(spec).encode()})
    with pytest.raises(
        UserError, match="gives other ids than the run's to .* of 10 odd texts, such as 'a photo of a dog'"
    ):
        export_weights(str(tmp_path / "run"), str(tmp_path / "out"), "hf_clip")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
def test_a_tokenizer_that_transformers_has_not_lies_beside(pieces, tmp_path, capsys):
    """SigLIP's class canonicalizes texts, too, but does not begin them with BOS."""
    model = with_options(pieces, canonicalize=True, bos=True, eos_as_pad=False)
    make_run(tmp_path / "run", model, dict(clip=CLIP))
    export_weights(str(tmp_path / "run"), str(tmp_path / "out"), "hf_clip")
    assert "cannot cut texts as the run's tokenizer does" in capsys.readouterr().out
    assert (tmp_path / "out" / EXTRA_TOKENIZER).read_bytes() == model
    assert not (tmp_path / "out/tokenizer.json").exists()


@examples(200)
@given(st.text(st.sampled_from("adogcteh ,.A猫\t🐶éß▁<s>"), max_size=30) | st.text(max_size=12))
def test_sentencepiece_as_tokenizer_json_gives_the_same_ids(fast_pieces, text):
    own, public = fast_pieces
    assert own.encode([text], 40)[0].tolist() == public.encode([text], 40)[0].tolist()


@pytest.fixture(scope="module")
def fast_pieces(pieces, tmp_path_factory):
    own = Tokenizer(pieces)
    file = tmp_path_factory.mktemp("json") / "tokenizer.json"
    file.write_bytes(own.public_files(40)["tokenizer.json"])
    return own, Tokenizer(read_tokenizer_json(None, str(file), bos="<s>", eos="</s>", pad="<pad>"))


def test_weights_are_readable_by_whom_other_files_are(tmp_path):
    (tmp_path / "other").write_bytes(b"")
    write_safetensors(tmp_path / "model.safetensors", {"a": np.zeros(2, np.float32)})
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
