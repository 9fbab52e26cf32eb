r"""FILIP on emoji scenes: real art, real words, minutes on a laptop's CPU.

    bash launch/demo.sh                                              # installs, trains, evaluates, draws
    filip train --config=configs/demo.py --workdir=runs/demo         # the training alone
    filip train --config=configs/demo.py:clip --workdir=runs/demo_clip   # the global baseline, same towers
    filip train --config=configs/demo.py:filip_clip --workdir=runs/demo_filip_clip   # the sum of both
    filip train --config=configs/demo.py:siglip --workdir=runs/demo_siglip   # SigLIP's sigmoid on pooled vectors
    filip train --config=configs/demo.py:quick --workdir=runs/quick  # what tests run

Needs the extra `demo`, see docs/install.md; docs/demo.md says what to expect.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference

EXACT = dict(weight=1.0, dtype="float32", implementation="auto", exchange="auto", indices="auto")
FILIP = dict(
    kind="filip", logit_scale_init=1 / 0.07, keep_tokens=1.0, selection="batch", positives="pair", label_smoothing=0.0
)
CLIP = dict(kind="clip", logit_scale_init=1 / 0.07, positives="pair", label_smoothing=0.0)
SIGLIP = dict(kind="siglip", similarity="pooled", logit_scale_init=10.0, bias_init=-10.0, positives="pair")
VARIANTS = {
    "filip": dict(filip=FILIP | EXACT),
    "clip": dict(clip=CLIP | EXACT),
    "filip_clip": dict(filip=FILIP | EXACT, clip=CLIP | EXACT),
    "siglip": dict(siglip=SIGLIP | EXACT),
    "quick": dict(filip=FILIP | EXACT),
}
PROMPTS = ("a {} on a white background", "a big {} on a white background", "a small {} on a white background")


def get_config(variant: str = "filip") -> ConfigDict:
    quick = variant == "quick"
    references = 500 if quick else 5000  # training pictures that the raw-pixel neighbour may choose from
    image_size, text_length = FieldReference(48), FieldReference(20)
    vocab_size, total_steps = FieldReference(800), FieldReference(60 if quick else 700)

    def emoji(split, scenes=-1, seed=0):
        return dict(name="emoji_scenes", split=split, seed=seed, scenes=scenes)

    def classify(split):
        neighbours = dict(source=emoji("seen_cells", scenes=references, seed=1), examples=references)
        return dict(kind="zero_shot", source=emoji(split), prompts=PROMPTS, neighbours=neighbours)

    val = emoji("val", scenes=256)
    tower = dict(width=128, depth=3, heads=4, activation="quick_gelu")
    return ConfigDict(dict(
        seed=0,
        batch_size=128,
        total_steps=total_steps,
        microbatches=1,
        mesh=dict(replica=1, data=-1),
        source=emoji("train", scenes=1_000_000),
        data=dict(
            image_size=image_size,
            text_length=text_length,
            captions_per_image=1,
            split_captions="",
            views=1,
            augment=dict(min_area=1.0, flip=False, colour_jitter=0.0, auto_augment=False),  # the scenes vary enough
            shuffle="global",
            block_size=65_536,
            max_bad_fraction=0.0,
            workers=0,
            threads=1,
        ),
        tokenizer=dict(name="sentencepiece", path="", vocab_size=vocab_size, captions=10_000),
        model=dict(
            embed_dim=64,
            dtype="float32",
            cls_in_similarity=False,
            bos_in_similarity=True,
            eos_in_similarity=True,
            attention="xla",
            scan=False,
            remat=False,
            image=dict(kind="vit", image_size=image_size, patch_size=8, patch_dropout=0.0, **tower),
            text=dict(kind="transformer", vocab_size=vocab_size, length=text_length, length_groups=1, **tower),
        ),
        objectives=VARIANTS[variant],
        optimizer=dict(
            name="adamw",
            peak_learning_rate=1.5e-3,
            warmup_steps=20 if quick else 50,
            weight_decay=0.05,
            b1=0.9,
            b2=0.98,
            eps=1e-8,
            clip_norm=1.0,
            decay_rules=(),  # biases, norms, embeddings and scales do not decay, the rest does: else (regex, multiplier)
            learning_rate_rules=(),
        ),
        ema_decay=0.0,
        init_from=dict(path="", rules=(), state=False, teacher=dict(path="", rules=())),
        checkpoint=dict(every_steps=20 if quick else 50, every_minutes=0.0, keep_last=2, keep_every_steps=0),
        processes=dict(
            stop_signals=("SIGTERM", "SIGUSR1"), heartbeat_seconds=100, start_seconds=300, hang_seconds=600.0
        ),
        guards=dict(max_skipped=10, spike_sigmas=0.0),
        compile_cache=True,
        log_every_steps=5 if quick else 10,
        log_keys=False,
        wandb_project="",
        profile=dict(first_step=10, steps=0),
        eval_every_steps=0 if quick else 350,
        evals_fatal=False,
        evals=dict(
            val=dict(
                kind="retrieval", source=val, examples=256,
                neighbours=dict(source=emoji("train", scenes=references), examples=references),
            ),
            pointing=dict(kind="localisation", source=val, examples=256),
            seen_cells=classify("seen_cells"),
            unseen_cells=classify("unseen_cells"),
            unseen_concepts=classify("unseen_concepts"),
            probe=dict(
                kind="linear_probe", source=emoji("seen_cells"), training=emoji("seen_cells", scenes=500, seed=1),
                protocol=dict(name="lbfgs", max_iterations=50 if quick else 1000),
            ),
            alignment=dict(kind="pictures", source=val, examples=8),
        ),
    ))  # fmt: skip


def sweep():
    """For `filip sweep`: all tokens and a quarter of them, at three learning rates."""
    for keep in (1.0, 0.25):
        for rate in (5e-4, 1e-3, 2e-3):
            yield {"objectives.filip.keep_tokens": keep, "optimizer.peak_learning_rate": rate}
