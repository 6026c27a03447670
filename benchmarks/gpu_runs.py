"""What benchmarks/gpu.py measures on whole runs: saving, observing, and going on after a stop."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pico_contract import codec
from pico_contract.layout import MODEL_WEIGHTS
from pico_train.api import train
from pico_train.checkpoint import save_checkpoint
from pico_train.config import validate
from pico_train.data.prepare import PrepareConfig, prepare
from pico_train.loop import apply_update, compute_gradients
from pico_train.model.decoder import DecoderConfig
from pico_train.optim import clip_gradients, gradient_norm
from pico_train.run import RunConfig, build
from pico_train.snapshot import FromTraining

PROBE_ROWS, BATCH = 8, 8


def run_in(root: Path, shape: DecoderConfig, seq_len: int, device: str, **changes: Any) -> RunConfig:
    """Configure a run on random tokens in `root`."""
    source, out = root / "tokens.jsonl", root / "data"
    rows = np.random.default_rng(0).integers(shape.vocab_size, size=(64, seq_len + 1)).tolist()
    source.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    prepared = {
        "source": {"path": str(source)},
        "out": str(out),
        "seq_len": seq_len,
        "tokenizer": {"vocab_size": shape.vocab_size},
        "validation_fraction": 0.2,
    }
    config = {
        "name": "bench",
        "runs_dir": str(root / "runs"),
        "model": dataclasses.asdict(shape),
        "data": {"path": str(prepare(validate(PrepareConfig, prepared, "bench")))},
        "train": {"steps": 4, "batch_size": BATCH, "device": device, "compile": "off"},
        "optimizer": {"lr": 1e-4},
        "snapshot": {"probe_rows": PROBE_ROWS},
        "checkpoint": {"every": 2},
        "log": {"mfu": "off"},
        **changes,
    }
    return validate(RunConfig, config, "bench")


def saving(shape: DecoderConfig, seq_len: int, device: str) -> dict[str, Any]:
    """Time what an update, a checkpoint and a snapshot cost: what training waits for, and what is written beside it."""
    with tempfile.TemporaryDirectory() as folder:
        job = build(run_in(Path(folder), shape, seq_len, device))
        state = job.build_state(None)

        def update() -> None:
            compute_gradients(job, state, state.counters.step + 1)
            clip_gradients(state.parameters, 1.0, gradient_norm(state.parameters))

        def step() -> None:
            gradients = compute_gradients(job, state, state.counters.step + 1)
            apply_update(state, gradients, 1.0)

        step()
        seconds = {"update": timed(step), "state_to_cpu": timed(lambda: state.capture().copied())}
        saved = state.capture().copied()
        seconds["checkpoint_written"] = timed(lambda: save_checkpoint(job.layout, saved, job.card))
        update()
        writes: list[Callable[[], object]] = []

        def observe() -> None:
            pending = job.observer.observe(state)
            assert pending is not None
            gradients = job.observer.train_gradients(state.parameters)
            pending.finish(FromTraining(gradients, {}, "", False), writes.append)

        seconds["snapshot_observed"] = timed(observe)
        seconds["snapshot_written"] = timed(lambda: [write() for write in writes])
        size = sum(path.stat().st_size for path in job.layout.root.rglob("*") if path.is_file())
        job.reader.close()
    result = {f"{name}_s": round(value, 3) for name, value in seconds.items()}
    waits = seconds["state_to_cpu"], seconds["snapshot_observed"]
    return {
        **result,
        "waits_in_updates": [round(wait / seconds["update"], 2) for wait in waits],
        "bytes": size,
        "batch": BATCH,
        "probe_rows": PROBE_ROWS,
    }


def continuing(shape: DecoderConfig, seq_len: int, device: str) -> dict[str, Any]:
    """Compare the last weights of a run with those of the same run, set back to its second update and continued."""
    narrow = dataclasses.replace(shape, hidden_size=96, intermediate_size=384) if device == "cuda" else shape
    with tempfile.TemporaryDirectory() as folder:
        config = run_in(Path(folder), narrow, seq_len, device, snapshot={"every": 0})
        train(config, quiet=True)
        last = config.layout.checkpoint(4)
        whole = codec.read_tensors(last / MODEL_WEIGHTS)
        last.rename(config.layout.root / "aside")
        train(config, quiet=True)
        again = codec.read_tensors(last / MODEL_WEIGHTS)
    return {
        "bit_identical": all(torch.equal(whole[name], again[name]) for name in whole),
        "largest_difference": max(float((whole[name] - again[name]).abs().max()) for name in whole),
    }


def timed(work: Callable[[], object]) -> float:
    """Return seconds until the device is done as well."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else (lambda: None)
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start
