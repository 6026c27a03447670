"""Weights of an earlier Pico checkpoint to a Hugging Face Llama directory that computes the same
logits.

Two things differ beside the names. Rotary embeddings turned neighbouring pairs (2i, 2i + 1) of a
head; Llama's turn (i, i + d/2), so the rows of the query and key projections are put in that order,
which no score can tell. And a ReLoRA checkpoint holds base weights and factors; Llama has one
matrix, their sum. Nothing of the old directory is executed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pico_contract import codec, names
from pico_contract.errors import DamagedError, UserError
from pico_contract.layout import MODEL_CONFIG, MODEL_WEIGHTS, TOKENIZER

from pico_train.checkpoint.save import ModelMetadata, write_model
from pico_train.data.tokenizer import load_tokenizer, special_tokens
from pico_train.legacy.keys import GEOMETRY
from pico_train.legacy.modules import earlier_modules
from pico_train.model.decoder import DecoderConfig
from pico_train.model.stock import stock_tensors

PICKLED = "pytorch_model.bin"
FABRIC = ("fabric_state/checkpoint.pt", "checkpoint.pt")
HEAD = "classifier_head."
DOWN, UP, SCALE = ".A_lora.weight", ".B_lora.weight", ".s"
"""Endings of what a ReLoRA layer holds beside its base weight."""


Tensors = dict[str, torch.Tensor]


def convert_weights(source: Path, out: Path) -> list[str]:
    """Write the checkpoint in the directory `source` to the new directory `out`; returns what is to
    be said of it.

    `source` holds config.json (or its parent does) and the weights: model.safetensors,
    pytorch_model.bin, or the checkpoint.pt of Fabric. The result is float32, whole or not at all.

    Raises:
        UserError: `out` exists, or `source` is no directory of an earlier Pico checkpoint.
        DamagedError: a file does not parse, or a tensor is missing, unknown, or of another shape
            than config.json says.
    """
    if out.exists():
        raise UserError(f"{out} exists already; choose another --out")
    raw, place = _config(source)
    config = _geometry(raw, place)
    path, tensors = _stored(source)
    heads = [name for name in tensors if name.startswith(HEAD)]
    effective = _merged({n: t.float() for n, t in tensors.items() if n not in heads}, raw, path)
    _check(effective, config, path)
    tokenizer = source / TOKENIZER if (source / TOKENIZER).is_file() else None
    special = (
        special_tokens(load_tokenizer(tokenizer), config.vocab_size)
        if tokenizer is not None
        else {}
    )
    with codec.publish(out, replace=False) as draft:
        write_model(
            draft,
            _reordered(effective, config),
            ModelMetadata(out.name, config, tokenizer, special),
        )
    return _remarks(path, raw, bool(heads), tokenizer is None)


def _config(source: Path) -> tuple[dict[str, Any], Path]:
    """(config.json of the checkpoint, its path)."""
    places = [source / MODEL_CONFIG, source.parent / MODEL_CONFIG]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise UserError(
            f"{source} is not an earlier Pico checkpoint: there is no {MODEL_CONFIG} in it"
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        kind = str(raw["model_type"])
    except (ValueError, KeyError, TypeError):
        raise DamagedError(f"{path} is not the configuration of a model") from None
    if not kind.startswith("pico"):
        remedy = "; init_from opens it as it is" if kind == "llama" else ""
        raise UserError(f'{path} has model_type "{kind}", which is no earlier Pico decoder{remedy}')
    return raw, path


def _geometry(raw: Mapping[str, Any], place: Path) -> DecoderConfig:
    values: dict[str, Any] = {}
    for old, new in GEOMETRY.items():
        value = raw.get(old)
        whole = new not in ("rope_theta", "rms_norm_eps")
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise DamagedError(
                f'{place}: the key "{old}" should be a number (it is {json.dumps(value)})'
            )
        values[new] = value if whole else float(value)
    try:
        return DecoderConfig(**values)
    except ValueError as error:
        raise DamagedError(f"{place}: {error}") from None


def _stored(source: Path) -> tuple[Path, Tensors]:
    """(the file of weights, its tensors by Hugging Face's names)."""
    whole, pickled = source / MODEL_WEIGHTS, source / PICKLED
    fabric = next((source / name for name in FABRIC if (source / name).is_file()), None)
    if whole.is_file():
        path, tensors = whole, codec.read_tensors(whole)
    elif pickled.is_file():
        path, tensors = pickled, _unpickled(pickled)
    elif fabric is not None:
        path, tensors = fabric, _unpickled(fabric).get("_model", {})
    else:
        raise UserError(
            f"{source} holds no weights: none of {MODEL_WEIGHTS}, {PICKLED}, {', '.join(FABRIC)}"
        )
    if not (
        isinstance(tensors, dict)
        and tensors
        and all(isinstance(t, torch.Tensor) for t in tensors.values())
    ):
        raise DamagedError(f"{path} does not hold tensors by name")
    renamed = {names.canonical(str(name)): tensor for name, tensor in tensors.items()}
    if len(renamed) < len(tensors):
        raise DamagedError(f"{path} holds one tensor under two names")
    return path, renamed


def _unpickled(path: Path) -> dict[str, Any]:
    """The mapping in a pickle of tensors and plain values; anything that would run code is refused.

    Fabric's file holds the state of numpy's generator, an array of uint32, beside the weights.
    """
    rebuild: Any = np.empty(0).__reduce__()[0]
    plain = [
        rebuild,
        (rebuild, "numpy.core.multiarray._reconstruct"),
        np.ndarray,
        np.dtype,
        np.dtypes.UInt32DType,
    ]
    try:
        with torch.serialization.safe_globals(plain):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError):
        raise DamagedError(
            f"{path} is not read: it is damaged, or holds more than tensors and plain values"
        ) from None
    if not isinstance(content, dict):
        raise DamagedError(f"{path} does not hold tensors by name")
    return content


