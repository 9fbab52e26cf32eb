r"""Zero-shot classification on FILIP's twelve data sets, as CLIP_benchmark publishes them in tars.

    filip eval --workdir=runs/filip_base --config=configs/eval/clip_benchmark.py --config.root=/data/clip_benchmark

Each data set is a folder of https://huggingface.co/clip-benchmark below `root`, downloaded whole: wds_vtab-cifar10 and so on,
with its tars, classnames.txt and zeroshot_classification_templates.txt, whose prompts are CLIP's. SUN397 is all of its 108,754
pictures there, of which CLIP counts 19,850. `:cifar10` behind the file takes that set alone. --config.evals.pets.prompts=FILE
gives one other prompts; the paper's own lists are not known.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference

SETS = {  # their folders, in the order of the paper's table
    "cifar10": "wds_vtab-cifar10", "cifar100": "wds_vtab-cifar100", "caltech101": "wds_vtab-caltech101", "cars": "wds_cars",
    "flowers102": "wds_vtab-flowers", "food101": "wds_food101", "sun397": "wds_sun397", "dtd": "wds_vtab-dtd",
    "aircraft": "wds_fgvc_aircraft", "pets": "wds_vtab-pets", "eurosat": "wds_vtab-eurosat", "imagenet": "wds_imagenet1k",
}  # fmt: skip
VARIANTS = ("all", *SETS)


def get_config(variant: str = "all") -> ConfigDict:
    root = FieldReference("clip_benchmark")
    chosen = SETS if variant == "all" else {variant: SETS[variant]}

    def classify(folder):
        place = root + f"/{folder}"
        source = dict(name="webdataset", path=place + "/test", label="cls", class_names=place + "/classnames.txt")
        return dict(kind="zero_shot", source=source, prompts=place + "/zeroshot_classification_templates.txt")

    return ConfigDict(dict(root=root, evals={name: classify(folder) for name, folder in chosen.items()}))
