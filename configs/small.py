r"""Training from nothing on ten thousand to a million pairs, on one GPU or a patient CPU.

    filip train --config=configs/small.py:10k --workdir=runs/small --config.source.path=PAIRS

The paper's recipe (configs/filip.py) is for hundreds of millions of pairs in batches of tens of thousands. This
one is for few: AdamW, the exact loss over all tokens, whole pictures, a convolutional stem. The number
behind the colon is how many pairs there are, about: it chooses the towers' size, the batch and the passes over the data
(`epochs`, which a total_steps of your own replaces).

On 7,740 captioned drawings, with towers of two layers, 13 passes find 15.6 and 15.4 % of 500 held-out pairs at once
(benchmarks/results/small_no_augment_cpu.md, two seeds), with crops of 70 % of the area 12.0 and 9.7 %, by the paper's settings 2.3 and
1.3 % (small_cpu.md, three seeds); small_forms_cpu.md has what else was tried. Sizes, rates and epochs, and all that holds for more pairs, are reasoned,
not measured: with photographs and many passes try --config.data.augment.min_area=0.7. To begin with a public CLIP is better where there is one for your language and pictures:
configs/from_clip.py.
"""

from ml_collections import ConfigDict

from filip_jax.configs import filip

SIZES: dict[str, dict] = {
    "10k": dict(
        pairs=10_000,
        image_size=112,
        width=256,
        depth=6,
        heads=4,
        vocab_size=4_000,
        batch_size=128,
        epochs=40.0,
        rate=1e-3,
    ),
    "100k": dict(
        pairs=100_000,
        image_size=160,
        width=384,
        depth=8,
        heads=6,
        vocab_size=16_000,
        batch_size=512,
        epochs=30.0,
        rate=1e-3,
    ),
    "1m": dict(
        pairs=1_000_000,
        image_size=224,
        width=512,
        depth=10,
        heads=8,
        vocab_size=32_000,
        batch_size=1024,
        epochs=15.0,
        rate=7e-4,
    ),
}
VARIANTS = tuple(SIZES)


def get_config(variant: str = "10k") -> ConfigDict:
    sizes = SIZES[variant]
    config = filip.get_config("base")
    config.batch_size = sizes["batch_size"]
    config.epochs = sizes["epochs"]
    config.total_steps = int(sizes["epochs"] * sizes["pairs"] / sizes["batch_size"])  # where no data is at hand
    config.data.image_size = sizes["image_size"]
    config.data.text_length = 32
    config.data.workers = 4
    config.data.augment = ConfigDict(dict(min_area=1.0, flip=False, colour_jitter=0.0, auto_augment=False))
    config.tokenizer.vocab_size = sizes["vocab_size"]
    config.model.dtype = "float32"  # bfloat16 on GPUs, and on CPUs that multiply it
    config.model.scan = config.model.remat = False
    tower = {key: sizes[key] for key in ("width", "depth", "heads")}
    config.model.image.update(kind="conv_vit", patch_size=16, **tower)
    config.model.text.update(length_groups=1, **tower)
    config.objectives.filip.update(keep_tokens=1.0, dtype="float32")
    config.optimizer = ConfigDict(dict(
        name="adamw",
        peak_learning_rate=sizes["rate"],
        warmup_steps=config.get_ref("total_steps") // 20,
        weight_decay=0.1,
        b1=0.9,
        b2=0.98,
        eps=1e-6,
        clip_norm=1.0,
        decay_rules=(),
        learning_rate_rules=(),
    ))  # fmt: skip
    config.checkpoint.every_steps = 500
    config.log_every_steps = 10
    return config
