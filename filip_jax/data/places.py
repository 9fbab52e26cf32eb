"""Positions of the characters of a cleaned text in the text that it was made of."""

import difflib

PLACED = 400  # characters; comparing them takes up to the cube


def places(cleaned: str, text: str) -> list[int]:
    """For each place in the cleaned text, and its end, the place in the text that it comes from.

    What stands behind the first PLACED characters, of which a text tower reads little, is put at the text's end:
    comparing takes the square of the length.
    """
    place, at = [], 0
    matcher = difflib.SequenceMatcher(None, text[:PLACED], cleaned[:PLACED], autojunk=False)
    for _, start, end, first, last in matcher.get_opcodes():
        same = end - start == last - first
        place += [start + n if same else start for n in range(last - first)]
        at = end
    return [*place, *[len(text)] * (len(cleaned) - len(place)), at if len(cleaned) <= PLACED else len(text)]
