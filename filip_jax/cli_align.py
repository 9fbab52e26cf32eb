"""The command `filip align`: one page on which patches match which words."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filip_jax.choices import step_number
from filip_jax.console import show
from filip_jax.errors import UserError

ALIGN = """Draw which patches of an image match which words of a text, on one page (PNG).

The picture is scaled and centre-cropped as in evaluation. The page shows, from top to bottom:

  the tokens of the text with their positions, from 0, the [BOS]; the pieces of a word are underlined together,
  and "…" stands where the context cuts the text
  the picture; for each patch the position of the token that it matches best; for each word its best patch
  for each word a heat map of its similarity with every patch

With --label the text is the paper's prompt "a photo of a {label}.", and the patches that choose a token of
the label are coloured, as in the paper's figure."""


def add_align_command(command: Callable[..., Any]) -> None:
    """Adds it; `command` makes a parser of a name, what it runs and its help."""
    align = command("align", _align, ALIGN)
    align.add_argument("--step", default="latest", help="latest or a number (default: latest)")
    align.add_argument("--image", required=True, help="a picture file: JPEG, PNG, WebP …")
    text = align.add_mutually_exclusive_group(required=True)
    text.add_argument("--text", help="whose words are looked for")
    text.add_argument("--label", help='a class name: the text is "a photo of a {label}."')
    align.add_argument("--output", required=True, metavar="FILE.png")


def _align(arguments, _) -> None:
    from filip_jax.data.decode import decode
    from filip_jax.evals.draw import draw_alignment
    from filip_jax.evals.fonts import missing_glyphs
    from filip_jax.files import write_png
    from filip_jax.inference import load_model
    from filip_jax.inference.alignment import align, label_prompt

    image, output = Path(arguments.image), Path(arguments.output)
    if not image.is_file():
        raise UserError(f"--image={image}: no such file")
    if output.suffix.lower() != ".png":
        raise UserError(f"--output={output}: the picture is a PNG; name it so")
    if output.exists() and output.samefile(image):
        raise UserError(f"--output={output} is the picture that is looked at: name another file")
    if arguments.label is None:
        text, phrases = _checked(arguments.text, "text"), None
    else:
        text, words = label_prompt(_checked(arguments.label, "label").strip())
        phrases = [words]
    try:
        picture = decode(image.read_bytes())
    except ValueError as error:
        raise UserError(f"--image={image}: {error}") from error
    model = load_model(arguments.workdir, step_number(arguments.step))
    (alignment,) = align(model, [picture], [text], phrases)
    if phrases and phrases[0][-1] not in alignment.words:
        raise UserError(f"--label={arguments.label}: the model's context of {model.text_length} tokens ends before it")
    output.parent.mkdir(parents=True, exist_ok=True)
    write_png(draw_alignment(alignment, label=len(alignment.words) - 1 if phrases else None), output)
    if unknown := missing_glyphs(text):
        warnings.warn(f"no font that is installed here knows {unknown}", stacklevel=2)
    show(f"wrote {output}")


def _checked(text: str, option: str) -> str:
    if not text.strip():
        raise UserError(f"--{option} is empty")
    if any(0xD800 <= ord(character) < 0xE000 for character in text):
        raise UserError(f"--{option} is not valid UTF-8")
    return text
