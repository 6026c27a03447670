"""A checkpoint that does not fit is a sentence that names file and tensor, whatever command meets it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pico_contract import codec
from pico_contract.errors import UserError
from pico_contract.layout import MANIFEST, METHOD_TENSORS, MODEL_CONFIG, MODEL_WEIGHTS, OPTIMIZER, SCALARS, RunLayout
from pico_contract.schema import CheckpointManifest, StateManifest
from pico_train import train
from pico_train.commands import evaluate_run, generate_text
from pico_train.hub.export import export_checkpoint
from pico_train.method.plain import Plain
from pico_train.model.decoder import Decoder
from pico_train.run import RunConfig
from pico_train.run.estimate import estimate
from torch import nn

pytestmark = pytest.mark.slow  # half a minute and more for the whole file

Tiny = Callable[..., RunConfig]
Tensors = dict[str, torch.Tensor]
RELORA = {"method.name": "relora", "method.options": {"rank": 2, "restart_every": 2}}


@pytest.fixture
def run(tiny: Tiny) -> RunConfig:
    """A low-rank run with a checkpoint at step 2 that is to be continued: its file of the method holds factors."""
    config = tiny(**{**RELORA, "train.steps": 4, "checkpoint.every": 2, "snapshot.every": 0, "evaluate.every": 0})
    train(config, quiet=True)
    layout = config.layout
    codec.remove_leftovers(layout.checkpoints)
    layout.checkpoint(4).rename(layout.root / "aside")
    return config


def resealed(layout: RunLayout, step: int) -> None:
    """The manifests of altered files, as they would be had they been written so."""
    for directory, kind in ((layout.state(step), StateManifest), (layout.checkpoint(step), CheckpointManifest)):
        manifest = codec.read_manifest(directory / MANIFEST, kind)
        (directory / MANIFEST).unlink()
        codec.seal(directory, kind(**{**vars(manifest), "files": {}}))


def altered(path: Path, change: Callable[[Tensors, str], None], name: str) -> None:
    tensors = codec.read_tensors(path)
    change(tensors, name)
    codec.write_tensors(path, tensors)


def missing(tensors: Tensors, name: str) -> None:
    del tensors[name]


def renamed(tensors: Tensors, name: str) -> None:
    tensors[f"another.{name}"] = tensors.pop(name)


def extra(tensors: Tensors, name: str) -> None:
    tensors[f"another.{name}"] = tensors[name].clone()


def misshaped(tensors: Tensors, name: str) -> None:
    tensors[name] = torch.zeros(3, 5)


def scalar(tensors: Tensors, name: str) -> None:
    tensors[name] = torch.tensor(1.0)


CHANGES = [missing, renamed, extra, misshaped, scalar]
TENSOR = "model.layers.1.mlp.up_proj"
TENSORS = [
    (MODEL_WEIGHTS, f"{TENSOR}.weight"),
    (OPTIMIZER, f"{TENSOR}.lora_A.weight.exp_avg_sq"),
    (OPTIMIZER, f"{TENSOR}.lora_B.weight.exp_avg"),
    (METHOD_TENSORS, f"{TENSOR}.base.weight"),
    (METHOD_TENSORS, f"{TENSOR}.lora_A.weight"),
    (METHOD_TENSORS, f"{TENSOR}.lora_B.weight"),
]
OF_MODEL = {
    "resume": lambda run: train(run, quiet=True),
    "evaluate": lambda run: evaluate_run(run.layout.root, 2, None),
    "generate": lambda run: generate_text(run.layout.root, "the king", 2, 3, 0.0, None, None, 0),
    "export": lambda run: export_checkpoint(run.layout.root, 2, run.layout.root.parent / "out"),
    "init_from": lambda run: train(child(run), quiet=True),
    "check": lambda run: list(estimate(child(run), "child.yaml")),
}


def child(run: RunConfig) -> RunConfig:
    changes: dict[str, Any] = {"name": "child", "init_from": f"{run.layout.root}@2"}
    return run.model_copy(update=changes)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("file", "name"), TENSORS)
def test_a_resume_names_the_file_and_the_tensor(
    run: RunConfig, file: str, name: str, change: Callable[[Tensors, str], None]
) -> None:
    directory = run.layout.checkpoint(2) if file == MODEL_WEIGHTS else run.layout.state(2)
    altered(directory / file, change, name)
    resealed(run.layout, 2)
    with pytest.raises(UserError, match=re.escape(str(directory / file))) as caught:
        train(run, quiet=True)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert TENSOR in sentence
    assert not run.layout.checkpoint(4).exists()


@pytest.mark.parametrize("change", [missing, renamed, extra, misshaped])
@pytest.mark.parametrize("command", OF_MODEL)
def test_every_command_names_a_tensor_of_the_model_that_does_not_fit(
    run: RunConfig, command: str, change: Callable[[Tensors, str], None]
) -> None:
    path = run.layout.checkpoint(2) / MODEL_WEIGHTS
    altered(path, change, f"{TENSOR}.weight")
    resealed(run.layout, 2)
    with pytest.raises(UserError, match=rf'{path}: the tensor "(another\.)?{TENSOR}.weight" ') as caught:
        OF_MODEL[command](run)
    assert "\n" not in str(caught.value)
    assert not (run.layout.root.parent / "out").exists()


@pytest.mark.parametrize("command", OF_MODEL)
@pytest.mark.parametrize(
    "change", [{"hidden_size": 64}, {"num_hidden_layers": 3}, {"tie_word_embeddings": True}, {"vocab_size": "x"}]
)
def test_a_configuration_that_implies_another_model_is_a_sentence(
    run: RunConfig, command: str, change: dict[str, Any]
) -> None:
    path = run.layout.checkpoint(2) / MODEL_CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    resealed(run.layout, 2)
    with pytest.raises(UserError) as caught:
        OF_MODEL[command](run)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "does not hold the counters"),
        ("[]", "does not hold the counters"),
        ('{"counters": {}, "method": {}}', "counters.step is missing or of a wrong type"),
        ('{"counters": {"step": 2, "more": 1}, "method": {}}', "does not hold the counters"),
        ('{"counters": {"step": "2", "reads": 2, "tokens": 9, "order_hash": ""}, "method": {}}', "counters.step"),
        ('{"counters": {"step": 2, "reads": 2, "tokens": 9, "order_hash": ""}, "method": 5}', '"method"'),
        ('{"counters": {"step": 2, "reads": 2, "tokens": 9, "order_hash": ""}, "method": {}}', "ReLoRA cannot build"),
    ],
)
def test_scalars_that_are_not_those_of_a_checkpoint(run: RunConfig, text: str, sentence: str) -> None:
    path = run.layout.state(2) / SCALARS
    path.write_text(text)
    resealed(run.layout, 2)
    with pytest.raises(UserError, match=sentence) as caught:
        train(run, quiet=True)
    assert str(path.parent) in str(caught.value)


class Adapted(Plain):
    """A method that puts a module of its own into the model and lets it be saved as if it were Llama's."""

    def prepare(self, model: Decoder, data: Any, seed: int) -> dict[str, nn.Parameter]:
        model.model.layers[0].adapter = nn.Linear(4, 4, bias=False)
        return super().prepare(model, data, seed)


class Forgetful(Plain):
    """A method whose effective weights lack one."""

    def effective_weights(self, model: Decoder) -> Iterator[tuple[str, torch.Tensor]]:
        return ((name, tensor) for name, tensor in model.named_parameters() if "k_proj" not in name)


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        (Adapted, 'the tensor "model.layers.0.adapter.weight" is not one of this model\'s'),
        (Forgetful, 'the tensor "model.layers.0.self_attn.k_proj.weight" is missing'),
    ],
)
def test_a_method_that_would_save_other_tensors_is_refused_before_training(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, command: str, method: type[Plain], sentence: str
) -> None:
    monkeypatch.setattr("pico_train.run.job.method_class", lambda config: method)
    config = tiny()
    expected = rf"{method.__name__}.effective_weights should give the tensors of the plain decoder, but {sentence}"
    with pytest.raises(UserError, match=re.escape(expected)):
        list(estimate(config, "test.yaml")) if command == "check" else train(config, quiet=True)
    assert not config.layout.checkpoint(0).exists()
