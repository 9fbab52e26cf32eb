r"""The input pipeline beside its peers: images a second and core, from the same tars, with the same augmentation.

    pip install -e ".[bench]"                                 # photographs
    pip install open_clip_torch webdataset                    # peers, if wanted; they bring PyTorch and torchvision
    python benchmarks/input.py                                # photographs of several sizes, one table
    python benchmarks/input.py --memory=100000                # whether this process's memory stays flat

Each form reads a tar of photographs, decodes, crops at random (90 to 100 % of the area, as open_clip does by
default), tokenizes and stacks batches, in one process with one thread; time is the process's own, the least
of several rounds, in which the forms take turns. All but open_clip give uint8, which accelerators normalize.

  ours         tars read in random order through their index, JPEG decoded at 1/2, 1/4 or 1/8 where that is enough
  view         its decoding and cropping alone: what is above it goes to reading, drawing, tokens and batches
  torchvision  webdataset's stream of the tar, simplejpeg, torchvision v2's crop with antialiasing, our tokenizer
  grain        Grain, simplejpeg, OpenCV's area filter, our tokenizer
  open_clip    webdataset's stream of the tar, its transform (Pillow) and its tokenizer, normalized float32
"""

import argparse
import io
import json
import os
import random
import resource
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np  # noqa: E402 - it reads the numbers of threads above
import report  # noqa: E402
from PIL import Image  # noqa: E402

SIZE, LENGTH, BATCH, AREA, QUALITY = 224, 77, 64, 0.9, 90
AUGMENT = dict(min_area=AREA, flip=False, colour_jitter=0.0, auto_augment=False)
SIDES = (256, 384, 512, 0)
CAPTION = "a photograph of {}, taken on a sunny day from not very far away, number {}"


def photographs() -> list[tuple[str, Image.Image]]:
    """(what it shows, picture) from scikit-image."""
    import skimage.data

    folder = Path(skimage.data.__file__).parent
    names = (
        "astronaut.png",
        "coffee.png",
        "chelsea.png",
        "rocket.jpg",
        "hubble_deep_field.jpg",
        "retina.jpg",
        "motorcycle_left.png",
    )
    return [(name.split(".")[0].replace("_", " "), Image.open(folder / name).convert("RGB")) for name in names]


