r"""Fine-tuning of a public CLIP by FILIP + CLIP, on ten thousand or a million pairs; begin with `filip import`.

    filip import clip-vit-base-patch32 --output=runs/clip
    filip train --config=configs/from_clip.py:full_10k --init_from=runs/clip --workdir=runs/tuned --config.source.path=PAIRS

--init_from gives the model, the tokenizer and the sizes of the imported run. Variants: all is tuned (full), or one tower is
locked as in LiT (arXiv 2111.07991), which halves memory and time and forgets less; _10k and _1m are steps and rates for so
many pairs, others are --config.total_steps.

The pooled projections come from the import and stay CLIP's (objective clip); token-wise late interaction (objective filip)
has projections of its own, which begin fresh, as does its scale. What is fresh learns at FRESH times the rate of what is
not. To begin with copies of the pooled ones instead:
--config.init_from.rules="((r'(image|text)_projection/(.*)', r'\1_pooled_projection/\2'), ('objectives/filip/.*', None))".

Images are cropped a little and not flipped: captions may say "left" or name colors, and the model is trained already.
The rates, steps and the batch of one GPU or of a patient CPU are choices of ours, near to what others fine-tune CLIP with
(1e-6 to 1e-5 at batches of a few hundred); they are not tuned.
"""

from ml_collections import ConfigDict

from filip_jax.configs import filip

PAIRS = {"10k": 10_000, "1m": 1_000_000}
EPOCHS = {"10k": 10, "1m": 2}
FRESH = 50.0  # times the rate of imported parameters
LOCKED = {"full": (), "locked_image": ((r"image/.*", 0.0),), "locked_text": ((r"text/.*", 0.0),)}
VARIANTS = tuple(f"{kind}_{pairs}" for pairs in PAIRS for kind in LOCKED)


def get_config(variant: str = "full_10k") -> ConfigDict:
    kind, _, pairs = variant.rpartition("_")
    config = filip.get_config("base")
    config.batch_size = 256
    config.total_steps = EPOCHS[pairs] * (PAIRS[pairs] // 256)
    total_steps = config.get_ref("total_steps")
    config.data.text_length = 77
    config.data.workers = 4
    config.data.augment = ConfigDict(dict(min_area=0.9, flip=False, colour_jitter=0.0, auto_augment=False))
    config.tokenizer = ConfigDict(dict(name="clip", path=""))
    config.model.embed_dim = 512
    config.model.dtype = "float32"  # bfloat16 on GPUs and TPUs
    config.model.text.vocab_size = 49_408
    of_filip = config.objectives.filip.to_dict() | dict(keep_tokens=1.0, dtype="float32")
    of_clip = {key: value for key, value in of_filip.items() if key not in ("keep_tokens", "selection")}
    config.objectives = ConfigDict(dict(filip=of_filip, clip=of_clip | dict(kind="clip", weight=0.5)))
    config.init_from.rules = ((r"(image|text)_projection/.*", None), (r"objectives/filip/.*", None))
    config.optimizer = ConfigDict(dict(
        name="adamw",
        peak_learning_rate=1e-5,
        warmup_steps=total_steps // 10,
        weight_decay=0.1,
        b1=0.9,
        b2=0.98,
        eps=1e-6,
        clip_norm=1.0,
        decay_rules=(),
        learning_rate_rules=(*LOCKED[kind], (r"(image|text)_projection/.*|objectives/filip/.*", FRESH)),
    ))  # fmt: skip
    config.checkpoint.every_steps = total_steps // 4
    config.log_every_steps = 10
    return config
