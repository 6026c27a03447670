"""Opening a run directory: what it says it holds, single tensors, and what it says of what it lacks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pico_analyze import open_run
from pico_analyze.sources.run import Run
from pico_contract import codec
from pico_contract.errors import DamagedError, UserError
from pico_contract.layout import MANIFEST, MODEL_WEIGHTS, SNAPSHOT_WEIGHTS, RunLayout

V_PROJ = "model.layers.1.self_attn.v_proj"


def test_lists_steps_splits_and_modules(run: Run) -> None:
    assert run.name == "small"
    assert run.steps == [0, 1, 2]
    assert run.damaged == {}
    assert run.splits(1, "weights") == [None]
    assert sorted(run.splits(1, "gradients")) == ["train", "val"]
    assert run.splits(2, "gradients") == ["val"]
    assert run.splits(1, "activations") == ["val"]
    assert len(run.modules(1, "weights")) == len(run.modules(1, "activations", "val")) == 14
    assert set(run.modules(2, "weights")) - set(run.modules(1, "weights")) == {
        "lm_head",
        "model.embed_tokens",
        "model.norm",
    }


@pytest.mark.parametrize(("step", "file"), [(1, SNAPSHOT_WEIGHTS), (2, MODEL_WEIGHTS)])
def test_weights_come_from_the_snapshot_or_the_checkpoint(run: Run, step: int, file: str) -> None:
    directory = (run.layout.snapshot if file == SNAPSHOT_WEIGHTS else run.layout.checkpoint)(step)
    stored = codec.read_tensors(directory / file)
    assert torch.equal(run.tensor(step, "weights", V_PROJ), stored[f"{V_PROJ}.weight"])


@pytest.mark.parametrize("kind", ["gradients", "activations"])
def test_observed_tensors_are_those_of_the_file(run: Run, kind: str) -> None:
    stored = codec.read_tensors(run.layout.snapshot(1) / f"val.{kind}.safetensors")
    name = V_PROJ if kind == "activations" else f"{V_PROJ}.weight"
    assert torch.equal(run.tensor(1, kind, V_PROJ, "val"), stored[name])


def test_stored_dtype_is_kept(layout: RunLayout, rewrite: Callable[..., None]) -> None:
    rewrite(layout.checkpoint(2) / MODEL_WEIGHTS, torch.Tensor.bfloat16)
    assert open_run(layout.root).tensor(2, "weights", V_PROJ).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "alias", ["layers.1.attention.v_proj", "_orig_mod.model.layers.1.self_attn.v_proj", f"{V_PROJ}.weight"]
)
def test_earlier_names_are_accepted(run: Run, alias: str) -> None:
    assert torch.equal(run.tensor(0, "weights", alias), run.tensor(0, "weights", V_PROJ))


def test_tied_head_is_the_embedding(run: Run) -> None:
    assert torch.equal(run.tensor(2, "weights", "lm_head"), run.tensor(2, "weights", "model.embed_tokens"))


def test_untied_head_is_not_made_up(layout: RunLayout) -> None:
    raw = json.loads(layout.manifest.read_text())
    raw["model"]["tie_word_embeddings"] = False
    layout.manifest.write_text(json.dumps(raw))
    run = open_run(layout.root)
    assert "lm_head" not in run.modules(2, "weights")
    with pytest.raises(UserError, match='no weights of the module "lm_head"'):
        run.tensor(2, "weights", "lm_head")


def test_tokens_come_from_checkpoints_and_the_log(run: Run) -> None:
    """The last line of the log is cut, as by a crash."""
    assert [run.tokens(step) for step in (0, 1, 2, 3)] == [0, 100, 200, None]


def test_without_a_log_tokens_are_unknown(layout: RunLayout) -> None:
    layout.metrics.unlink()
    assert open_run(layout.root).tokens(1) is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((7, "weights", V_PROJ), "has no step 7; the nearest is 2"),
        ((1, "weight", V_PROJ), 'no kind "weight"; did you mean "weights"'),
        ((1, "weights", "model.layers.1.self_attn.v_prj"), f'did you mean "{V_PROJ}"'),
        ((1, "gradients", V_PROJ), "several splits: say split train or val"),
        ((2, "gradients", V_PROJ, "train"), "no gradients of split train; it has weights, gradients of val"),
        ((1, "activations", V_PROJ, "train"), "no activations of split train"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(run: Run, arguments: Any, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        run.tensor(*arguments)
    assert sentence in str(error.value)


def test_split_may_be_left_out_where_there_is_one(run: Run) -> None:
    assert torch.equal(run.tensor(2, "gradients", V_PROJ), run.tensor(2, "gradients", V_PROJ, "val"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda directory: (directory / MANIFEST).unlink(),
        lambda directory: (directory / MANIFEST).write_text("{"),
        lambda directory: (directory / "val.activations.safetensors").unlink(),
        lambda directory: (directory / "val.gradients.safetensors").write_bytes(b"short"),
    ],
)
def test_a_directory_that_is_not_intact_is_listed_as_damaged_and_left_out(
    layout: RunLayout, spoil: Callable[[Path], Any]
) -> None:
    spoil(layout.snapshot(1))
    run = open_run(layout.root)
    assert run.steps == [0, 2]
    assert len(run.damaged[1]) == 1
    assert str(layout.snapshot(1)) in run.damaged[1][0]
    with pytest.raises(UserError, match=r"step 1 of .* is damaged"):
        run.tensor(1, "weights", V_PROJ)


def test_damage_that_keeps_the_size_shows_where_the_tensor_is_read(layout: RunLayout) -> None:
    path = layout.snapshot(1) / SNAPSHOT_WEIGHTS
    path.write_bytes(b"\xff" * path.stat().st_size)
    run = open_run(layout.root)
    assert run.steps == [0, 1, 2]
    with pytest.raises(DamagedError, match=r"weights\.safetensors"):
        run.tensor(1, "weights", V_PROJ)


def test_leftovers_of_interrupted_writes_do_not_exist(layout: RunLayout) -> None:
    layout.snapshot(1).rename(layout.snapshots / ".tmp-step_00000001-abc")
    run = open_run(layout.root)
    assert (run.steps, run.damaged) == ([0, 2], {})


def test_a_checkpoint_alone_is_an_observed_step(layout: RunLayout) -> None:
    layout.snapshot(2).rename(layout.root / "elsewhere")
    run = open_run(layout.root)
    assert run.steps == [0, 1, 2]
    assert run.splits(2, "weights") == [None]
    assert run.splits(2, "gradients") == []


def test_open_names_the_nearest_run(layout: RunLayout) -> None:
    with pytest.raises(UserError, match='smal does not exist; did you mean "small"'):
        open_run(layout.root.with_name("smal"))
    with pytest.raises(UserError, match="is not a run: it has no run"):
        open_run(layout.snapshots)


def test_a_newer_major_version_is_refused(layout: RunLayout) -> None:
    raw = json.loads(layout.manifest.read_text())
    layout.manifest.write_text(json.dumps(raw | {"format_version": 99}))
    with pytest.raises(DamagedError, match=r"run\.json.*99"):
        open_run(layout.root)


def test_unknown_keys_of_a_later_minor_version_are_ignored(layout: RunLayout) -> None:
    raw = json.loads(layout.manifest.read_text())
    layout.manifest.write_text(json.dumps(raw | {"weather": "mild"}))
    assert open_run(layout.root).steps == [0, 1, 2]
