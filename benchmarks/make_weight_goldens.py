"""Tiny models in each family's own files, and what the public implementation makes of them: tests/weights.

    pip install "torch==2.14.*" "transformers==5.24.*" open_clip_torch==3.3.* "timm==1.0.*" sentencepiece
    python benchmarks/make_weight_goldens.py                         a minute on one core
    python benchmarks/make_weight_goldens.py --only=hf_siglip_one
    python benchmarks/make_weight_goldens.py --sizes              other sizes of images alone, into the files that are there

A folder FAMILY_NAME is what `save_pretrained` of transformers 5 or `save_for_hf` of open_clip 3.3 writes, or a file of open_clip's
training or with OpenAI's names. The weights are random: no norm, bias, layer scale or temperature has its initial value, and
embeddings are small, so that the epsilon of a norm shows. `outputs.npz` beside them holds, in float32,

    images [3, side, side, 3] uint8, ids [4, length] int32: one word, a text with padding, one that fills its length, random ids
    image_tokens, image_pooled, image_features, text_…, logits: public_models.py
    picture [48, 67, 3] uint8 and picture_resized [side, side, 3] uint8: what the folder's preprocessing makes of it
    at_N [3, tokens, width], positions_at_N [tokens, width] of some: image tokens of `at_size(images, N)`
    texts (where the folder has a tokenizer): what `ids` are of, the last row excepted; padding behind CLIP's end is 0

The tests read them; torch is no dependency of theirs.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import public_models
import torch
import transformers as hf
from PIL import Image
from weight_folders import (
    LENGTH,
    ROOT,
    SIGLIP_LENGTH,
    TEXTS,
    as_old_clip,
    clip_tokenizer,
    hf_folder,
    open_clip_folder,
    openai_file,
    siglip2_tokenizer,
    siglip_tokenizer,
    token_ids,
    without_defaults,
)  # fmt: skip

IMAGENET = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
# Sizes: width / head width of the towers are 36 / 12 and 24 / 8, or 45 / 15 and 30 / 10.
SMALL = dict(image_size=40, patch_size=8, width=36, head_width=12, layers=2), dict(width=24, heads=3, layers=3)
WIDE = dict(image_size=42, patch_size=7, width=45, head_width=15, layers=2), dict(width=30, heads=3, layers=2)


SIZES = {  # of images: smaller and larger than the trained ones
    "hf_clip_gelu": 63, "hf_dinov2_small": 24, "hf_dinov2_with_registers_wide": 28, "hf_siglip_two": 28, "hf_vit_small": 56,
    "open_clip_gelu": 24, "open_clip_quickgelu": 63,
}  # fmt: skip


def at_size(images: np.ndarray, size: int) -> np.ndarray:
    """Return the images cut, or repeated, to another size."""
    return np.pad(images, ((0, 0), (0, size), (0, size), (0, 0)), mode="wrap")[:, :size, :size]


def add_sizes(folder: Path) -> None:
    """Write what the public code makes of another size into outputs.npz, beside what is there."""
    if folder.name in SIZES:
        found = dict(np.load(folder / "outputs.npz"))
        found |= public_models.tokens_at(folder, at_size(found["images"], SIZES[folder.name]))
        np.savez_compressed(folder / "outputs.npz", **found)


def open_clip_config(size, embed_dim: int, vision=(), text=(), **options) -> dict:
    words = dict(context_length=LENGTH, vocab_size=len(clip_tokenizer(LENGTH)))
    return dict(embed_dim=embed_dim, vision_cfg=size[0] | dict(vision), text_cfg=words | size[1] | dict(text)) | options


def hf_section(tower: dict, **options) -> dict:
    """Return transformers' names for the sizes of a tower; an MLP is no multiple of the width."""
    sizes = dict(hidden_size=tower["width"], num_hidden_layers=tower["layers"], num_attention_heads=3)
    sizes |= {name: tower[name] for name in ("image_size", "patch_size") if name in tower}
    return sizes | dict(intermediate_size=80) | options


