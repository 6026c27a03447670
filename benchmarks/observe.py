"""Measure the cost of an observation and a checkpoint (`make bench-observe`): the demo's shape, and decoder tiny at
vocabulary 50,304 on 4 rows of 512; fp32, CPU, two threads, the probe's usual 32 rows.

The unit is one update of the same process. Training waits for the copy and hand-over of a checkpoint, and for the probe
pass, the copies of gradients and the hand-over of a snapshot. Updates are slower while the other thread writes;
that is measured too. The same writes in the foreground show the wait of a run without that thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from pico_train.checkpoint.background_writer import Writer
from pico_train.checkpoint.save import save_checkpoint
from pico_train.config import validate
from pico_train.data.prepare import PrepareConfig, prepare
from pico_train.model.decoder import DecoderConfig
from pico_train.observe.snapshot import ObservationDue
from pico_train.optim import clip_gradients, gradient_norm
from pico_train.run import Job, RunConfig, build
from pico_train.trainer.update import apply_update, compute_gradients

THREADS, PROBE_ROWS, CADENCE = 2, 32, 1000


@dataclasses.dataclass
class Shape:
    """A decoder, the rows of its update, and the positions of a probe row whose activations are kept."""

    name: str
    model: DecoderConfig
    rows: int
    seq_len: int
    positions: dict[str, object]


DEMO = DecoderConfig(2048, 128, 384, 4, 4, 2, max_position_embeddings=256)
SHAPES = (
    Shape("the demo's shape", DEMO, 32, 256, {"rule": "every", "k": 16}),
    Shape("decoder tiny, vocabulary 50,304", DecoderConfig(), 4, 512, {"rule": "last"}),
)


def job_in(root: Path, shape: Shape) -> Job:
    """A run of `shape` on random tokens in `root`."""
    draws = np.random.default_rng(0)
    rows = draws.integers(shape.model.vocab_size, size=(200, shape.seq_len + 1)).tolist()
    source = root / "tokens.jsonl"
    source.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    prepared = {
        "source": {"path": str(source)},
        "out": str(root / "data"),
        "seq_len": shape.seq_len,
        "tokenizer": {"vocab_size": shape.model.vocab_size},
        "validation_fraction": 0.2,
    }
    config = {
        "name": "bench",
        "runs_dir": str(root / "runs"),
        "model": dataclasses.asdict(shape.model),
        "data": {"path": str(prepare(validate(PrepareConfig, prepared, "bench")))},
        "train": {"batch_size": shape.rows, "device": "cpu", "precision": "fp32", "threads": THREADS},
        "snapshot": {"probe_rows": PROBE_ROWS, "positions": shape.positions},
    }
    return build(validate(RunConfig, config, "bench"))


class Bench:
    """One run and the parts of what it writes; `seconds` holds the timings of each part, one a round."""

    def __init__(self, root: Path, shape: Shape) -> None:
        self.job = job_in(root, shape)
        self.state = self.job.build_state(None)
        self.writer = Writer()
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def update(self) -> None:
        update = compute_gradients(self.job, self.state, self.state.counters.step + 1)
        norm = gradient_norm(self.state.parameters)
        clip_gradients(self.state.parameters, self.job.config.optimizer.grad_clip, norm)
        apply_update(self.state, update, 1.0)

    def round(self) -> None:
        with self.timed("update"):
            self.update()
        self.checkpoint()
        self.snapshot()

    def checkpoint(self) -> None:
        saved, layout, metadata = self.state.capture(), self.job.layout, self.job.metadata
        with self.timed("checkpoint written"):
            save_checkpoint(layout, saved, metadata)
        shutil.rmtree(layout.root)
        with self.timed("checkpoint copied"):
            held = saved.copied()
        self.beside("checkpoint beside", lambda: save_checkpoint(layout, held, metadata))

    def snapshot(self) -> None:
        observer = self.job.observer
        with self.timed("probe pass"):
            observing = observer.begin(self.state, ObservationDue(in_checkpoint=True))
        update = compute_gradients(self.job, self.state, self.state.counters.step + 1)
        with self.timed("gradients copied"):
            observed = observing.finish(update)
        self.state.optimizer.zero_grad(set_to_none=True)
        assert observed is not None
        assert observed.snapshot is not None
        write = observed.snapshot.write
        with self.timed("snapshot written"):
            write()
        shutil.rmtree(self.job.layout.root)
        self.beside("snapshot beside", write)

    def beside(self, name: str, write: Callable[[], object]) -> None:
        """Seconds by which handing `write` over, and the updates made until it is done, exceed as many others."""
        done = threading.Event()
        start, updates = time.perf_counter(), 0
        self.writer.submit(lambda: (write(), done.set()))
        while not done.is_set():
            self.update()
            updates += 1
        taken = time.perf_counter() - start
        self.writer.flush()
        self.seconds[name].append(taken - updates * self.seconds["update"][-1])
        shutil.rmtree(self.job.layout.root)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name].append(time.perf_counter() - start)


def report(shape: Shape, rounds: int) -> None:
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), shape)
        for _ in range(rounds + 1):
            bench.round()
        bench.writer.close()
    seconds = {name: statistics.median(taken[1:]) for name, taken in bench.seconds.items()}  # the first one warms up
    step = seconds["update"]
    cost = {name: taken / step for name, taken in seconds.items()}
    checkpoint = cost["checkpoint copied"] + cost["checkpoint beside"]
    waited = cost["probe pass"] + cost["gradients copied"]
    observation = waited + cost["snapshot beside"]
    rows = PROBE_ROWS / shape.rows
    print(f"{shape.name}, {shape.rows} rows of {shape.seq_len}: an update takes {1000 * step:.0f} ms; in updates:")
    print(f"  checkpoint   {checkpoint:6.2f}  (waited for: its copy {cost['checkpoint copied']:.3f})")
    print(f"               {cost['checkpoint written']:6.2f}  written in the foreground")
    print(
        f"  observation  {observation:6.2f}  (waited for: the probe pass {cost['probe pass']:.2f}, on {rows:.0f} times"
    )
    print(f"                       an update's rows, and the copies of gradients {cost['gradients copied']:.3f})")
    print(f"               {waited + cost['snapshot written']:6.2f}  written in the foreground")
    share = (checkpoint + observation) / CADENCE
    print(f"  one of each every {CADENCE} updates: {share:.2%} of training time  (aim: under 1%)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds")
    given = parser.parse_args()
    for one in SHAPES:
        report(one, given.rounds)
