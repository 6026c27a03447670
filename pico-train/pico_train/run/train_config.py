"""How much is trained on, and how it is carried out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pico_contract.errors import UserError
from pico_contract.renames import RUN
from pydantic import Field, model_validator

from pico_train.config import Operation, Section
from pico_train.distributed import Device
from pico_train.sharding import Sharding


class TrainConfig(Section):
    """The amount of training, and how each update is computed."""

    steps: int = Field(200_000, ge=1, le=100_000_000)
    """Updates."""
    batch_size: int = Field(1024, ge=1, le=1_000_000)
    """Rows per update."""
    micro_batch_size: Operation[Annotated[int, Field(ge=1)] | Literal["auto"] | None] = None
    """Rows per forward pass of a process. null is all of its rows; "auto" is as many as fit its
    memory, found when the run begins and then kept. Changes memory, not gradients."""
    seq_len: int | None = Field(None, ge=1)
    """Tokens that a row predicts; null is the length of the rows."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Autocast; "auto" is bf16 on CUDA and fp32 elsewhere. Weights, gradients, optimizer, norms and
    the loss's sums are always fp32. Products of fp32 are computed in fp32, never in TF32, unless
    torch was set to TF32 before."""
    compile: Operation[Literal["auto", "on", "off"]] = "auto"
    """torch.compile of the layers in training; "auto" is on for CUDA and off elsewhere, where it
    does not pay."""
    activation_checkpointing: Operation[bool] = False
    """Keep only each layer's input and compute the rest again in the backward pass: less memory,
    more time."""
    device: Operation[Device] = "auto"
    """Device of the computation; "auto" takes an accelerator if the machine has one."""
    sharding: Operation[Sharding] = "none"
    """Split of the state among processes: "none" copies it to each, "full" shards parameters,
    gradients and optimizer state. Changes memory, not gradients."""
    timeout_minutes: Operation[float] = Field(60.0, gt=0, le=100_000)
    """Minutes that processes wait for one another, also while the first one saves, observes or
    evaluates. A process that does not answer by then ends the run. Exchanges between accelerators
    have the same limit."""
    threads: Operation[int | None] = Field(None, ge=1, le=1024)
    """Threads of CPU arithmetic; null leaves torch's choice."""
    max_hours: Operation[float | None] = Field(None, gt=0)
    """Wall-clock limit of one session, after which it saves and stops; null is off."""
    stop_margin_minutes: Operation[float] = Field(5.0, ge=0)
    """Minutes before the limit at which the session begins to stop."""

    @model_validator(mode="before")
    @classmethod
    def _accept_old_names(cls, raw: Any) -> Any:
        return RUN.current(raw, "TrainConfig", "train") if isinstance(raw, Mapping) else raw

    def rows_per_pass(self, processes: int = 1) -> int:
        """Return the micro-batch of each of `processes`; for "auto", the largest that may be found.

        Raises:
            UserError: the batch does not divide into so many rows.
        """
        given = None if self.micro_batch_size == "auto" else self.micro_batch_size
        rows = given or max(self.batch_size // processes, 1)
        if self.batch_size % (rows * processes) == 0:
            return rows
        of = f" of {processes} processes" if processes > 1 else ""
        fitting = [
            n for n in range(1, self.batch_size + 1) if self.batch_size % (n * processes) == 0
        ]
        if not fitting:
            raise UserError(
                f"train.batch_size ({self.batch_size}) cannot be shared out among {processes} processes"
            )
        near = min(fitting, key=lambda n: abs(n - rows))
        raise UserError(
            f"train.micro_batch_size ({rows}){of} does not divide train.batch_size ({self.batch_size}); the nearest"
            f" that does is {near}"
        )
