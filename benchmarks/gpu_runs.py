"""The cost of observing, saving and resuming on one device: the part of gpu.py that needs pico-train's packages."""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pico_contract import codec
from pico_contract.layout import MODEL_WEIGHTS
from pico_train.checkpoint.save import save_checkpoint
from pico_train.config import validate
from pico_train.data.prepare import PrepareConfig, prepare
from pico_train.model.decoder import DecoderConfig
from pico_train.observe.snapshot import ObservationDue
from pico_train.optim import clip_gradients, gradient_norm
from pico_train.run import Job, RunConfig, build
from pico_train.trainer.train import train
from pico_train.trainer.update import Update, apply_update, compute_gradients

PROBE_ROWS = 8
BATCH_ROWS = 8
UPDATES = 6


def run_config(root: Path, name: str, config: DecoderConfig, seq_len: int, **train_keys: Any) -> RunConfig:
    """Configure a run on random tokens in `root`, which are prepared once."""
    source = root / "tokens.jsonl"
    if not source.is_file():
        rows = np.random.default_rng(0).integers(config.vocab_size, size=(4 * BATCH_ROWS * UPDATES, seq_len + 1))
        source.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows.tolist()))
    prepared = {
        "source": {"path": str(source)},
        "out": str(root / "data"),
        "seq_len": seq_len,
        "tokenizer": {"vocab_size": config.vocab_size},
        "validation_fraction": 0.2,
    }
    raw = {
        "name": name,
        "runs_dir": str(root / "runs"),
        "model": dataclasses.asdict(config),
        "data": {"path": str(prepare(validate(PrepareConfig, prepared, "gpu.py")))},
        "train": {"steps": UPDATES, "batch_size": BATCH_ROWS, **train_keys},
        "optimizer": {"lr": 1e-4},
        "schedule": {"warmup_steps": 0},
        "snapshot": {"every": 0, "probe_rows": PROBE_ROWS},
        "checkpoint": {"every": UPDATES // 2},
    }
    return validate(RunConfig, raw, "gpu.py")


def snapshot_cost(config: DecoderConfig, seq_len: int) -> dict[str, Any]:
    """Time a snapshot (weights, train and probe gradients, activations, written and flushed) in updates."""
    with tempfile.TemporaryDirectory() as folder:
        job = build(run_config(Path(folder), "snapshot", config, seq_len))
        state = job.build_state(None)

        def gradients() -> Update:
            return compute_gradients(job, state, state.counters.step + 1)

        def update() -> None:
            done = compute_gradients(job, state, state.counters.step + 1)
            clip_gradients(state.parameters, job.config.optimizer.grad_clip, gradient_norm(state.parameters))
            apply_update(state, done, 1.0)

        def snapshot() -> None:
            observed = job.observer.begin(state, ObservationDue()).finish(done)
            assert observed is not None
            assert observed.snapshot is not None
            observed.snapshot.write()

        step = timed(job, update)
        done = gradients()
        taken = timed(job, snapshot)
    return {"update_s": round(step, 4), "snapshot_s": round(taken, 4), "in_updates": round(taken / step, 2)}


def checkpoint_cost(config: DecoderConfig, seq_len: int) -> dict[str, Any]:
    """Time a checkpoint with its optimizer state: what training waits for, and what is written beside it."""
    with tempfile.TemporaryDirectory() as folder:
        job = build(run_config(Path(folder), "checkpoint", config, seq_len))
        state = job.build_state(None)
        done = compute_gradients(job, state, 1)
        apply_update(state, done, 1.0)
        began = time.perf_counter()
        held = state.capture().copied()
        waited = time.perf_counter() - began
        save_checkpoint(job.layout, held, job.metadata)
        written = time.perf_counter() - began - waited
        size = sum(path.stat().st_size for path in job.layout.checkpoints.rglob("*") if path.is_file())
    return {"copied_s": round(waited, 3), "written_s": round(written, 3), "gib": round(size / 2**30, 2)}


def resume_identity(config: DecoderConfig, seq_len: int) -> dict[str, Any]:
    """Compare a run that was stopped half way and continued with one that was not, bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        whole = run_config(root, "whole", config, seq_len)
        again = run_config(root, "again", config, seq_len)
        parts = run_config(root, "parts", config, seq_len)
        for one in (whole, again):
            train(one, quiet=True)
        train(parts, quiet=True)
        # A kill after the first checkpoint leaves nothing of the second.
        for path in sorted(parts.layout.checkpoint(UPDATES).rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        parts.layout.checkpoint(UPDATES).rmdir()
        train(parts, quiet=True)
        weights = [codec.read_tensors(one.layout.checkpoint(UPDATES) / MODEL_WEIGHTS) for one in (whole, again, parts)]
    return {
        "two_runs_equal": largest_difference(weights[0], weights[1]) == 0,
        "resumed_equals_whole": largest_difference(weights[0], weights[2]) == 0,
        "largest_difference": largest_difference(weights[0], weights[2]),
    }


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Largest difference of an entry of two models of the same names."""
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def timed(job: Job, work: Callable[[], None]) -> float:
    """Median seconds of `work` with the device finished, after one to warm up."""
    taken = []
    for _ in range(4):
        start = time.perf_counter()
        work()
        if job.runtime.device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])
