"""A run ready to train, as `build` makes it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from pico_contract.layout import RunLayout

from pico_train.checkpoint.save import ModelMetadata
from pico_train.checkpoint.state import SavedState, TrainState
from pico_train.config import validate
from pico_train.data.order import RowOrder
from pico_train.data.packed import PackedData, Rows
from pico_train.data.prefetch import Batch, Reader
from pico_train.data.tokenizer import Vocabulary
from pico_train.distributed import Runtime
from pico_train.method.base import Method
from pico_train.model.decoder import Decoder
from pico_train.model.execution import apply_compile_and_checkpointing
from pico_train.model.hf import load_weights
from pico_train.observe.plugins import Observers
from pico_train.observe.snapshot import Observer
from pico_train.optim import build_optimizer, check_no_decay
from pico_train.run.config import MethodConfig, RunConfig, method_class
from pico_train.run.inherit import load_source
from pico_train.seeds import generator
from pico_train.sharding import shard


@dataclass
class Job:
    """A run ready to train: everything that `loop.fit` needs, none of it derived from what was
    drawn before."""

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
    metadata: ModelMetadata
    vocabulary: Vocabulary
    observer: Observer
    observers: Observers

    def __post_init__(self) -> None:
        self.reader = Reader(
            self._batch, self.config.train.steps, ahead=self.runtime.copies_in_background
        )

    def build_state(self, saved: SavedState | None, *, drop_unknown: bool = False) -> TrainState:
        """The state at step 0, or the one in `saved`. A rebuild passes `drop_unknown`: see
        `Method.rebuild_at`."""
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
        apply_compile_and_checkpointing(
            model, compiled=self.compiled, checkpointing=self.config.train.activation_checkpointing
        )
        optimizer = build_optimizer(self.config.optimizer, parameters)
        state = TrainState(model, method, parameters, optimizer)
        if saved is not None:
            saved.restore_optimizer(state, drop_unknown=drop_unknown)
        return state

    def set_micro_batch(self, rows: int) -> None:
        """What "auto" has found, for training, observation and config.yaml."""
        train = self.config.train.model_copy(update={"micro_batch_size": rows})
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
        own, replicas = self.runtime.share(torch.from_numpy(row_ids))
        assert own is not None  # rows were asked for
        tokens = self.tokens(own.numpy())
        self.rows.prefetch(self.order.ahead(number, self.config.train.steps))
        return Batch(
            row_ids, tokens.pin_memory() if self.runtime.copies_in_background else tokens, replicas
        )


def build_method(config: MethodConfig, source: str = "the configuration") -> Method:
    """The method of a run with its options checked; UserError names a wrong one."""
    kind = method_class(config)
    return kind(validate(kind.Config, config.options, source, under="method.options"))