def clip_config(size, activation: str, **special) -> hf.CLIPConfig:
    common = dict(hidden_act=activation, projection_dim=28)
    words = dict(max_position_embeddings=LENGTH, vocab_size=len(clip_tokenizer(LENGTH)))
    text = hf_section(size[1], **common, **words, **special)
    return hf.CLIPConfig(text_config=text, vision_config=hf_section(size[0], **common), projection_dim=28)


def siglip_config(size, tokenizer, **text) -> hf.SiglipConfig:
    text = dict(max_position_embeddings=SIGLIP_LENGTH, vocab_size=len(tokenizer), pad_token_id=1) | text
    return hf.SiglipConfig(text_config=hf_section(size[1], **text), vision_config=hf_section(size[0]))


def image_config(kind, size, **options):
    section = hf_section(size[0], **options)
    if kind is not hf.ViTConfig:
        del section["intermediate_size"]  # theirs is a multiple
    return kind(**section)


def goldens() -> dict:
    clip, again = clip_tokenizer(LENGTH), clip_tokenizer(LENGTH)  # what encodes is saved with its padding
    one, two = siglip_tokenizer(SIGLIP_LENGTH), siglip2_tokenizer(SIGLIP_LENGTH)
    last = dict(no_causal_mask=True, pool_type="last", proj_bias=True, norm_kwargs=dict(eps=1e-6))
    last |= dict(act_kwargs=dict(approximate="tanh"))
    mean = dict(no_ln_pre=True, pool_type="avg", ls_init_value=0.1, mlp_ratio=3.0)
    tiny = dict(image_size=24, width=24, head_width=8), dict(layers=2)
    openai = dict(image_size=24, width=64, head_width=64), dict(width=64, heads=1, layers=1)
    crop = {side: dict(size=dict(shortest_edge=side), crop_size=dict(height=side, width=side)) for side in (40, 42)}
    square = {side: dict(size=dict(height=side, width=side)) for side in (40, 42)}
    dinov2 = {
        side: hf.BitImageProcessor(**crop[side] | dict(size=dict(shortest_edge=side + 6)), **IMAGENET)
        for side in (40, 42)
    }
    half = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    end = len(clip) - 1
    return {
        "open_clip_gelu": open_clip_folder(open_clip_config(SMALL, 28)),
        "open_clip_quickgelu": open_clip_folder(open_clip_config(WIDE, 31, dict(mlp_ratio=3.0), quick_gelu=True)),
        "open_clip_custom_text": open_clip_folder(open_clip_config(SMALL, 28, text=dict(layers=2), custom_text=True)),
        "open_clip_custom_options": open_clip_folder(
            open_clip_config(SMALL, 31, mean, last, custom_text=True, init_logit_bias=-10),
            mean=IMAGENET["image_mean"],
            std=IMAGENET["image_std"],
            interpolation="bilinear",
            resize_mode="squash",
        ),
        "open_clip_epoch": open_clip_folder(open_clip_config(SMALL, 20, *tiny), training=True),
        "open_clip_openai": openai_file(open_clip_config(SMALL, 28, *openai), numbers=True),
        "open_clip_openai_wide": openai_file(
            open_clip_config(WIDE, 31, dict(width=64, head_width=64, layers=1), openai[1]), numbers=False
        ),
        "hf_clip_quick_gelu": hf_folder(
            hf.CLIPModel,
            clip_config(SMALL, "quick_gelu", bos_token_id=0, eos_token_id=2),
            hf.CLIPImageProcessor(**crop[40]),
            clip,
            after=as_old_clip,
        ),
        "hf_clip_gelu": hf_folder(
            hf.CLIPModel,
            clip_config(WIDE, "gelu", bos_token_id=end - 1, eos_token_id=end),
            hf.CLIPProcessor(hf.CLIPImageProcessor(**crop[42]), again),
            again,
        ),
        "hf_siglip_one": hf_folder(
            hf.SiglipModel,
            siglip_config((SMALL[0], SMALL[1] | dict(width=36, layers=2)), one),
            hf.SiglipImageProcessor(**square[40]),
            one,
            after=without_defaults,
        ),
        "hf_siglip_two": hf_folder(
            hf.SiglipModel,
            siglip_config(WIDE, two, projection_size=45, pad_token_id=0, bos_token_id=2, eos_token_id=1),
            hf.SiglipImageProcessor(**square[42], resample=2),
            two,
            shard="150KB",
        ),
        "hf_vit_small": hf_folder(
            hf.ViTModel, image_config(hf.ViTConfig, SMALL), hf.ViTImageProcessor(**square[40], **half)
        ),
        "hf_vit_classifier": hf_folder(
            hf.ViTForImageClassification,
            image_config(hf.ViTConfig, WIDE, num_labels=5),
            hf.ViTImageProcessor(**square[42], **half),
            dtype=torch.bfloat16,
        ),
        "hf_dinov2_small": hf_folder(hf.Dinov2Model, image_config(hf.Dinov2Config, SMALL), dinov2[40]),
        "hf_dinov2_sharded": hf_folder(hf.Dinov2Model, image_config(hf.Dinov2Config, WIDE), dinov2[42], shard="100KB"),
        "hf_dinov2_with_registers_small": hf_folder(
            hf.Dinov2WithRegistersModel, image_config(hf.Dinov2WithRegistersConfig, SMALL), dinov2[40]
        ),
        "hf_dinov2_with_registers_wide": hf_folder(
            hf.Dinov2WithRegistersModel,
            image_config(hf.Dinov2WithRegistersConfig, WIDE, num_register_tokens=3),
            dinov2[42],
        ),
    }


