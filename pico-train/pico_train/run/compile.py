"""Decide whether the layers of a run are compiled, and explain a failed compilation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pico_contract.errors import UserError


def compiles(wanted: str, device: torch.device, sharding: str = "none") -> bool:
    """Decide whether to compile on `device`, if `train.compile` is `wanted`.

    "auto" means CUDA alone, and never a sharded state. On two CPU cores the compiled layers of
    decoder tiny took 4 to 8% less time than eager ones, after minutes of compiling, and other
    machines may have no C++ compiler.

    Raises:
        UserError: `wanted` is "on" and the state is sharded, which is untried.
    """
    if wanted == "on" and sharding != "none":
        raise UserError(
            f"train.compile is on, which train.sharding={sharding} does not go with: set one of them otherwise"
        )
    if wanted == "auto":
        return device.type == "cuda" and sharding == "none"
    return wanted == "on"


@contextmanager
def compile_errors_as_user_errors() -> Iterator[None]:
    """Turn an error of the compiler into a `UserError`; the first update compiles.

    Raises:
        UserError: the compiler is missing or failed; quotes the first line of its message.
    """
    try:
        yield
    except Exception as error:
        if not _is_compile_error(error):
            raise
        raise UserError(
            f"train.compile: the model could not be compiled here ({_first_line(error)}); install a C++ compiler"
            " (on CUDA also Triton), or set train.compile=off"
        ) from error


def _is_compile_error(error: Exception) -> bool:
    # Importing torch._dynamo for its exceptions alone takes seconds, so modules are compared.
    modules = [base.__module__ for base in type(error).__mro__]
    return any(module.startswith(("torch._dynamo", "torch._inductor")) for module in modules)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
