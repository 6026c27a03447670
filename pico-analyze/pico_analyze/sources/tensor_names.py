"""Names of stored tensors and of their modules, in runs of pico-train on disk and in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pico_contract import names

_SUFFIX = ".weight"
_HEAD, _EMBEDDING = "lm_head", "model.embed_tokens"
_FACTORS = ("lora_A", "lora_B")
"""The parts of a low-rank module that are listed as modules; others are read only by name."""


def is_tied(model: Mapping[str, Any], kind: str) -> bool:
    """Return whether the embedding's tensor of `kind` is also that of the head.

    With tied embeddings it is, except for activations: the outputs of the two modules differ.
    """
    return kind != "activations" and bool(model.get("tie_word_embeddings"))


def modules_of(stored: Iterable[str], tied: bool) -> list[str]:
    """List the modules that have a tensor among `stored`, by Hugging Face name."""
    modules = [name.removesuffix(_SUFFIX) for name in stored if _is_module(name)]
    if tied and _EMBEDDING in modules and _HEAD not in modules:
        modules.append(_HEAD)
    return modules


def _is_module(tensor: str) -> bool:
    part = names.low_rank_part(tensor)
    return part is None or part[1] in _FACTORS


def stored_name(module: str, stored: Iterable[str], tied: bool) -> str | None:
    """Return the name of a module's tensor in `stored`; None if there is none.

    The module may be given by an alias.
    """
    known = set(stored)
    module = names.canonical(module).removesuffix(_SUFFIX)
    # A tied head may be stored nonetheless; then its own tensor is read.
    if tied and module == _HEAD and f"{_HEAD}{_SUFFIX}" not in known:
        module = _EMBEDDING
    return next((name for name in (f"{module}{_SUFFIX}", module) if name in known), None)