def write(folder: Path, make) -> dict[str, np.ndarray]:
    """Write a folder with its outputs and return these."""
    shutil.rmtree(folder, ignore_errors=True)
    seed = sum(map(ord, folder.name))
    side, tokenizer = make(folder, seed)
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    images[1] = images[1] // 8 + 90  # of low contrast
    found = dict(images=images)
    if tokenizer is not None:
        found["ids"] = token_ids(tokenizer, tokenizer.model_max_length, len(tokenizer), seed)
        found["texts"] = np.array(TEXTS)
    rows, columns = np.mgrid[:48, :67]
    waves = (
        np.sin(rows / 3) + np.cos(columns / 5),
        np.sin((rows + columns) / 2) * 2,
        (rows // 8 + columns // 11) % 2 * 3 - 1,
    )
    found["picture"] = np.uint8(127.5 + 60 * np.stack(waves, 2))
    found |= public_models.outputs(folder, images, found.get("ids"))
    found["picture_resized"] = public_models.preprocessed(folder, Image.fromarray(found["picture"]))
    np.savez_compressed(folder / "outputs.npz", **found)
    add_sizes(folder)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="one folder's name")
    parser.add_argument("--output", type=Path, default=ROOT / "tests/weights")
    parser.add_argument(
        "--sizes", action="store_true", help="write only what is of other sizes, into files that are there"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()
    if arguments.sizes:
        for name in SIZES:
            add_sizes(arguments.output / name)
        return
    arguments.output.mkdir(exist_ok=True)
    print("| folder | KB | image tokens | text tokens | largest value | files |\n|" + " --- |" * 6)
    for name, make in goldens().items():
        if arguments.only in (None, name):
            found = write(arguments.output / name, make)
            files = sorted(path.name for path in (arguments.output / name).iterdir())
            size = sum((arguments.output / name / file).stat().st_size for file in files) / 1000
            shapes = [str(found[key].shape) if key in found else "" for key in ("image_tokens", "text_tokens")]
            largest = max(np.abs(found[key]).max() for key in found if "tokens" in key)
            print(f"| {name} | {size:.0f} | {' | '.join(shapes)} | {largest:.2f} | {', '.join(files)} |")


if __name__ == "__main__":
    main()
