"""The only wrapper of accelerate: the device of this process, and its exchange with the others.

Every process holds the whole model (or a shard of it: see `sharding`) and computes on its part of a
batch's rows. After the last micro-batch one plain reduction sums the gradients of whatever trains.
DistributedDataParallel would overlap that exchange with the last backward pass, but it needs every
loss to go through its forward and every parameter to get a gradient at every update. Methods
promise neither: they may run an inner loop on functional weights, add a head, or train a part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Literal, TypeVar

import torch
import torch.distributed as dist

# This module binds the default process group as a default value when it is imported. Something
# imports it sooner or later. If a group exists by then, that group can never be destroyed: its
# threads outlive `leave`, one of them may ask for the interpreter's lock while the interpreter
# ends, and the process aborts (SIGABRT).
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
"""Bytes of gradients that are exchanged together: small ones are fused, and no exchange copies all
of them."""


class Runtime:
    """The device of this process, and its exchange with the other processes of the run.

    accelerate neither autocasts nor accumulates here: its state would refuse a second run of
    another precision in the same process, and its accumulation would divide the loss again.
    """

    def __init__(self, device: Device, timeout_minutes: float = _TIMEOUT_MINUTES) -> None:
        _require(device)
        check_launch()
        # accelerate keeps its state for the whole process, and a second run may differ.
        AcceleratorState._reset_state(reset_partial_state=True)
        self._timeout = timedelta(minutes=timeout_minutes)
        self.accelerator = _accelerator(device, self._timeout)
        self.device: torch.device = self.accelerator.device
        self.processes: int = self.accelerator.num_processes
        self.rank: int = self.accelerator.process_index
        # Flags and messages travel over the CPU, so that they do not make an accelerator wait.
        self._control = (
            dist.new_group(backend="gloo", timeout=self._timeout)
            if self.processes > 1
            else None
        )

    def close(self) -> None:
        """Destroy this session's group of processes; no exchange is possible afterwards."""
        if self._control is not None:
            dist.destroy_process_group(self._control)
            self._control = None

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, which alone writes files."""
        return self.rank == 0

    @property
    def copies_in_background(self) -> bool:
        """Whether the device copies from pinned memory while this process goes on."""
        return self.device.type == "cuda"

    def share(self, rows: torch.Tensor | None) -> tuple[torch.Tensor | None, int]:
        """Return this process's rows of a batch, and how many processes compute the same rows.

        Every process computes a batch that cannot be divided evenly, or a loss without rows. Sums
        of losses, terms and gradients all grow by that factor, and their quotients stay the same.
        """
        if rows is None or len(rows) % self.processes:
            return rows, self.processes
        return rows.tensor_split(self.processes)[self.rank], 1

    def sum_gradients(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes, in the order of `parameters`.

        Sharded gradients are left alone: the backward pass has summed them.
        """
        if self.processes == 1:
            return
        gradients = [p.grad for p in parameters.values() if p.grad is not None]
        whole = [gradient for gradient in gradients if not is_sharded(gradient)]
        with _together():
            for block in _blocks(whole):
                _sum_block(block)

    def sums(self, values: Sequence[float]) -> list[float]:
        """Return the sum of each value over the processes, in float64."""
        if self.processes == 1:
            return list(values)
        # float64 keeps counts of tokens exact.
        total = torch.tensor(values, dtype=torch.float64)
        with _together():
            dist.all_reduce(total, group=self._control)
        return total.tolist()

    def largest(self, value: torch.Tensor) -> torch.Tensor:
        """Return the maximum over the processes of a scalar on the device, without waiting for
        it."""
        if self.processes > 1:
            dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return value

    def any(self, flag: bool) -> bool:
        """Tell whether `flag` is set in any process."""
        return self.sums([float(flag)])[0] > 0

    def on_main(self, act: Callable[[], T]) -> T:
        """Run `act` in the main process alone, and return its result (plain JSON) in all of them.

        Raises:
            PeerError: in the other processes, if `act` raised in the main process.
        """
        if self.processes == 1:
            return act()
        if not self.is_main:
            answer = self._receive()
            if "failed" in answer:
                raise PeerError(answer["failed"])
            return answer["value"]
        # The others wait for an answer whatever happens here, so that an error is sent as well.
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
                torch.frombuffer(bytearray(payload), dtype=torch.uint8),
                src=0,
                group=self._control,
            )

    def _receive(self) -> dict:
        length = torch.zeros(1, dtype=torch.int64)
        with _together():
            dist.broadcast(length, src=0, group=self._control)
            payload = torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(payload, src=0, group=self._control)
        return json.loads(bytes(payload.tolist()))

    def autocast(self, precision: str) -> torch.autocast:
        """Return a context that autocasts to bfloat16 for "bf16" and does nothing for "fp32"."""
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"
        )

    def precision(self, wanted: str) -> str:
        """Return `wanted`, with "auto" resolved: bf16 on CUDA, fp32 elsewhere."""
        if wanted != "auto":
            return wanted
        return "bf16" if self.device.type == "cuda" else "fp32"


def is_peer_error(error: BaseException) -> bool:
    """Tell whether `error` comes from an exchange that broke because another process ended."""
    broken = isinstance(error, RuntimeError) and "gloo/transport" in str(error)
    return broken or isinstance(error, PeerError | dist.DistError)


def leave() -> None:
    """Destroy the default process group; called at the end of a program."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    """Blame a failed exchange on the process that ended or does not answer."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        if "timed out" in reason.lower():
            reason = f"{_SILENT} ({reason})"
        raise PeerError(reason) from error


def _sum_block(gradients: list[torch.Tensor]) -> None:
    # One exchange of a flat copy: an exchange for each small tensor would cost its latency.
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    parts = flat.split([gradient.numel() for gradient in gradients])
    sums = [part.view_as(g) for part, g in zip(parts, gradients, strict=True)]
    torch._foreach_copy_(gradients, sums)


def _blocks(gradients: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Cut `gradients` into blocks of at least `_FUSED_BYTES`; the last may be smaller."""
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
    # accelerate and torch read further environment variables, without checking them.
    except (KeyError, ValueError) as error:
        raise UserError(
            f"accelerate cannot start with these environment variables: {in_one_line(error)}"
        ) from None


def _require(device: Device) -> None:
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device, True):
        raise UserError(
            f'train.device: this machine has no "{device}" device; choose "auto" or "cpu"'
        )
