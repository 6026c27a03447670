"""Low-rank adapters as PEFT saves them, which change W by scale * B @ A.

The scale follows from adapter_config.json.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from pico_contract.errors import DamagedError

from pico_analyze.sources.formats import ADAPTER_CONFIG, UnsupportedError

_PREFIX = "base_model.model."
_ADAPTER_NAME = re.compile(r"\.(lora_[AB])\.[^.]+\.weight$")


def module_name(tensor: str) -> str:
    """Translate the name of an adapter's tensor to that in the adapted model."""
    return _ADAPTER_NAME.sub(r".\1.weight", tensor.removeprefix(_PREFIX))


def check(place: str, config: Mapping[str, Any]) -> None:
    """Refuse an adapter that is not plain LoRA.

    Raises:
        UnsupportedError: names the kind of adapter, or what adapter_config.json lacks.
    """
    if not config:
        raise UnsupportedError(
            f"{place} has no {ADAPTER_CONFIG}, which says the scale of its low-rank updates"
        )
    peft_type = config.get("peft_type", "LORA")
    if str(peft_type).upper() != "LORA":
        raise UnsupportedError(
            f'{place} is an adapter of type "{peft_type}"; those of type LORA are read'
        )
    if config.get("use_dora"):
        raise UnsupportedError(
            f"{place} is a DoRA adapter, whose update also depends on the weights that it adapts; merge it with "
            "PeftModel.merge_and_unload() and save the model"
        )


def scale(place: str, module: str, rank: int, config: Mapping[str, Any]) -> float:
    """Return the factor of B @ A: alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA.

    Args:
        module: its name in the adapted model.
        rank: the number of rows of its A.

    Raises:
        DamagedError: adapter_config.json lacks a number, or gives another rank.
    """
    r = _value_for(module, config, "rank_pattern", "r")
    alpha = _value_for(module, config, "alpha_pattern", "lora_alpha")
    for key, value in (("r", r), ("lora_alpha", alpha)):
        if not _is_finite_number(value):
            raise DamagedError(
                f"{place}/{ADAPTER_CONFIG} should give a number for {key} but gives {value!r}"
            )
    if r != rank:
        raise DamagedError(
            f"{place}/{ADAPTER_CONFIG} says rank {r} for {module}, whose matrices have rank {rank}"
        )
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _is_finite_number(value: Any) -> bool:
    # In Python True is an int.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)


def _value_for(module: str, config: Mapping[str, Any], patterns_key: str, key: str) -> Any:
    """Return the value for a module: of the first matching pattern, or else of `key`.

    As in PEFT, a pattern matches the end of a module's name, from a dot on.
    """
    for pattern, value in (config.get(patterns_key) or {}).items():
        if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module):
            return value
    return config.get(key)
