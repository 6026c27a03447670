"""Measure the cost of an analysis (`make bench-analyze`), on synthetic runs with the shapes of the demo and of the
matrices of decoder small and medium.

The first baseline is frozen here: nine configurations of pico-analyze 1.x with one metric each. It reads every matrix
again for every metric, works densely in fp32 and uses all threads; its start-up is not counted. Read literally, that is
one dense decomposition for each metric, matrix and step; in that tool, metrics of entries and CKA need none. All times
are interleaved within one process, so that a busy machine slows all tasks alike, and reported as ratios of medians.
Each memory peak is measured in a fresh process, minus the memory that is resident after imports.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import psutil
import torch
from pico_analyze import linalg, measure, open_run
from pico_analyze.components import MeasuredUnit, plan_units
from pico_analyze.engine.execute import pool
from pico_analyze.linalg.sample import Sample
from pico_analyze.sources.run import Run
from pico_contract import codec
from pico_contract.layout import SNAPSHOT_WEIGHTS, RunLayout, observed_file
from pico_contract.schema import RunManifest, SnapshotManifest, TensorSet

THREADS = 2
PLAIN = ("self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")
ALL = ("weights", "gradients", "activations")
NINE: dict[str, tuple[tuple[str, ...], bool]] = {  # metric -> kinds, whether the OV circuit is among the components
    "cka": (("activations",), True),
    "condition_number": (ALL, True),
    "gini": (ALL, True),
    "hoyer": (ALL, True),
    "norm_frobenius": (ALL, True),
    "norm_inf": (ALL, True),
    "norm_nuclear": (ALL, True),
    "per": (("weights", "gradients"), True),
    "pwcca": (("activations",), False),
}
OURS = {
    "metrics": [
        *("cka", "condition_number", "gini", "hoyer", "frobenius_norm", "max_abs", "nuclear_norm", "per", "pwcca"),
    ],
    "components": ["v_proj", "o_proj", "down_proj", "ov_circuit", "ov_induced_change"],
    "splits": ["val"],
}


@dataclass(frozen=True)
class Shape:
    """Geometry of a synthetic run: its matrices, rows of activations, and steps."""

    width: int
    inner: int
    heads: int
    kv_heads: int
    layers: int
    rows: int
    steps: int

    @property
    def model(self) -> dict[str, int]:
        """Under Hugging Face's names."""
        return {
            "hidden_size": self.width,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "num_hidden_layers": self.layers,
        }

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """Module -> (out, in)."""
        kv, d, inner = self.width // self.heads * self.kv_heads, self.width, self.inner
        attention = {"q_proj": (d, d), "k_proj": (kv, d), "v_proj": (kv, d), "o_proj": (d, d)}
        mlp = {"gate_proj": (inner, d), "up_proj": (inner, d), "down_proj": (d, inner)}
        named = {f"self_attn.{k}": v for k, v in attention.items()} | {f"mlp.{k}": v for k, v in mlp.items()}
        return {f"model.layers.{i}.{name}": shape for i in range(self.layers) for name, shape in named.items()}


SHAPES = {
    "demo": Shape(width=128, inner=384, heads=4, kv_heads=2, layers=4, rows=512, steps=13),
    "decoder small, 2 of its 12 layers": Shape(384, 1536, heads=12, kv_heads=4, layers=2, rows=512, steps=3),
    "decoder medium, 1 of its 12 layers": Shape(768, 3072, heads=12, kv_heads=4, layers=1, rows=512, steps=2),
}


def write_run(root: Path, shape: Shape) -> Path:
    """A run of random tensors that drift from step to step, by the contract's writers."""
    layout = RunLayout(root)
    last = shape.steps - 1
    beginning = dict.fromkeys(("created", "heartbeat"), "2025-01-01T00:00:00+00:00")
    manifest = RunManifest(
        **beginning, name=root.name, parent=None, status="finished", step=last, total_steps=last, model=shape.model,
        parameters={}, method="plain", seeds={}, data={}, sessions=[],
    )  # fmt: skip
    codec.write_text(layout.manifest, manifest.to_json())
    weights = {f"{name}.weight": torch.randn(s) / s[1] ** 0.5 for name, s in shape.projections.items()}
    for step in range(shape.steps):
        _write_snapshot(layout, shape, step, weights)
        weights = {name: tensor + 0.1 * torch.randn_like(tensor).mul_(tensor.std()) for name, tensor in weights.items()}
    return root


