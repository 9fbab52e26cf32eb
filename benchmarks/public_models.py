"""Features of a folder of weights by the library that its format is from: transformers 5 or open_clip 3.3, float32 on a CPU.

Loading fails where a name is missing, unexpected or of another shape. The keys of what `outputs` returns:

    image_tokens    all tokens after the final norm: class tokens, registers, patches in rows   [n, tokens, width]
    image_pooled    the pooled vector before a projection                                       [n, width]
    image_features  the projected vector, not normalized; a model of images alone has none      [n, embed]
    text_tokens, text_pooled, text_features                                                     the same for texts
    logits          scale * cosine (+ bias) of each image with each text                        [n, texts]
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image


def outputs(folder: Path, images: np.ndarray, ids: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return the features of uint8 images [n, side, side, 3] that are not resized, and of token ids [texts, length]."""
    model, _, statistics, run = load(folder)
    mean, std = map(_channels, statistics)
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std
    with torch.inference_mode():
        found = run(model, pixels, None if ids is None else torch.from_numpy(ids).long())
    return {name: tensor.float().numpy() for name, tensor in found.items()}


def tokens_at(folder: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return positions and image tokens of images of another size than the trained one, float32."""
    size = images.shape[1]
    model, _, (mean, std), run = load(folder, size)
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - _channels(mean)) / _channels(std)
    with torch.inference_mode():
        if run is run_open_clip:
            kept = []
            model.visual.ln_post.register_forward_hook(lambda module, inputs, output: kept.append(output))
            model.encode_image(pixels)
            tokens, position = kept[0], model.visual.positional_embedding
        else:
            tower = getattr(model, "vision_model", model)
            options = (
                {} if run is run_image and "Dinov2" in type(model).__name__ else {"interpolate_pos_encoding": True}
            )
            tokens = tower(pixels, **options).last_hidden_state
            tokens = tower.post_layernorm(tokens) if run is run_clip else tokens
            patches = tower.embeddings.patch_embeddings if run is run_image else tower.embeddings.patch_embedding
            embedded = patches(pixels)
            embedded = embedded if embedded.ndim == 3 else embedded.flatten(2).transpose(1, 2)
            first = torch.zeros(len(images), int(run is not run_siglip), embedded.shape[2])
            position = tower.embeddings.interpolate_pos_encoding(torch.cat([first, embedded], 1), size, size)
    return {
        f"at_{size}": tokens.numpy(),
        f"positions_at_{size}": position.detach().reshape(-1, position.shape[-1]).numpy(),
    }


def _channels(values) -> torch.Tensor:
    return torch.tensor(values)[:, None, None]


def preprocessed(folder: Path, picture: Image.Image) -> np.ndarray:
    """Return what the library's own preprocessing, as the folder describes it, makes of a picture: uint8 [side, side, 3].

    Before normalization: all of them resize bytes to bytes.
    """
    _, process, (mean, std), _ = load(folder)
    exact = 255 * (process(picture).permute(1, 2, 0).double() * torch.tensor(std) + torch.tensor(mean)).numpy()
    rounded = np.rint(exact)
    assert np.abs(exact - rounded).max() < 1e-3
    return rounded.astype(np.uint8)


def load(folder: Path, size: int | None = None):
    """Return (model, picture -> pixels [3, side, side], (mean, std), (model, pixels, ids) -> outputs); `size` for open_clip."""
    if (folder / "open_clip_config.json").exists():
        return load_open_clip(folder, size)
    if (folder / "config.json").exists():
        return load_transformers(folder)
    return load_openai(next(folder.glob("*.safetensors")))


def load_openai(file: Path):
    """A bare state dict with OpenAI's names, from whose shapes open_clip concludes all sizes."""
    import open_clip
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
    from open_clip.model import build_model_from_openai_state_dict
    from safetensors.torch import load_file

    model = build_model_from_openai_state_dict(load_file(file)).float()
    process = open_clip.image_transform(model.visual.image_size, is_train=False)
    return model, process, (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD), run_open_clip


def load_open_clip(folder: Path, size: int | None = None):
    import open_clip

    weights = next((path for path in sorted(folder.glob("epoch_*.pt"))), None)
    if weights is None:
        model, _, process = open_clip.create_model_and_transforms(f"local-dir:{folder}", force_image_size=size)
    else:  # of open_clip's training: only a built-in name would load it, so its own loader is given the model
        model, _, process = open_clip.create_model_and_transforms(f"local-dir:{folder}", load_weights=False)
        keys = open_clip.load_checkpoint(model, str(weights))
        assert not keys.missing_keys and not keys.unexpected_keys, keys
    return model.float().eval(), process, (model.visual.image_mean, model.visual.image_std), run_open_clip


def run_open_clip(model, pixels, ids):
    text = getattr(model, "text", model)
    kept = {}
    hooks = [
        norm.register_forward_hook(lambda module, inputs, output, name=name: kept.__setitem__(name, output))
        for name, norm in (("image", model.visual.ln_post), ("text", text.ln_final))
    ]
    image, words = model.encode_image(pixels), model.encode_text(ids)
    for hook in hooks:
        hook.remove()
    pool = model.visual.pool_type
    pooled = kept["image"][:, 0] if pool == "tok" else kept["image"][:, 1:].mean(1)
    last = text.pool_type if text is not model else model.text_pool_type
    end = text.eos_id if text is not model else model.text_eos_id
    places = dict(
        argmax=ids.argmax(1), eos=(ids == end).int().argmax(1), last=torch.full((len(ids),), ids.shape[1] - 1)
    )
    place = places[last]
    said = kept["text"][torch.arange(len(ids)), place]
    projection = text.text_projection
    again = projection(said) if isinstance(projection, torch.nn.Linear) else said @ projection
    torch.testing.assert_close(pooled @ model.visual.proj, image)
    torch.testing.assert_close(again, words)
    return dict(
        image_tokens=kept["image"],
        image_pooled=pooled,
        image_features=image,
        text_tokens=kept["text"],
        text_pooled=said,
        text_features=words,
        logits=model.get_logits(pixels, ids)[0],
    )


def load_transformers(folder: Path):
    import transformers

    kind = json.loads((folder / "config.json").read_text())["model_type"]
    name, run = KINDS[kind]
    model, notes = getattr(transformers, name).from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager", dtype=torch.float32
    )
    wrong = {key: found for key, found in notes.items() if found}
    unused = wrong.pop("unexpected_keys", set())
    assert not {key for key in unused if not key.startswith("classifier.") and not key.endswith("position_ids")}, unused
    pooler = {key for key in wrong.get("missing_keys", ()) if key.startswith("pooler.")}  # a classifier has none
    assert not wrong or (kind == "vit" and set(wrong) == {"missing_keys"} and pooler == wrong["missing_keys"]), wrong
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    return (
        model.eval(),
        lambda picture: processor(picture, return_tensors="pt")["pixel_values"][0],
        (processor.image_mean, processor.image_std),
        run,
    )


