"""Quantised weights: float8 matrices are multiplied by their scales; packed and integer ones are
refused by name."""

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
"""Endings that the scale of `X.weight` has behind that name."""
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
    """The name of the tensor that holds the scales of a float8 weight, or None if it has none."""
    return next((weight + ending for ending in _SCALES if weight + ending in stored), None)


def is_scale(name: str, stored: Mapping[str, Any]) -> bool:
    """Whether a tensor holds the scales of a weight (or of its inputs) and is not a matrix of the
    model."""
    for ending in (*_SCALES, ".input_scale", ".activation_scale"):
        if name.endswith(ending):
            weight = name.removesuffix(ending)
            return any(stored.get(one) in FLOAT8 for one in (weight, weight + _WEIGHT))
    return False


def refuse_packed(
    place: str, stored: Mapping[str, str], config: Callable[[], Mapping[str, Any]]
) -> None:
    """Refuse a model of which matrices are stored as integers.

    Args:
        stored: name of each tensor -> its dtype as safetensors writes it.
        config: reads config.json, which may name the method.

    Raises:
        UnsupportedError: names the quantisation and the remedy.
    """
    for name, dtype in stored.items():
        packed = next((method for ending, method in _PACKED.items() if name.endswith(ending)), None)
        if packed is not None and not _is_of_integers(name, dtype, stored):
            packed = None
        if packed or (name.endswith(_WEIGHT) and dtype in _INTEGERS):
            method = _method(config()) or packed or f"{dtype} weights"
            raise UnsupportedError(
                f'{place} is quantised ({method}): its matrices, such as "{name}", are stored as integers and scales, '
                "which are not its weights; save it dequantised: "
                "AutoModelForCausalLM.from_pretrained(DIR).dequantize().save_pretrained(OTHER_DIR)"
            )


def _is_of_integers(name: str, dtype: str, stored: Mapping[str, str]) -> bool:
    """Whether the tensor, or the weight that it is a part of, is stored as integers."""
    owner = name.rpartition(".SCB")[0] or name.partition(_WEIGHT)[0]
    return dtype in _INTEGERS or stored.get(owner + _WEIGHT) in _INTEGERS


def _method(config: Mapping[str, Any]) -> str | None:
    found = config.get("quantization_config")
    method = found.get("quant_method") if isinstance(found, dict) else None
    return method if isinstance(method, str) else None


def dequantise(
    place: str, weight: torch.Tensor, scale: torch.Tensor, config: Mapping[str, Any]
) -> torch.Tensor:
    """Multiply a float8 matrix (m, n) by its scales: one, one a row (m, 1) or (m,), or one a block
    (p, q).

    Blocks are of the size that `quantization_config.weight_block_size` says. Without it they are
    128 long, as in DeepSeek-V3, or else of the least power of two that gives as many blocks. The
    last ones may be smaller.

    Returns:
        float32, (m, n).

    Raises:
        DamagedError: the scales do not fit the matrix.
    """
    m, n = weight.shape
    values, scale = weight.float(), scale.float()
    if scale.numel() == 1:
        return values * scale.reshape(())
    if tuple(scale.shape) in ((m,), (m, 1)):
        return values * scale.reshape(m, 1)
    sizes = (
        [_block(config, axis, weight.shape, scale.shape) for axis in (0, 1)]
        if scale.dim() == 2
        else [0, 0]
    )
    if not all(sizes):
        raise DamagedError(
            f"{place} has scales of shape {tuple(scale.shape)}, which do not fit {m} x {n}"
        )
    return values * scale.repeat_interleave(sizes[0], 0)[:m].repeat_interleave(sizes[1], 1)[:, :n]


def _block(config: Mapping[str, Any], axis: int, shape: torch.Size, blocks: torch.Size) -> int:
    """The size of a block along one axis; 0 if none gives as many blocks as there are scales."""
    length, count = shape[axis], blocks[axis]
    found = config.get("quantization_config")
    said = found.get("weight_block_size") if isinstance(found, dict) else None
    powers = [2**power for power in range(1 + math.ceil(math.log2(length)))]
    sizes = [128, *powers, -(-length // count)]
    if isinstance(said, list) and len(said) == 2 and isinstance(said[axis], int) and said[axis] > 0:
        sizes = [said[axis]]
    return next((size for size in sizes if math.ceil(length / size) == count), 0)
