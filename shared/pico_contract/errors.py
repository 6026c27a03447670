"""The two ways in which something can be wrong: the user's request, or what is on disk."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that its reader can mend: one sentence, shown on stderr without a traceback; exit code 2."""

    exit_code = 2


class DamagedError(UserError):
    """A file or directory of a run that is missing, truncated, altered or of an unknown version; names the file."""


def nearest(word: str, choices: Iterable[str], limit: int = 1) -> list[str]:
    """The choices most like `word`, best first; may be empty when nothing resembles it."""
    return difflib.get_close_matches(word, list(choices), n=limit, cutoff=0.5)


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A clause such as `; did you mean "steps"?`, or a short list of what exists when nothing is near."""
    known = sorted(choices)
    near = nearest(word, known)
    if near:
        return f'; did you mean "{near[0]}"?'
    shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"; choose from: {shown}" if known else ""
