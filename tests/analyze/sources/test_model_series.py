"""Series of model folders in safetensors: which step each is, what is offered of it, and what is damaged."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pico_analyze import measure, open_source
from pico_analyze.engine.damage import DamagedWarning
from pico_analyze.sources.model_series import step_of
from pico_contract import codec
from pico_contract.errors import DamagedError, UserError

from ...support.model_folders import NEOX, neox, write_model

GEOMETRY = {"hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1}


def llama(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    shapes = {"q_proj": (8, 8), "k_proj": (4, 8), "v_proj": (4, 8), "o_proj": (8, 8)}
    held = {
        f"model.layers.0.self_attn.{name}.weight": torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }
    return held | {"model.embed_tokens.weight": torch.randn(9, 8, generator=generator)}


def write_sharded(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """Two shards and their index, as `save_pretrained` writes models of many gigabytes."""
    folder.mkdir(parents=True)
    files = {name: f"model-0000{1 + place % 2}-of-00002.safetensors" for place, name in enumerate(tensors)}
    for file in set(files.values()):
        codec.save_tensors(folder / file, {name: t for name, t in tensors.items() if files[name] == file})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step1000", 1000),
        ("step_00001000", 1000),
        ("checkpoint-500", 500),
        ("pythia-70m-step64", 64),
        ("stage1-step2000-tokens9B", 2000),
        ("STEP-3", 3),
        ("v2-0300", 300),
        ("main", None),
    ],
)
def test_a_name_says_its_step(name: str, step: int | None) -> None:
    assert step_of(name) == step


@pytest.mark.parametrize("given", [".", "../step5", None])
def test_one_model_folder_is_a_series_of_one_step(
    models: Path, given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models / "step5")
    series = open_source(given or models / "step5")
    assert (series.name, list(series.steps)) == ("pythia", [5])


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    held = llama(3)
    series = open_source(write_sharded(tmp_path / "m" / "step3", held))
    assert set(series.modules(3, "weights")) == {name.removesuffix(".weight") for name in held}
    for name, tensor in held.items():
        assert torch.equal(series.tensor(3, "weights", name), tensor)


def test_earlier_and_stored_names_name_the_same_module(tmp_path: Path) -> None:
    held = {"layers.0.attention.v_proj.weight": torch.randn(4, 8), "embedding_proj.weight": torch.randn(9, 8)}
    series = open_source(write_model(tmp_path / "m" / "step_1", held, {"d_model": 8, "attention_n_heads": 2}))
    assert series.modules(1, "weights") == ["model.embed_tokens", "model.layers.0.self_attn.v_proj"]
    for name in ("model.layers.0.self_attn.v_proj", "layers.0.attention.v_proj"):
        assert torch.equal(series.tensor(1, "weights", name), held["layers.0.attention.v_proj.weight"])
    assert series.model == {"hidden_size": 8, "num_attention_heads": 2}


def test_tied_head_is_the_embedding(tmp_path: Path) -> None:
    tied = open_source(write_model(tmp_path / "a" / "step1", llama(1), GEOMETRY | {"tie_word_embeddings": True}))
    untied = open_source(write_model(tmp_path / "b" / "step1", llama(1), GEOMETRY))
    assert torch.equal(tied.tensor(1, "weights", "lm_head"), llama(1)["model.embed_tokens.weight"])
    assert "lm_head" in tied.modules(1, "weights")
    assert "lm_head" not in untied.modules(1, "weights")


def test_another_process_reads_the_same_by_the_same_fingerprint(models: Path) -> None:
    series = open_source(models)
    copy = pickle.loads(pickle.dumps(series))
    assert torch.equal(copy.tensor(5, "weights", "embed_out"), series.tensor(5, "weights", "embed_out"))
    prints = [series.fingerprint(step, "weights") for step in series.steps]
    assert [copy.fingerprint(step, "weights") for step in copy.steps] == prints
    codec.save_tensors(models / "step5" / "model.safetensors", neox(6))
    again = [open_source(models).fingerprint(step, "weights") for step in series.steps]
    assert [new == old for new, old in zip(again, prints, strict=True)] == [True, False, True]


def test_stored_dtype_is_kept(tmp_path: Path) -> None:
    held = {name: tensor.bfloat16() for name, tensor in llama(1).items()}
    series = open_source(write_model(tmp_path / "m" / "step1", held))
    assert series.tensor(1, "weights", "model.embed_tokens").dtype == torch.bfloat16


def test_circuits_of_a_series_are_measured(tmp_path: Path) -> None:
    for step in (1, 2):
        write_model(tmp_path / "m" / f"step{step}", llama(step), GEOMETRY | {"vocab_size": 9, "rope_theta": 1e4})
    table = measure(open_source(tmp_path / "m"), ["frobenius_norm"], ["ov_circuit"])
    value, output = (llama(2)[f"model.layers.0.self_attn.{name}_proj.weight"].double() for name in "vo")
    expected = [float((output[:, 4 * head : 4 * head + 4] @ value).norm()) for head in range(2)]
    assert table[table["step"] == 2].sort_values("head")["value"].tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("heads", [{"num_attention_heads": 3}, {"num_attention_heads": 2}, {"num_key_value_heads": 0}])
def test_a_geometry_that_does_not_fit_the_matrices_costs_the_circuits_alone(
    tmp_path: Path, heads: dict[str, int]
) -> None:
    config = {"num_attention_heads": 2, "num_key_value_heads": 2} | heads
    series = open_source(write_model(tmp_path / "m" / "step1", llama(1), config))
    with pytest.warns(DamagedWarning, match="key-value heads, its matrices are 8 and 4 wide"):
        table = measure(series, ["per"])
    assert set(table["component"]) == {f"self_attn.{name}_proj" for name in "qkvo"}
    assert set(table["status"]) == {"ok"}


def test_two_folders_of_one_step_are_refused(models: Path) -> None:
    write_model(models / "step_05", neox(5))
    with pytest.raises(UserError, match=r'step5" and ".*step_05" both give step 5|step_05" and ".*step5" both give'):
        open_source(models)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("final", "says no step"), ("missing7", "is not a folder"), ("notes1.txt", "is not a folder")],
)
def test_a_list_leaves_out_nothing(models: Path, name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        open_source([models / "step5", models / name])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda d: cut(d / "model.safetensors"), "where its header says"),
        (lambda d: (d / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1"), "git lfs pull"),
        (lambda d: (d / "model.safetensors").unlink(), "it has config.json"),
        (lambda d: (d / "model.safetensors").rename(d / "a.safetensors"), None),
        (lambda d: codec.save_tensors(d / "model.safetensors", {"norm.weight": torch.ones(3)}), "no floating-point m"),
        (
            lambda d: codec.save_tensors(
                d / "model.safetensors", {"output_norm": torch.ones(2, 2), "model.norm.weight": torch.ones(2, 2)}
            ),
            'names the module "model.norm" twice',
        ),
    ],
)
def test_a_damaged_step_is_named_and_the_rest_measured(
    tmp_path: Path, spoil: Callable[[Path], Any], sentence: str | None
) -> None:
    for step in (1, 2):
        write_model(tmp_path / "m" / f"step{step}", llama(step), GEOMETRY)
    spoil(tmp_path / "m" / "step1")
    series = open_source(tmp_path / "m")
    if sentence is None:
        assert (list(series.steps), series.damaged) == ([1, 2], {})
        return
    assert list(series.steps) == [2]
    assert sentence in series.damaged[1][0]
    assert "step1" in series.damaged[1][0]
    with pytest.warns(DamagedWarning, match="step 1"):
        table = measure(series, ["per"], ["v_proj"])
    assert table.set_index("step")["status"].to_dict() == {1: "damaged", 2: "ok"}


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        ("{", "is not readable JSON"),
        ("[]", "should hold a JSON object"),
        ('{"weight_map": {}}', "has no weight_map"),
        ('{"weight_map": {"a": "../step2/model.safetensors"}}', "which is not a file beside it"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "gone.safetensors does not exist"),
    ],
)
def test_a_damaged_index_is_named(tmp_path: Path, index: str, sentence: str) -> None:
    folder = write_sharded(tmp_path / "m" / "step1", llama(1))
    write_model(tmp_path / "m" / "step2", llama(2))
    (folder / "model.safetensors.index.json").write_text(index)
    assert sentence in open_source(tmp_path / "m").damaged[1][0]


def test_nothing_readable_at_all_is_an_error(tmp_path: Path) -> None:
    cut(write_model(tmp_path / "m" / "step1", llama(1)) / "model.safetensors")
    with pytest.raises(UserError, match=r"no step of m can be read: .*where its header says"):
        open_source(tmp_path / "m")


def test_a_configuration_that_does_not_parse_gives_way_to_the_one_before(tmp_path: Path) -> None:
    for step in (1, 2):
        write_model(tmp_path / "m" / f"step{step}", llama(step), GEOMETRY)
    (tmp_path / "m" / "step2" / "config.json").write_text("{")
    assert open_source(tmp_path / "m").model == GEOMETRY
    (tmp_path / "m" / "step1" / "config.json").write_text("[]")
    with pytest.raises(DamagedError, match=r"step2/config\.json"):
        open_source(tmp_path / "m").model  # noqa: B018


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((7, "weights", NEOX.format(0)), "has no step 7; the nearest is 5"),
        ((5, "weight", NEOX.format(0)), 'no kind "weight"; did you mean "weights"'),
        ((5, "gradients", NEOX.format(0)), "has no gradients: a model holds weights alone"),
        ((5, "weights", "gpt_neox.layers.0.attention.query_key"), f'did you mean "{NEOX.format(0)}"'),
    ],
)
def test_what_is_not_there_is_named_with_what_is(models: Path, arguments: Any, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        open_source(models).tensor(*arguments)
    assert sentence in str(error.value)


def test_checkpoints_of_a_run_of_ours_are_a_series(layout: Any) -> None:
    series = open_source(layout.checkpoints)
    assert (series.name, list(series.steps)) == ("checkpoints", [2])
