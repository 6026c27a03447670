"""A run ready to train, as `build` makes it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pico_contract.layout import RunLayout
from torch import nn

from pico_train.checkpoint.save import ModelMetadata
from pico_train.checkpoint.state import SavedState, TrainState
from pico_train.config import validate
from pico_train.data.loader import BatchLoader
from pico_train.data.packed import PackedData
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


@dataclass(frozen=True)
class Job:
    """A run ready to train, as a plain value: `with_micro_batch` returns another one.

    It has the configuration, the values that it resolves to on this machine, and the parts that a
    session works with. The state of training is built separately, by `build_state`.
    """

    config: RunConfig
    runtime: Runtime
    data: PackedData
    loader: BatchLoader
    seq_len: int
    """Tokens that a row predicts: `train.seq_len`, or the length of the data's rows."""
    micro_batch: int
    """Rows of a forward pass: `train.micro_batch_size`, or all rows of this process."""
    precision: str
    """`train.precision` with "auto" resolved for the device."""
    compiled: bool
    """`train.compile` with "auto" resolved for the device."""
    metadata: ModelMetadata
    vocabulary: Vocabulary
    observer: Observer
    observers: Observers

    @property
    def layout(self) -> RunLayout:
        """Paths of the run."""
        return self.config.layout

    @property
    def sharded(self) -> bool:
        """Whether each process holds only a shard of the state."""
        return self.config.train.sharding == "full"

    def with_micro_batch(self, rows: int) -> Job:
        """Return this job with `rows` in the place of `train.micro_batch_size: auto`."""
        # config.yaml records the number, so that the run keeps it when it is continued.
        train = self.config.train.model_copy(update={"micro_batch_size": rows})
        return replace(
            self,
            config=self.config.model_copy(update={"train": train}),
            micro_batch=rows,
            observer=replace(self.observer, micro_batch=rows),
        )

    def build_state(
        self, saved: SavedState | None, *, drop_unknown: bool = False
    ) -> TrainState:
        """Build the state at step 0, or the one in `saved`.

        A rebuild passes `drop_unknown`: see `Method.rebuild_at`.
        """
        config = self.config
        model = Decoder(config.model)
        self._set_weights(model, saved)
        # `shard` moves a sharded model to the device layer by layer.
        if not self.sharded:
            model = model.to(self.runtime.device)
        method, parameters = self._prepare_method(model, saved)
        if self.sharded:
            parameters = shard(model, parameters, self.runtime.device, self.runtime.processes)
        # Only now: compiled layers must see the parameters that the method and FSDP have put in.
        apply_compile_and_checkpointing(
            model,
            compiled=self.compiled,
            checkpointing=config.train.activation_checkpointing,
        )
        optimizer = build_optimizer(config.optimizer, parameters)
        state = TrainState(model, method, parameters, optimizer)
        # The optimizer's state needs the optimizer, which needs the parameters that train.
        if saved is not None:
            saved.restore_optimizer(state, drop_unknown=drop_unknown)
        return state

    def _set_weights(self, model: Decoder, saved: SavedState | None) -> None:
        if saved is not None:
            load_weights(model, saved.weights)
        elif self.config.init_from is not None:
            load_source(model, self.config.init_from)
        else:
            model.init_weights(lambda name: generator(self.config.seed.init, "init", name))

    def _prepare_method(
        self, model: Decoder, saved: SavedState | None
    ) -> tuple[Method, dict[str, nn.Parameter]]:
        """Build the method and the parameters that it trains; state in `saved` is loaded first."""
        method = build_method(self.config.method)
        seed = self.config.seed.method
        if saved is None:
            parameters = method.prepare(model, self.data, seed)
            # Only at the start: what trains may change later, and patterns then fit nothing.
            check_no_decay(self.config.optimizer, parameters)
            return method, parameters
        with saved.reading_method(method):
            method.load_state_dict(saved.method_tensors, saved.method_scalars)
            parameters = method.prepare(model, self.data, seed)
        saved.check_method(method)
        return method, parameters


def build_method(config: MethodConfig, source: str = "the configuration") -> Method:
    """Build the method of a run.

    Raises:
        UserError: an option of the method is wrong; names `source` and the option.
    """
    method = method_class(config)
    return method(validate(method.Config, config.options, source, under="method.options"))
