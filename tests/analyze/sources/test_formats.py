"""Models in other forms than plain matrices in safetensors: read by their definition, or refused with the remedy."""

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


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("pytorch_model.bin", "a pickle, which is not read since it may run code; save it as safetensors: AutoModel"),
        ("pytorch_model-00001-of-00002.bin", "a pickle"),
        ("consolidated.00.pth", "a pickle"),
        ("last.ckpt", "a pickle"),
        ("model-Q4_K_M.gguf", "GGUF"),
        ("model.onnx", "ONNX"),
        ("tf_model.h5", "from_tf=True"),
        ("flax_model.msgpack", "from_flax=True"),
    ],
)
def test_another_format_alone_is_refused_and_in_a_series_left_out_with_a_note(
    tmp_path: Path, name: str, sentence: str
) -> None:
    (tmp_path / "m" / "step10").mkdir(parents=True)
    (tmp_path / "m" / "step10" / name).write_bytes(b"x" * 2000)
    with pytest.raises(UserError) as error:
        open_source(tmp_path / "m")
    assert f"step10 has {name}" in str(error.value)
    assert sentence in str(error.value)
    save(tmp_path / "m" / "step0", {f"{Q}.weight": torch.eye(4)})
    save(tmp_path / "m" / "final", {f"{Q}.weight": torch.eye(4)})
    series = open_source(tmp_path / "m")
    assert (list(series.steps), series.damaged) == ([0], {})
    notes = series.notes  # type: ignore[attr-defined]
    assert len(notes) == 2
    assert 'final" says no step' in notes[0]
    assert f"step10 has {name}" in notes[1]


def test_safetensors_are_preferred_to_the_pickle_beside_them(tmp_path: Path) -> None:
    folder = save(tmp_path / "m" / "step0", {f"{Q}.weight": torch.eye(4)})
    torch.save({f"{Q}.weight": torch.zeros(4, 4)}, folder / "pytorch_model.bin")
    series = open_source(tmp_path / "m")
    assert torch.equal(series.tensor(0, "weights", Q), torch.eye(4))
    assert series.notes == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("kept", [(1, 2), (1,), (2,)])
def test_shards_need_no_index_and_a_missing_one_is_named(tmp_path: Path, kept: tuple[int, ...]) -> None:
    for number in kept:
        name = f"model-0000{number}-of-00002.safetensors"
        save(tmp_path / "m" / "step0", {f"h.{number}.fc.weight": torch.eye(4)}, name)
    if len(kept) == 2:
        assert open_source(tmp_path / "m").modules(0, "weights") == ["h.1.fc", "h.2.fc"]
        return
    with pytest.raises(UserError, match=rf"model-0000{3 - kept[0]}-of-00002.safetensors does not exist: 1 of 2 shards"):
        open_source(tmp_path / "m")


def test_a_pointer_of_git_lfs_is_said_to_be_one(tmp_path: Path) -> None:
    folder = tmp_path / "m" / "step0"
    folder.mkdir(parents=True)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 1000000\n"
    (folder / "model.safetensors").write_text(pointer)
    with pytest.raises(
        UserError, match="is a pointer of Git LFS and not the file itself: fetch it with `git lfs pull`"
    ):
        open_source(tmp_path / "m")


@pytest.mark.parametrize("given", ["inspect", "measure"])
def test_a_file_in_place_of_a_folder_is_said_to_be_one(tmp_path: Path, given: str) -> None:
    from pico_analyze.commands import holdings
    from pico_analyze.config import load

    file = save(tmp_path / "m", {f"{Q}.weight": torch.eye(4)}) / "model.safetensors"
    with pytest.raises(UserError, match=r"model.safetensors is a file: name the folder that it lies in"):
        holdings(file) if given == "inspect" else load(file)


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
