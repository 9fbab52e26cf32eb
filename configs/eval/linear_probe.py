r"""Linear probes on FILIP's twelve data sets, as CLIP_benchmark publishes them in tars.

    filip eval --workdir=runs/filip_base --config=configs/eval/linear_probe.py --config.root=/data/clip_benchmark

The folders are those of clip_benchmark.py: `train` teaches the classifier, `test` is counted. Eleven sets take L-BFGS and
CLIP's search of the regularisation, ImageNet SGD on 90 epochs of new views, which needs many cores: `:cifar10` behind the
file takes that set alone, and --config.evals.imagenet_probe.protocol.workers=32 more processes that decode.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference

SETS = runpy.run_path(str(Path(__file__).with_name("clip_benchmark.py")))["SETS"]
VARIANTS = ("all", *SETS)


def get_config(variant: str = "all") -> ConfigDict:
    root = FieldReference("clip_benchmark")

    def probe(name):
        place = root + f"/{SETS[name]}"
        source, training = (
            dict(name="webdataset", path=place + f"/{split}", label="cls", class_names=place + "/classnames.txt")
            for split in ("test", "train")
        )
        protocol = dict(name="sgd", workers=16) if name == "imagenet" else dict(name="lbfgs")
        return dict(kind="linear_probe", source=source, training=training, protocol=protocol)

    names = SETS if variant == "all" else [variant]
    return ConfigDict(dict(root=root, evals={f"{name}_probe": probe(name) for name in names}))