def _write_snapshot(layout: RunLayout, shape: Shape, step: int, weights: dict[str, torch.Tensor]) -> None:
    stored = {
        ("train", "gradients"): {name: 1e-3 * torch.randn_like(tensor) for name, tensor in weights.items()},
        ("val", "gradients"): {name: 1e-3 * torch.randn_like(tensor) for name, tensor in weights.items()},
        ("val", "activations"): {name: torch.randn(shape.rows, s[0]) for name, s in shape.projections.items()},
    }
    observed = [
        TensorSet(
            file=observed_file(split, kind),
            split=split,
            kind=kind,
            dtype="float32",
            tensors={name: list(t.shape) for name, t in of.items()},
        )
        for (split, kind), of in stored.items()
    ]
    manifest = SnapshotManifest(
        run=layout.root.name, step=step, weights="snapshot", modules=list(shape.projections), observed=observed
    )
    with codec.publish(layout.snapshot(step)) as draft:
        codec.save_tensors(draft / SNAPSHOT_WEIGHTS, weights)
        for (split, kind), of in stored.items():
            codec.save_tensors(draft / observed_file(split, kind), of)
        codec.seal(draft, manifest)


def old_condition_number(x: torch.Tensor, _: torch.Tensor) -> float:
    """Each `old_` function is one metric of one matrix (and its reference) as pico-analyze 1.x has it, in fp32."""
    values = torch.linalg.svdvals(x)
    return float(values[0] / values[-1])


def old_per(x: torch.Tensor, _: torch.Tensor) -> float:
    values = torch.linalg.svdvals(x)
    share = values / values.sum()
    return float(torch.exp(-(share * share.log()).sum()) / len(values))


def old_norm_nuclear(x: torch.Tensor, _: torch.Tensor) -> float:
    return float(torch.linalg.matrix_norm(x, "nuc"))


def old_norm_frobenius(x: torch.Tensor, _: torch.Tensor) -> float:
    return float(torch.linalg.matrix_norm(x))


def old_norm_inf(x: torch.Tensor, _: torch.Tensor) -> float:
    return float(x.abs().max())


def old_gini(x: torch.Tensor, _: torch.Tensor) -> float:
    ordered = x.abs().flatten().sort().values
    n = len(ordered)
    return float(((2 * torch.arange(1, n + 1) - n - 1) * ordered).sum() / (n * ordered.sum()))


def old_hoyer(x: torch.Tensor, _: torch.Tensor) -> float:
    root = x.numel() ** 0.5
    return float((root - x.abs().sum() / x.norm()) / (root - 1))


def old_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    return float((y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))


def old_pwcca(x: torch.Tensor, y: torch.Tensor) -> float:
    (u, s, vh), (w, _, _) = (torch.linalg.svd(z - z.mean(0), full_matrices=False) for z in (x, y))
    turn, shared, _ = torch.linalg.svd(u.T @ w, full_matrices=False)
    weights = (turn.T @ (s[:, None] * vh)).abs().sum(1)
    return float((weights * shared).sum() / weights.sum())


def one_decomposition(x: torch.Tensor, _: torch.Tensor) -> float:
    """The baseline by the letter: one decomposition, whatever the metric."""
    return float(torch.linalg.svdvals(x)[0])


