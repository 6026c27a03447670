"""A run: the rooms' configurations composed, checked against each other and against the data, and built."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pico_contract.errors import UserError, did_you_mean
from pico_contract.layout import RunLayout
from pico_contract.observer import Held, ObservedRun
from pydantic import Field, model_validator

from pico_train.architecture import checked_architecture
from pico_train.checkpoint import CheckpointConfig, ModelCard
from pico_train.compilation import compiles
from pico_train.config import Operation, Section, validate
from pico_train.data.order import RowOrder
from pico_train.data.packed import PackedData, Rows
from pico_train.data.reader import Batch, Reader
from pico_train.data.shards import StreamConfig
from pico_train.data.tokenizer import Vocabulary
from pico_train.disk import DiskConfig
from pico_train.distributed import Runtime
from pico_train.evaluate.tasks import EvaluateConfig, check_tasks
from pico_train.hub import HubConfig
from pico_train.inherit import check_source, complete_geometry, inherited_token_ids, load_source, own_vocabulary
from pico_train.live import Live, ObserveConfig, open_observers
from pico_train.method import METHODS
from pico_train.method.base import Method
from pico_train.microbatch import MICROBATCH_GRADIENTS
from pico_train.model.cost import on_meta
from pico_train.model.decoder import Decoder, DecoderConfig
from pico_train.model.execution import carry_out
from pico_train.model.hf import load_weights
from pico_train.optim import OptimizerConfig, build_optimizer, check_no_decay
from pico_train.probe import choose_probe, positions
from pico_train.report import LogConfig
from pico_train.schedule import ScheduleConfig
from pico_train.seeds import generator
from pico_train.sharding import require_shardable, shard
from pico_train.snapshot import Observer, SnapshotConfig, observed_modules
from pico_train.state import SavedState, TrainState
from pico_train.trackers import check_trackers
from pico_train.train_config import TrainConfig


class DataConfig(Section):
    """Which packed rows are read, and in which order."""

    path: Operation[Path]
    """A data directory made by `pico-train data prepare` or `data fetch`; it may move: the run is bound to its
    fingerprint."""
    order: Literal["shuffled", "shipped"] = "shuffled"
    """A new permutation every epoch (of a stream: of the shards, and within each), or the rows as they were packed."""
    stream: Operation[StreamConfig] = StreamConfig()
    """Where shards of the hub are kept."""


class SeedConfig(Section):
    """Separate seeds, so that one thing at a time can vary."""

    init: int = 0
    """Initial weights."""
    data: int = 0
    """Order of the rows."""
    method: int = 0
    """Whatever the method draws."""


class MethodConfig(Section):
    """The training method."""

    name: str = "plain"
    """A built-in method, or `module:attribute` of your own."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Its options."""


