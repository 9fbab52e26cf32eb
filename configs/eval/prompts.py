r"""Which prompt is best: the demo's emoji by several, a sweep of evaluations over runs that are trained already.

    filip sweep --config=configs/eval/prompts.py --workdir="runs/demo/*" --run

Each point is an evaluation of its own in evals.json, rows of the table and a bar of the plot, evals.svg. `filip eval
--config=configs/eval/prompts.py` does the same, with --step, --watch and what else it has.
"""

from ml_collections import ConfigDict

PROMPTS = ("{}", "a {}", "a {} on a white background", "a big {} on a white background")


def get_config() -> ConfigDict:
    source = dict(name="emoji_scenes", split="seen_cells", seed=0, scenes=-1)
    return ConfigDict(dict(evals=dict(emoji=dict(kind="zero_shot", source=source, prompts=PROMPTS[:1]))))


def sweep():
    """Each prompt alone, then all of them together."""
    for prompts in (*((prompt,) for prompt in PROMPTS), PROMPTS):
        yield {"evals.emoji.prompts": prompts}
