r"""FILIP's fine-tuning for retrieval on Flickr30K or COCO, as in the paper (arXiv 2111.07783, table 10).

    filip train --config=configs/finetune.py:flickr30k --workdir=runs/filip_flickr30k \
        --config.init_from.path=runs/filip_large --config.tokenizer.path=runs/filip_large/tokenizer.model \
        --config.source.path=dataset_flickr30k.json --config.source.images=flickr30k-images

flickr30k and coco go on from a run of configs/filip.py:large, at 392 pixels instead of 224: its 16 x 16 positions
become 28 x 28. flickr30k_base and coco_base go on from one of configs/filip.py:base, at 384 pixels, since patches of
32 do not divide 392. source.path is Karpathy's file of splits, source.images the folder of its images (of COCO that
of train2014 and val2014); both hold for the test split, too. Other data with several captions an image: --source NAME
key=value ... each_caption=True, and --config.eval_every_steps=0.

total_steps is that of the data set: for other data give --config.total_steps=3 * captions / 5120. A run on other data is
evaluated with evaluations of one's own, filip eval --config=FILE.

Each caption is a sample of its own, an epoch visits all of them once, and 3 epochs are trained, in whole batches. All
captions of an image that meet in a batch are right answers, with equal probability (objectives.filip.positives="image"). After
each epoch the test split is ranked, five captions of each of its 1,000 or 5,000 images. The paper's models (large) reach R@1
image to text and text to image of 96.6 and 87.1 % on Flickr30K, 78.9 and 61.2 % on COCO.

What the paper does not say: whether the square-root rule of pre-training raises the base learning rate of 2e-4 here,
too (it does here, to 6.3e-4; --config.optimizer.peak_learning_rate=2e-4 is without), the warm-up (here a tenth of the
steps), augmentation and the selection of tokens (here those of pre-training). Its evaluations put prompts around
captions: --config.evals.coco_finetuned.prompt="a good photo of {}".
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference

from filip_jax.configs import filip

EPOCHS = 3
PAIRS = {"flickr30k": 29_000 * 5, "coco": 566_747}  # captions of Karpathy's train, of COCO train and restval
TESTED = {"flickr30k": 1_000, "coco": 5_000}  # images
IMAGE_SIZE = {"large": 392, "base": 384}
VARIANTS = ("flickr30k", "coco", "flickr30k_base", "coco_base")


def get_config(variant: str = "flickr30k") -> ConfigDict:
    data, size = variant.removesuffix("_base"), "base" if variant.endswith("_base") else "large"
    config = filip.get_config(size)
    path, images = FieldReference(""), FieldReference("")

    def split(name, **options):
        return dict(name="annotations", path=path, images=images, split=name, **options)

    config.batch_size = 5_120
    batch_size = config.get_ref("batch_size")
    config.total_steps = EPOCHS * (PAIRS[data] // batch_size)
    config.data.image_size = IMAGE_SIZE[size]
    config.source = split("train", each_caption=True)
    config.objectives.filip.positives = "image"
    config.optimizer.peak_learning_rate = (batch_size.to_float() / 512) ** 0.5 * 2e-4
    config.optimizer.warmup_steps = config.get_ref("total_steps") // 10
    config.optimizer.weight_decay = 3e-4
    config.log_every_steps = 10
    config.eval_every_steps = PAIRS[data] // batch_size  # an epoch
    test = dict(kind="retrieval", source=split("test"), examples=TESTED[data], captions=5, prompt="{}")
    config.evals = {f"{data}_finetuned": test}  # as the papers' rows are called, beside which it stands
    return config
