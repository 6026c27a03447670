"""The only wrapper of accelerate: device, processes, and what differs between one of them and many.

Every process holds the whole model (or a share of it: see `sharding`) and computes on its share of
a batch's rows. Gradients are summed after the last micro-batch by one plain reduction over whatever
trains, and not by DistributedDataParallel: that needs every loss to go through its own forward and
every parameter to get a gradient at every update, and methods of our seam (an inner loop on
functional weights, a head of their own, an update that trains a part) promise neither. What is lost
is the overlap of the exchange with the last backward pass.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Literal, TypeVar

import torch
import torch.distributed as dist

# Its functions have the default process group as a default value, bound when it is imported.
# Something imports it sooner or later; if that happens while a group exists, the group can never be
# destroyed: its threads outlive `leave`, one of them may ask for the interpreter's lock while the
# interpreter ends, and the process aborts (SIGABRT).
import torch.distributed.nn.functional
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from pico_contract.errors import UserError, in_one_line
from torch import nn

from pico_train.errors import PeerError
from pico_train.launcher import check_launch, only_a_launch
from pico_train.sharding import is_sharded

Device = Literal["auto", "cpu", "cuda", "mps"]
T = TypeVar("T", bound=bool | int | float | str | list | dict | None)

_TIMEOUT_MINUTES = 60.0
_SILENT = (
    "another process did not answer within train.timeout_minutes: it hangs, or it saves, observes or evaluates for"
    " longer than that"
)
_FUSED_BYTES = 64 << 20
"""Gradients are exchanged in blocks of about this size: small ones together, and no copy of all of
them at a time."""


class Runtime:
    """Where this process computes, and what it exchanges with the others. Precision stays ours
    (autocast in the loop): accelerate's state would refuse a second run of another precision in the
    same process, and its own accumulation would divide the loss again."""

    def __init__(self, device: Device, timeout_minutes: float = _TIMEOUT_MINUTES) -> None:
        _require(device)
        check_launch()
        AcceleratorState._reset_state(reset_partial_state=True)
        self._timeout = timedelta(minutes=timeout_minutes)
        self.accelerator = _accelerator(device, self._timeout)
        self.device: torch.device = self.accelerator.device
        self.processes: int = self.accelerator.num_processes
        self.rank: int = self.accelerator.process_index
        # What processes agree on travels over the CPU: asking for it does not make an accelerator
        # wait.
        self._control = (
            dist.new_group(backend="gloo", timeout=self._timeout) if self.processes > 1 else None
        )

    def close(self) -> None:
        """Give up the group of processes that this session agreed in; nothing can be exchanged
        afterwards."""
        if self._control is not None:
            dist.destroy_process_group(self._control)
            self._control = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @property
    def copies_in_background(self) -> bool:
        """Whether the device copies from pinned memory while this process goes on."""
        return self.device.type == "cuda"

    def share(self, rows: torch.Tensor | None) -> tuple[torch.Tensor | None, int]:
        """(this process's rows of a batch, how many processes compute the same).

        What cannot be shared out evenly, as a loss without rows, every process computes: sums of
        losses, of terms and of gradients all grow by that factor, and their quotients are the same.
        """
        if rows is None or len(rows) % self.processes:
            return rows, self.processes
        return rows.tensor_split(self.processes)[self.rank], 1

    def sum_gradients(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes, in the order of `parameters`; what
        is sharded was summed in the backward pass."""
        if self.processes == 1:
            return
        whole = [
            p.grad for p in parameters.values() if p.grad is not None and not is_sharded(p.grad)
        ]
        with _together():
            for block in _blocks(whole):
                flat = torch.cat([gradient.flatten() for gradient in block])
                dist.all_reduce(flat)
                parts = flat.split([gradient.numel() for gradient in block])
                torch._foreach_copy_(
                    block, [part.view_as(g) for part, g in zip(parts, block, strict=True)]
                )

    def sums(self, values: Sequence[float]) -> list[float]:
        """Sums over the processes, in float64."""
        if self.processes == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        with _together():
            dist.all_reduce(total, group=self._control)
        return total.tolist()

    def largest(self, value: torch.Tensor) -> torch.Tensor:
        """The largest over the processes of a scalar on the device, which nobody waits for."""
        if self.processes > 1:
            dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return value

    def any(self, flag: bool) -> bool:
        """Whether `flag` holds in any process."""
        return self.sums([float(flag)])[0] > 0

    def on_main(self, act: Callable[[], T]) -> T:
        """What `act` returns (plain JSON), run by the main process alone while the others wait for
        it.

        Raises:
            PeerError: in the others, where `act` raised in the main process.
        """
        if self.processes == 1:
            return act()
        if not self.is_main:
            answer = self._receive()
            if "failed" in answer:
                raise PeerError(answer["failed"])
            return answer["value"]
        try:
            value = act()
        except BaseException as error:
            self._send({"failed": type(error).__name__})
            raise
        self._send({"value": value})
        return value

    def _send(self, answer: dict) -> None:
        payload = json.dumps(answer).encode()
        with _together():
            dist.broadcast(torch.tensor([len(payload)]), src=0, group=self._control)
            dist.broadcast(
                torch.frombuffer(bytearray(payload), dtype=torch.uint8), src=0, group=self._control
            )

    def _receive(self) -> dict:
        length = torch.zeros(1, dtype=torch.int64)
        with _together():
            dist.broadcast(length, src=0, group=self._control)
            payload = torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(payload, src=0, group=self._control)
        return json.loads(bytes(payload.tolist()))

    def autocast(self, precision: str) -> torch.autocast:
        """Autocast to bfloat16 for "bf16"; does nothing for "fp32". Master weights stay float32."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=precision == "bf16")

    def precision(self, wanted: str) -> str:
        """`wanted`, with "auto" resolved: bf16 on CUDA, fp32 elsewhere."""
        if wanted != "auto":
            return wanted
        return "bf16" if self.device.type == "cuda" else "fp32"


def is_peer_error(error: BaseException) -> bool:
    """Whether `error` is what a process meets because another has ended, in an exchange of torch's
    own."""
    broken = isinstance(error, RuntimeError) and "gloo/transport" in str(error)
    return broken or isinstance(error, PeerError | dist.DistError)


def leave() -> None:
    """Part from the other processes in good order; for the end of a program."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    """Attribute an exchange that fails to the process that ended or does not answer."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        if "timed out" in reason.lower():
            reason = f"{_SILENT} ({reason})"
        raise PeerError(reason) from error


def _blocks(gradients: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    block: list[torch.Tensor] = []
    size = 0
    for gradient in gradients:
        block.append(gradient)
        size += gradient.nbytes
        if size >= _FUSED_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


def _accelerator(device: Device, timeout: timedelta) -> Accelerator:
    try:
        with only_a_launch():
            return Accelerator(
                cpu=device == "cpu",
                mixed_precision="no",
                gradient_accumulation_steps=1,
                kwargs_handlers=[InitProcessGroupKwargs(timeout=timeout)],
            )
    except (KeyError, ValueError) as error:  # accelerate and torch read more variables, as they are
        raise UserError(
            f"accelerate cannot start with these environment variables: {in_one_line(error)}"
        ) from None


def _require(device: Device) -> None:
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device, True):
        raise UserError(
            f'train.device: this machine has no "{device}" device; choose "auto" or "cpu"'
        )
