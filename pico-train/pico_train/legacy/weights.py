"""Conversion of an earlier Pico checkpoint to a Hugging Face Llama that computes the same logits.

Two things differ besides the names. Earlier rotary embeddings rotated neighbouring pairs
(2i, 2i + 1) of a head; Llama's rotate (i, i + d/2). The rows of the query and key projections are
reordered in the same way, which leaves every attention score unchanged. A ReLoRA checkpoint holds
base weights and factors; Llama has one matrix, their sum. No code of the old directory is executed.
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
"""Name endings of the tensors that a ReLoRA layer has besides its base weight."""

Tensors = dict[str, torch.Tensor]


def convert_weights(source: Path, out: Path) -> list[str]:
    """Write the checkpoint in the directory `source` to the new directory `out`; return remarks.

    `source` (or its parent) holds config.json, and `source` the weights: model.safetensors,
    pytorch_model.bin, or the checkpoint.pt of Fabric. The result is float32, and appears whole or
    not at all.

    Raises:
        UserError: `out` exists, or `source` is not the directory of an earlier Pico checkpoint.
        DamagedError: a file does not parse, or a tensor is missing, unknown, or of another shape
            than config.json says.
    """
    # `publish` would refuse as well, but only after all weights have been read and converted.
    if out.exists():
        raise UserError(f"{out} exists already; choose another --out")
    raw, config_path = _read_config(source)
    config = _geometry(raw, config_path)
    path, tensors = _read_weights(source)
    decoder = _without_head(tensors)
    has_head = len(decoder) < len(tensors)
    effective = _merge_factors(decoder, raw, path)
    # Before the heads are reordered, which relies on the shapes.
    _check(effective, config, path)
    weights = _reorder_heads(effective, config)
    metadata = _metadata(source, out.name, config)
    with codec.publish(out, replace=False) as draft:
        write_model(draft, weights, metadata)
    return _remarks(path, raw, has_head, metadata.tokenizer is None)


def _without_head(tensors: Tensors) -> Tensors:
    """Select the decoder's tensors, in float32; episodes of pico-maml-train had a head as well."""
    return {name: t.float() for name, t in tensors.items() if not name.startswith(HEAD)}


def _metadata(source: Path, name: str, config: DecoderConfig) -> ModelMetadata:
    path = source / TOKENIZER
    if not path.is_file():
        return ModelMetadata(name, config, None, {})
    special = special_tokens(load_tokenizer(path), config.vocab_size)
    return ModelMetadata(name, config, path, special)


def _read_config(source: Path) -> tuple[dict[str, Any], Path]:
    """Read the checkpoint's config.json: (content, path)."""
    # Fabric saved its state in a directory below the one of the configuration.
    paths = [source / MODEL_CONFIG, source.parent / MODEL_CONFIG]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise UserError(
            f"{source} is not an earlier Pico checkpoint: there is no {MODEL_CONFIG} in it"
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        model_type = str(raw["model_type"])
    except (ValueError, KeyError, TypeError):
        raise DamagedError(f"{path} is not the configuration of a model") from None
    if not model_type.startswith("pico"):
        remedy = "; init_from opens it as it is" if model_type == "llama" else ""
        raise UserError(
            f'{path} has model_type "{model_type}", which is not an earlier Pico decoder{remedy}'
        )
    return raw, path


def _geometry(raw: Mapping[str, Any], path: Path) -> DecoderConfig:
    values: dict[str, Any] = {}
    for old, new in GEOMETRY.items():
        value = raw.get(old)
        is_real = new in ("rope_theta", "rms_norm_eps")
        if isinstance(value, bool) or not isinstance(value, (int, float) if is_real else int):
            raise DamagedError(
                f'{path}: the key "{old}" should be a number (it is {json.dumps(value)})'
            )
        values[new] = float(value) if is_real else value
    try:
        return DecoderConfig(**values)
    except ValueError as error:
        raise DamagedError(f"{path}: {error}") from None


def _read_weights(source: Path) -> tuple[Path, Tensors]:
    """Read the weights: (their file, tensors by Hugging Face's names)."""
    whole, pickled = source / MODEL_WEIGHTS, source / PICKLED
    fabric = next((source / name for name in FABRIC if (source / name).is_file()), None)
    if whole.is_file():
        path, tensors = whole, codec.read_tensors(whole)
    elif pickled.is_file():
        path, tensors = pickled, _unpickle(pickled)
    elif fabric is not None:
        path, tensors = fabric, _unpickle(fabric).get("_model", {})
    else:
        raise UserError(
            f"{source} holds no weights: none of {MODEL_WEIGHTS}, {PICKLED}, {', '.join(FABRIC)}"
        )
    # A pickle may hold anything.
    values = tensors.values() if isinstance(tensors, dict) else ()
    if not values or not all(isinstance(value, torch.Tensor) for value in values):
        raise DamagedError(f"{path} does not hold tensors by name")
    # Different earlier names may stand for one tensor here.
    renamed = {names.canonical(str(name)): tensor for name, tensor in tensors.items()}
    if len(renamed) < len(tensors):
        raise DamagedError(f"{path} holds one tensor under two names")
    return path, renamed


def _unpickle(path: Path) -> dict[str, Any]:
    """Read the mapping in a pickle of tensors and plain values; refuse anything that runs code."""
    # Fabric's file also holds the state of numpy's generator, an array of uint32.
    rebuild: Any = np.empty(0).__reduce__()[0]
    plain = [
        rebuild,
        (rebuild, "numpy.core.multiarray._reconstruct"),  # its name in numpy 1
        np.ndarray,
        np.dtype,
        np.dtypes.UInt32DType,
    ]
    try:
        # `weights_only` refuses every other global, so unpickling cannot run foreign code.
        with torch.serialization.safe_globals(plain):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError):
        raise DamagedError(
            f"{path} is not read: it is damaged, or holds more than tensors and plain values"
        ) from None
    if not isinstance(content, dict):
        raise DamagedError(f"{path} does not hold tensors by name")
    return content


