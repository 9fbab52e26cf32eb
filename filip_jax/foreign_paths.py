"""Paths as other tools read them, and what stands for them here."""

import re

SEVERAL = re.compile(r"::|,(?![^{}]*\})")  # between patterns, as open_clip and webdataset have them; no comma in braces


def explain(path: str) -> str:
    """Return what to write instead of a path that names nothing, to stand behind the message; "" if nobody has such."""
    if path.startswith("pipe:"):
        return "; no program is started: name the files themselves"
    if re.match(r"(https?|hf|ftp)://", path):
        return "; nothing is downloaded from the web: copy the files, and name them"
    first, *others = SEVERAL.split(path)
    if not others or not all(map(str.strip, (first, *others))):
        return ""
    return (
        "; a path is one pattern: several are a mixture in a config, source = dict(name='mixture', "
        f"a=dict(name=…, path={first!r}), b=dict(name=…, path={others[0]!r}){', …' if others[1:] else ''})"
    )
