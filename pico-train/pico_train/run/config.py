"""The configuration of a run: the sections of all rooms, checked against each other."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pico_contract.errors import UserError, did_you_mean
from pico_contract.kinds import MICROBATCH_GRADIENTS, observation_name
from pico_contract.layout import RunLayout
from pico_contract.renames import RUN, Renames
from pydantic import Field, model_validator

from pico_train.checkpoint.disk_space import DiskConfig
from pico_train.checkpoint.save import CheckpointConfig
from pico_train.config import Operation, Section
from pico_train.data.shards import StreamConfig
from pico_train.evaluate.tasks import EvaluateConfig
from pico_train.hub.repository import HubConfig
from pico_train.log.console import LogConfig
from pico_train.method import METHODS
from pico_train.method.base import Method
from pico_train.model.decoder import DecoderConfig
from pico_train.observe.plugins import ObserveConfig
from pico_train.observe.snapshot import SnapshotConfig
from pico_train.optim import OptimizerConfig
from pico_train.run.inherit import complete_geometry
from pico_train.run.train_config import TrainConfig
from pico_train.schedule import ScheduleConfig


class DataConfig(Section):
    """The packed rows that a run reads, and their order."""

    path: Operation[Path]
    """A data directory made by `pico-train data prepare` or `data fetch`; it may move: the run is
    bound to its fingerprint."""
    order: Literal["shuffled", "sequential"] = "shuffled"
    """A new permutation every epoch (of a stream: of the shards, and within each), or the rows as
    they were packed."""
    stream: Operation[StreamConfig] = StreamConfig()
    """Local cache of shards from the hub."""

    @model_validator(mode="before")
    @classmethod
    def _accept_old_names(cls, raw: Any) -> Any:
        return RUN.current(raw, "DataConfig", "data") if isinstance(raw, Mapping) else raw


class SeedConfig(Section):
    """Separate seeds, so that one thing at a time can vary."""

    init: int = 0
    """Initial weights."""
    data: int = 0
    """Order of the rows."""
    method: int = 0
    """Random draws of the method."""


class MethodConfig(Section):
    """The training method."""

    name: str = "plain"
    """A built-in method, or `module:attribute` of your own."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the method, checked by its `Config`."""


class RunConfig(Section):
    """One run. Fields marked as operation may change between its sessions; the others are what the
    run is."""

    renames: ClassVar[Renames] = RUN

    name: str
    """Name of the run's directory below `runs_dir`."""
    runs_dir: Operation[Path] = Path("runs")
    """Directory of all runs."""
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
    """Observation: the tensors that are stored, and the steps."""
    observe: Operation[tuple[ObserveConfig, ...]] = ()
    """Observers that measure while the run trains. What is stored is in `snapshot`."""
    checkpoint: Operation[CheckpointConfig] = CheckpointConfig()
    """Checkpoints."""
    disk: Operation[DiskConfig] = DiskConfig()
    """Disk space."""
    evaluate: Operation[EvaluateConfig] = EvaluateConfig()
    """Evaluation."""
    log: Operation[LogConfig] = LogConfig()
    """Logging."""
    hub: Operation[HubConfig] = HubConfig()
    """Pushing checkpoints to the Hugging Face hub."""
    init_from: str | None = None
    """Start from the weights of RUN@STEP or of a Hugging Face directory, which also provide the
    geometry that `model` leaves out; null starts from `seed.init`."""

    @classmethod
    def completed(cls, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        """Fill in the geometry of the model that `init_from` names."""
        return complete_geometry(raw)

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        train = self.train
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name) is None:
            raise ValueError(f'name is "{self.name}"; use letters, digits, ".", "_" and "-"')
        if len(self.name) > 200:
            raise ValueError(f"name has {len(self.name)} characters; use 200 at most")
        # The number of processes is not known yet: `build` asks again with it.
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
        if train.max_hours is not None and train.max_hours * 60 <= train.stop_margin_minutes:
            raise ValueError(
                f"train.max_hours ({train.max_hours}) leaves no time to train before the margin of"
                f" train.stop_margin_minutes ({train.stop_margin_minutes})"
            )
        if self.observes:
            _check_snapshot(self.snapshot, train)
        method_class(self.method)
        return self

    @property
    def evaluation(self) -> EvaluateConfig:
        """`evaluate`; unless it says otherwise, it reads as many tokens of a row as training."""
        return self.evaluate.reading(self.train.seq_len)

    @property
    def layout(self) -> RunLayout:
        """Paths of this run."""
        return RunLayout(self.runs_dir / self.name)

    @property
    def observes(self) -> bool:
        """Whether anything is observed, to be stored or to be measured while training."""
        return self.snapshot.every > 0 or bool(self.observe)


def _check_snapshot(snapshot: SnapshotConfig, train: TrainConfig) -> None:
    if not snapshot.modules:
        raise ValueError(
            "snapshot.modules is empty; to observe nothing, set snapshot.every to 0 and observe to []"
        )
    kind = observation_name("train", MICROBATCH_GRADIENTS)
    if kind in snapshot.kinds and train.micro_batch_size == "auto":
        raise ValueError(
            f'snapshot.kinds holds {kind}, which depends on the micro-batch, but train.micro_batch_size is "auto",'
            " which depends on the machine: set it to a divisor of train.batch_size below that"
        )
    if kind in snapshot.kinds and train.rows_per_pass() == train.batch_size:
        raise ValueError(
            f"snapshot.kinds holds {kind}, but train.micro_batch_size ({train.rows_per_pass()}) is the whole batch:"
            " gradients differ between several micro-batches; set it to a divisor of train.batch_size below that"
        )


def method_class(config: MethodConfig) -> type[Method]:
    """Import the class that `config.name` names.

    Raises:
        UserError: there is no built-in method of that name, or the user's attribute cannot be
            imported or is not a `Method`.
    """
    target = METHODS.get(config.name, config.name)
    module, colon, attribute = target.partition(":")
    if not (colon and module):
        raise UserError(
            f'method.name is "{config.name}", which is not a method{did_you_mean(config.name, METHODS)}'
        )
    try:
        method = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError, ValueError) as error:
        raise UserError(
            f'method.name is "{config.name}", which cannot be imported: {error}'
        ) from None
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise UserError(
            f'method.name is "{config.name}", which is not a Method (pico_train.method.base)'
        )
    return method
