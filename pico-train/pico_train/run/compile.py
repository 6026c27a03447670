"""Whether a run's layers are compiled, and what a machine that cannot compile says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pico_contract.errors import UserError


def compiles(wanted: str, device: torch.device, sharding: str = "none") -> bool:
    """Whether `train.compile` asks for it on `device`; "auto" leaves it off where the state is
    sharded.

    "auto" means CUDA alone: on two CPU cores the compiled layers of decoder tiny took 4 to 8% less
    time than eager ones, after minutes of compiling, and other machines may have no C++ compiler.

    Raises:
        UserError: it is asked for where the state is sharded, which is untried.
    """
    if wanted == "on" and sharding != "none":
        raise UserError(
            f"train.compile is on, which train.sharding={sharding} does not go with: set one of them otherwise"
        )
    return wanted == "on" or (wanted == "auto" and device.type == "cuda" and sharding == "none")


@contextmanager
def compile_errors_as_user_errors() -> Iterator[None]:
    """Compilation happens in the first update, and fails there.

    Raises:
        UserError: the compiler is missing or failed; what it said, in one line.
    """
    try:
        yield
    except Exception as error:
        if not _of_compilation(error):
            raise
        said = next(
            (line for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        raise UserError(
            f"train.compile: the model could not be compiled here ({said.strip()}); install a C++ compiler (on CUDA"
            " also Triton), or set train.compile=off"
        ) from error


def _of_compilation(error: Exception) -> bool:
    """By the module of its class: importing torch._dynamo for its name alone takes seconds."""
    return any(
        kind.__module__.startswith(("torch._dynamo", "torch._inductor"))
        for kind in type(error).__mro__
    )
