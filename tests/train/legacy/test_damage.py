"""Damaged or harmful checkpoints: one sentence that names the file and the tensor, and nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pico_contract.errors import DamagedError, UserError
from pico_train.legacy.weights import convert_weights
from safetensors.torch import load_file, save_file

from ...support.earlier_models import CONFIG, WIDTH, drawn, factors, saved


class Harmful:
    """Unpickling it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def test_a_pickle_that_would_run_code_is_refused(old: Path, tmp_path: Path) -> None:
    (old / "model.safetensors").unlink()
    torch.save({"pico_decoder.x": Harmful(tmp_path / "ran")}, old / "pytorch_model.bin")
    (old / "pico_decoder.py").write_text("raise SystemExit('executed')")
    with pytest.raises(DamagedError, match=r"pytorch_model.bin is not read: it is damaged, or holds more than tensors"):
        convert_weights(old, tmp_path / "new")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "new").exists()


def without(name: str) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        tensors = load_file(place / "model.safetensors")
        del tensors[name]
        save_file(tensors, place / "model.safetensors")

    return change


def with_tensor(name: str, *shape: int) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        save_file({**load_file(place / "model.safetensors"), name: torch.zeros(shape)}, place / "model.safetensors")

    return change


def with_config(**changes: Any) -> Callable[[Path], None]:
    return lambda place: (place / "config.json").write_text(json.dumps({**CONFIG, **changes})) and None


def cut(place: Path) -> None:
    path = place / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def text_for_a_pickle(place: Path) -> None:
    (place / "model.safetensors").unlink()
    (place / "pytorch_model.bin").write_text("not a pickle")


V_PROJ = "pico_decoder.layers.1.attention.v_proj"
DAMAGE = [
    (without(f"{V_PROJ}.weight"), r'model.safetensors: the tensor "layers.1.attention.v_proj.weight" is missing'),
    (with_tensor(f"{V_PROJ}.weight", 3, 24), r"v_proj.weight\" has shape \(3, 24\) where config.json says \(8, 24\)"),
    (with_tensor("pico_decoder.extra", 2), r'the tensor "extra" is not one of an earlier Pico decoder'),
    (with_tensor(f"{V_PROJ}.A_lora.weight", 3, 24), r"one of its two low-rank factors is missing"),
    (with_tensor("embedding_proj.weight", 50, 24), r"holds one tensor under two names"),
    (with_config(d_model="24"), r'config.json: the key "d_model" should be a number \(it is "24"\)'),
    (with_config(attention_n_heads=5), r"config.json: num_attention_heads \(5\) does not divide hidden_size"),
    (with_config(model_type="llama"), r'model_type "llama", which is not an earlier Pico decoder; init_from opens it'),
    (with_config(n_layers=3), r'the tensor "layers.2.attention_norm.weight" is missing'),
    (lambda place: (place / "config.json").write_text("{"), r"config.json is not the configuration of a model"),
    (lambda place: (place / "config.json").unlink(), r"there is no config.json in it"),
    (lambda place: (place / "model.safetensors").unlink(), r"holds no weights: none of model.safetensors"),
    (cut, r"model.safetensors has \d+ bytes where its header says"),
    (text_for_a_pickle, r"pytorch_model.bin is not read: it is damaged"),
]


@pytest.mark.parametrize(("damage", "sentence"), DAMAGE)
def test_damage_is_one_sentence_and_leaves_nothing(
    old: Path, tmp_path: Path, damage: Callable[[Path], Any], sentence: str
) -> None:
    damage(old)
    with pytest.raises(UserError, match=sentence):
        convert_weights(old, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["step_20"]


def test_factors_that_fit_no_weight_or_have_no_scale_are_named(tmp_path: Path) -> None:
    low = factors(drawn(), scaled=False)
    source = saved(tmp_path / "old", {**drawn(), **low})
    with pytest.raises(DamagedError, match=r"config.json has no relora.lora_alpha and r"):
        convert_weights(source, tmp_path / "new")
    low["layers.0.swiglu.w_2.B_lora.weight"] = torch.zeros(WIDTH, 2)
    with pytest.raises(DamagedError, match=r'factors of "model.layers.0.mlp.down_proj" do not fit'):
        convert_weights(saved(tmp_path / "other", {**drawn(), **low}, relora={"r": 3}), tmp_path / "new")


def test_an_existing_directory_is_not_written_over(old: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists already; choose another --out"):
        convert_weights(old, old)
