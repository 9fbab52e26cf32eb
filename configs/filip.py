r"""FILIP pre-training as in the paper (arXiv 2111.07783, tables 1, 8 and 9), on your own pairs.

    filip train --config=configs/filip.py:base  --workdir=runs/filip_base  --config.source.path=DATA
    filip train --config=configs/filip.py:large --workdir=runs/filip_large --config.source.path=DATA

base is ViT-B/32, large is ViT-L/14. The paper trained them on 340 million pairs, 30 epochs: base on
128 cards in about 9 days, large on 192 cards in about 24 days. total_steps follows batch_size;
--config.total_steps=N sets it. Zero-shot ImageNet of the paper's models: 77.1 % (large).

Images have AutoAugment, as in the paper. Where this differs from it: random crops and flips come
first (the paper does not say); back-translated texts are yours to bring (side_captions, docs/data.md); a
sentencepiece vocabulary is trained on your captions, --tokenizer clip takes the paper's;
gradients are clipped to norm 1.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference

EPOCHS, PAIRS = 30, 340_000_000
VARIANTS: dict[str, dict] = {  # towers as width, depth, heads; global batch and base learning rate as in table 9
    "base": dict(image=(768, 12, 12), text=(512, 12, 8), patch_size=32, batch_size=40_960, learning_rate=2e-3),
    "large": dict(image=(1024, 24, 16), text=(768, 12, 12), patch_size=14, batch_size=30_720, learning_rate=1.5e-3),
}


def get_config(variant: str = "base") -> ConfigDict:
    sizes = VARIANTS[variant]
    batch_size = FieldReference(sizes["batch_size"])
    total_steps = EPOCHS * PAIRS // batch_size
    image_size, text_length, vocab_size = FieldReference(224), FieldReference(77), FieldReference(49_408)

    def tower(width, depth, heads):
        return dict(width=width, depth=depth, heads=heads, activation="quick_gelu")

    return ConfigDict(dict(
        seed=0,
        batch_size=batch_size,  # global: any number of hosts and chips that divides it
        total_steps=total_steps,
        microbatches=1,
        mesh=dict(replica=1, data=-1),  # parameters sharded over data, copied over replica
        source=dict(name="folder", path=""),
        data=dict(
            image_size=image_size,
            text_length=text_length,
            captions_per_image=1,
            split_captions="",
            views=1,
            augment=dict(min_area=0.5, flip=True, colour_jitter=0.0, auto_augment=True),
            shuffle="global",  # "block" reads neighbours together: for parquet, buckets and slow disks
            block_size=65_536,
            max_bad_fraction=0.1,  # of a source's records that cannot be read, above which the run ends
            workers=8,
            threads=2,
        ),
        tokenizer=dict(name="sentencepiece", path="", vocab_size=vocab_size, captions=200_000),
        model=dict(
            embed_dim=256,
            dtype="bfloat16",
            cls_in_similarity=False,
            bos_in_similarity=True,
            eos_in_similarity=True,
            attention="xla",  # "cudnn" on NVIDIA GPUs: less memory for long sequences
            scan=True,
            remat=True,
            image=dict(  # other kinds and their options: filip_jax/models/towers/
                kind="vit", image_size=image_size, patch_size=sizes["patch_size"], patch_dropout=0.0,
                **tower(*sizes["image"]),
            ),
            text=dict(
                kind="transformer", vocab_size=vocab_size, length=text_length, length_groups=8, **tower(*sizes["text"])
            ),
        ),
        objectives=dict(filip=dict(
            kind="filip",
            weight=1.0,
            logit_scale_init=1 / 0.07,
            keep_tokens=0.25,  # the paper's, chosen on each device; 1.0 is the exact loss
            selection="batch",
            positives="pair",  # "image": all captions of an image in a batch are right answers
            label_smoothing=0.0,
            dtype="bfloat16",  # of the tokens between devices; the paper: float16
            implementation="auto",
            exchange="auto",
            indices="auto",
        )),
        optimizer=dict(
            name="lamb",
            peak_learning_rate=(batch_size.to_float() / 512) ** 0.5 * sizes["learning_rate"],  # the paper's square-root rule
            warmup_steps=3_000,
            weight_decay=3e-3,
            b1=0.9,
            b2=0.999,
            eps=1e-4,
            clip_norm=1.0,
            decay_rules=(),  # biases, norms, embeddings and scales do not decay, the rest does: else (regex, multiplier)
            learning_rate_rules=(),  # multipliers; 0 freezes: ((r"image/.*", 0.0),) locks the image tower
        ),
        ema_decay=0.0,
        init_from=dict(  # parameters of another run to begin with, see train/init_from.py
            path="", rules=(), state=False, teacher=dict(path="", rules=())
        ),
        checkpoint=dict(every_steps=1_000, every_minutes=30.0, keep_last=3, keep_every_steps=50_000),
        processes=dict(
            stop_signals=("SIGTERM", "SIGUSR1"),  # save and end with exit code 42: start again to go on
            heartbeat_seconds=100,
            start_seconds=600,
            hang_seconds=1800.0,  # of a step or a wait for data; compiling, saving … may take four times as long
        ),
        guards=dict(max_skipped=20, spike_sigmas=0.0),
        compile_cache=True,
        log_every_steps=50,
        log_keys=False,
        wandb_project="",
        profile=dict(first_step=10, steps=0),  # steps=5 traces five, the tenth step after this start first, for XProf
        eval_every_steps=0,  # set it together with evals.val.source.path
        evals_fatal=False,
        evals=dict(val=dict(kind="retrieval", source=dict(name="folder", path=""), examples=1_000)),
    ))  # fmt: skip
