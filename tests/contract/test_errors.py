"""Sentences: suggestions, cuts, and errors that name what was to be written."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_contract.errors import (
    DamagedError,
    UserError,
    did_you_mean,
    failed_write,
    in_one_line,
    nearest,
    rename_in_errors,
    sentence_of,
    shorten,
)


def test_damage_is_a_mistake_with_exit_code_2() -> None:
    assert issubclass(DamagedError, UserError)
    assert DamagedError.exit_code == 2


def test_the_nearest_come_first() -> None:
    assert nearest("stps", ["seeds", "steps", "stop"], limit=2)[0] == "steps"
    assert nearest("zzz", ["seeds", "steps"]) == []


def test_a_suggestion_is_a_clause() -> None:
    assert did_you_mean("stps", ["steps", "seed"]) == '; did you mean "steps"?'
    assert did_you_mean("zzz", ["b", "a"]) == "; choose from: a, b"
    assert did_you_mean("zzz", []) == ""
    assert did_you_mean("zzz", [f"{i:03}" for i in range(100)]).endswith("058, 059, ...")


@settings(deadline=None)
@given(st.text(max_size=1000))
def test_a_shortened_text_is_one_printable_line(text: str) -> None:
    short = shorten(text)
    assert short.isprintable()
    assert len(short) <= 100
    assert short == text or not text.isprintable() or len(text) > 100


def test_a_long_text_says_how_long_it_is() -> None:
    assert shorten("a" * 5000) == "a" * 60 + "... (5,000 characters)"
    assert shorten("a\n\x1b") == "a\\n\\x1b"


def test_a_very_long_sentence_keeps_both_ends() -> None:
    assert sentence_of(UserError("a" * 4000)) == "a" * 4000
    assert sentence_of(UserError("a" * 4000 + "b" * 2000)) == "a" * 2000 + " [...] " + "b" * 2000


def test_a_foreign_error_is_one_line() -> None:
    assert in_one_line(ValueError("two\n  lines")) == "ValueError: two lines"


def test_an_error_of_a_draft_names_the_file_itself(tmp_path: Path) -> None:
    draft, final = tmp_path / ".tmp-a-1", tmp_path / "a"
    with pytest.raises(OSError, match="No space") as caught, rename_in_errors(draft, final):
        raise OSError(errno.ENOSPC, "No space left on device", str(draft / "model.safetensors"))
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(final / "model.safetensors"))
    with pytest.raises(OSError, match="of a library"), rename_in_errors(draft, final):
        raise OSError("of a library")


def test_a_failed_write_has_the_number_of_its_text() -> None:
    error = failed_write(RuntimeError("I/O error: No space left on device (os error 28)"), Path("a"))
    assert (error.errno, error.filename) == (errno.ENOSPC, "a")
    assert failed_write(RuntimeError("something"), Path("a")).errno == errno.EIO
