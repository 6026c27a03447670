"""How much is trained on, and how it is carried out."""

from __future__ import annotations

from typing import Annotated, Literal

from pico_contract.errors import UserError
from pydantic import Field

from pico_train.config import Operation, Section
from pico_train.distributed import Device
from pico_train.sharding import Sharding


class TrainConfig(Section):
    """How much is trained on, and how it is carried out."""

    steps: int = Field(200_000, ge=1, le=100_000_000)
    """Updates."""
    batch_size: int = Field(1024, ge=1, le=1_000_000)
    """Rows an update."""
    micro_batch: Operation[Annotated[int, Field(ge=1)] | Literal["auto"] | None] = None
    """Rows a forward pass of a process; null is all of its rows, "auto" as many as its memory
    holds, found when the run begins and kept. Changes memory, not gradients."""
    seq_len: int | None = Field(None, ge=1)
    """Tokens that a row predicts; null is the length of the rows."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Autocast; "auto" is bf16 on CUDA and fp32 elsewhere. Weights, gradients, optimizer, norms and
    the loss's sums are fp32 always; products of fp32 are computed in fp32, never in TF32, unless
    torch was told otherwise before."""
    compile: Operation[Literal["auto", "on", "off"]] = "auto"
    """torch.compile of the layers in training; "auto" is on for CUDA and off elsewhere, where it
    does not pay."""
    activation_checkpointing: Operation[bool] = False
    """Keep each layer's input alone and compute the rest again in the backward pass: less memory,
    more time."""
    device: Operation[Device] = "auto"
    """Where; "auto" takes the accelerator where there is one."""
    sharding: Operation[Sharding] = "none"
    """What several processes share out besides rows: "none", or with "full" parameters, gradients
    and optimizer state. Changes memory, not gradients."""
    timeout_minutes: Operation[float] = Field(60.0, gt=0, le=100_000)
    """Minutes that processes wait for one another, also for the first one while it saves, observes
    or evaluates; one that does not answer by then ends the run. Accelerators wait for as long
    before they give up an exchange."""
    threads: Operation[int | None] = Field(None, ge=1, le=1024)
    """Threads of CPU arithmetic; null leaves torch's choice."""
    hours: Operation[float | None] = Field(None, gt=0)
    """Wall-clock limit of one session, after which it saves and stops; null is off."""
    margin_minutes: Operation[float] = Field(5.0, ge=0)
    """How long before the limit it begins to stop."""

    def rows_per_pass(self, processes: int = 1) -> int:
        """The micro-batch of each of `processes`, for "auto" the largest that it may find;
        UserError where the batch does not consist of so many."""
        given = None if self.micro_batch == "auto" else self.micro_batch
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
            f"train.micro_batch ({rows}){of} does not divide train.batch_size ({self.batch_size}); the nearest that"
            f" does is {near}"
        )
