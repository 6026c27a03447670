"""The commands besides training: list, prune, show rows, evaluate, generate."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pico_train.checkpoint.load import intact_checkpoint as intact_checkpoint
    from pico_train.checkpoint.load import open_checkpoint as open_checkpoint
    from pico_train.checkpoint.load import run_layout as run_layout
    from pico_train.commands.runs import evaluate_run as evaluate_run
    from pico_train.commands.runs import generate_text as generate_text
    from pico_train.commands.runs import prune as prune
    from pico_train.commands.runs import rows_of_step as rows_of_step
    from pico_train.commands.runs import run_table as run_table

_HOMES = {
    "evaluate_run": "pico_train.commands.runs",
    "generate_text": "pico_train.commands.runs",
    "intact_checkpoint": "pico_train.checkpoint.load",
    "open_checkpoint": "pico_train.checkpoint.load",
    "prune": "pico_train.commands.runs",
    "rows_of_step": "pico_train.commands.runs",
    "run_layout": "pico_train.checkpoint.load",
    "run_table": "pico_train.commands.runs",
}
"""Public name -> its module.

A module is imported when one of its names is first used, because most of them import torch.
"""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