def old_matrices(run: Run, step: int, layer: int, kind: str, ov: bool) -> Iterator[torch.Tensor]:
    """Build the dense matrices of one layer for a configuration of pico-analyze 1.x: modules, and OV head by head.

    Its OV of weights is V @ O, (hd, hd). It also measured the concatenation over heads. That is left out here
    because ours does not measure it.
    """
    split = None if kind == "weights" else "val"
    at = f"model.layers.{layer}."
    yield from (run.tensor(step, kind, at + name, split) for name in PLAIN)
    if not ov:
        return
    heads = run.model["num_attention_heads"]
    group = heads // run.model["num_key_value_heads"]
    output, value = (run.tensor(step, "weights", f"{at}self_attn.{name}") for name in ("o_proj", "v_proj"))
    width = output.shape[1] // heads
    outputs = output.split(width, dim=1)
    if kind == "activations":
        states = run.tensor(step, kind, f"{at}self_attn.v_proj", split).split(width, dim=1)
        yield from (states[h // group] @ outputs[h].T for h in range(heads))
        return
    values = value.split(width)
    if kind == "weights":
        yield from (values[h // group] @ outputs[h] for h in range(heads))
        return
    d_output, d_value = (run.tensor(step, kind, f"{at}self_attn.{name}", split) for name in ("o_proj", "v_proj"))
    d_outputs, d_values = d_output.split(width, dim=1), d_value.split(width)
    for h in range(heads):
        yield d_outputs[h] @ values[h // group] + outputs[h] @ d_values[h // group]


def earlier(run: Run, by_the_letter: bool = False) -> None:
    """The nine configurations one after the other."""
    for metric, (kinds, ov) in NINE.items():
        fn = one_decomposition if by_the_letter else globals()[f"old_{metric}"]
        for kind in kinds:
            for layer in range(run.model["num_hidden_layers"]):
                references = list(old_matrices(run, run.steps[-1], layer, kind, ov)) if kind == "activations" else None
                for step in run.steps:
                    for index, x in enumerate(old_matrices(run, step, layer, kind, ov)):
                        fn(x, references[index] if references else x)


def bare(run: Run) -> None:
    """Read and decompose once, on the same workers, all that the metrics of `OURS` decompose; compute no metric.

    That is the spectrum of each matrix, and the basis of each centred sample, which PWCCA is defined by.
    """
    items = [
        (unit, step, kind, split)
        for kind, split in (("weights", None), ("gradients", "val"), ("activations", "val"))
        for unit in plan_units(OURS["components"], kind, run.modules(0, kind, split), run.model)
        for step in run.steps
    ]

    def decompose(item: tuple[MeasuredUnit, int, str, str | None]) -> None:
        matrices = item[0].load(run, *item[1:])
        linalg.spectra(matrices)
        if item[2] == "activations":
            for matrix in matrices:
                _ = Sample.of(matrix).basis

    with pool() as workers:
        list(workers.map(decompose, items))


def peak(path: Path) -> int:
    """Bytes at most resident in an analysis with everything by default, less those after imports."""
    torch.set_num_threads(THREADS)
    run = open_run(path)
    imported = psutil.Process().memory_info().rss
    measure(run)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - imported


def peak_in_fresh_process(path: Path) -> int:
    command = [sys.executable, __file__, "--peak", str(path)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def interleaved(tasks: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each task over `rounds` rounds."""
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, work in tasks.items():
            start = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def first_with_cache(path: Path, kept: Path) -> None:
    shutil.rmtree(kept, ignore_errors=True)
    measure(open_run(path), cache=kept)


def hash_files(path: Path) -> None:
    """Hash every file of the snapshots as an analysis does once a session, to compare it with its manifest."""
    for file in RunLayout(path).snapshots.rglob("*.safetensors"):
        codec.sha256_file(file)


def report(shapes: dict[str, Shape], rounds: int, peaks: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        # Peaks first: a process starts with the peak of the one that it was forked from.
        for name, shape in shapes.items() if peaks else ():
            report_peaks(name, shape, root)
        torch.set_num_threads(THREADS)
        for name, shape in shapes.items():
            path = write_run(root / str(shape.width), shape)
            report_times(name, shape, path, rounds)


def report_peaks(name: str, shape: Shape, root: Path) -> None:
    for steps in (4, 8, 16):
        path = write_run(root / f"{shape.width}-{steps}", replace(shape, steps=steps))
        print(f"peak memory, {name}, {steps:2d} steps: {peak_in_fresh_process(path) / 2**20:.0f} MiB", flush=True)
        shutil.rmtree(path)


def report_times(name: str, shape: Shape, path: Path, rounds: int) -> None:
    run, kept = open_run(path), path / "kept"
    measure(run, ["cka", "per"], cache=path / "warm")
    seconds = interleaved(
        {
            "one decomposition a metric": partial(earlier, run, True),
            "as pico-analyze 1.x": partial(earlier, run),
            "bare decompositions": partial(bare, run),
            "ours": partial(measure, run, **OURS),
            "everything": partial(first_with_cache, path, kept),
            "everything, second run": lambda: measure(open_run(path), cache=kept),
            "hashes of what it reads": partial(hash_files, path),
        },
        rounds,
    )
    rows = len(measure(run, cache=kept))
    print(f"{name}: {shape.layers} layers, {shape.steps} steps, {THREADS} threads, CPU; everything: {rows} numbers")
    for task, value in seconds.items():
        print(f"  {task:<28}{value:8.2f} s")
    ours = seconds["ours"]
    ratios = {
        "one decomposition a metric / ours": (seconds["one decomposition a metric"] / ours, "at least 20"),
        "pico-analyze 1.x / ours": (seconds["as pico-analyze 1.x"] / ours, "none"),
        "ours / bare decompositions": (ours / seconds["bare decompositions"], "at most 1.5"),
        "hashes / everything": (seconds["hashes of what it reads"] / seconds["everything"], "at most 0.05"),
    }
    for what, (ratio, aim) in ratios.items():
        print(f"  {what:<36}{ratio:6.3f}  (aim: {aim})", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), help="words of the shapes' names; all by default")
    parser.add_argument("--no-peaks", action="store_true", help="times alone")
    parser.add_argument("--peak", type=Path, help="print the peak of an analysis of this run, for a fresh process")
    given = parser.parse_args()
    shapes = {name: shape for name, shape in SHAPES.items() if any(word in name for word in given.shapes)}
    print(peak(given.peak)) if given.peak else report(shapes, given.rounds, not given.no_peaks)
