"""The letters of the pages: Pillow's own font, or one of the system that knows the text's script."""

from functools import cache

from PIL import ImageFont

# Looked for where systems keep their fonts, if Pillow's own lacks a character: most scripts but Chinese, Japanese and
# Korean; these on Linux, on macOS, on Windows.
SYSTEM = (
    "DejaVuSans.ttf",
    *("NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "NotoSansCJKtc-Regular.otf", "NotoSansSC-Regular.otf"),
    *("wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf"),
    *("PingFang.ttc", "Hiragino Sans GB.ttc", "Arial Unicode.ttf"),
    *("msyh.ttc", "simsun.ttc"),
)


def font_name(text: str) -> str:
    """The font that knows most of a text's characters, by its file's name; "" is Pillow's own."""
    if not _unknown(text, ""):
        return ""
    return min(filter(_is_installed, ("", *SYSTEM)), key=lambda name: len(_unknown(text, name)))


def missing_glyphs(text: str) -> str:
    """The characters of a text that the pages cannot show."""
    return _unknown(text, font_name(text))


@cache
def sized(name: str, size: int) -> ImageFont.FreeTypeFont:
    """Return a font by its file's name, with letters of so many pixels.

    Raises:
        OSError: this system has none of that name, or Pillow came without FreeType.
    """
    font = ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise OSError("Pillow has no FreeType, which draws letters: install one of its wheels")
    return font


@cache
def _is_installed(name: str) -> bool:
    try:
        return bool(sized(name, 16))
    except OSError:
        return False


def _unknown(text: str, name: str) -> str:
    font = sized(name, 16)
    unknown = bytes(font.getmask("\uffff"))
    return "".join(sorted({c for c in text if not c.isspace() and bytes(font.getmask(c)) == unknown}))
