"""The two ways in which something can be wrong: the user's request, or what is on disk."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_MOST_CHOICES = 60
"""Every list of keys, metrics or values of ours is shorter; a directory of files need not be."""
_LONGEST_WORD = 200
"""Nothing longer resembles a name, and comparing takes time that grows with the square of the
length."""


_LONGEST_SENTENCE = 4_000


class UserError(Exception):
    """A mistake that its reader can mend: one sentence, shown on stderr without a traceback; exit
    code 2."""

    exit_code = 2


class DamagedError(UserError):
    """A file or directory of a run that is missing, truncated, altered or of an unknown version;
    names the file."""


def nearest(word: str, choices: Iterable[str], limit: int = 1) -> list[str]:
    """The choices most like `word`, best first; may be empty when nothing resembles it."""
    return difflib.get_close_matches(word, list(choices), n=limit, cutoff=0.5)


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A clause such as `; did you mean "steps"?`, or the list of what exists when nothing is
    near."""
    known = sorted(choices)
    near = nearest(word[:_LONGEST_WORD], known)
    if near:
        return f'; did you mean "{near[0]}"?'
    shown = ", ".join(known[:_MOST_CHOICES]) + (", ..." if len(known) > _MOST_CHOICES else "")
    return f"; choose from: {shown}" if known else ""


def shorten(text: str, limit: int = 100) -> str:
    """`text` in one line of at most `limit` characters, cut in the middle; control characters are
    escaped."""
    plain = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: 4 * limit]
    )
    if len(plain) <= limit and len(text) <= 4 * limit:
        return plain
    return f"{plain[: limit - 40]}... ({len(text):,} characters)"


def sentence_of(error: BaseException) -> str:
    """The text of an error for stderr, cut in the middle where it quotes something very long."""
    text, half = str(error), _LONGEST_SENTENCE // 2
    return text if len(text) <= 2 * half else f"{text[:half]} [...] {text[-half:]}"


def in_one_line(error: BaseException) -> str:
    """`Type: message` on one line, for what is told of an error that is not ours."""
    return " ".join(f"{type(error).__name__}: {error}".split())


@contextmanager
def naming(draft: Path, final: Path) -> Iterator[None]:
    """Let an OSError of the body name what was to be written, `final` or a file in it, and not its
    draft."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        name = str(error.filename or final).replace(str(draft), str(final))
        raise OSError(error.errno, error.strerror, name) from error


def failed_write(error: Exception, path: Path) -> OSError:
    """What a library that is not Python's says of a failed write, as Python would: by the number in
    its text."""
    code = re.search(r"os error (\d+)", str(error))
    if code is None:
        return OSError(errno.EIO, str(error), str(path))
    return OSError(int(code[1]), os.strerror(int(code[1])), str(path))
