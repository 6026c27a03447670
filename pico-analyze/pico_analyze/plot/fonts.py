"""Text of figures in any script: a font with the characters, or else their code points.

Without this, matplotlib draws an empty box and warns.
"""

from __future__ import annotations

import re
from functools import lru_cache

from matplotlib import font_manager
from matplotlib.axis import Tick
from matplotlib.figure import Figure
from matplotlib.text import Text

_USUAL = "DejaVu Sans"
_OTHERS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans CJK KR",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
    "PingFang SC",
    "Hiragino Sans",
    "Heiti TC",
    "Microsoft YaHei",
    "SimHei",
    "MS Gothic",
    "Malgun Gothic",
    "Apple SD Gothic Neo",
    "Arial Unicode MS",
    "Unifont",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Noto Sans Tamil",
    "Noto Sans Bengali",
    "Noto Sans Ethiopic",
)
"""Fonts with characters that the usual one lacks, in the order in which they are tried."""
# Written out of a run of characters without a font.
_MOST_CODE_POINTS = 2


def fit_fonts(figure: Figure) -> None:
    """Give every text of a figure fonts that have its characters, and read no formula into a name.

    Characters that no font has are replaced by their code points.
    """
    tick_texts = {id(text) for tick in figure.findobj(Tick) for text in tick.findobj(Text)}
    for text in figure.findobj(Text):
        # Labels of ticks are numbers, and powers of ten are formulas on purpose.
        if id(text) in tick_texts:
            continue
        text.set_parse_math(False)
        words = text.get_text()
        if not words.isascii() or not words.isprintable():
            text.set_text(drawable(words))
            text.set_fontfamily(_families())


def drawable(text: str) -> str:
    """Replace each run of characters that no font has: `<U+6A21 U+578B and 3 more>`."""
    # "\0" marks such a character, so that a pattern finds the runs without moving any place.
    marked = "".join(character if _is_drawable(character) else "\0" for character in text)
    return re.sub(r"\0+", lambda run: _code_points(text[run.start() : run.end()]), marked)


def _is_drawable(character: str) -> bool:
    return character == "\n" or (character.isprintable() and _has_glyph(ord(character)))


def _code_points(run: str) -> str:
    shown = " ".join(f"U+{ord(character):04X}" for character in run[:_MOST_CODE_POINTS])
    more = len(run) - _MOST_CODE_POINTS
    return f"<{shown} and {more} more>" if more > 0 else f"<{shown}>"


@lru_cache(1)
def _families() -> list[str]:
    """List the usual font and those of the others that are installed."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return [_USUAL, *(name for name in _OTHERS if name in installed)]


@lru_cache(4096)
def _has_glyph(code: int) -> bool:
    for family in _families():
        path = font_manager.findfont(font_manager.FontProperties(family=[family]))
        if font_manager.get_font(path).get_char_index(code):
            return True
    return False