class RunConfig(Section):
    """One run. Fields marked as operation may change between its sessions; the others are what the run is."""

    name: str
    """Directory below `runs_dir`."""
    runs_dir: Operation[Path] = Path("runs")
    """Where runs lie."""
    model: DecoderConfig = DecoderConfig()
    """Geometry of the decoder."""
    data: DataConfig
    """Rows."""
    seed: SeedConfig = SeedConfig()
    """Seeds."""
    train: TrainConfig = TrainConfig()
    """Updates."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning rate."""
    method: MethodConfig = MethodConfig()
    """Method."""
    snapshot: SnapshotConfig = SnapshotConfig()
    """Observation."""
    observe: Operation[tuple[ObserveConfig, ...]] = ()
    """Observers that measure while the run trains, without anything being stored for them."""
    checkpoint: Operation[CheckpointConfig] = CheckpointConfig()
    """Checkpoints."""
    disk: Operation[DiskConfig] = DiskConfig()
    """Room on the disk."""
    evaluate: Operation[EvaluateConfig] = EvaluateConfig()
    """Evaluation."""
    log: Operation[LogConfig] = LogConfig()
    """Logging."""
    hub: Operation[HubConfig] = HubConfig()
    """Pushing checkpoints to the Hugging Face hub."""
    init_from: str | None = None
    """Start from the weights of RUN@STEP or of a Hugging Face directory, which also has the geometry that `model` does
    not give; null starts from `seed.init`."""

    @classmethod
    def completed(cls, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        """Fill in what follows from what is given: the geometry of the model that `init_from` names."""
        return complete_geometry(raw)

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        train = self.train
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name) is None:
            raise ValueError(f'name is "{self.name}"; use letters, digits, ".", "_" and "-"')
        if len(self.name) > 200:
            raise ValueError(f"name has {len(self.name)} characters; use 200 at most")
        train.rows_per_pass()
        if self.schedule.warmup_steps > train.steps:
            raise ValueError(
                f"schedule.warmup_steps ({self.schedule.warmup_steps}) is longer than train.steps ({train.steps})"
            )
        if train.seq_len is not None and train.seq_len > self.model.max_position_embeddings:
            raise ValueError(
                f"train.seq_len ({train.seq_len}) exceeds model.max_position_embeddings"
                f" ({self.model.max_position_embeddings})"
            )
        if train.hours is not None and train.hours * 60 <= train.margin_minutes:
            raise ValueError(
                f"train.hours ({train.hours}) leaves no time to train before the margin of train.margin_minutes"
                f" ({train.margin_minutes})"
            )
        if self.observes:
            _check_snapshot(self.snapshot, train)
        method_class(self.method)
        return self

    @property
    def evaluation(self) -> EvaluateConfig:
        """`evaluate`, on as many tokens of a row as training reads where it does not say how many."""
        return self.evaluate.reading(self.train.seq_len)

    @property
    def layout(self) -> RunLayout:
        """Paths of this run."""
        return RunLayout(self.runs_dir / self.name)

    @property
    def observes(self) -> bool:
        """Whether anything is observed, to be stored or to be measured at once."""
        return self.snapshot.every > 0 or bool(self.observe)


def _check_snapshot(snapshot: SnapshotConfig, train: TrainConfig) -> None:
    if not snapshot.modules:
        raise ValueError("snapshot.modules is empty; to observe nothing, set snapshot.every to 0 and observe to []")
    kind = f"train.{MICROBATCH_GRADIENTS}"
    if kind in snapshot.kinds and train.micro_batch == "auto":
        raise ValueError(
            f'snapshot.kinds holds {kind}, which depends on the micro-batch, but train.micro_batch is "auto", which'
            " depends on the machine: set it to a divisor of train.batch_size below that"
        )
    if kind in snapshot.kinds and train.rows_per_pass() == train.batch_size:
        raise ValueError(
            f"snapshot.kinds holds {kind}, but train.micro_batch ({train.rows_per_pass()}) is the whole batch:"
            " gradients differ between several micro-batches; set it to a divisor of train.batch_size below that"
        )


def _check_processes(snapshot: SnapshotConfig, processes: int) -> None:
    kind = f"train.{MICROBATCH_GRADIENTS}"
    if kind in snapshot.kinds and processes > 1:
        raise UserError(
            f"snapshot.kinds holds {kind}, which is observed in one process alone, not in {processes}: leave it out"
        )


def method_class(config: MethodConfig) -> type[Method]:
    """The class that `config.name` names.

    Raises:
        UserError: no built-in method of that name, or the user's attribute cannot be imported or is no `Method`.
    """
    target = METHODS.get(config.name, config.name)
    module, colon, attribute = target.partition(":")
    if not (colon and module):
        raise UserError(f'method.name is "{config.name}", which is no method{did_you_mean(config.name, METHODS)}')
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError, ValueError) as error:
        raise UserError(f'method.name is "{config.name}", which cannot be imported: {error}') from None
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise UserError(f'method.name is "{config.name}", which is not a Method (pico_train.method.base)')
    return kind


