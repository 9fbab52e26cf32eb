"""The pages that users read: their blocks of code, commands, headings and links."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from conftest import ROOT

PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/*.md", "launch/*.md", "tests/README.md", ".github/*.md")
    for path in ROOT.glob(pattern)
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@cache
def read(page: str) -> str:
    return (ROOT / page).read_text()


def all_blocks() -> Iterator[tuple[str, str, str]]:
    """Yield (page, language, text) of each block of code."""
    for page in PAGES:
        for language, text in FENCE.findall(read(page)):
            yield page, language, text


def blocks(language: str) -> list[tuple[str, str]]:
    """Return (page, text) of each block in this language."""
    return [(page, text) for page, found, text in all_blocks() if found == language]


def commands(text: str) -> list[str]:
    """Return the commands of a block in bash, without comments; a backslash joins lines."""
    lines = text.replace("\\\n", " ").splitlines()
    return [command for line in lines if (command := re.sub(r"(^|\s)#\s.*", "", line).strip())]


def anchors(page: str) -> set[str]:
    """Return the anchors that a host makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", read(page)), re.MULTILINE)
    names: set[str] = set()
    for heading in headings:
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        names.add(next(n for k in range(99) if (n := f"{name}-{k}" if k else name) not in names))
    return names


def links(page: str) -> list[str]:
    """Return where a page's links and pictures lead, code left out."""
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", read(page)))
    return re.findall(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)", prose) + re.findall(
        r"^\[[^\]]+\]: (\S+)", prose, re.MULTILINE
    )


def target(page: str, link: str) -> tuple[Path, str]:
    """Return (file or folder, anchor) of a link within the repository."""
    path, _, anchor = link.partition("#")
    return (ROOT / page).parent / path if path else ROOT / page, anchor
