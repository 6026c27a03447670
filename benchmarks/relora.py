"""Compare the cost of low-rank updates with full rank (`make bench-relora`): decoders tiny and small, vocabulary
50,304, sequence 512, micro-batch 4, fp32, rank 16 on all projections of the layers.

Times of updates are interleaved within one process; the time of a restart is the median of several. Each memory peak is
measured in a fresh process, minus the memory that is resident after imports.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import train as bench
from pico_train.optim import optimizer_tensors
from pico_train.run import build
from pico_train.run.config import MethodConfig

METHODS = {
    "full": MethodConfig(),
    "relora": MethodConfig(name="relora", options={"rank": 16}),
    "bf16 base": MethodConfig(name="relora", options={"rank": 16, "base_dtype": "bfloat16"}),
}


class Run(bench.Ours):
    """The benchmark's run under a method."""

    def __init__(self, root: Path, method: str) -> None:
        self.job = build(bench.job_in(root).config.model_copy(update={"method": METHODS[method]}))
        self.state = self.job.build_state(None)

    def bytes(self) -> dict[str, int]:
        """Weights, gradients and optimizer of the device that trains."""
        return {
            "weights": sum(p.nbytes for p in self.state.model.parameters()),
            "gradients": sum(p.nbytes for p in self.state.parameters.values()),
            "optimizer": sum(t.nbytes for t in optimizer_tensors(self.state.optimizer, self.state.parameters).values()),
        }

    def restart(self) -> None:
        """A merge, new factors, and what the optimizer forgets."""
        method = self.state.method
        method.after_step(self.state.model, self.state.optimizer, method.config.restart_every)  # type: ignore[attr-defined]


def seconds(act: Callable[[], None]) -> float:
    """Measure the seconds of one call."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def peak(root: Path, method: str) -> dict[str, int]:
    """Peak memory of three updates beyond what imports take, with the bytes of the state; for a process of its own."""
    before = psutil.Process().memory_info().rss
    run = Run(root, method)
    for _ in range(3):
        run.step()
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before, **run.bytes()}


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=list(bench.SHAPES), default="tiny")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peak", choices=list(METHODS))
    given = parser.parse_args()
    bench.MODEL = bench.SHAPES[given.shape]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if given.peak:
            print(json.dumps(peak(root, given.peak)))
        else:
            report(root, given.shape, given.rounds)


def report(root: Path, shape: str, rounds: int) -> None:
    """Print ratios to full rank."""
    # Peaks first: a process starts with the peak of the one that it was forked from.
    command = [sys.executable, __file__, "--shape", shape, "--peak"]
    found = {
        method: json.loads(subprocess.run([*command, method], check=True, capture_output=True, text=True).stdout)
        for method in METHODS
    }
    for method, sizes in found.items():
        shares = ", ".join(f"{name} {size / found['full'][name]:.2f}" for name, size in sizes.items())
        print(f"{method:10} of full rank: {shares}; peak {sizes['peak'] / 2**20:,.0f} MiB")
    runs = {method: Run(root, method) for method in ("full", "relora")}
    times: dict[str, list[float]] = {method: [] for method in runs}
    for run in runs.values():
        run.step()
    for _ in range(rounds):
        for method, run in runs.items():
            times[method].append(seconds(run.step))
    step = {method: statistics.median(some) for method, some in times.items()}
    restart = statistics.median(seconds(runs["relora"].restart) for _ in range(rounds))
    print(f"decoder {shape}, rank 16: an update takes {step['relora'] / step['full']:.2f} of full rank's time,")
    print(f"a restart {restart / step['relora']:.2f} updates")


if __name__ == "__main__":
    main()
