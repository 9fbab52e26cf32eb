r"""Objectives of the field on the demo's emoji scenes, each as its publication has it; to be tried, then copied to a config.

    filip train --config=configs/objectives.py:filip_sigmoid --workdir=runs/filip_sigmoid
    filip train --config=configs/objectives.py:maxsim --workdir=runs/maxsim --config.objectives.maxsim.negatives=hardest
    filip train --config=configs/objectives.py:flair --workdir=runs/flair --config.source.path=PAIRS
    filip train --config=configs/objectives.py:dreamlip --workdir=runs/dreamlip --config.source.path=PAIRS
    filip train --config=configs/objectives.py:sparc --workdir=runs/sparc
    filip train --config=configs/objectives.py:superclass --workdir=runs/superclass
    filip train --config=configs/objectives.py:alip --workdir=runs/alip --config.source.path=PAIRS
    filip train --config=configs/objectives.py:distill --workdir=runs/distill --config.init_from.teacher.path=runs/demo_clip \
        --config.init_from.teacher.rules="(('objectives/distill/.*', None),)"

docs/loss.md says what each compares and needs. Without a path the teacher of `distill` is the model that the run begins with;
the rule says that a run without this objective has no scale for it.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from filip_jax.configs import demo


def filip_sigmoid() -> ConfigDict:
    """SigLIP's loss on FILIP's similarities."""
    config = demo.get_config("filip")
    section = dict(kind="filip_sigmoid", weight=1.0, from_first_batch=True, keep_tokens=1.0, selection="batch")
    config.objectives = ConfigDict(dict(filip_sigmoid=section))
    return config


def maxsim() -> ConfigDict:
    """ColBERT's scores in one direction, texts that look for images."""
    config = demo.get_config("filip")
    section = dict(kind="maxsim", weight=1.0, negatives="all", smoothing=0.0, logit_scale_init=1 / 0.02)
    config.objectives = ConfigDict(dict(maxsim=section))
    return config


def flair() -> ConfigDict:
    """FLAIR, and FILIP's objective for evaluations, which compare tokens."""
    config = _with_several_captions()
    section = dict(kind="flair", weight=1.0, heads=8, logit_scale_init=10.0, bias_init=-10.0, from_first_batch=False)
    config.objectives.flair = ConfigDict(section)
    return config


def dreamlip() -> ConfigDict:
    """DreamLIP, and FILIP's objective for evaluations, which compare tokens."""
    config = _with_several_captions()
    section = dict(kind="dreamlip", weight=1.0, groups_weight=1.0, logit_scale_init=1 / 0.07)
    config.objectives.dreamlip = ConfigDict(section)
    return config


def _with_several_captions() -> ConfigDict:
    """FILIP on a folder of pictures with a raw caption in NAME.txt, others in NAME.short.txt and NAME.long.txt."""
    config = demo.get_config("filip")
    config.source = ConfigDict(dict(name="folder", path="", caption_keys=("txt", "short.txt", "long.txt")))
    config.data.captions_per_image = 3
    return config


def sparc() -> ConfigDict:
    """SPARC's sum: CLIP's objective and the words of each caption; lambda of 0.5 and 1."""
    config = demo.get_config("clip")
    config.objectives.clip.weight = 0.5
    config.objectives.sparc = ConfigDict(dict(kind="sparc", weight=1.0, logit_scale_init=1 / 0.07, repeated_words=True))
    return config


def superclass() -> ConfigDict:
    """CLIP's objective and the head of SuperClass."""
    config = demo.get_config("clip")
    config.objectives.superclass = ConfigDict(dict(kind="superclass", weight=1.0, logit_scale_init=1 / 0.07))
    return config


def alip() -> ConfigDict:
    """ALIP, on a folder of pictures with a raw caption in NAME.txt and a synthetic one in NAME.synthetic.txt."""
    config = demo.get_config("clip")
    config.objectives = ConfigDict(dict(alip=dict(kind="alip", weight=1.0, logit_scale_init=1 / 0.07, momentum=0.99)))
    # The raw caption weighs so much more that it is drawn first; the synthetic one is the second.
    captions = (("txt", 1e9), ("synthetic.txt", 1.0))
    config.source = ConfigDict(dict(name="folder", path="", caption_keys=captions))
    config.data.captions_per_image = 2
    return config


def distill() -> ConfigDict:
    """CLIP's objective and a teacher's relations: a run with the objective `clip` on the demo, and its last train/clip/logit_scale."""
    config = demo.get_config("clip")
    section = dict(kind="distill", weight=1.0, teacher_logit_scale=20.0, logit_scale_init=1 / 0.07)
    config.objectives.distill = ConfigDict(section)
    return config


VARIANTS: dict[str, Callable[[], ConfigDict]] = {
    "filip_sigmoid": filip_sigmoid,
    "maxsim": maxsim,
    "flair": flair,
    "dreamlip": dreamlip,
    "sparc": sparc,
    "superclass": superclass,
    "alip": alip,
    "distill": distill,
}


def get_config(variant: str = "sparc") -> ConfigDict:
    return VARIANTS[variant]()