def _merged(tensors: Tensors, raw: Mapping[str, Any], path: Path) -> Tensors:
    """`tensors` with low-rank factors added to their base: W + scale * B @ A, in float64, rounded
    to float32 once.

    The scale is what the forward pass of relora-pico used: tanh(s) where it was trained, else alpha
    / r.
    """
    kept = {
        name: tensor for name, tensor in tensors.items() if not name.endswith((DOWN, UP, SCALE))
    }
    for module in sorted(
        {name.removesuffix(end) for name in tensors for end in (DOWN, UP) if name.endswith(end)}
    ):
        name = f"{module}.weight"
        base, down, up = (
            kept.get(name),
            tensors.get(f"{module}{DOWN}"),
            tensors.get(f"{module}{UP}"),
        )
        if base is None or down is None or up is None:
            raise DamagedError(
                f'{path}: of "{module}" the weight or one of its two low-rank factors is missing'
            )
        if (*base.shape, up.shape[1]) != (up.shape[0], down.shape[1], down.shape[0]):
            raise DamagedError(f'{path}: the low-rank factors of "{module}" do not fit its weight')
        scale = _scale(tensors.get(f"{module}{SCALE}"), raw, path)
        kept[name] = (base.double() + scale * (up.double() @ down.double())).float()
    return kept


def _scale(trained: torch.Tensor | None, raw: Mapping[str, Any], path: Path) -> float:
    if trained is not None:
        return math.tanh(float(trained))
    try:
        return float(raw["relora"]["lora_alpha"]) / float(raw["relora"]["r"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        raise DamagedError(
            f"{path} holds low-rank factors, but {MODEL_CONFIG} has no relora.lora_alpha and r"
        ) from None


def _check(tensors: Tensors, config: DecoderConfig, path: Path) -> None:
    """Every tensor of the geometry is there in its shape, and no other; names in the sentence are
    the earlier ones."""
    expected = stock_tensors(dataclasses.asdict(config))
    earlier = {
        names.canonical(f"{m}.weight"): f"{m}.weight"
        for m in earlier_modules(config.num_hidden_layers)
    }
    for name in [*expected, *tensors]:
        if name not in tensors:
            raise DamagedError(f'{path}: the tensor "{earlier[name]}" is missing')
        if name not in expected:
            raise DamagedError(
                f'{path}: the tensor "{name}" is not one of an earlier Pico decoder of this geometry'
            )
        if tuple(tensors[name].shape) != expected[name]:
            shapes = f"{tuple(tensors[name].shape)} where {MODEL_CONFIG} says {expected[name]}"
            raise DamagedError(f'{path}: the tensor "{earlier[name]}" has shape {shapes}')


def _reordered(tensors: Tensors, config: DecoderConfig) -> Tensors:
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    parts = {name: name.split(".")[-2] for name in tensors}
    return {
        name: _halves(t, heads[parts[name]]) if parts[name] in heads else t
        for name, t in tensors.items()
    }


def _halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows (heads * d, D) of each head from pairs (2i, 2i + 1) to halves: all even rows, then all
    odd ones."""
    return (
        weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
    )  # (heads, d/2, 2, D) -> (heads * d, D)


def _remarks(path: Path, raw: Mapping[str, Any], heads: bool, no_tokenizer: bool) -> list[str]:
    found = [
        f"note: weights from {path}; rows of the query and key projections are in Llama's order"
    ]
    if raw.get("relora"):
        found.append(
            "note: low-rank factors were added to their base, as the forward pass did; dropout is left out"
        )
    if heads:
        found.append(
            f"{HEAD}*: the head of the meta-learning episodes is no part of a language model; left out"
        )
    if no_tokenizer:
        found.append(f"{TOKENIZER}: not found beside the weights; the result has no tokenizer")
    return found
