"""Folders of tiny models with random weights, as the library of each format writes them, for make_weight_goldens.py."""

import io
import json
import tempfile
from pathlib import Path

import numpy as np
import open_clip
import torch
import transformers as hf
from open_clip.model import CLIP, CustomTextCLIP, convert_weights_to_fp16, set_model_preprocess_cfg
from open_clip.push_to_hf_hub import save_for_hf
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
MERGES = (
    "ca t</w>|do g</w>|re d</w>|th e</w>|a n|an d</w>|b l|bl u|blu e</w>|o f</w>|i n|in g</w>|c a|d o|r e|t h".split(
        "|"
    )
)
TEXTS = [
    "dog",
    "a red cat, and the blue dog",
    "the cat of the dog of the cat of the dog of the cat of the dog of the cat",
]
LENGTH, SIGLIP_LENGTH = 12, 16  # tokens of a text
CLIP_STATISTICS = dict(
    mean=open_clip.OPENAI_DATASET_MEAN,
    std=open_clip.OPENAI_DATASET_STD,
    interpolation="bicubic",
    resize_mode="shortest",
)


def perturb(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Fill all parameters with random values of which none is the initial one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            last = name.rpartition(".")[2]
            if last == "logit_scale":
                noise = 2.9 + 0.1 * noise
            elif last == "logit_bias":
                noise = noise - 7
            elif last in ("lambda1", "gamma"):  # layer scale
                noise = 0.7 + 0.2 * noise
            elif "embed" in name and value.ndim < 4:
                noise = 0.03 * noise
            elif value.ndim == 4:  # patches: as small as the positions
                noise = 0.03 * noise / value[0].numel() ** 0.5
            elif last.endswith("bias"):
                noise = 0.2 * noise
            elif value.ndim == 1:  # norms
                noise = 1 + 0.3 * noise
            elif last != "probe":
                noise = 1.2 * noise / value.shape[-1] ** 0.5
            value.copy_(noise)
    return model


def clip_tokenizer(length: int) -> hf.CLIPTokenizer:
    """CLIP's byte pairs with a small alphabet and its specials at the end."""
    letters = [*"!,.'-0123456789abcdefghijklmnopqrstuvwxyz"]
    merges = sorted(MERGES, key=len)
    names = letters + [f"{letter}</w>" for letter in letters] + [pair.replace(" ", "") for pair in merges]
    names += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: index for index, name in enumerate(names)}
    return hf.CLIPTokenizer(vocabulary, [tuple(pair.split()) for pair in merges], model_max_length=length)


def siglip_tokenizer(length: int) -> hf.SiglipTokenizer:
    """SigLIP's sentencepiece: padding 0, end 1 (which pads), unknown 2, no beginning."""
    import sentencepiece

    lines = (ROOT / "tests/golden/alt_texts.tsv").read_text().splitlines()
    lines = [line[3:].lower() for line in lines if line.startswith("en\t")] + TEXTS
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=140, character_coverage=0.98,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, normalization_rule_name="identity", minloglevel=2, num_threads=1,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "spiece.model"
        file.write_bytes(model.getvalue())
        return hf.SiglipTokenizer(str(file), model_max_length=length)


def siglip2_tokenizer(length: int) -> hf.Siglip2Tokenizer:
    """SigLIP 2's tokenizer.json: Gemma's specials, lower case, words begin with ▁."""
    pairs = (
        "d o|do g|▁ do|▁ dog|c a|ca t|▁ cat|t h|th e|▁ the|r e|re d|▁ red|b l|u e|bl ue|▁ blue|n d|a nd|▁ and".split(
            "|"
        )
    )
    pairs = [tuple(pair.split()) for pair in pairs]
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *",.'abcdefghijklmnopqrstuvwxyz", *map("".join, pairs)]
    vocabulary = {name: index for index, name in enumerate(names)}
    return hf.Siglip2Tokenizer(vocabulary, pairs, model_max_length=length, padding_side="right", add_eos_token=True)


def token_ids(tokenizer, length: int, vocabulary: int, seed: int) -> np.ndarray:
    """Return the ids of TEXTS, as padded for training, and a row of random ids that ends with the largest."""
    encoded = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=length, return_tensors="np")
    ids = encoded["input_ids"].copy()
    if isinstance(tokenizer, hf.CLIPTokenizer):
        ids = np.where(encoded["attention_mask"], ids, 0)  # OpenAI's padding: HF's, the end again, says the same
    rows = np.random.default_rng(seed).integers(0, vocabulary - 2, (1, length))
    rows[0, -1] = vocabulary - 1
    ids = np.concatenate([ids, rows]).astype(np.int32)
    assert ids.max() < vocabulary and (ids[:2, -2:] == ids[0, -1]).all() and ids[2, -2] != ids[0, -1]
    return ids


