"""Characters that no font of this machine has."""

from __future__ import annotations


def test_characters_without_a_font_are_named() -> None:
    from pico_analyze.plot.fonts import drawable

    assert drawable("self_attn.q_proj é д") == "self_attn.q_proj é д"
    assert drawable("a\x1b[0m") == "a<U+001B>[0m"
    assert drawable("\U000f0000\U000f0001\U000f0002x") == "<U+F0000 U+F0001 and 1 more>x"
