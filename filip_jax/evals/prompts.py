"""The texts that stand for classes: templates with {} in the class name's place."""

import math
from collections.abc import Mapping
from itertools import product
from typing import Any

from filip_jax.data.text_lists import read_texts
from filip_jax.errors import UserError

PARTS = ("prefixes", "descriptions", "suffixes")
MAX_PROMPTS = 65_536  # templates; FILIP's parts make a few hundred


def make_prompts(prompts: Any) -> list[str]:
    """The templates of a config's `prompts`.

    Args:
        prompts: templates; a text file with one on each line, or FILE.json:NAME, see `read_texts`, {c} as in CLIP_benchmark's is {};
            or {prefixes, descriptions, suffixes}, of which every combination is taken: "[prefix] {}, [description]. [suffix]." as
            FILIP's, each part left out where it is "".

    Raises:
        UserError: no template, one without {}, an unknown part, or a file that cannot be read.
    """
    if isinstance(prompts, Mapping):
        templates = _combined(prompts)
    elif isinstance(prompts, str):
        templates = [text.replace("{c}", "{}") for text in read_texts(prompts, "zero_shot.prompts") if text]
    elif isinstance(prompts, (list, tuple)):
        templates = list(prompts)
    else:
        raise UserError(f"zero_shot: prompts={prompts!r} are no list, file or {', '.join(PARTS)}")
    if not templates:
        raise UserError("zero_shot: there are no prompts")
    for template in templates:
        if not isinstance(template, str) or "{}" not in template:
            raise UserError(f"zero_shot: the prompt {template!r} has no {{}}, in whose place the class name stands")
    return templates


def _combined(parts):
    if unknown := set(parts) - set(PARTS):
        raise UserError(f"zero_shot: prompts have no {', '.join(sorted(unknown))}; their parts are {', '.join(PARTS)}")
    for part, texts in parts.items():
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise UserError(f"zero_shot: prompts.{part}={texts!r} is not a list of texts")
    count = math.prod(len(parts.get(part) or ("",)) for part in PARTS)
    if count > MAX_PROMPTS:
        raise UserError(f"zero_shot: prompts make {count} templates; give parts that make at most {MAX_PROMPTS}")
    templates = []
    for prefix, description, suffix in product(*(parts.get(part) or ("",) for part in PARTS)):
        sentence = f"{prefix} {{}}".strip() + (f", {description}" if description else "")
        templates.append(f"{sentence}. {suffix.rstrip('.')}." if suffix else f"{sentence}.")
    return templates
