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
    """Find the choices most like `word`, best first; none if nothing resembles it."""
    return difflib.get_close_matches(word, list(choices), n=limit, cutoff=0.5)


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Suggest in a clause such as `; did you mean "steps"?`, or list the choices if none is
    near."""
    known = sorted(choices)
    near = nearest(word[:_LONGEST_WORD], known)
    if near:
        return f'; did you mean "{near[0]}"?'
    shown = ", ".join(known[:_MOST_CHOICES]) + (", ..." if len(known) > _MOST_CHOICES else "")
    return f"; choose from: {shown}" if known else ""


def shorten(text: str, limit: int = 100) -> str:
    """Put `text` in one line of at most `limit` characters, cut at the end; control characters are
    escaped."""
    # Only a beginning is escaped: a text may be a whole file.
    beginning = text[: 4 * limit]
    plain = "".join(map(_printable, beginning))
    if len(plain) <= limit and len(text) == len(beginning):
        return plain
    return f"{plain[: limit - 40]}... ({len(text):,} characters)"


def _printable(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def sentence_of(error: BaseException) -> str:
    """Return the text of an error for stderr, cut in the middle if it quotes something very
    long."""
    text, half = str(error), _LONGEST_SENTENCE // 2
    return text if len(text) <= 2 * half else f"{text[:half]} [...] {text[-half:]}"


def in_one_line(error: BaseException) -> str:
    """Write `Type: message` on one line, for a report of an error that is not ours."""
    return " ".join(f"{type(error).__name__}: {error}".split())


@contextmanager
def rename_in_errors(draft: Path, final: Path) -> Iterator[None]:
    """Name `final`, or a file in it, in an OSError of the body that names the draft."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        name = str(error.filename or final).replace(str(draft), str(final))
        raise OSError(error.errno, error.strerror, name) from error


def failed_write(error: Exception, path: Path) -> OSError:
    """Turn a foreign library's error about a failed write into Python's, by the error number in its
    text."""
    code = re.search(r"os error (\d+)", str(error))
    if code is None:
        return OSError(errno.EIO, str(error), str(path))
    return OSError(int(code[1]), os.strerror(int(code[1])), str(path))
