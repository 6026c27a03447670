"""Files of tensors by module name that earlier Pico code wrote with torch.save.

They are pickles, so they are opened with `weights_only=True`, which runs no code from the file.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from pico_contract import names
from pico_contract.errors import DamagedError

from pico_analyze.sources.formats import is_pointer, pointer_sentence

_GLOBAL = re.compile(r"GLOBAL (\S+)")


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a file, module -> tensor, memory-mapped if its format allows that.

    Raises:
        DamagedError: it is not readable, or contains anything but matrices and vectors of
            floating-point numbers by name.
    """
    by_module: dict[str, torch.Tensor] = {}
    for key, tensor in _load(path).items():
        if not (isinstance(key, str) and isinstance(tensor, torch.Tensor)):
            raise DamagedError(
                f'{path} is refused: its entry "{key}" is a {type(tensor).__name__} and not a tensor'
            )
        if not _is_float_array(tensor):
            raise DamagedError(
                f'{path} is refused: its tensor "{key}" is not an array of floating-point numbers'
            )
        module = names.canonical(key).removesuffix(".weight")
        if module in by_module:
            raise DamagedError(f'{path} is refused: it names the module "{module}" twice')
        by_module[module] = tensor
    return by_module


def _load(path: Path) -> dict[Any, Any]:
    try:
        is_zip = zipfile.is_zipfile(path)  # only this format can be memory-mapped
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except FileNotFoundError:
        raise DamagedError(f"{path} does not exist") from None
    except (
        Exception
    ) as error:  # bytes that are not a pickle fail in many ways, even by KeyError
        raise DamagedError(_explain(path, str(error))) from None
    if not isinstance(loaded, dict):
        raise DamagedError(
            f"{path} is refused: it holds a {type(loaded).__name__} and not tensors by module name"
        )
    return loaded


def _is_float_array(tensor: torch.Tensor) -> bool:
    is_array = tensor.layout == torch.strided and tensor.dim() > 0 and tensor.numel() > 0
    return is_array and tensor.is_floating_point()


def _explain(path: Path, message: str) -> str:
    """Say in one sentence why torch cannot load a file, from the message of its error."""
    if (refused := _GLOBAL.search(message)) is not None:
        return f"{path} is refused: it holds {refused[1]}, and a file of tensors may hold nothing that runs code"
    with path.open("rb") as file:
        if is_pointer(file.read(64)):
            return pointer_sentence(path)
    return f"{path} is cut short or was not written by torch.save ({path.stat().st_size} bytes)"
