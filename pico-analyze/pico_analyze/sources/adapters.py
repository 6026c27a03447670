"""Low-rank adapters as PEFT saves them: W is changed by scale * B @ A, with the scale of
adapter_config.json."""

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
    """The name of an adapter's tensor in the model that it adapts."""
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
    kind = config.get("peft_type", "LORA")
    if str(kind).upper() != "LORA":
        raise UnsupportedError(
            f'{place} is an adapter of type "{kind}"; those of type LORA are read'
        )
    if config.get("use_dora"):
        raise UnsupportedError(
            f"{place} is a DoRA adapter, whose update also depends on the weights that it adapts; merge it with "
            "PeftModel.merge_and_unload() and save the model"
        )


def scale(place: str, module: str, rank: int, config: Mapping[str, Any]) -> float:
    """The factor of B @ A for a module: alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA.

    Args:
        module: its name in the adapted model.
        rank: rows of its A.

    Raises:
        DamagedError: adapter_config.json lacks a number, or says another rank.
    """
    r = _chosen(config, "rank_pattern", "r", module)
    alpha = _chosen(config, "alpha_pattern", "lora_alpha", module)
    for key, value in (("r", r), ("lora_alpha", alpha)):
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise DamagedError(
                f"{place}/{ADAPTER_CONFIG} should give a number for {key} but gives {value!r}"
            )
    if r != rank:
        raise DamagedError(
            f"{place}/{ADAPTER_CONFIG} says rank {r} for {module}, whose matrices have rank {rank}"
        )
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _chosen(config: Mapping[str, Any], pattern: str, key: str, module: str) -> Any:
    """The value of a key, or that of the first of its patterns that a module's name ends with, as
    PEFT has it."""
    patterns = config.get(pattern) or {}
    found = (
        value for one, value in patterns.items() if re.fullmatch(rf"(?:.*\.)?(?:{one})", module)
    )
    return next(found, config.get(key))
