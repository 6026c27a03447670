"""Quantised weights: float8 matrices are multiplied by their scales, integer ones are refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pico_contract.errors import DamagedError

from pico_analyze.sources.formats import UnsupportedError

FLOAT8 = ("F8_E4M3", "F8_E5M2", "F8_E4M3FN", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
_WEIGHT = ".weight"
_SCALES = ("_scale_inv", "_scale")
"""The endings of the name of the scale of `X.weight`, behind that name."""
_INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "F4", "F8_E8M0")
_PACKED = {  # ending of a tensor's name -> the method that writes it
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    ".SCB": "bitsandbytes, 8 bits",
    ".weight.absmax": "bitsandbytes, 4 bits",
    ".weight.quant_map": "bitsandbytes, 4 bits",
    "_blocks": "MXFP4",
    ".weight_packed": "compressed-tensors",
    ".W_q": "HQQ",
    ".codebooks": "AQLM",
    ".weight._data": "Quanto",
    ".weight_codes": "SpQR or AQLM",
}


def scale_name(weight: str, stored: Mapping[str, Any]) -> str | None:
    """Return the name of the tensor with the scales of a float8 weight; None if it has none."""
    return next((weight + ending for ending in _SCALES if weight + ending in stored), None)


def is_scale(name: str, stored: Mapping[str, Any]) -> bool:
    """Return whether a tensor holds the scales of a float8 weight or of its inputs."""
    for ending in (*_SCALES, ".input_scale", ".activation_scale"):
        if name.endswith(ending):
            # An ordinary matrix may have the same ending; it is a scale only beside a float8
            # weight.
            weight = name.removesuffix(ending)
            return stored.get(weight) in FLOAT8 or stored.get(weight + _WEIGHT) in FLOAT8
    return False


def refuse_packed(
    place: str, stored: Mapping[str, str], config: Callable[[], Mapping[str, Any]]
) -> None:
    """Refuse a model with matrices that are stored as integers.

    Args:
        stored: name of each tensor -> its dtype as safetensors writes it.
        config: reads config.json, which may name the method.

    Raises:
        UnsupportedError: names the quantisation and the remedy.
    """
    for name, dtype in stored.items():
        packed = _packing(name)
        # A module may be called so by chance; packed weights consist of integers.
        if packed is not None and not _is_of_integers(name, dtype, stored):
            packed = None
        if packed or (name.endswith(_WEIGHT) and dtype in _INTEGERS):
            method = _method(config()) or packed or f"{dtype} weights"
            raise UnsupportedError(
                f'{place} is quantised ({method}): its matrices, such as "{name}", are stored as integers and scales, '
                "which are not its weights; save it dequantised: "
                "AutoModelForCausalLM.from_pretrained(DIR).dequantize().save_pretrained(OTHER_DIR)"
            )


def _packing(name: str) -> str | None:
    return next((method for ending, method in _PACKED.items() if name.endswith(ending)), None)


def _is_of_integers(name: str, dtype: str, stored: Mapping[str, str]) -> bool:
    """Return whether the tensor, or the weight that it is a part of, is stored as integers."""
    owner = name.rpartition(".SCB")[0] or name.partition(_WEIGHT)[0]
    return dtype in _INTEGERS or stored.get(owner + _WEIGHT) in _INTEGERS


def _method(config: Mapping[str, Any]) -> str | None:
    method = _settings(config).get("quant_method")
    return method if isinstance(method, str) else None


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    settings = config.get("quantization_config")
    return settings if isinstance(settings, dict) else {}


def dequantise(
    place: str, weight: torch.Tensor, scale: torch.Tensor, config: Mapping[str, Any]
) -> torch.Tensor:
    """Multiply a float8 matrix (m, n) by its scales, and return it in float32.

    Args:
        scale: one for the matrix, one for each row, (m,) or (m, 1), or one for each block, (p, q).
            Blocks have the size `quantization_config.weight_block_size` if that is given, else 128,
            as in DeepSeek-V3, or else the least power of two that gives p and q blocks. The last
            blocks may be smaller.

    Raises:
        DamagedError: the scales do not fit the matrix.
    """
    m, n = weight.shape
    # torch has no arithmetic in float8; float32 represents each value exactly.
    values, scale = weight.float(), scale.float()
    if scale.numel() == 1:
        return values * scale.reshape(())
    if tuple(scale.shape) in ((m,), (m, 1)):
        return values * scale.reshape(m, 1)
    if scale.dim() == 2:
        p, q = scale.shape
        rows = _block_size(m, p, _given_block_size(config, 0))
        columns = _block_size(n, q, _given_block_size(config, 1))
        if rows and columns:
            by_row = scale.repeat_interleave(rows, 0)[:m]
            by_entry = by_row.repeat_interleave(columns, 1)[:, :n]
            return values * by_entry
    raise DamagedError(
        f"{place} has scales of shape {tuple(scale.shape)}, which do not fit {m} x {n}"
    )


def _block_size(length: int, blocks: int, given: int | None) -> int:
    """Choose the size that divides `length` into this number of blocks; 0 if none does."""
    if given is not None:
        candidates = [given]
    else:
        powers = [2**power for power in range(1 + math.ceil(math.log2(length)))]
        candidates = [128, *powers, math.ceil(length / blocks)]
    return next((size for size in candidates if math.ceil(length / size) == blocks), 0)


def _given_block_size(config: Mapping[str, Any], axis: int) -> int | None:
    sizes = _settings(config).get("weight_block_size")
    if not isinstance(sizes, list) or len(sizes) != 2:
        return None
    size = sizes[axis]
    return size if isinstance(size, int) and size > 0 else None
