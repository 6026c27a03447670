"""Runs of pico-train 1.x: what they hold, under which names, and what is refused."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pico_analyze import measure
from pico_analyze.engine.damage import DamagedWarning
from pico_analyze.sources.pico_v1 import LegacyRun, open_legacy
from pico_contract.errors import DamagedError, UserError

WIDTH, KV, INNER, ROWS = 16, 8, 24, 12
SHAPES = {"attention.v_proj": (KV, WIDTH), "attention.o_proj": (WIDTH, WIDTH), "swiglu.w_2": (WIDTH, INNER)}
CONFIG = "model: {d_model: 16, activation_hidden_dim: 24, n_layers: 2, attention_n_heads: 4, attention_n_kv_heads: 2}\n"
V_PROJ = "model.layers.1.self_attn.v_proj"


def tensors(kind: str, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: (ROWS, out) if kind == "activations" else (out, width) for name, (out, width) in SHAPES.items()}
    return {
        f"_forward_module.layers.{layer}.{name}": torch.randn(shape, generator=generator)
        for layer in range(2)
        for name, shape in shapes.items()
    }


def file(root: Path, step: int, name: str) -> Path:
    path = root / "checkpoints" / f"step_{step}" / "learning_dynamics" / f"{name}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Steps 0, 10 and 100; the train split at step 0 alone; what else such a run holds lies beside."""
    root = tmp_path / "older"
    for step in (0, 10, 100):
        for place, kind in enumerate(("weights", "gradients", "activations")):
            torch.save(tensors(kind, step + place), file(root, step, f"val_{kind}"))
    for kind in ("weights", "gradients"):
        torch.save(tensors(kind, 50), file(root, 0, f"train_{kind}"))
    (root / "training_config.yaml").write_text(CONFIG)
    (root / "checkpoints" / "latest").symlink_to("step_100")
    (root / "checkpoints" / "step_7" / "fabric_state").mkdir(parents=True)
    return root