def run_clip(model, pixels, ids):
    vision, text = model.vision_model(pixels), model.text_model(ids)
    image, words = model.get_image_features(pixels).pooler_output, model.get_text_features(ids).pooler_output
    torch.testing.assert_close(model.visual_projection(vision.pooler_output), image)
    torch.testing.assert_close(model.text_projection(text.pooler_output), words)
    return dict(
        image_tokens=model.vision_model.post_layernorm(vision.last_hidden_state),
        image_pooled=vision.pooler_output,
        image_features=image,
        text_tokens=text.last_hidden_state,
        text_pooled=text.pooler_output,
        text_features=words,
        logits=model(input_ids=ids, pixel_values=pixels).logits_per_image,
    )


def run_siglip(model, pixels, ids):
    out = model(input_ids=ids, pixel_values=pixels)
    return dict(
        image_tokens=out.vision_model_output.last_hidden_state,
        image_pooled=out.vision_model_output.pooler_output,
        image_features=model.get_image_features(pixels).pooler_output,
        text_tokens=out.text_model_output.last_hidden_state,
        text_pooled=out.text_model_output.last_hidden_state[:, -1],
        text_features=model.get_text_features(ids).pooler_output,
        logits=out.logits_per_image,
    )


def run_image(model, pixels, ids):
    tokens = model(pixels).last_hidden_state
    return dict(image_tokens=tokens, image_pooled=tokens[:, 0])


KINDS = {
    "clip": ("CLIPModel", run_clip),
    "siglip": ("SiglipModel", run_siglip),
    "vit": ("ViTModel", run_image),
    "dinov2": ("Dinov2Model", run_image),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", run_image),
}
