"""Find the largest micro-batch that fits the memory, for `train.micro_batch_size: auto`.

On CUDA, passes are tried, with some memory kept free for what training still allocates and for
chance. Elsewhere no pass can be tried safely, since a machine out of memory swaps or kills the
process. There the memory is computed from the tensors that autograd keeps for a pass of one and of
two rows, and compared with half of the machine's memory. That half does not depend on what else
runs, so that the same machine finds the same number.
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
"""Devices that answer a pass too large with an error and go on unharmed."""
_FREE = 0.05
"""Share of a CUDA device's memory that a tried pass leaves free, for fragmentation, observation and
other programs."""
_SHARE = 0.5
"""Share of the machine's memory that the computed passes and states of all processes may fill."""
_PASSING = 2.0
"""Peak memory of a pass as a multiple of what autograd keeps: it also holds gradients of
activations, and temporaries."""
_STATE_COPIES = 4
"""Weights, gradients and two moments: tensors of a parameter's size that training holds."""
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def find_micro_batch(job: Job, build_state: Callable[[], TrainState]) -> int:
    """Find the largest divisor of this process's rows that fits the memory of every process.

    The search uses a separate state, built by `build_state` and dropped afterwards, and restores
    torch's generators: training begins as if nothing had been tried. The pass is that of the next
    update; if a method's updates differ in size, set `train.micro_batch_size` to what the largest needs.

    Raises:
        UserError: not even one row fits.
    """
    device = job.runtime.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        state = build_state()
        batch = _next_batch(job, state)
        if batch is None:
            return job.micro_batch
        fits = _fit_test(job, state, batch)
        # All processes try in step, and each number must fit in every one of them.
        for rows in _divisors(job.micro_batch):
            if not job.runtime.any(not fits(rows)):
                return rows
    raise UserError(
        f'train.micro_batch_size is "auto", but not even one row fits the memory of "{device}": shorten train.seq_len,'
        " take a smaller model, or set train.micro_batch_size to 1 to go on regardless"
    )


def _fit_test(job: Job, state: TrainState, batch: torch.Tensor) -> Callable[[int], bool]:
    """Return a function that tells whether a number of rows fits."""
    if job.runtime.device.type in _TRIED:
        return lambda rows: _passes(job, state, _rows_of(batch, rows))
    limit = _computed_limit(job, state, batch)
    return lambda rows: rows <= limit


def _next_batch(job: Job, state: TrainState) -> torch.Tensor | None:
    source = state.method.begin_step(state.counters.step + 1)
    if source is None or isinstance(source, torch.Tensor):
        return source
    row_ids = job.loader.order.rows(state.counters.reads + 1)
    return job.loader.tokens(row_ids)


def _divisors(count: int) -> list[int]:
    """List the divisors of `count`, largest first."""
    return [n for n in range(count, 0, -1) if count % n == 0]


def _rows_of(batch: torch.Tensor, rows: int) -> torch.Tensor:
    """Take `rows` rows of `batch`, starting over if it has fewer."""
    return batch[torch.arange(rows) % len(batch)]


def _loss(job: Job, state: TrainState, batch: torch.Tensor) -> torch.Tensor:
    tokens = batch.to(job.runtime.device)
    with job.runtime.autocast(job.precision):
        loss, _, _ = state.method.loss(state.model, tokens, state.counters.step + 1)
    return loss


def _passes(job: Job, state: TrainState, batch: torch.Tensor) -> bool:
    """Try a pass of `batch` beside all that training will hold in memory by then.

    That is the gradients of an earlier pass, the optimizer's moments and the share to leave free.
    """
    device = job.runtime.device
    reserve = _missing_moments(state)
    if device.type == "cuda":
        _, total = torch.cuda.mem_get_info(device)
        reserve += int(_FREE * total)
    try:
        for parameter in state.parameters.values():
            # Passes after the first accumulate into gradients that exist already.
            parameter.grad = torch.zeros_like(parameter)
        reserved = torch.empty(reserve, dtype=torch.uint8, device=device)
        _loss(job, state, batch).backward()
        del reserved
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        _free_gradients(state, device)


def _free_gradients(state: TrainState, device: torch.device) -> None:
    for parameter in state.parameters.values():
        parameter.grad = None
    # A failed pass may have left its tensors in reference cycles.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _computed_limit(job: Job, state: TrainState, batch: torch.Tensor) -> float:
    """Compute how many rows fit, if a pass keeps a fixed amount and an amount for every row."""
    # Two measurements of a linear function give its slope and its constant.
    of_one_row = _kept_by_autograd(job, state, _rows_of(batch, 1))
    of_two_rows = _kept_by_autograd(job, state, _rows_of(batch, 2))
    a_row = of_two_rows - of_one_row
    fixed = of_one_row - a_row
    share = _SHARE * _machine_memory() / job.runtime.processes
    memory = share - _state_bytes(state)
    for_rows = memory / _PASSING - fixed
    return for_rows / max(a_row, 1)


def _state_bytes(state: TrainState) -> int:
    return sum(_STATE_COPIES * parameter.nbytes for parameter in state.parameters.values())


def _kept_by_autograd(job: Job, state: TrainState, batch: torch.Tensor) -> int:
    """Return the bytes that a forward pass keeps for its backward pass, parameters left out."""
    # Alive, so that no two share an address.
    storages: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage

    with watching(note):
        _loss(job, state, batch)
    for parameter in state.parameters.values():
        storages.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(storage.nbytes() for storage in storages.values())


def _missing_moments(state: TrainState) -> int:
    """Return the bytes of the optimizer's state still to come: two moments of a parameter's
    size."""
    pending = [p for p in state.parameters.values() if p not in state.optimizer.state]
    return sum(2 * parameter.nbytes for parameter in pending)


def _machine_memory() -> int:
    """Return the bytes of memory of the machine, or what its container allows."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # The file is missing outside of a container, and says "max" where there is no limit.
    with suppress(OSError, ValueError):
        memory = min(memory, int(_CGROUP_LIMIT.read_text(encoding="ascii")))
    return memory
