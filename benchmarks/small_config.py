"""The runs of benchmarks/small.py: configs/small.py's recipe, the paper's, and changes of one thing each, on the same towers.

SMALL_DATA is the folder with train/ and test/ in it, SMALL_STEPS how many steps a run has.
"""

import os

from ml_collections import ConfigDict

from filip_jax.configs import filip, small

BATCH, IMAGE_SIZE, PATCH_SIZE, TEXT_LENGTH, VOCAB_SIZE, TESTED = 128, 64, 16, 24, 2_000, 500
TOWER = dict(width=128, depth=2, heads=4)
SCALE = dict(logit_scale_init=1 / 0.07, positives="pair", label_smoothing=0.0, dtype="float32")
FILIP = dict(kind="filip", weight=1.0, keep_tokens=1.0, selection="batch", **SCALE)
CLIP = dict(kind="clip", weight=1.0, **SCALE)
SIGLIP = dict(kind="siglip", weight=1.0, similarity="pooled", logit_scale_init=10.0, bias_init=-10.0, positives="pair")


def _augment(**values):
    return lambda config: config.data.augment.update(values)


def _optimizer(**values):
    return lambda config: config.optimizer.update(values)


def _filip(**values):
    return lambda config: config.objectives.filip.update(values)


def _objectives(**parts):
    def change(config):
        config.objectives = ConfigDict(parts)

    return change


def _ema(config):
    config.ema_decay = 0.99


def _vit(config):
    config.model.image.kind = "vit"


def _lamb(config, warmup_steps: int | None = None):
    config.optimizer = filip.get_config("base").optimizer.copy_and_resolve_references()
    warmup_steps = warmup_steps or config.total_steps // 20
    config.optimizer.update(peak_learning_rate=(BATCH / 512) ** 0.5 * 2e-3, warmup_steps=warmup_steps)


def _base(config):
    """The paper's optimizer, selection, augmentation and stem; the warm-up is as long a share as README's command had."""
    _lamb(config, config.total_steps * 3 // 20)
    _filip(keep_tokens=0.25)(config)
    _augment(min_area=0.5, flip=True, auto_augment=True)(config)
    _vit(config)


FORMS = {
    "small": lambda config: None,
    "base": _base,
    "lamb": _lamb,
    "quarter": _filip(keep_tokens=0.25),
    "smoothed": _filip(label_smoothing=0.1),
    "auto_augment": _augment(min_area=0.5, flip=True, auto_augment=True),
    "crops": _augment(min_area=0.7),
    "flip": _augment(flip=True),
    "vit": _vit,
    "clip": _objectives(clip=CLIP),
    "filip_clip": _objectives(filip=FILIP, clip=CLIP | dict(weight=0.5)),
    "siglip": _objectives(siglip=SIGLIP),
    "rate_half": _optimizer(peak_learning_rate=5e-4),
    "rate_double": _optimizer(peak_learning_rate=2e-3),
    "decay_low": _optimizer(weight_decay=0.01),
    "ema": _ema,
}
VARIANTS = tuple(FORMS)


def get_config(variant: str = "small") -> ConfigDict:
    data = os.environ["SMALL_DATA"]
    config = small.get_config("10k")
    config.unlock()
    config.epochs, config.total_steps = 0.0, int(os.environ.get("SMALL_STEPS", "800"))
    config.batch_size, config.data.image_size, config.data.text_length = BATCH, IMAGE_SIZE, TEXT_LENGTH
    config.data.workers, config.data.threads = 0, 1
    config.tokenizer.vocab_size = VOCAB_SIZE
    config.model.embed_dim = 64
    config.model.image.update(patch_size=PATCH_SIZE, **TOWER)
    config.model.text.update(TOWER)
    config.source.path = f"{data}/train"
    config.eval_every_steps = config.total_steps // 4
    config.checkpoint.update(every_steps=config.total_steps // 4, keep_last=1, every_minutes=0.0, keep_every_steps=0)
    config.evals = dict(test=dict(kind="retrieval", source=dict(name="folder", path=f"{data}/test"), examples=TESTED))
    FORMS[variant](config)
    return config
