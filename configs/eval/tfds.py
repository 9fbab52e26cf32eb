r"""Zero-shot classification on FILIP's data sets as TensorFlow Datasets prepares them, in prompts of the paper's form.

    filip eval --workdir=runs/filip_base --config=configs/eval/tfds.py --config.root=/data/tensorflow_datasets

`root` is the data_dir of data that was prepared with file_format="array_record"; TensorFlow itself is not needed here. Eleven
sets: TFDS has no FGVC Aircraft (clip_benchmark.py has). `:pets` behind the file takes that set alone; SUN397 is its first official
partition, as in CLIP. EuroSAT has one split, all of it is counted. Classes have TFDS's own names, as words; ImageNet's are codes
there: imagenet2012/classnames.txt must hold 1,000 names in the order of the codes, as wds_imagenet1k/classnames.txt of
CLIP_benchmark's data does. The names that CLIP took lie in CLIP_benchmark's code (clip_benchmark/datasets):
--config.evals.imagenet.source.class_names=en_classnames.json:imagenet1k.

Prompts are "[prefix] {}, [description]. [suffix]." with every combination of these (appendix A.4). The paper's own lists are not
known: descriptions and suffixes here are those that are recalled, so numbers are not the paper's to a tenth.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference

LIKED = ("", "I like it", "It's common in daily life", "It's cute", "It's ugly", "It's weird", "Hope you like it")
SETS = {  # TFDS's folder and split, descriptions, suffixes; in the order of the paper's table
    "cifar10": ("cifar10", "test", ("",), LIKED),
    "cifar100": ("cifar100", "test", ("",), LIKED),
    "caltech101": ("caltech101", "test", ("",), LIKED),
    "cars": ("cars196", "test", ("a type of car",), LIKED[:2]),
    "flowers102": ("oxford_flowers102", "test", ("a type of flower", "a type of bloom"), LIKED[:2]),
    "food101": ("food101", "validation", ("a type of food", "a type of nourishment"), LIKED[:2]),
    "sun397": ("sun397/standard-part1-120k", "test", ("",), LIKED[:2]),
    "dtd": ("dtd", "test", ("a type of texture",), LIKED[:2]),
    "pets": ("oxford_iiit_pet", "test", ("a type of pet",), LIKED[:2]),
    "eurosat": ("eurosat/rgb", "train", ("an example of aerial or satellite image",), LIKED[:2]),
    "imagenet": ("imagenet2012", "validation", ("",), LIKED),
}
VARIANTS = ("all", *SETS)


def get_config(variant: str = "all") -> ConfigDict:
    root = FieldReference("tensorflow_datasets")

    def classify(folder, split, descriptions, suffixes):
        source = dict(name="tfds", path=root + f"/{folder}", split=split, caption_keys=("label",))
        if folder == "imagenet2012":
            source["class_names"] = root + f"/{folder}/classnames.txt"
        prompts = dict(prefixes=("a photo of a", "a photo of the"), descriptions=descriptions, suffixes=suffixes)
        return dict(kind="zero_shot", source=source, prompts=prompts)

    names = SETS if variant == "all" else [variant]
    return ConfigDict(dict(root=root, evals={name: classify(*SETS[name]) for name in names}))
