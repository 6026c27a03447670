"""Measure the cost of training and observing (`make bench`): decoders tiny and small, vocabulary 50,304, sequence 512,
micro-batch 4, fp32.

Times are interleaved within one process, so that a busy machine slows all tasks alike, and reported as ratios of
medians. Each memory peak is measured in a fresh process, minus the memory that is resident after imports.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch
from pico_train.config import validate
from pico_train.data.prepare import PrepareConfig, prepare
from pico_train.model.decoder import DecoderConfig
from pico_train.model.loss import chunk_tokens
from pico_train.observe.snapshot import ObservationDue
from pico_train.optim import clip_gradients, gradient_norm
from pico_train.run import Job, RunConfig, build
from pico_train.trainer.update import Update, apply_update, compute_gradients
from torch.profiler import ProfilerActivity, profile

SHAPES = {"tiny": DecoderConfig(), "small": DecoderConfig(hidden_size=384, intermediate_size=1536)}
FASTER = {"tiny": 1.8, "small": 1.2}
"""How many times the throughput of transformers is aimed at."""
MODEL = SHAPES["tiny"]  # or as --shape says
ROWS, SEQ_LEN, THREADS, PROBE_ROWS = 4, 512, 2, 8
TOKENS = ROWS * SEQ_LEN
_GROUPS = {
    "matrix products": ("aten::mm", "aten::addmm_", "aten::bmm", "aten::addmm"),
    "attention kernels": ("flash", "_attention"),
    "optimizer and clipping": ("_fused_adam", "_foreach", "linalg_vector_norm"),
    "zeroing of fresh gradients": ("aten::fill_", "aten::zero_"),
}


def job_in(root: Path) -> Job:
    """A run of ours on random tokens in `root`."""
    source, out = root / "tokens.jsonl", root / "data"
    if not source.is_file():
        draws = np.random.default_rng(0)
        rows = draws.integers(MODEL.vocab_size, size=(200, SEQ_LEN + 1)).tolist()
        source.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    prepared = {
        "source": {"path": str(source)},
        "out": str(out),
        "seq_len": SEQ_LEN,
        "tokenizer": {"vocab_size": MODEL.vocab_size},
        "validation_fraction": 0.2,
    }
    config = {
        "name": "bench",
        "runs_dir": str(root / "runs"),
        "model": dataclasses.asdict(MODEL),
        "data": {"path": str(prepare(validate(PrepareConfig, prepared, "bench")))},
        "train": {"steps": 1000, "batch_size": ROWS, "device": "cpu", "precision": "fp32", "threads": THREADS},
        "optimizer": {"lr": 1e-4},
        "snapshot": {"probe_rows": PROBE_ROWS},
    }
    return build(validate(RunConfig, config, "bench"))


class Ours:
    """One run: its update exactly as the loop does it, and a snapshot of its state."""

    def __init__(self, root: Path) -> None:
        self.job = job_in(root)
        self.state = self.job.build_state(None)

    def gradients(self) -> Update:
        self.computed = compute_gradients(self.job, self.state, self.state.counters.step + 1)
        return self.computed

    def step(self) -> None:
        update = self.gradients()
        clip_gradients(self.state.parameters, self.job.config.optimizer.grad_clip, gradient_norm(self.state.parameters))
        apply_update(self.state, update, 1.0)

    def snapshot(self) -> None:
        """Observe, copy the gradients that `gradients` has left, write and flush; weights are written as well."""
        observed = self.job.observer.begin(self.state, ObservationDue()).finish(self.computed)
        assert observed is not None
        assert observed.snapshot is not None
        observed.snapshot.write()


def transformers_step() -> Callable[[], None]:
    """One update of the same decoder as transformers trains it, with its own loss; the rest as in ours."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shared = {name: getattr(MODEL, name) for name in ("vocab_size", "hidden_size", "intermediate_size")}
    shared |= {f"num_{name}": getattr(MODEL, f"num_{name}") for name in ("hidden_layers", "attention_heads")}
    model = LlamaForCausalLM(LlamaConfig(**shared, num_key_value_heads=MODEL.num_key_value_heads))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    rows = torch.randint(MODEL.vocab_size, (ROWS, SEQ_LEN))

    def step() -> None:
        model(input_ids=rows, labels=rows, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def bare_products() -> tuple[Callable[[], None], Callable[[], None]]:
    """Time the matrix products of one update alone, into allocated memory: the lower bound, in two parts.

    The linear maps' three each (output, gradient of input, gradient of weight), the head's in blocks that stay in the
    cache; and attention's six over all positions (scores and mixing, forward and backward).
    """
    width, inner = MODEL.hidden_size, MODEL.intermediate_size
    kv = MODEL.num_key_value_heads * MODEL.head_dim
    layer = [(width, width)] * 2 + [(width, kv)] * 2 + [(width, inner)] * 2 + [(inner, width)]
    maps = [_linear(TOKENS, *shape) for shape in layer]
    block = chunk_tokens(MODEL.vocab_size, torch.device("cpu"))
    whole, rest = (_linear(tokens, width, MODEL.vocab_size) for tokens in (block, TOKENS % block))
    narrow = torch.randn(ROWS * MODEL.num_attention_heads, SEQ_LEN, MODEL.head_dim)
    square = torch.randn(ROWS * MODEL.num_attention_heads, SEQ_LEN, SEQ_LEN)
    out_narrow, out_square = torch.empty_like(narrow), torch.empty_like(square)

    def linear() -> None:
        for products in maps * MODEL.num_hidden_layers + [whole] * (TOKENS // block) + [rest]:
            products()

    def attention() -> None:
        for _ in range(2 * MODEL.num_hidden_layers):
            torch.bmm(narrow, narrow.mT, out=out_square)
        for _ in range(4 * MODEL.num_hidden_layers):
            torch.bmm(square, narrow, out=out_narrow)

    return linear, attention


def _linear(tokens: int, wide_in: int, wide_out: int) -> Callable[[], None]:
    x, y = torch.randn(tokens, wide_in), torch.randn(tokens, wide_out)
    weight = torch.randn(wide_out, wide_in)
    out, grad_x, grad_weight = torch.empty_like(y), torch.empty_like(x), torch.empty_like(weight)

    def products() -> None:
        torch.mm(x, weight.T, out=out)
        torch.mm(y, weight, out=grad_x)
        torch.mm(y.T, x, out=grad_weight)

    return products


def interleaved(tasks: dict[str, tuple[Callable[[], object], Callable[[], object]]], rounds: int) -> dict[str, float]:
    """Median seconds of each task (untimed preparation, timed work) over `rounds` rounds, after one to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds + 1):
        for name, (prepare_it, work) in tasks.items():
            prepare_it()
            start = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds[1:]) for name, seconds in taken.items()}


def shares(step: Callable[[], None]) -> dict[str, float]:
    """Share of the step's time on CPU by group of operations."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        step()
    found = dict.fromkeys([*_GROUPS, "everything else"], 0.0)
    for event in recorded.key_averages():
        group = next((g for g, words in _GROUPS.items() if any(w in event.key for w in words)), "everything else")
        found[group] += event.self_cpu_time_total
    return {group: value / sum(found.values()) for group, value in found.items()}


def peak(who: str) -> int:
    """Bytes at most resident over three updates, less those after imports; only in a fresh process."""
    torch.set_num_threads(THREADS)
    if who == "transformers":
        importlib.import_module("transformers.models.llama.modeling_llama")
    imported = psutil.Process().memory_info().rss
    with tempfile.TemporaryDirectory() as folder:
        step = transformers_step() if who == "transformers" else Ours(Path(folder)).step
        for _ in range(3):
            step()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - imported


def peak_in_fresh_process(who: str, shape: str) -> int:
    command = [sys.executable, __file__, "--peak", who, "--shape", shape]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def report(shape: str, rounds: int) -> None:
    # Peaks first: a process starts with the peak of the one that it was forked from.
    peaks = {who: peak_in_fresh_process(who, shape) for who in ("ours", "transformers")}
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(Path(folder))
        linear, attention = bare_products()
        tasks: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "linear maps": (nothing, linear),
            "attention": (nothing, attention),
            "ours": (nothing, ours.step),
            "transformers": (nothing, transformers_step()),
            "snapshot": (ours.gradients, ours.snapshot),
        }
        seconds = interleaved(tasks, rounds)
        where = shares(ours.step)
    print(f"decoder {shape}, vocabulary {MODEL.vocab_size}, {ROWS} rows of {SEQ_LEN}, fp32, {THREADS} threads, CPU")
    for name, value in seconds.items():
        pace = f"{TOKENS / value:6.0f} tokens/s" if name in peaks else ""
        memory = f"  peak {peaks[name] / 2**20:.0f} MiB beyond imports" if name in peaks else ""
        print(f"  {name:<14}{value:7.3f} s  {pace}{memory}")
    step = seconds["ours"]
    ratios = {
        "step / bare matrix products": (step / (seconds["linear maps"] + seconds["attention"]), "at most 2.0"),
        "step / those of linear maps": (step / seconds["linear maps"], "none; attention's products not counted"),
        "throughput / transformers": (seconds["transformers"] / step, f"at least {FASTER[shape]}"),
        "peak memory / transformers": (peaks["ours"] / peaks["transformers"], "at most 0.5"),
        f"snapshot of {PROBE_ROWS} rows, in steps": (seconds["snapshot"] / step, "at most 3.0"),
    }
    for name, (ratio, aim) in ratios.items():
        print(f"  {name:<30}{ratio:5.2f}  (aim: {aim})")
    print("where a step goes: " + ", ".join(f"{name} {share:.0%}" for name, share in where.items()))


def nothing() -> None:
    """Nothing to prepare."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="timed rounds")
    parser.add_argument("--peak", choices=("ours", "transformers"), help="print one peak in bytes, for a fresh process")
    parser.add_argument("--shape", choices=SHAPES, default="tiny", help="which decoder")
    given = parser.parse_args()
    MODEL = SHAPES[given.shape]
    print(peak(given.peak)) if given.peak else report(given.shape, given.rounds)