def jpeg(picture: Image.Image, side: int) -> bytes:
    """The picture with its shorter side scaled to `side`; 0 leaves it."""
    if side:
        scale = side / min(picture.size)
        picture = picture.resize(tuple(round(edge * scale) for edge in picture.size), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def write_tar(path: Path, side: int, samples: int) -> None:
    pictures = [(name, jpeg(picture, side)) for name, picture in photographs()]
    with tarfile.open(path, "w") as tar:
        for n in range(samples):
            name, image = pictures[n % len(pictures)]
            for ending, data in (
                ("jpg", image),
                ("txt", CAPTION.format(name, n).encode()),
                ("json", json.dumps({"n": n}).encode()),
            ):
                info = tarfile.TarInfo(f"{n:09d}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def ours(path: Path) -> Iterator:
    from filip_jax.data.pipeline import batches
    from filip_jax.data.sources import make_source

    source = make_source(dict(name="webdataset", path=str(path)))
    return batches(
        source, tokenizer(), batch_size=BATCH, image_size=SIZE, text_length=LENGTH, augment=AUGMENT, shuffle="global",
        block_size=1, max_bad_fraction=0.0, seed=0, workers=0, threads=0, start=0, process_index=0, process_count=1,
    )  # fmt: skip


def tokenizer():
    from filip_jax.data.sentence_pieces import train_sentence_pieces
    from filip_jax.data.tokenizer import Tokenizer

    return Tokenizer(
        train_sentence_pieces([CAPTION.format(name, n) for n, (name, _) in enumerate(photographs())], 1000)
    )


def view(path: Path) -> Iterator:
    """Yield batches of views of the same pictures as `ours`, without anything else."""
    from filip_jax.data.preprocess import training_views
    from filip_jax.data.sources import make_source

    source, rng = make_source(dict(name="webdataset", path=str(path))), np.random.default_rng(0)
    images = [source[n].image for n in range(len(source))]
    while True:
        picked = [images[n] for n in rng.integers(len(images), size=BATCH)]
        yield np.stack([training_views(image, SIZE, rng, 1, **AUGMENT)[0] for image in picked])


def grain_on_simplejpeg(path: Path) -> Iterator:
    import cv2
    import grain
    import simplejpeg

    from filip_jax.data.preprocess import random_box
    from filip_jax.data.sources import make_source

    cv2.setNumThreads(0)
    source, encode = make_source(dict(name="webdataset", path=str(path))), tokenizer().encode

    def prepare(record, rng):
        pixels = simplejpeg.decode_jpeg(record.image, fastdct=True, fastupsample=True)
        left, top, right, bottom = map(round, random_box(pixels.shape[1], pixels.shape[0], AREA, rng))
        view = cv2.resize(pixels[top:bottom, left:right], (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        return {"image": view, "ids": encode([record.caption], LENGTH)[0][0]}

    stream = grain.MapDataset.source(source).seed(0).shuffle().repeat().random_map(prepare).batch(BATCH)
    return iter(stream.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


def torchvision_on_simplejpeg(path: Path) -> Iterator:
    import simplejpeg
    import torch
    import webdataset as wds
    from torchvision.transforms import v2

    torch.set_num_threads(1)
    crop, encode = v2.RandomResizedCrop(SIZE, scale=(AREA, 1.0), antialias=True), tokenizer().encode

    def decode(data):
        pixels = simplejpeg.decode_jpeg(data, fastdct=True, fastupsample=True)
        return crop(torch.from_numpy(pixels).permute(2, 0, 1))

    stream = wds.DataPipeline(
        wds.SimpleShardList([str(path)] * 1000),
        wds.tarfile_to_samples(),
        wds.shuffle(500, initial=100),
        wds.rename(image="jpg", text="txt"),
        wds.map_dict(image=decode, text=lambda text: encode([text.decode()], LENGTH)[0][0]),
        wds.to_tuple("image", "text"),
        wds.batched(BATCH, partial=False),
    )
    return iter(stream)


def open_clip_pipeline(path: Path) -> Iterator:
    import open_clip
    import torch
    import webdataset as wds

    torch.set_num_threads(1)
    transform = open_clip.image_transform(SIZE, is_train=True)
    tokens = open_clip.SimpleTokenizer()
    stream = wds.DataPipeline(
        wds.SimpleShardList([str(path)] * 1000),
        wds.tarfile_to_samples(),
        wds.shuffle(500, initial=100),
        wds.decode("pilrgb"),
        wds.rename(image="jpg", text="txt"),
        wds.map_dict(image=transform, text=lambda text: tokens(text)[0]),
        wds.to_tuple("image", "text"),
        wds.batched(BATCH, partial=False),
    )
    return iter(stream)


FORMS: dict[str, Callable[[Path], Iterator]] = {
    "ours": ours, "view": view, "torchvision": torchvision_on_simplejpeg, "grain": grain_on_simplejpeg,
    "open_clip": open_clip_pipeline,
}  # fmt: skip


def seconds_per_image(path: Path, arguments) -> dict[str, float | None]:
    """Return of each form the least seconds of this process of several rounds; None if its packages are missing."""
    streams: dict[str, Iterator | None] = {}
    for form in arguments.forms:
        try:
            streams[form] = FORMS[form](path)
            [next(streams[form]) for _ in range(2)]
        except ImportError:
            streams[form] = None
    least = {form: None if stream is None else float("inf") for form, stream in streams.items()}
    for _ in range(arguments.rounds):
        for form, stream in streams.items():
            if stream is None:
                continue
            started = time.process_time()
            for _ in range(arguments.batches):
                next(stream)
            least[form] = min(least[form], (time.process_time() - started) / arguments.batches / BATCH)
    return least


def psnr(side: int, crops: int = 4) -> tuple[float, float]:
    """(of all pixels together, of the worst picture), our views against whole decoding and Pillow's bicubic filter."""
    from filip_jax.data.decode import decode, decode_regions, divisor_of, whole_pixels
    from filip_jax.data.preprocess import random_box

    rng, errors = np.random.default_rng(0), []
    for _, picture in photographs():
        image = jpeg(picture, side)
        for _ in range(crops):
            box = random_box(*decode(image).size, 0.5, rng)
            exact = whole_pixels(box, divisor_of(box, SIZE))
            slow = decode(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=exact)
            (fast,) = decode_regions(image, SIZE, lambda width, height: [box])
            errors.append(np.mean((np.asarray(slow).astype(float) - np.asarray(fast)) ** 2))
    return tuple(10 * np.log10(255**2 / error) for error in (np.mean(errors), max(errors)))


def memory(folder: Path, samples: int) -> str:
    """Return a table row: the resident memory of this process along so many samples."""
    write_tar(folder / "0.tar", 256, 2000)
    stream, said = ours(folder / "0.tar"), []
    for n in range(samples // BATCH + 1):
        next(stream)
        if n % (samples // BATCH // 10) == 0:
            with open("/proc/self/statm") as file:
                said.append(f"{n * BATCH}: {int(file.read().split()[1]) * resource.getpagesize() / 1e6:.0f} MB")
    return "\n".join(said)


def table(folder: Path, arguments) -> str:
    lines = [
        "| shorter side | form | us an image | images/s a core | ours is faster by | PSNR (worst picture) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for side in arguments.sides:
        path = folder / f"{side}.tar"
        write_tar(path, side, 450)
        found = seconds_per_image(path, arguments)
        for form, seconds in found.items():
            label = f"{side or 'as they are'}"
            if seconds is None:
                lines.append(f"| {label} | {form} | not installed | | | |")
                continue
            quality = "{:.1f} dB ({:.1f})".format(*psnr(side)) if form == "ours" else ""
            is_peer = found.get("ours") and form not in ("ours", "view")
            ratio = f"{seconds / found['ours']:.2f}x" if is_peer else ""
            lines.append(f"| {label} | {form} | {1e6 * seconds:.0f} | {1 / seconds:.0f} | {ratio} | {quality} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=lambda text: [int(side) for side in text.split(",")], default=SIDES)
    parser.add_argument("--forms", type=lambda text: text.split(","), default=list(FORMS))
    parser.add_argument("--batches", type=int, default=8, help="of 64 images, in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--memory", type=int, default=0, metavar="SAMPLES", help="watch the memory over so many instead"
    )
    report.add_output(parser)
    arguments = parser.parse_args()
    unknown = set(arguments.forms) - set(FORMS)
    if unknown:
        parser.error(f"--forms: {unknown.pop()} is not one of {', '.join(FORMS)}")
    random.seed(0)
    packages = "Pillow", "simplejpeg", "opencv-python-headless", "grain"
    with tempfile.TemporaryDirectory() as folder, report.recorded(arguments.output, *packages):
        print("one core used\n")
        print(memory(Path(folder), arguments.memory) if arguments.memory else table(Path(folder), arguments))


if __name__ == "__main__":
    main()