@dataclass
class Job:
    """A run ready to train: everything that `loop.fit` needs, none of it derived from what was drawn before."""

    config: RunConfig
    layout: RunLayout
    runtime: Runtime
    data: PackedData
    rows: Rows
    order: RowOrder
    seq_len: int
    micro_batch: int
    precision: str
    compiled: bool
    card: ModelCard
    vocabulary: Vocabulary
    observer: Observer
    live: Live

    def __post_init__(self) -> None:
        self.reader = Reader(self._batch, self.config.train.steps, ahead=self.runtime.copies_alone)

    def build_state(self, saved: SavedState | None, *, drop_unknown: bool = False) -> TrainState:
        """The state at step 0, or the one in `saved`. A rebuild passes `drop_unknown`: see `Method.rebuild_at`."""
        model = Decoder(self.config.model)
        if saved is not None:
            load_weights(model, saved.weights)
        elif self.config.init_from is not None:
            load_source(model, self.config.init_from)
        else:
            model.init_weights(lambda name: generator(self.config.seed.init, "init", name))
        if not self.sharded:  # else whole layers go to the device one at a time
            model = model.to(self.runtime.device)
        method = build_method(self.config.method)
        if saved is None:
            parameters = method.prepare(model, self.data, self.config.seed.method)
        else:
            with saved.reading_method(method):
                method.load_state_dict(saved.method_tensors, saved.method_scalars)
                parameters = method.prepare(model, self.data, self.config.seed.method)
            saved.check_method(method)
        if saved is None:
            check_no_decay(self.config.optimizer, parameters)
        if self.sharded:
            parameters = shard(model, parameters, self.runtime.device, self.runtime.processes)
        carry_out(model, compiled=self.compiled, checkpointing=self.config.train.activation_checkpointing)
        optimizer = build_optimizer(self.config.optimizer, parameters)
        state = TrainState(model, method, parameters, optimizer)
        if saved is not None:
            saved.restore_optimizer(state, drop_unknown=drop_unknown)
        return state

    def set_micro_batch(self, rows: int) -> None:
        """What "auto" has found, for training, observation and config.yaml."""
        train = self.config.train.model_copy(update={"micro_batch": rows})
        self.config = self.config.model_copy(update={"train": train})
        self.micro_batch = self.observer.micro_batch = rows

    @property
    def sharded(self) -> bool:
        """Whether processes hold shares of the state."""
        return self.config.train.sharding == "full"

    def tokens(self, row_ids: np.ndarray) -> torch.Tensor:
        """Token ids (rows, seq_len + 1) int64 on CPU."""
        return torch.from_numpy(self.rows.take(row_ids)[:, : self.seq_len + 1])

    def _batch(self, number: int) -> Batch:
        """The rows of the `number`-th update that reads any."""
        row_ids = self.order.rows(number)
        own, copies = self.runtime.share(torch.from_numpy(row_ids))
        assert own is not None  # rows were asked for
        tokens = self.tokens(own.numpy())
        self.rows.prefetch(self.order.ahead(number, self.config.train.steps))
        return Batch(row_ids, tokens.pin_memory() if self.runtime.copies_alone else tokens, copies)


def build_method(config: MethodConfig, source: str = "the configuration") -> Method:
    """The method of a run with its options checked; UserError names a wrong one."""
    kind = method_class(config)
    return kind(validate(kind.Config, config.options, source, under="method.options"))


