"""Commands and options are a promise: a new, changed or removed one must change the frozen text beside this file."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import pico_analyze.cli
import pico_train.cli
import typer.main

SURFACE = Path(__file__).parent / "cli_surface.txt"


def described(command: Any, name: str) -> list[str]:
    """A line for each command, with its arguments, and one for each option: names and default."""
    if hasattr(command, "commands"):
        return [line for key, inner in command.commands.items() for line in described(inner, f"{name} {key}")]
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    lines = [" ".join([name, *(str(argument.metavar) for argument in arguments)])]
    for option in options:
        flag = "  flag" if option.is_flag else ""
        lines.append(f"    {' '.join([*option.opts, *option.secondary_opts])}{flag}  {option.default!r}")
    return lines


def test_the_surface_is_the_frozen_one() -> None:
    apps = {"pico-train": pico_train.cli.app, "pico-analyze": pico_analyze.cli.app}
    found = [line for name, app in apps.items() for line in described(typer.main.get_command(app), name)]
    frozen = SURFACE.read_text(encoding="utf-8").splitlines()
    assert found == frozen, "\n".join(difflib.unified_diff(frozen, found, "cli_surface.txt", "now", lineterm=""))
