"""The entry point of `pico-train`, and of `python -m pico_train` for launchers such as torchrun."""

from __future__ import annotations

import faulthandler
import sys
from collections.abc import Callable
from typing import Any

from pico_contract.interrupts import Program

AGAIN = "run the same command again"
READS = f"nothing was changed: {AGAIN}"
ADVICE = {
    "": f"what was finished before stays: {AGAIN}",
    "run": f"what was saved before stays: {AGAIN} to continue",
    "check": READS,
    "list": READS,
    "generate": READS,
    "prune": f"what was removed before is gone, and the rest stays: {AGAIN} to go on",
    "evaluate": f"results of finished tasks are kept: {AGAIN} for the others",
    "export": f"no half of a model was left: {AGAIN}",
    "convert": f"no half of a file or model was left: {AGAIN}",
    "push": f"what was pushed before stays on the hub: {AGAIN} for the rest",
    "data prepare": f"no half of a data directory was left: {AGAIN} to begin anew",
    "data fetch": f"no half of a data directory was left: {AGAIN} to begin anew",
    "data show": READS,
    "data verify": READS,
}
"""Command -> the state after an interruption, and how to continue."""


def main() -> None:
    """Run the command line; its interface is imported only after signals are handled."""
    # A crash in native code (CUDA, a data loader's library) would end the process without a word.
    # With this, it prints the Python stack of every thread. A closed stderr has no place for it.
    if sys.stderr is not None:
        faulthandler.enable()
    Program("pico-train", ADVICE).run(_interface)


def _interface() -> Callable[[], Any]:
    from pico_train.cli import main

    return main


if __name__ == "__main__":
    main()
