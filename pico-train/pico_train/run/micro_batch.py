"""How many rows of a forward pass the memory holds: what `train.micro_batch: auto` finds when a run
begins.

On CUDA the pass is tried, with room kept free for what training still lays down and for chance.
Elsewhere nothing can be tried safely, since a machine out of memory swaps or ends the process;
there it is reckoned from the tensors that autograd keeps for a pass of one and of two rows, against
half of the machine's memory. That half does not depend on what else runs, so that the same machine
finds the same number.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from pico_contract.errors import UserError

from pico_train.checkpoint.state import TrainState
from pico_train.model.recompute import watching
from pico_train.run.job import Job

_TRIED = ("cuda",)
"""Devices that answer a pass too large with an error and are none the worse for it."""
_FREE = 0.05
"""Share of a CUDA device's memory that a tried pass leaves free: fragmentation, observation, other
programs."""
_SHARE = 0.5
"""Share of the machine's memory that a reckoned pass and the state may fill, all processes
together."""
_PASSING = 2.0
"""What a pass holds at its peak, as a multiple of what autograd keeps: gradients of activations,
and what is freed."""
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def find_micro_batch(job: Job, build_state: Callable[[], TrainState]) -> int:
    """The largest divisor of this process's rows that fits the memory, the same in every process.

    It is sought on a state of its own, made by `build_state` and dropped, and with torch's
    generators put back after: training begins as if nothing had been tried. The pass is that of the
    update that comes next; where a method's updates differ in size, set `train.micro_batch` to what
    the largest needs.

    Raises:
        UserError: not even one row fits.
    """
    device = job.runtime.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        state = build_state()
        batch = _next_batch(job, state)
        if batch is None:
            return job.micro_batch
        fits = _fitting(job, state, batch)
        for rows in _divisors(job.micro_batch):
            if not job.runtime.any(not fits(rows)):
                return rows
    raise UserError(
        f'train.micro_batch is "auto", but not even one row fits the memory of "{device}": shorten train.seq_len,'
        " take a smaller model, or set train.micro_batch to 1 to go on regardless"
    )


def _fitting(job: Job, state: TrainState, batch: torch.Tensor) -> Callable[[int], bool]:
    """Says of a number of rows whether they fit."""
    if job.runtime.device.type in _TRIED:
        return lambda rows: _passes(job, state, _rows_of(batch, rows))
    most = _reckoned(job, state, batch)
    return lambda rows: rows <= most


def _next_batch(job: Job, state: TrainState) -> torch.Tensor | None:
    reads = state.method.begin_step(state.counters.step + 1)
    if reads is None or isinstance(reads, torch.Tensor):
        return reads
    return job.tokens(job.order.rows(state.counters.reads + 1))


def _divisors(count: int) -> list[int]:
    """From the largest down."""
    return [n for n in range(count, 0, -1) if count % n == 0]


def _rows_of(batch: torch.Tensor, rows: int) -> torch.Tensor:
    """So many rows, some again where the batch has fewer."""
    return batch[torch.arange(rows) % len(batch)]


def _loss(job: Job, state: TrainState, batch: torch.Tensor) -> torch.Tensor:
    with job.runtime.autocast(job.precision):
        return state.method.loss(
            state.model, batch.to(job.runtime.device), state.counters.step + 1
        )[0]


def _passes(job: Job, state: TrainState, batch: torch.Tensor) -> bool:
    """Whether a pass goes through beside gradients of an earlier one, the optimizer's moments and
    the free share."""
    device = job.runtime.device
    try:
        for parameter in state.parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        kept = _moments(state) + (
            _FREE * torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else 0
        )
        kept_free = torch.empty(int(kept), dtype=torch.uint8, device=device)
        _loss(job, state, batch).backward()
        del kept_free
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        for parameter in state.parameters.values():
            parameter.grad = None
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _reckoned(job: Job, state: TrainState, batch: torch.Tensor) -> float:
    """How many rows fit: a pass keeps an amount of its own and an amount for every row."""
    one, two = (_kept_by_autograd(job, state, _rows_of(batch, rows)) for rows in (1, 2))
    each, own = two - one, 2 * one - two
    room = _SHARE * _machine_memory() / job.runtime.processes
    room -= sum(
        4 * parameter.nbytes for parameter in state.parameters.values()
    )  # weights, gradients, two moments
    return (room / _PASSING - own) / max(each, 1)


def _kept_by_autograd(job: Job, state: TrainState, batch: torch.Tensor) -> int:
    """Bytes of the storages that a forward pass keeps for its backward pass, parameters left
    out."""
    storages: dict[int, torch.UntypedStorage] = {}  # holds them, so that no two share an address

    def note(tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage

    with watching(note):
        _loss(job, state, batch)
    own = {parameter.untyped_storage().data_ptr() for parameter in state.parameters.values()}
    return sum(storage.nbytes() for address, storage in storages.items() if address not in own)


def _moments(state: TrainState) -> int:
    """Bytes of the optimizer's state that are still to come; two of the parameter's size are
    counted."""
    return sum(2 * p.nbytes for p in state.parameters.values() if p not in state.optimizer.state)


def _machine_memory() -> int:
    """Bytes of memory, or of what a container allows."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):
        memory = min(memory, int(_CGROUP_LIMIT.read_text(encoding="ascii")))
    return memory
