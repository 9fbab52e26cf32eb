r"""Linear probes on FILIP's twelve data sets, as CLIP_benchmark publishes them in tars, SUN397 as TFDS prepares it.

    filip eval --workdir=runs/filip_base --config=configs/eval/linear_probe.py --config.root=/data/clip_benchmark

The folders are those of clip_benchmark.py: `train` teaches the classifier, `test` is counted. CLIP_benchmark does not split
SUN397: its pictures would be counted that were learnt from. So it comes from --config.tfds_root, see tfds.py. Eleven sets take
L-BFGS and CLIP's search of the regularisation, ImageNet SGD on 90 epochs of new views, which needs many cores: `:cifar10` behind
the file takes that set alone, and --config.evals.imagenet_probe.protocol.workers=32 more processes that decode.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference

from filip_jax.configs.eval.clip_benchmark import SETS
from filip_jax.configs.eval.tfds import SETS as TFDS_SETS

VARIANTS = ("all", *SETS)


def get_config(variant: str = "all") -> ConfigDict:
    root, tfds_root = FieldReference("clip_benchmark"), FieldReference("tensorflow_datasets")

    def part(name, split):
        if name == "sun397":
            return dict(name="tfds", path=tfds_root + f"/{TFDS_SETS[name][0]}", split=split, caption_keys=("label",))
        place = root + f"/{SETS[name]}"
        return dict(name="webdataset", path=place + f"/{split}", label="cls", class_names=place + "/classnames.txt")

    def probe(name):
        source, training = part(name, "test"), part(name, "train")
        protocol = dict(name="sgd", workers=16) if name == "imagenet" else dict(name="lbfgs")
        return dict(kind="linear_probe", source=source, training=training, protocol=protocol)

    names = SETS if variant == "all" else [variant]
    return ConfigDict(dict(root=root, tfds_root=tfds_root, evals={f"{name}_probe": probe(name) for name in names}))
