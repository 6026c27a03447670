"""The command line of a library, called in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

Command = Callable[..., tuple[int, str, str]]
"""`command("run", path)` -> exit code, stdout, stderr."""


def command_line(
    program: str, main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Call `main` as the start of `program` with the given arguments would."""

    def call(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return (int(stopped.value.code or 0), *capsys.readouterr())

    return call