# Makers of folders: each is (folder, seed) -> (side of the images, tokenizer or None).


def open_clip_folder(config: dict, training=False, **statistics):
    """Write a folder as `save_for_hf` does; `training`: epoch_1.pt of open_clip's training, and a config beside it."""

    def make(folder, seed):
        tokenizer = clip_tokenizer(LENGTH)
        custom = config.get("custom_text", False)
        options = {name: value for name, value in config.items() if name != "custom_text"}
        model = perturb((CustomTextCLIP if custom else CLIP)(**options), seed)
        set_model_preprocess_cfg(model, CLIP_STATISTICS | statistics)
        save_for_hf(model, tokenizer, config, folder, safe_serialization=True, skip_weights=training)
        if training:
            save_training(model, folder / "epoch_1.pt")
        return config["vision_cfg"]["image_size"], tokenizer

    return make


def save_training(model: torch.nn.Module, file: Path) -> None:
    """Write what open_clip_train.main does after an epoch of distributed training, where all but the norms is locked."""
    parallel = torch.nn.DataParallel(model)
    norms = [value for name, value in model.named_parameters() if "ln_" in name]
    optimizer = torch.optim.AdamW([dict(params=norms, weight_decay=0.0)], lr=5e-4, betas=(0.9, 0.98), eps=1e-6)
    for value in norms:
        value.grad = torch.ones_like(value)
    optimizer.step()
    saved = dict(epoch=1, name="2026_11_30-tiny", state_dict=parallel.state_dict(), optimizer=optimizer.state_dict())
    torch.save(saved | dict(scaler=torch.amp.GradScaler("cpu").state_dict()), file)


def openai_file(config: dict, numbers: bool):
    """Write the state dict of OpenAI's half-precision archives as safetensors; with or without their three `numbers`."""

    def make(folder, seed):
        model = perturb(CLIP(**config, quick_gelu=True), seed)
        convert_weights_to_fp16(model)
        vision, text = config["vision_cfg"], config["text_cfg"]
        state = {name: value.contiguous() for name, value in model.state_dict().items()}
        if numbers:
            state |= dict(
                input_resolution=torch.tensor(vision["image_size"]),
                context_length=torch.tensor(text["context_length"]),
                vocab_size=torch.tensor(text["vocab_size"]),
            )
        folder.mkdir()
        save_file(state, folder / "model.safetensors")
        return vision["image_size"], clip_tokenizer(LENGTH)

    return make


def hf_folder(model_of, config, processor, tokenizer=None, shard="5GB", dtype=torch.float32, after=None):
    """Write a folder by `save_pretrained`; `after` changes it then."""

    def make(folder, seed):
        model = perturb(model_of(config), seed)
        model.to(dtype).save_pretrained(folder, max_shard_size=shard)
        processor.save_pretrained(folder)
        if tokenizer is not None and not isinstance(processor, hf.ProcessorMixin):
            tokenizer.save_pretrained(folder)
        if after is not None:
            after(folder, config, tokenizer)
        return getattr(config, "vision_config", config).image_size, tokenizer

    return make


def as_old_clip(folder: Path, config: hf.CLIPConfig, tokenizer: hf.CLIPTokenizer) -> None:
    """Add the buffers, the empty sections and the tokenizer's files that version 4 wrote."""
    count = (config.vision_config.image_size // config.vision_config.patch_size) ** 2 + 1
    positions = {
        "text_model.embeddings.position_ids": torch.arange(config.text_config.max_position_embeddings)[None],
        "vision_model.embeddings.position_ids": torch.arange(count)[None],
    }
    file = folder / "model.safetensors"
    save_file(load_file(file) | positions, file, metadata={"format": "pt"})
    written = json.loads((folder / "config.json").read_text())
    written |= dict(text_config_dict=None, vision_config_dict=None, torch_dtype=written.pop("dtype", "float32"))
    written["transformers_version"] = "4.16.0.dev0"
    (folder / "config.json").write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")
    tokenizer.backend_tokenizer.model.save(str(folder))  # vocab.json, merges.txt


def without_defaults(folder: Path, config: hf.SiglipConfig, tokenizer) -> None:
    """Drop what a section of config.json need not say, as version 4 did: the first SigLIP's say next to nothing."""
    written = json.loads((folder / "config.json").read_text())
    for name in ("text_config", "vision_config"):
        default = type(getattr(config, name))().to_dict() | dict(projection_size=config.vision_config.hidden_size)
        section = written[name].items()
        written[name] = {key: value for key, value in section if key == "model_type" or value != default.get(key)}
        assert "hidden_act" not in written[name] and "layer_norm_eps" not in written[name]
    (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n")
