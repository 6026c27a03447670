"""Quantised weights: float8 is dequantised by its scales, all else is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pico_analyze import open_source
from pico_contract import codec
from pico_contract.errors import UserError

Q = "model.layers.0.self_attn.q_proj"


def save(folder: Path, tensors: dict[str, torch.Tensor], name: str = "model.safetensors", **files: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    codec.save_tensors(folder / name, tensors)
    for stem, content in files.items():
        (folder / f"{stem}.json").write_text(json.dumps(content))
    return folder


def quantise(matrix: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """By blocks, as DeepSeek-V3 stores them, the last ones smaller."""
    rows, columns = (-(-length // block) for length in matrix.shape)
    scale = torch.stack(
        [torch.stack([part.abs().max() / 448 for part in band.split(block, 1)]) for band in matrix.split(block, 0)]
    )
    assert scale.shape == (rows, columns)
    spread = scale.repeat_interleave(block, 0).repeat_interleave(block, 1)[: len(matrix), : matrix.shape[1]]
    return (matrix / spread).to(torch.float8_e4m3fn), scale


@pytest.mark.parametrize(
    ("shape", "block", "said"),
    [((32, 32), 16, True), ((32, 32), 16, False), ((500, 300), 128, False), ((50, 30), 12, True)],
)
def test_float8_is_multiplied_by_the_scales_of_its_blocks(
    tmp_path: Path, shape: tuple[int, int], block: int, said: bool
) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    stored, scale = quantise(matrix, block)
    quantisation = {"quant_method": "fp8", **({"weight_block_size": [block, block]} if said else {})}
    folder = tmp_path / "m" / "step0"
    save(folder, {f"{Q}.weight": stored, f"{Q}.weight_scale_inv": scale}, config={"quantization_config": quantisation})
    series = open_source(tmp_path / "m")
    assert series.modules(0, "weights") == [Q]
    found = series.tensor(0, "weights", Q)
    assert float((found - matrix).abs().max()) < 0.07 * float(matrix.abs().max())
    spread = scale.repeat_interleave(block, 0).repeat_interleave(block, 1)[: shape[0], : shape[1]]
    assert torch.equal(found, stored.float() * spread)


@pytest.mark.parametrize(("scale", "factor"), [(torch.tensor([0.5]), 0.5), (torch.full((4, 1), 2.0), 2.0), (None, 1.0)])
def test_float8_with_one_scale_one_a_row_or_none(tmp_path: Path, scale: torch.Tensor | None, factor: float) -> None:
    held = {f"{Q}.weight": torch.eye(4).to(torch.float8_e4m3fn)}
    held |= {} if scale is None else {f"{Q}.weight_scale": scale}
    series = open_source(save(tmp_path / "m" / "step0", held))
    assert series.modules(0, "weights") == [Q]
    assert torch.equal(series.tensor(0, "weights", Q), factor * torch.eye(4))


INTS = torch.ones(4, 4, dtype=torch.int32)
PACKED: dict[str, dict[str, torch.Tensor]] = {
    "gptq": {f"{Q}.qweight": INTS, f"{Q}.qzeros": INTS.clone(), f"{Q}.scales": torch.ones(2, 4)},
    "awq": {f"{Q}.qweight": INTS, f"{Q}.scales": torch.ones(2, 4)},
    "bitsandbytes": {f"{Q}.weight": INTS.to(torch.int8), f"{Q}.SCB": torch.ones(4)},
    "bnb4": {f"{Q}.weight": torch.ones(8, 1, dtype=torch.uint8), f"{Q}.weight.absmax": torch.ones(1)},
    "mxfp4": {f"{Q}_blocks": INTS.to(torch.uint8), f"{Q}_scales": INTS.to(torch.uint8)},
    "compressed-tensors": {f"{Q}.weight_packed": INTS, f"{Q}.weight_scale": torch.ones(4, 1)},
    "hqq": {f"{Q}.W_q": INTS.to(torch.uint8)},
    "int8": {f"{Q}.weight": INTS.to(torch.int8), f"{Q}.weight_scale": torch.ones(4, 1)},
}


@pytest.mark.parametrize("method", PACKED)
@pytest.mark.parametrize("named", [True, False])
def test_packed_and_integer_weights_are_refused_by_name(tmp_path: Path, method: str, named: bool) -> None:
    embedding = {"model.embed_tokens.weight": torch.ones(8, 4)}
    config = {"quantization_config": {"quant_method": method}} if named else {}
    save(tmp_path / "m" / "step0", PACKED[method] | embedding, config=config)
    with pytest.raises(UserError, match=r"is quantised \(.+\): .*save it dequantised") as error:
        open_source(tmp_path / "m")
    assert f"({method})" in str(error.value) or not named
