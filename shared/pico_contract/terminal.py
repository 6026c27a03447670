"""Text for a terminal: names come from other people's files, and must not move the cursor, hide
text or forge lines."""

from __future__ import annotations

import unicodedata

_REORDERING = {
    chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029)
}


def printable(text: str, keep: str = "\n\t") -> str:
    """Escape control characters except those in `keep`, marks that reorder text, and halves of
    surrogate pairs."""
    return "".join(
        character if character in keep else _escaped(character) for character in text
    )


def one_line(text: str) -> str:
    """Escape a name within a line as `printable` does, line ends and tabs as well."""
    return printable(text, keep="")


def _escaped(character: str) -> str:
    if unicodedata.category(character) in ("Cc", "Cs") or character in _REORDERING:
        return character.encode("unicode_escape", "surrogatepass").decode("ascii")
    return character
