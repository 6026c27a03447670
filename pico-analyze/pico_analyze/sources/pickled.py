"""Tensors by module name in files that earlier Pico code wrote with torch.save; opened with
`weights_only=True`."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import torch
from pico_contract import names
from pico_contract.errors import DamagedError

from pico_analyze.sources.formats import is_pointer, pointer_sentence

_GLOBAL = re.compile(r"GLOBAL (\S+)")


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """Module -> tensor, mapped from the file if its format allows that.

    Raises:
        DamagedError: not readable, or it holds something else than matrices and vectors of numbers
            by name.
    """
    try:
        loaded = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except FileNotFoundError:
        raise DamagedError(f"{path} does not exist") from None
    except Exception as error:  # bytes that are no pickle fail in many ways, KeyError among them
        raise DamagedError(_why(path, str(error))) from None
    if not isinstance(loaded, dict):
        raise DamagedError(
            f"{path} is refused: it holds a {type(loaded).__name__} and not tensors by module name"
        )
    found: dict[str, torch.Tensor] = {}
    for key, tensor in loaded.items():
        if not (isinstance(key, str) and isinstance(tensor, torch.Tensor)):
            raise DamagedError(
                f'{path} is refused: its entry "{key}" is a {type(tensor).__name__} and not a tensor'
            )
        if (
            tensor.layout != torch.strided
            or not tensor.is_floating_point()
            or tensor.dim() == 0
            or tensor.numel() == 0
        ):
            raise DamagedError(
                f'{path} is refused: its tensor "{key}" is not an array of floating-point numbers'
            )
        module = names.canonical(key).removesuffix(".weight")
        if module in found:
            raise DamagedError(f'{path} is refused: it names the module "{module}" twice')
        found[module] = tensor
    return found


def _why(path: Path, message: str) -> str:
    if (found := _GLOBAL.search(message)) is not None:
        return f"{path} is refused: it holds {found[1]}, and a file of tensors may hold nothing that runs code"
    with path.open("rb") as file:
        if is_pointer(file.read(64)):
            return pointer_sentence(path)
    return f"{path} is cut short or was not written by torch.save ({path.stat().st_size} bytes)"
