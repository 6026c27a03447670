"""Folders of small models as transformers saves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pico_contract import codec

NEOX = "gpt_neox.layers.{}.attention.query_key_value"


def neox(step: int) -> dict[str, torch.Tensor]:
    """What a model of another family holds: projections, vectors, a mask, an index."""
    generator = torch.Generator().manual_seed(step)
    held: dict[str, torch.Tensor] = {"embed_out.weight": torch.randn(11, 8, generator=generator)}
    for layer in range(2):
        held[f"{NEOX.format(layer)}.weight"] = torch.randn(24, 8, generator=generator)
        held[f"{NEOX.format(layer)}.bias"] = torch.randn(24, generator=generator)
        held[f"gpt_neox.layers.{layer}.attention.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.bool)
        held[f"gpt_neox.layers.{layer}.mlp.empty.weight"] = torch.ones(0, 4)
        held[f"gpt_neox.layers.{layer}.mlp.token_index"] = torch.ones(4, 4, dtype=torch.int32)
    return held


def write_model(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True)
    codec.save_tensors(folder / "model.safetensors", tensors)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder
