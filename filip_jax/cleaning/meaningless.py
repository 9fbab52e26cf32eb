"""Texts that say nothing about a picture: file names, dates, addresses, placeholders and the like.

FILIP (section 4) names only "img_0.jpg". Which texts count is this file's decision; every pattern takes
the whole text, so a sentence that holds a file name or a date stays. Words are English.
"""

import re

LONGEST = 120  # characters; every pattern is of short texts, and takes exponential time on some long ones

_MEDIA = r"(?:jpe?g|png|gif|webp|bmp|tiff?|svg|ico|heic|avif|raw|cr2|nef|dng|psd|eps|ai|pdf|mp4|mov|avi|webm|html?|php|aspx?)"
_CAMERA = (
    r"(?:img|imag|image|dscn?|dscf|dsc|sam|pict|pic|picture|photo|foto|bild|p|pxl|gopr|mvi|mov|vid|video|scan|wp|cimg|imgp"
    r"|sdc|hpim|dji|_mg|fb_img|screen ?shot|screenshot|capture|whatsapp image|unnamed|download|s-l|file|asset|slide|page"
    r"|figure|fig|frame|thumb|item|product|banner|attachment|no|nr|number|#)"
)
_NAME = r"(?:[A-Z@][\w.'’@-]*|\d[\w.-]*)"

PATTERNS = {
    # img_0.jpg, red-apple.png, /photos/2019/a.jpg, "IMG 0001.JPG"; but not "my dog in the sun.jpg"
    "file name": re.compile(rf"\S+(?: \S+)?\.{_MEDIA}", re.IGNORECASE),
    # DSC01234, IMG_20190101_123456, "Screenshot 2019-01-01 at 12.30.11", "image 1 of 3", "page 4/10", "1 of 3"
    "numbered": re.compile(rf"(?:{_CAMERA}[\W_]*)?\d(?:[\d\W_]|of|at|[ap]m|x|edited|copy|wa)*", re.IGNORECASE),
    # https://example.org/a?b=c, www.example.org, example.org/a, someone@example.org, any number of them
    "address": re.compile(
        r"(?:(?:https?://\S+|www\.\S+|[\w.+-]+@[\w-]+\.[\w.-]+"
        r"|[\w-]+(?:\.[\w-]+)*\.(?:com|org|net|info|biz|edu|gov|io|co|co\.uk|de|fr|ru|cn|jp)(?:/\S*)?)(?:\s+|$))+",
        re.IGNORECASE,
    ),
    # untitled, "Untitled (3)", "no description", "image not available", "click to enlarge"
    "placeholder": re.compile(
        r"[\W_]*(?:untitled(?: (?:design|document|image|photo|picture))?|no (?:title|name|description|caption|image|photo|picture)"
        r"(?: (?:available|yet|given|found|provided))?|(?:images?|photos?|pictures?|title|description|caption|content)"
        r" (?:not|is not|currently un|un)[ -]?(?:available|found)|placeholder(?: (?:image|text))?|default(?: image)?|unknown|undefined|null|none|nan|n/a"
        r"|(?:(?:the|an|a|my|main|featured|feature|product|profile|cover|header|gallery|alt|full|large|small|thumbnail) )?"
        r"(?:images?|img|photos?|photographs?|pictures?|pics?|thumbnails?|thumb|caption|alt|text|alt text|title)"
        r"|(?:click|tap|press)(?: here)?(?: (?:on|the|this|image|picture|photo|for))* (?:to )?(?:enlarge|zoom|view|expand|larger|full)"
        r"(?: (?:the|this|image|picture|photo|view|size|version))*|(?:image|photo|picture) (?:may contain|result for|for|of)"
        r"|lorem ipsum.*|test(?: (?:image|photo|picture))?|share(?: (?:on|this|via) \w+)?|loading\.*)[\W_\d]*",
        re.IGNORECASE,
    ),
    # "Photo by Jane Doe on Unsplash", "Clipart by Jane Doe - fc23", "Image credit: NASA", "© 2015 J. Doe"; not "photo by the sea" or "Photo by Jane Doe - a barn"
    "credit": re.compile(
        r"(?i:(?:stock )?(?:clip ?art|photos?|photography|image|picture|illustration|drawing|graphic|artwork|vector|icon|design"
        r"|uploaded|posted|submitted|created|made))?[ :]*"
        r"(?i:by|via|(?:image |photo |picture )?(?:credits?|source|courtesy)(?: of)?|©|\(c\)|copyright)[ :]*"
        rf"{_NAME}(?:(?:,? (?:and|&|de|von|van|of|on|at|/|\|) ?| |/){_NAME}){{0,5}}(?: - [A-Za-z]{{0,3}}\d\w*)?(?i:[. ]*all rights reserved)?[\W_]*"
    ),
}

_MONTHS = "january february march april may june july august september october november december".split()
_DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
_DATE_WORDS = {
    *_MONTHS, *(month[:3] for month in _MONTHS), "sept", *_DAYS, *(day[:3] for day in _DAYS), "tues", "thurs",
    "am", "pm", "utc", "gmt",
}  # fmt: skip
_BETWEEN = {"of", "at", "on", "the", "st", "nd", "rd", "th"}
_ONE_WORD = re.compile(r"[\w.:#-]+")
_DESIGNATION = re.compile(r"[A-Z]{1,3}[- ]?\d{1,3}[A-Za-z]?")  # M16, F-16, A380
_PIECES = re.compile(r"\d+|[^\W\d_]+")
# Scripts in which one character can be a word.
_WORD_SIGNS = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af]")


def meaningless(text: str) -> str:
    """Which kind of meaningless text this is, or "".

    The kinds are those of `PATTERNS` and

    - "no letters": digits, punctuation, emoji; nothing at all.
    - "date": numbers, names of months and weekdays (English), times; at least one name and one number.
    - "code": one word of five digits or more and no more letters than these: AB-1234567, 9f8e7d6c5b4a.
    - "too few letters": fewer than three, or one letter repeated; but not M16 or A380, and in scripts whose
      signs are words (Han, kana, Hangul) one is enough.
    """
    text = text.strip()
    if len(text) > LONGEST:
        return "" if any(map(str.isalpha, text)) else "no letters"
    pieces = _PIECES.findall(text)
    letters = [piece for piece in pieces if not piece[0].isdigit()]
    if not any(any(map(str.isalpha, piece)) for piece in letters):
        return "no letters"
    words = {piece.lower() for piece in letters} - _BETWEEN
    if words and len(letters) < len(pieces) and words <= _DATE_WORDS:
        return "date"
    for kind, pattern in PATTERNS.items():
        if pattern.fullmatch(text):
            return kind
    signs = "".join(letters).lower()
    digits = sum(map(len, pieces)) - len(signs)
    if digits >= max(5, len(signs)) and _ONE_WORD.fullmatch(text):
        return "code"
    if (len(signs) < 3 or len(set(signs)) < 2) and not _WORD_SIGNS.search(signs) and not _DESIGNATION.fullmatch(text):
        return "too few letters"
    return ""
