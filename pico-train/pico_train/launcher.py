"""Read the number of this process from the variables that torchrun and accelerate launch set.

Shells, containers and batch systems leave single variables behind. Those are ignored unless they
describe a launch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from pico_contract.errors import UserError, shorten

_COUNTS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_LAUNCH = (*_COUNTS, "MASTER_ADDR", "MASTER_PORT")
"""Variables that every launcher sets."""
_MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_REMEDY = "start several processes with torchrun or accelerate launch, or unset it"


def process_of() -> tuple[int, int]:
    """Return the number of this process and the number of processes, for messages.

    Without a usable environment that is (0, 1).
    """
    try:
        check_launch()
    except UserError:
        return 0, 1
    if not _is_launched():
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def check_launch() -> None:
    """Check that variables which speak of several processes are those of a whole launch.

    Raises:
        UserError: a variable is not a number, or implies several processes while others are
            missing; names it.
    """
    present = [name for name in (*_COUNTS, *_MPI_SIZES) if name in os.environ]
    counts = {name: _number(name) for name in present}
    several = [name for name, count in counts.items() if _implies_several(name, count)]
    if not several:
        return
    missing = ", ".join(name for name in _LAUNCH if not os.environ.get(name))
    first = several[0]
    if missing:
        shown = f"{first}={counts[first]}"
        raise UserError(f"the environment says {shown} but not {missing}: {_REMEDY}")
    # Both are present, since nothing of a launch is missing.
    rank, world_size = counts["RANK"], counts["WORLD_SIZE"]
    if not 0 <= rank < world_size:
        shown = f"RANK={rank} and WORLD_SIZE={world_size}"
        raise UserError(f"the environment says {shown}, which number no process: {_REMEDY}")


def _implies_several(name: str, count: int) -> bool:
    # Ranks count from 0, sizes from 1.
    smallest = 0 if "RANK" in name else 1
    return count > smallest


@contextmanager
def only_a_launch() -> Iterator[None]:
    """Hide variables that describe no launch from the body, which would follow any of them."""
    hidden = {}
    if not _is_launched():
        present = [name for name in (*_COUNTS, *_MPI_SIZES) if name in os.environ]
        hidden = {name: os.environ.pop(name) for name in present}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _is_launched() -> bool:
    return all(os.environ.get(name) for name in _LAUNCH)


def _number(name: str) -> int:
    text = os.environ[name]
    try:
        return int(text)
    except ValueError:
        raise UserError(
            f'the environment says {name}="{shorten(text)}", which is not a number: {_REMEDY}'
        ) from None
