"""Adapters: plain LoRA has its update, all else is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pico_analyze import measure, open_source
from pico_contract import codec
from pico_contract.errors import UserError

Q = "model.layers.0.self_attn.q_proj"
PEFT = f"base_model.model.{Q}"


def save(folder: Path, tensors: dict[str, torch.Tensor], name: str = "model.safetensors", **files: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    codec.save_tensors(folder / name, tensors)
    for stem, content in files.items():
        (folder / f"{stem}.json").write_text(json.dumps(content))
    return folder


def adapter(folder: Path, **config: Any) -> Path:
    draws = torch.Generator().manual_seed(1)
    held = {
        f"{PEFT}.lora_A.weight": torch.randn(2, 8, generator=draws),
        f"{PEFT}.lora_B.weight": torch.randn(8, 2, generator=draws),
    }
    return save(folder, held, "adapter_model.safetensors", adapter_config=config)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"r": 2, "lora_alpha": 8}, 4.0),
        ({"r": 2, "lora_alpha": 8, "use_rslora": True}, 8 / 2**0.5),
        ({"r": 16, "lora_alpha": 8, "rank_pattern": {"q_proj": 2}}, 4.0),
        ({"r": 2, "lora_alpha": 8, "alpha_pattern": {"self_attn.q_proj": 3}}, 1.5),
        ({"r": 2, "lora_alpha": 8, "alpha_pattern": {"v_proj": 3}}, 4.0),
    ],
)
def test_an_adapter_has_its_update(tmp_path: Path, config: dict[str, Any], scale: float) -> None:
    adapter(tmp_path / "m" / "checkpoint-1", peft_type="LORA", **config)
    table = measure(open_source(tmp_path / "m"), ["spectral_norm", "numerical_rank"], ["lora_update"])
    draws = torch.Generator().manual_seed(1)
    right, left = torch.randn(2, 8, generator=draws), torch.randn(8, 2, generator=draws)
    expected = scale * float(torch.linalg.matrix_norm((left @ right).double(), 2))
    values = table.set_index("metric")["value"]
    assert values["spectral_norm"] == pytest.approx(expected, rel=1e-6)
    assert values["numerical_rank"] == 2


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"peft_type": "LORA", "r": 2, "lora_alpha": 8, "use_dora": True}, "is a DoRA adapter"),
        ({"peft_type": "IA3"}, 'is an adapter of type "IA3"'),
        ({}, "has no adapter_config.json"),
    ],
)
def test_an_adapter_that_is_not_plain_lora_is_refused(tmp_path: Path, config: dict[str, Any], sentence: str) -> None:
    adapter(tmp_path / "m" / "checkpoint-1", **config)
    with pytest.raises(UserError, match=sentence):
        open_source(tmp_path / "m")