def test_lists_steps_splits_modules_and_geometry(root: Path) -> None:
    run = open_legacy(root)
    assert (run.name, run.steps, run.damaged) == ("older", [0, 10, 100], {})
    assert run.splits(0, "weights") == run.splits(10, "weights") == [None]
    assert (run.splits(0, "gradients"), run.splits(10, "gradients")) == (["train", "val"], ["val"])
    assert (run.splits(0, "activations"), run.splits(7, "gradients")) == (["val"], [])
    layers = [f"model.layers.{i}" for i in range(2)]
    of_layer = ("self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")
    assert run.modules(10, "weights") == [f"{layer}.{name}" for layer in layers for name in of_layer]
    assert run.model == {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    assert [run.tokens(step) for step in (0, 10)] == [0, None]


@pytest.mark.parametrize(("kind", "seed"), [("weights", 10), ("gradients", 11), ("activations", 12)])
def test_tensors_are_those_of_the_file(root: Path, kind: str, seed: int) -> None:
    expected = tensors(kind, seed)["_forward_module.layers.1.attention.v_proj"]
    run = open_legacy(root)
    assert torch.equal(run.tensor(10, kind, V_PROJ), expected)
    assert torch.equal(run.tensor(10, kind, "layers.1.attention.v_proj"), expected)


def test_what_is_done_to_a_tensor_does_not_reach_the_file_or_the_next_reader(root: Path) -> None:
    run = open_legacy(root)
    first = run.tensor(0, "weights", V_PROJ)
    kept = first.clone()
    first.zero_()
    assert torch.equal(run.tensor(0, "weights", V_PROJ), kept)


def test_another_process_reads_the_same_by_the_same_fingerprint(root: Path) -> None:
    run = open_legacy(root)
    copy = pickle.loads(pickle.dumps(run))
    assert torch.equal(copy.tensor(10, "gradients", V_PROJ), run.tensor(10, "gradients", V_PROJ))
    prints = [run.fingerprint(step, "weights") for step in run.steps]
    assert [copy.fingerprint(step, "weights") for step in copy.steps] == prints
    torch.save(tensors("weights", 77), file(root, 10, "val_weights"))
    again = [open_legacy(root).fingerprint(step, "weights") for step in run.steps]
    assert [new == old for new, old in zip(again, prints, strict=True)] == [True, False, True]
    assert len({*prints, run.fingerprint(0, "gradients", "val"), run.fingerprint(0, "gradients", "train")}) == 5


def test_parameters_in_half_precision_keep_their_dtype(root: Path) -> None:
    held = {name: torch.nn.Parameter(t.bfloat16()) for name, t in tensors("weights", 3).items()}
    torch.save(held, file(root, 10, "val_weights"))
    found = open_legacy(root).tensor(10, "weights", V_PROJ)
    assert (found.dtype, found.requires_grad) == (torch.bfloat16, False)


def test_files_of_the_older_container_are_read_too(root: Path) -> None:
    held = tensors("weights", 3)
    torch.save(held, file(root, 10, "val_weights"), _use_new_zipfile_serialization=False)
    found = open_legacy(root).tensor(10, "weights", V_PROJ)
    assert torch.equal(found, held["_forward_module.layers.1.attention.v_proj"])


def test_weights_of_the_train_file_serve_where_the_other_is_not_intact(root: Path) -> None:
    file(root, 0, "val_weights").write_bytes(b"")
    run = open_legacy(root)
    expected = tensors("weights", 50)["_forward_module.layers.1.attention.v_proj"]
    assert torch.equal(run.tensor(0, "weights", V_PROJ), expected)
    assert len(run.damaged[0]) == 1


class Payload:
    """Something that is no tensor; unpickled, it would run its class's code."""


@pytest.mark.parametrize(
    ("held", "what"),
    [
        ({"a": Payload()}, "Payload"),
        ({"a": os.system}, r"posix\.system"),
        ({"a": "text"}, '"a" is a str'),
        ({1: torch.ones(2, 2)}, '"1" is a Tensor'),
        ([torch.ones(2, 2)], "holds a list"),
        ({"a": torch.ones(2, 2, dtype=torch.int64)}, '"a" is not an array of floating-point'),
        ({"a": torch.eye(2).to_sparse()}, '"a" is not an array of floating-point'),
        ({"a": torch.ones(0, 2)}, '"a" is not an array of floating-point'),
        ({"layers.0.swiglu.w_2": torch.ones(2, 2), "model.layers.0.mlp.down_proj": torch.ones(2, 2)}, "twice"),
    ],
)
def test_anything_but_tensors_by_name_is_refused_by_the_files_name(root: Path, held: Any, what: str) -> None:
    path = file(root, 10, "val_weights")
    torch.save(held, path)
    run = open_legacy(root)
    (sentence,) = run.damaged[10]
    assert sentence.startswith(f"{path} is refused: ")
    assert "\n" not in sentence
    assert re.search(what, sentence)
    assert (run.splits(10, "weights"), run.splits(10, "gradients")) == ([], ["val"])


def spoil_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("spoil", [spoil_half, lambda p: p.write_bytes(b""), lambda p: p.write_text("not a pickle")])
def test_a_file_that_is_not_readable_is_named_and_the_rest_measured(root: Path, spoil: Callable[[Path], Any]) -> None:
    path = file(root, 10, "val_activations")
    spoil(path)
    run = open_legacy(root)
    (sentence,) = run.damaged[10]
    assert sentence == f"{path} is cut short or was not written by torch.save ({path.stat().st_size} bytes)"
    with pytest.warns(DamagedWarning, match="val_activations"):
        table = measure(run, ["per"], ["v_proj"], splits=["val"])
    spoilt = (table["kind"] == "activations") & (table["step"] == 10)
    assert spoilt.sum() == 2
    assert set(table["status"][spoilt]) == {"damaged"}
    assert set(table["status"][~spoilt]) == {"ok"}


def test_damage_after_opening_is_named_where_the_tensor_is_read(root: Path) -> None:
    run = open_legacy(root)
    run._file.cache_clear()  # as after more files than are kept open
    file(root, 10, "val_weights").unlink()
    with pytest.raises(DamagedError, match=r"val_weights\.pt does not exist"):
        run.tensor(10, "weights", V_PROJ)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((11, "weights", V_PROJ), "has no step 11; the nearest is 10"),
        ((10, "weight", V_PROJ), 'no kind "weight"; did you mean "weights"'),
        ((10, "weights", "model.layers.1.self_attn.v_prj"), f'did you mean "{V_PROJ}"'),
        ((0, "gradients", V_PROJ), "several splits: say split train or val"),
        ((10, "gradients", V_PROJ, "train"), "no gradients of split train; it has weights of val, gradients of val"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(root: Path, arguments: Any, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        open_legacy(root).tensor(*arguments)
    assert sentence in str(error.value)


def test_a_directory_without_such_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run of pico-train 1\.x"):
        open_legacy(tmp_path)


@pytest.mark.parametrize(("text", "sentence"), [("model: [", "not valid YAML"), ("a: 1", 'section "model"')])
def test_a_configuration_that_cannot_be_read_is_named(root: Path, text: str, sentence: str) -> None:
    (root / "training_config.yaml").write_text(text)
    with pytest.raises(DamagedError, match=rf"training_config\.yaml.*{sentence}"):
        open_legacy(root)


def test_circuits_are_measured_from_earlier_names(root: Path) -> None:
    """The earlier projections hold the same rows and columns, so a circuit is the product of the same blocks."""
    table = measure(open_legacy(root), ["frobenius_norm"], ["ov_circuit"], steps=[10], kinds=["weights"])
    held = tensors("weights", 10)
    value, output = (held[f"_forward_module.layers.1.attention.{name}_proj"].double() for name in "vo")
    expected = [float((output[:, 4 * h : 4 * h + 4] @ value[4 * (h // 2) : 4 * (h // 2) + 4]).norm()) for h in range(4)]
    assert table[table["layer"] == 1].sort_values("head")["value"].tolist() == pytest.approx(expected, rel=1e-12)


@pytest.fixture
def reference() -> LegacyRun:
    folder = os.environ.get("PICO_TEST_DATA")
    path = Path(folder or "").parent / "reference" / "pico-1x" / "run"
    if folder is None or not path.is_dir():
        pytest.skip("no reference/pico-1x beside the directory that PICO_TEST_DATA names")
    return open_legacy(path)


def test_a_real_run_of_the_earlier_library_opens(reference: LegacyRun) -> None:
    assert (reference.steps, reference.damaged) == ([0, 20, 30], {})
    assert reference.splits(0, "activations") == ["train", "val"]
    assert reference.splits(20, "gradients") == ["val"]
    assert reference.model["num_attention_heads"] == 12
    assert reference.tensor(20, "activations", "model.layers.11.mlp.down_proj").shape == (256, 96)
    assert len(reference.modules(30, "weights")) == 36
