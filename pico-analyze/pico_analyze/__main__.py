"""The command `pico-analyze`, which is also `python -m pico_analyze`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pico_contract.interrupts import Program

AGAIN = "run the same command again"
READS = f"nothing was changed: {AGAIN}"
DRAWS = f"files that were finished before stay, whole: {AGAIN} for the others"
ADVICE = {
    "": f"what was finished before stays: {AGAIN}",
    "run": f"numbers that were measured before are cached: {AGAIN} to continue",
    "plot": DRAWS,
    "report": DRAWS,
    "compare": DRAWS,
    "audit": READS,
    "inspect": READS,
    "metrics": READS,
}
"""Command -> what an interruption leaves, and how to go on."""


def main() -> None:
    """Run the command line; the interface itself is imported once signals are handled."""
    Program("pico-analyze", ADVICE).run(_interface)


def _interface() -> Callable[[], Any]:
    from pico_analyze.cli import main

    return main


if __name__ == "__main__":
    main()
