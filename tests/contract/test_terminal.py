"""Names of others on a terminal: nothing that controls it, reorders text or is not text gets through."""

from __future__ import annotations

import pytest
from pico_contract.terminal import one_line, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", "\\x1b[2J"),
        ("a\rb", "a\\rb"),
        ("\x9b31m", "\\x9b31m"),
        ("\x07\x08\x7f\0", "\\x07\\x08\\x7f\\x00"),
        ("abc\u202etxt", "abc\\u202etxt"),
        ("\u2066x\u2069", "\\u2066x\\u2069"),
        ("\udcff", "\\udcff"),
        ("\u2028", "\\u2028"),
    ],
)
def test_what_controls_a_terminal_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert one_line(text) == shown


@pytest.mark.parametrize(
    "text", ["plain", "\u4e2d\u6587", "caf\u00e9", "\U0001f468\u200d\U0001f469", "a\u00a0b", "C:\\x"]
)
def test_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == one_line(text) == text


def test_lines_stay_lines_but_not_within_a_name() -> None:
    assert printable("a\n\tb") == "a\n\tb"
    assert one_line("a\n\tb") == "a\\n\\tb"