def _merge_factors(tensors: Tensors, raw: Mapping[str, Any], path: Path) -> Tensors:
    """Add low-rank factors to their base: W + scale * B @ A."""
    merged = {name: t for name, t in tensors.items() if not name.endswith((DOWN, UP, SCALE))}
    for module in _low_rank_modules(tensors):
        name = f"{module}.weight"
        base = merged.get(name)
        down = tensors.get(f"{module}{DOWN}")
        up = tensors.get(f"{module}{UP}")
        if base is None or down is None or up is None:
            raise DamagedError(
                f'{path}: of "{module}" the weight or one of its two low-rank factors is missing'
            )
        if not _fit(base, up, down):
            raise DamagedError(
                f'{path}: the low-rank factors of "{module}" do not fit its weight'
            )
        scale = _scale(tensors.get(f"{module}{SCALE}"), raw, path)
        merged[name] = _add_product(base, scale, up, down)
    return merged


def _low_rank_modules(tensors: Tensors) -> list[str]:
    """List the modules that have a low-rank factor, sorted."""
    factors = [name for name in tensors if name.endswith((DOWN, UP))]
    return sorted({name.removesuffix(DOWN).removesuffix(UP) for name in factors})


def _fit(base: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> bool:
    """Whether the product of the factors exists and has the shape of the base weight."""
    return up.shape[1] == down.shape[0] and tuple(base.shape) == (up.shape[0], down.shape[1])


def _add_product(
    base: torch.Tensor, scale: float, up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    # In float64, so that the sum is rounded to float32 only once.
    product = up.double() @ down.double()
    return (base.double() + scale * product).float()


def _scale(trained: torch.Tensor | None, raw: Mapping[str, Any], path: Path) -> float:
    """Return the scale in relora-pico's forward pass: tanh(s) if it was trained, else alpha / r."""
    if trained is not None:
        return math.tanh(float(trained))
    try:
        return float(raw["relora"]["lora_alpha"]) / float(raw["relora"]["r"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        raise DamagedError(
            f"{path} holds low-rank factors, but {MODEL_CONFIG} has no relora.lora_alpha and r"
        ) from None


def _check(tensors: Tensors, config: DecoderConfig, path: Path) -> None:
    """Check that the tensors are exactly those of the geometry; messages use the earlier names."""
    expected = stock_tensors(dataclasses.asdict(config))
    earlier = {}
    for module in earlier_modules(config.num_hidden_layers):
        name = f"{module}.weight"
        earlier[names.canonical(name)] = name
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


def _reorder_heads(tensors: Tensors, config: DecoderConfig) -> Tensors:
    """Put the rows of query and key projections into the order of Llama's rotary embeddings."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    reordered = {}
    for name, tensor in tensors.items():
        projection = name.split(".")[-2]
        is_rotated = projection in heads
        reordered[name] = _pairs_to_halves(tensor, heads[projection]) if is_rotated else tensor
    return reordered


def _pairs_to_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder the rows of each head: all even rows first, then all odd ones."""
    pairs = weight.unflatten(0, (heads, -1, 2))  # (heads, d/2, 2, D)
    return pairs.transpose(1, 2).flatten(0, 2)  # (heads * d, D)


def _remarks(
    path: Path, raw: Mapping[str, Any], has_head: bool, no_tokenizer: bool
) -> list[str]:
    remarks = [
        f"note: weights from {path}; rows of the query and key projections are in Llama's order"
    ]
    if raw.get("relora"):
        remarks.append(
            "note: low-rank factors were added to their base, as the forward pass did; dropout is left out"
        )
    if has_head:
        remarks.append(
            f"{HEAD}*: the head of the meta-learning episodes is no part of a language model; left out"
        )
    if no_tokenizer:
        remarks.append(
            f"{TOKENIZER}: not found beside the weights; the result has no tokenizer"
        )
    return remarks
