"""What training does on one GPU, in under seven minutes: `make bench-gpu`; with --dry tiny sizes, to try the script.

Each measurement prints one line of JSON as soon as it is done, the most important first; the clock decides how many
there are, and what was left out is named with the reason. A table ends the output. It needs torch (2.11 or newer) and
pico_train/model alone; transformers, and what runs need (pydantic), add measurements where they are installed.

Peak: 989 TFLOP/s, dense bfloat16 of H100 and H200. MFU counts 6 N + 12 L D T operations a token, where N leaves out the
look-up of the embedding. Weights are float32 under bfloat16 autocast, for ours and for transformers alike.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from gpu_updates import Result, Setting, Skip, clear, correctness, largest_micro_batch, ours, pace, peer, resume

SECONDS = 400.0
"""After which nothing more is begun."""


@dataclass(frozen=True)
class Measurement:
    """A named measurement, begun only where `budget` seconds are left."""

    name: str
    budget: float
    measure: Callable[[], Result]


def of_runs(at: Setting, what: str) -> Result:
    """Measure what needs a whole run: its data, checkpoints, snapshots."""
    try:
        runs = importlib.import_module("gpu_runs")
    except ImportError as error:
        raise Skip(f"runs need {error.name}, which is not installed") from None
    return getattr(runs, what)(at.shape("medium"), at.seq_len, at.device.type)


def measurements(at: Setting) -> Iterator[Measurement]:
    """List what is measured, the most important first."""
    for precision in ("fp32", "bf16"):
        yield Measurement(f"correctness {precision}", 45, lambda p=precision: correctness(at, p))
    fast: dict[str, dict[str, bool]] = {
        "compiled": {"compiled": True},
        "compiled, checkpointing": {"compiled": True, "checkpointing": True},
    }
    for name in ("medium", "large"):
        yield _pace(at, name, "compiled", 45, **fast["compiled"])
    for name in ("medium", "large"):
        yield Measurement(
            f"{name} transformers compiled", 60, lambda n=name: pace(at, n, lambda rows: peer(at, n, rows))
        )
    for name in ("medium", "large"):
        yield _pace(at, name, "compiled, checkpointing", 45, **fast["compiled, checkpointing"])
    yield Measurement("resume", 10, lambda: resume(at))
    for name in ("small", "tiny"):
        yield _pace(at, name, "plain", 15)
    for name, checkpointing in (("medium", False), ("large", False), ("large", True)):
        title = f"{name} largest micro-batch{', checkpointing' if checkpointing else ''}"
        yield Measurement(title, 20, lambda n=name, c=checkpointing: largest_micro_batch(at, n, c))
    yield Measurement("medium checkpoint and snapshot", 40, lambda: of_runs(at, "saving"))
    yield Measurement("tiny run stopped and continued", 40, lambda: of_runs(at, "continuing"))


def _pace(at: Setting, name: str, title: str, budget: float, **options: bool) -> Measurement:
    return Measurement(f"{name} {title}", budget, lambda: pace(at, name, lambda rows: ours(at, name, rows, **options)))


def measured(at: Setting, one: Measurement, left: float) -> Result:
    """Measure `one`, or say why not."""
    if left < one.budget * (0 if at.dry else 1):
        return {"skipped": f"{left:.0f} s are left, and it may take {one.budget:.0f}"}
    start = time.perf_counter()
    clear(at)
    try:
        result = one.measure()
    except Skip as reason:
        return {"skipped": str(reason)}
    except Exception as error:  # one that fails must not cost the others
        return {"failed": " ".join(f"{type(error).__name__}: {error}".split())[:500]}
    return {**result, "seconds": round(time.perf_counter() - start, 1)}


def table(results: dict[str, Result]) -> Iterator[str]:
    """Lay the results out, with each pace over that of transformers where both were measured."""
    yield f"{'measurement':<36}{'tokens/s':>12}{'MFU':>8}{'peak GiB':>10}{'to peer':>9}"
    for name, result in results.items():
        if "tokens_per_second" not in result:
            rest = {key: value for key, value in result.items() if key != "seconds"}
            yield f"{name:<36}  {json.dumps(rest)}"
            continue
        beside = results.get(f"{name.split()[0]} transformers compiled", {}).get("tokens_per_second")
        ratio = f"{result['tokens_per_second'] / beside:.2f}" if beside else "-"
        share = "-" if result["mfu"] is None else f"{result['mfu']:.1%}"
        memory = "-" if result["peak_gib"] is None else f"{result['peak_gib']:.1f}"
        yield f"{name:<36}{result['tokens_per_second']:>12,}{share:>8}{memory:>10}{ratio:>9}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="tiny sizes, nothing compiled: is the script sound?")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="when nothing more is begun")
    given = parser.parse_args()
    start = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() and not given.dry else "cpu"
    at = Setting(given.dry or device == "cpu", torch.device(device))
    name = torch.cuda.get_device_name() if device == "cuda" else device
    print(json.dumps({"torch": torch.__version__, "device": name, "dry": at.dry, "seq_len": at.seq_len}), flush=True)
    results = {}
    for one in measurements(at):
        results[one.name] = measured(at, one, given.seconds - (time.perf_counter() - start))
        print(json.dumps({"measurement": one.name, **results[one.name]}), flush=True)
    print("\n".join(table(results)))
    if any("failed" in result or not result.get("holds", True) for result in results.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
