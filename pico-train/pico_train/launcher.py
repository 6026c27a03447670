"""Which of several processes this one is, as torchrun and accelerate launch say in environment
variables.

Shells, containers and batch systems leave single variables behind; those that describe no launch
are not believed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from pico_contract.errors import UserError, shorten

_COUNTS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
_MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_REMEDY = "start several processes with torchrun or accelerate launch, or unset it"


def process_of() -> tuple[int, int]:
    """(number of this process, number of processes) for messages; (0, 1) where the environment says
    nothing usable."""
    try:
        check_launch()
    except UserError:
        return 0, 1
    return (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if _is_launched() else (0, 1)


def check_launch() -> None:
    """Refuse an environment that numbers processes and is not a launcher's.

    Raises:
        UserError: a variable is not a number, or one of several processes is named without the
            others; names it.
    """
    counts = {name: _number(name) for name in (*_COUNTS, *_MPI_SIZES) if name in os.environ}
    several = [name for name, count in counts.items() if count > (0 if "RANK" in name else 1)]
    missing = [name for name in (*_COUNTS, *_ADDRESS) if not os.environ.get(name)]
    if several and missing:
        shown = f"{several[0]}={counts[several[0]]}"
        raise UserError(f"the environment says {shown} but not {', '.join(missing)}: {_REMEDY}")
    if several and not 0 <= counts["RANK"] < counts["WORLD_SIZE"]:
        shown = f"RANK={counts['RANK']} and WORLD_SIZE={counts['WORLD_SIZE']}"
        raise UserError(f"the environment says {shown}, which number no process: {_REMEDY}")


@contextmanager
def only_a_launch() -> Iterator[None]:
    """Hide variables that describe no launch from the body, which would follow any of them."""
    hidden = (
        {}
        if _is_launched()
        else {n: os.environ.pop(n) for n in (*_COUNTS, *_MPI_SIZES) if n in os.environ}
    )
    try:
        yield
    finally:
        os.environ.update(hidden)


def _is_launched() -> bool:
    return all(os.environ.get(name) for name in (*_COUNTS, *_ADDRESS))


def _number(name: str) -> int:
    text = os.environ[name]
    try:
        return int(text)
    except ValueError:
        raise UserError(
            f'the environment says {name}="{shorten(text)}", which is not a number: {_REMEDY}'
        ) from None
