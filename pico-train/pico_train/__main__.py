"""The command `pico-train`, and `python -m pico_train` for launchers such as torchrun."""

from __future__ import annotations

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
"""Command -> what an interruption leaves, and how to go on."""


def main() -> None:
    """Run the command line; the interface itself is imported once signals are handled."""
    Program("pico-train", ADVICE).run(_interface)


def _interface() -> Callable[[], Any]:
    from pico_train.cli import main

    return main


if __name__ == "__main__":
    main()
