"""Interrupt commands at random moments; each must end with one line and exit code 130 (training in good order: 75).

    python benchmarks/interrupts.py [--moments 50] [--signal SIGTERM] [--only NAME]

A command that finished before the signal came (exit 0) is counted separately, and so is a signal that arrives
while the interpreter starts, before any code of ours runs.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fuzz_configuration import PREPARE, TEXT, TRAIN
from pico_contract import strict_yaml

STOPPED = 75
COMMANDS = {
    "list": ("pico_train", "list", "runs"),
    "check": ("pico_train", "check", "run.yaml"),
    "data prepare": ("pico_train", "data", "prepare", "prepare.yaml"),
    "run": ("pico_train", "run", "run.yaml", "train.steps=60"),
    "evaluate": ("pico_train", "evaluate", "runs/done", "--again"),
    "generate": ("pico_train", "generate", "runs/done", "--tokens", "20"),
    "export": ("pico_train", "export", "runs/done", "--out", "exported"),
    "metrics": ("pico_analyze", "metrics"),
    "inspect": ("pico_analyze", "inspect", "runs/done"),
    "audit": ("pico_analyze", "audit", "runs/done"),
    "analyze": ("pico_analyze", "run", "runs/done", "out=analysed"),
    "plot": ("pico_analyze", "plot", "runs/done", "--out", "measured"),
}
"""Name -> module and arguments; they run in a folder that `prepare` has filled."""
MADE = ("prepared", "exported", "analysed", "runs/t")
"""Outputs of these commands; removed before each."""


@dataclass
class Endings:
    """How often a command ended in which way, and each way that is wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def prepare(folder: Path) -> None:
    """Make the text, data, a finished run and an analysis that the commands need."""
    (folder / "text.txt").write_text("".join(TEXT.format(i % 13, i) for i in range(900)))
    plain = {**TRAIN, "method": {"name": "plain"}, "observe": []}
    (folder / "run.yaml").write_text(strict_yaml.dump(plain))
    (folder / "prepare.yaml").write_text(strict_yaml.dump(PREPARE))
    for arguments in (
        ("pico_train", "data", "prepare", "prepare.yaml", "out=data"),
        ("pico_train", "run", "run.yaml", "name=done"),
        ("pico_analyze", "run", "runs/done", "out=measured"),
    ):
        subprocess.run([sys.executable, "-m", *arguments], cwd=folder, check=True, capture_output=True)


def duration(arguments: Sequence[str], folder: Path) -> float:
    """Measure the seconds that a command takes without an interrupt."""
    _clean(folder)
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", *arguments], cwd=folder, check=True, capture_output=True)
    return time.monotonic() - start


def measure(
    name: str, folder: Path, moments: int, seed: int = 0, number: signal.Signals = signal.SIGINT, earliest: float = 0.0
) -> Endings:
    """Interrupt a command of `COMMANDS` at `moments` moments, from `earliest` seconds to a little beyond its end."""
    rng, endings = random.Random(f"{seed}/{name}"), Endings()
    whole = duration(COMMANDS[name], folder)
    for _ in range(moments):
        seconds = rng.uniform(earliest, whole * 1.05)
        _clean(folder)
        code, err = interrupt(COMMANDS[name], seconds, folder, number)
        verdict = _verdict(code, err, number, folder)
        endings.counts[verdict] += 1
        if verdict not in ("130", "143", "75", "finished"):
            endings.wrong.append(f"{name} after {seconds:.3f} of {whole:.1f} s: {verdict}\n{err[-1500:]}")
    return endings


def interrupt(arguments: Sequence[str], seconds: float, folder: Path, number: signal.Signals) -> tuple[int, str]:
    """Start a command, send it a signal after `seconds`; its exit code (-99: it hangs) and stderr."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child would inherit SIG_IGN
    try:
        command = [sys.executable, "-m", *arguments]
        pipe = subprocess.PIPE
        child = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.DEVNULL, stderr=pipe, text=True, errors="replace"
        )
    finally:
        signal.signal(signal.SIGINT, before)
    time.sleep(seconds)
    child.send_signal(number)
    try:
        _, err = child.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return -99, ""
    return child.returncode, err


def _verdict(code: int, err: str, number: signal.Signals, folder: Path) -> str:
    """Return 130, 143, 75 or finished if the command ended correctly, otherwise what is wrong."""
    expected = 128 + number
    if "Traceback" in err or "Exception ignored" in err:
        return "a traceback"
    if code == 0:
        return "finished"
    if left := [str(path.relative_to(folder)) for path in folder.rglob(".tmp-*")]:
        return f"left {left[0]}"
    if code == STOPPED:
        return "75"
    if code < 0:
        return "it hangs" if code == -99 else f"bare {signal.Signals(-code).name}"
    said = [line for line in err.splitlines() if "interrupted; " in line or "stopped by " in line]
    if code == expected and len(said) == 1 and err.endswith(f"{said[0]}\n"):
        return str(expected)
    return f"exit {code} with {len(said)} such lines"


def _clean(folder: Path) -> None:
    for name in MADE:
        shutil.rmtree(folder / name, ignore_errors=True)
    for draft in folder.rglob(".tmp-*"):
        shutil.rmtree(draft, ignore_errors=True)


def main() -> None:
    """Print a line for each command, and every ending that is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=50, help="for each command")
    parser.add_argument("--signal", default="SIGINT")
    parser.add_argument("--only", action="append", choices=list(COMMANDS), help="repeat for several")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        for command in arguments.only or COMMANDS:
            number = signal.Signals[arguments.signal]
            endings = measure(command, Path(name), arguments.moments, arguments.seed, number)
            counts = ", ".join(f"{count} {verdict}" for verdict, count in endings.counts.most_common())
            print(f"{command:14}{counts}", flush=True)
            wrong += endings.wrong
    for one in wrong:
        print(f"\n{one}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