def build(config: RunConfig, source: str = "the configuration") -> Job:
    """Open the data, check the configuration against it, and build what a session needs.

    Raises:
        UserError: no data there; the vocabulary is smaller than the tokenizer's; the sequence is longer than the
            rows; a device that is not there; a wrong option of the method or of an observer; a new run's init_from
            that is not there or has another geometry.
    """
    with saying_where(f"{source}: data.path"):
        data = PackedData.open(config.data.path, config.data.stream)
        rows = data.split("train")
    seq_len = config.train.seq_len or rows.seq_len
    _check_against_data(config, data, seq_len, source)
    method = build_method(config.method, source)
    with saying_where(source):
        check_tasks(data, config.evaluate)
        check_trackers(config.log.trackers)
        _check_method(config, method)
    if config.init_from is not None and not config.layout.manifest.is_file():
        with saying_where(source):
            check_source(config.init_from, config.model)
    with saying_where(source):
        runtime = Runtime(config.train.device, config.train.timeout_minutes)
        micro_batch = config.train.rows_per_pass(runtime.processes)
        _check_processes(config.snapshot, runtime.processes)
        compiled = compiles(config.train.compile, runtime.device, config.train.sharding)
    with saying_where(source):
        architecture = checked_architecture(config.model, config.hub.repo)
        token_ids = {**data.manifest.special_tokens, **inherited_token_ids(config.layout, config.init_from)}
    with saying_where(f"{source}: snapshot.modules"):
        modules = observed_modules(on_meta(config.model), config.snapshot.modules)
    with saying_where(source):
        live = open_observers(config.observe, _observed_run(config, modules, method), config.train.steps)
    return Job(
        config=config,
        layout=config.layout,
        runtime=runtime,
        data=data,
        rows=rows,
        order=_row_order(config, data, rows),
        seq_len=seq_len,
        micro_batch=micro_batch,
        precision=runtime.precision(config.train.precision),
        compiled=compiled,
        card=ModelCard(config.name, config.model, data.tokenizer_path, token_ids, architecture),
        vocabulary=own_vocabulary(data.vocabulary, token_ids),
        observer=Observer(
            config=config.snapshot,
            layout=config.layout,
            run=config.name,
            probe=choose_probe(data, config.snapshot.probe_rows, seq_len),
            modules=modules,
            positions=positions(config.snapshot.positions, seq_len, data.manifest.fingerprint),
            micro_batch=micro_batch,
        ),
        live=live,
    )


def _row_order(config: RunConfig, data: PackedData, rows: Rows) -> RowOrder:
    return RowOrder(
        n_rows=rows.n_rows,
        batch_size=config.train.batch_size,
        fingerprint=data.manifest.fingerprint,
        seed=config.seed.data,
        shuffle=config.data.order == "shuffled",
        blocks=rows.blocks,
    )


def _check_method(config: RunConfig, method: Method) -> None:
    method.check(config.schedule, config.train.steps)
    require_shardable(config.train.sharding, method, config.method.name, config.optimizer, config.train.micro_batch)


def _observed_run(config: RunConfig, modules: list[str], method: Method) -> ObservedRun:
    kinds = [kind.split(".") for kind in config.snapshot.kinds]
    held: list[Held] = [("weights", None), *((kind, split) for split, kind in kinds)]
    model = dataclasses.asdict(config.model)
    return ObservedRun(config.layout, config.name, model, tuple(modules), tuple(held), method.low_rank)


@contextmanager
def saying_where(place: str) -> Iterator[None]:
    """Say of a mistake at which place of which file it was made."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{place}: {error}") from None


def _check_against_data(config: RunConfig, data: PackedData, seq_len: int, source: str) -> None:
    manifest = data.manifest
    if seq_len > manifest.seq_len:
        raise UserError(
            f"{source}: train.seq_len is {seq_len}, longer than the rows of {data.path} (seq_len {manifest.seq_len})"
        )
    if seq_len > config.model.max_position_embeddings:
        raise UserError(
            f"{source}: the rows of {data.path} have seq_len {seq_len}, more than model.max_position_embeddings"
            f" ({config.model.max_position_embeddings}); set train.seq_len or raise the latter"
        )
    if config.model.vocab_size < manifest.vocab_size:
        raise UserError(
            f"{source}: model.vocab_size is {config.model.vocab_size}, smaller than the {manifest.vocab_size} ids of"
            f" the tokenizer in {data.path}"
        )
    if config.observes and "validation" not in manifest.splits:
        what = "observe is not empty" if config.observe else f"snapshot.every is {config.snapshot.every}"
        raise UserError(
            f"{source}: {what}, but {data.path} has no validation rows for the probe; prepare it with a validation"
            " split or set snapshot.every=0 and observe=[]"
        )
