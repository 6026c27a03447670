"""Text of figures in any script: fonts of the system that have the characters, else their code
points in words."""

from __future__ import annotations

import re
from functools import lru_cache

from matplotlib import font_manager
from matplotlib.axis import Tick
from matplotlib.figure import Figure
from matplotlib.text import Text

_USUAL = "DejaVu Sans"
_OTHERS = (
    *(
        "Noto Sans CJK SC",
        "Noto Sans CJK JP",
        "Noto Sans CJK KR",
        "Noto Sans SC",
        "Source Han Sans SC",
    ),
    *(
        "WenQuanYi Zen Hei",
        "WenQuanYi Micro Hei",
        "Droid Sans Fallback",
        "PingFang SC",
        "Hiragino Sans",
        "Heiti TC",
    ),
    *(
        "Microsoft YaHei",
        "SimHei",
        "MS Gothic",
        "Malgun Gothic",
        "Apple SD Gothic Neo",
        "Arial Unicode MS",
        "Unifont",
    ),
    *(
        "Noto Sans Devanagari",
        "Noto Sans Thai",
        "Noto Sans Tamil",
        "Noto Sans Bengali",
        "Noto Sans Ethiopic",
    ),
)
"""Fonts with characters that the usual one lacks, in the order in which they are tried."""
_SHOWN = 2  # code points that are written out of a run of characters without a font


def fit_fonts(figure: Figure) -> None:
    """Let every text of a figure be drawn: no character without a glyph, and no formula read into a
    name."""
    of_ticks = {id(text) for tick in figure.findobj(Tick) for text in tick.findobj(Text)}
    for text in figure.findobj(Text):
        if id(text) in of_ticks:
            continue  # numbers, of which powers of ten are formulas
        text.set_parse_math(False)
        if not text.get_text().isascii() or not text.get_text().isprintable():
            text.set_text(drawable(text.get_text()))
            text.set_fontfamily(_families())


def drawable(text: str) -> str:
    """Replace each run of characters that no font has by its code points: `<U+6A21 U+578B and 3
    more>`."""
    kept = "".join(
        c if c == "\n" or (c.isprintable() and _has_glyph(ord(c))) else "\0" for c in text
    )
    return re.sub(r"\0+", lambda run: _code_points(text[run.start() : run.end()]), kept)


def _code_points(run: str) -> str:
    shown = " ".join(f"U+{ord(c):04X}" for c in run[:_SHOWN])
    return f"<{shown}{f' and {len(run) - _SHOWN} more' if len(run) > _SHOWN else ''}>"


@lru_cache(1)
def _families() -> list[str]:
    """The usual font and those of the others that are installed."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return [_USUAL, *(name for name in _OTHERS if name in installed)]


@lru_cache(4096)
def _has_glyph(code: int) -> bool:
    paths = (
        font_manager.findfont(font_manager.FontProperties(family=[family]))
        for family in _families()
    )
    return any(font_manager.get_font(path).get_char_index(code) for path in paths)
