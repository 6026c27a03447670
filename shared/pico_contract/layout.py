"""Paths of a run and of a data directory: pure path arithmetic, and the only home of file names."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pico_contract.kinds import observation_name

MANIFEST = "manifest.json"

# Files of a checkpoint: a Hugging Face model directory.
MODEL_CONFIG = "config.json"
MODEL_WEIGHTS = "model.safetensors"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"

# Files of a checkpoint's state/.
OPTIMIZER = "optimizer.safetensors"
METHOD_TENSORS = "method.safetensors"
SCALARS = "scalars.json"

# Files of a snapshot.
SNAPSHOT_WEIGHTS = "weights.safetensors"
TRAIN_BATCH = "train.batch.safetensors"

# Files of logs/failure_<step>/.
FAILURE = "failure.json"
FAILURE_BATCH = "batch.safetensors"

_STEP = re.compile(r"step_(\d{8,})")
_TEMPORARY = ".tmp-"
_TRASH = ".old-"


def step_name(step: int) -> str:
    """Name a step's directory, `step_00001000`: eight digits, so that names sort as numbers up to
    99,999,999."""
    return f"step_{step:08d}"


def parse_step(name: str) -> int | None:
    """Return the step of a directory called `name`, None if it is not a step's directory."""
    match = _STEP.fullmatch(name)
    if match is None:
        return None
    step = int(match[1])
    # `\d` also matches digits of other scripts, and more zeros than a name has.
    return step if step_name(step) == name else None


def temporary(final: Path, tag: str) -> Path:
    """Name `final` while it is being written: in the same directory, hence on the same file
    system."""
    return final.parent / f"{_TEMPORARY}{final.name}-{tag}"


def replaced(final: Path, tag: str) -> Path:
    """Name an older `final` for the moment in which a new one takes its place."""
    return final.parent / f"{_TRASH}{final.name}-{tag}"


def is_leftover(path: Path) -> bool:
    """Whether `path` is what an interrupted write left behind, safe to delete by the holder of the
    lock."""
    # The temporary files of safetensors itself are called .tmpXXXXXX, without the dash.
    return path.name.startswith((_TEMPORARY.removesuffix("-"), _TRASH))


def original_name(path: Path) -> Path | None:
    """Undo `replaced`: the path that was set aside as `path`, None if it is not such a name."""
    if not path.name.startswith(_TRASH):
        return None
    return path.with_name(path.name.removeprefix(_TRASH).rpartition("-")[0])


def takeover(lock: Path) -> Path:
    """Name the lock under which a stale `lock` is replaced."""
    return lock.with_name(f"{lock.name}.takeover")


def observed_file(split: str, kind: str) -> str:
    """Name the file of a snapshot that holds `kind` (gradients, activations) of `split` (train,
    val)."""
    return f"{observation_name(split, kind)}.safetensors"


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Hash the settings of an evaluation: eight hex digits that tell apart results of one task."""
    text = json.dumps(dict(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class RunLayout:
    """Paths inside one run directory."""

    root: Path

    @property
    def manifest(self) -> Path:
        return self.root / "run.json"

    @property
    def lock(self) -> Path:
        return self.root / "run.lock"

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def probe(self) -> Path:
        return self.root / "probe.safetensors"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def snapshots(self) -> Path:
        return self.root / "snapshots"

    @property
    def evaluations(self) -> Path:
        return self.root / "evaluations"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def reference(self) -> Path:
        """N-gram reference losses of the run's data, next to which its own validation loss is
        read."""
        return self.evaluations / "reference.json"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / step_name(step)

    def state(self, step: int) -> Path:
        return self.checkpoint(step) / "state"

    def snapshot(self, step: int) -> Path:
        return self.snapshots / step_name(step)

    def evaluations_at(self, step: int) -> Path:
        """Results of theta_step, one file a task and its settings."""
        return self.evaluations / step_name(step)

    def evaluation(self, step: int, task: str, settings: Mapping[str, Any]) -> Path:
        return self.evaluations_at(step) / f"{task}-{settings_hash(settings)}.json"

    def failure(self, step: int) -> Path:
        return self.logs / f"failure_{step:08d}"

    @property
    def observer_failures(self) -> Path:
        """Errors that observers raised while the run trained, one JSON object a failure."""
        return self.logs / "observers.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Event files of TensorBoard, a mirror of the metrics."""
        return self.logs / "tensorboard"

    @property
    def cuts(self) -> int:
        """The highest n of `logs/metrics.cut-<n>.jsonl`, 0 if there is none: how often rows were
        taken back."""
        names = [path.name for path in self.logs.glob("metrics.cut-*.jsonl")]
        numbers = [name.removeprefix("metrics.cut-").split(".")[0] for name in names]
        return max(map(int, numbers), default=0)

    def cut_metrics(self) -> Path:
        """The first unused `logs/metrics.cut-<n>.jsonl`."""
        return self.logs / f"metrics.cut-{self.cuts + 1}.jsonl"

    def analysis(self, name: str) -> AnalysisLayout:
        return AnalysisLayout(self.root / "analysis" / name)


@dataclass(frozen=True)
class AnalysisLayout:
    """Paths inside one analysis of a run."""

    root: Path

    @property
    def table(self) -> Path:
        return self.root / "table.parquet"

    @property
    def table_csv(self) -> Path:
        return self.root / "table.csv"

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def code(self) -> Path:
        """The code that measured: versions, commit, digests of the user's own modules."""
        return self.root / "code.json"

    @property
    def source(self) -> Path:
        """The source that the analysis was measured of."""
        return self.root / "source.json"

    @property
    def parts(self) -> Path:
        """Steps measured while training that are not yet in the table."""
        return self.root / "parts"

    def part(self, step: int) -> Path:
        """Measurements of one step, in the columns of the table."""
        return self.parts / f"{step_name(step)}.parquet"

    @property
    def figures(self) -> Path:
        return self.root / "figures"

    @property
    def cache(self) -> Path:
        """Results cached by content hash; safe to delete."""
        return self.root / "cache"

    @property
    def report(self) -> Path:
        return self.root / "report.html"


@dataclass(frozen=True)
class DataLayout:
    """Paths inside one data directory."""

    root: Path

    @property
    def manifest(self) -> Path:
        return self.root / "data.json"

    @property
    def tokenizer(self) -> Path:
        return self.root / TOKENIZER

    def rows(self, split: str) -> Path:
        """Packed token ids of `split`, raw little-endian uint16 or uint32, seq_len+1 ids a row."""
        return self.root / f"{split}.rows.bin"

    def documents(self, split: str) -> Path:
        """int64 offsets (in tokens) at which the documents of `split` begin in its token stream."""
        return self.root / f"{split}.documents.bin"

    def shards(self, split: str) -> Path:
        """List of the files that hold the rows of `split`, in place of packed rows; they are read
        where they lie."""
        return self.root / f"{split}.shards.json"

    @property
    def cache(self) -> Path:
        """Shards that were downloaded, if the configuration names no other place for them."""
        return self.root / "cache"
