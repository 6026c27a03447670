"""Converted configurations do what the earlier trainers did, and nothing of a file is dropped without a word."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pico_contract.errors import UserError
from pico_train.config import validate
from pico_train.legacy.config import convert_config
from pico_train.method import METHODS
from pico_train.run import RunConfig
from pico_train.run.estimate import estimate
from pico_train.schedule import lr_factor

from ...support.earlier_models import converted

Write = Callable[..., Path]
Raw = dict[str, Any]


def as_run(raw: Raw) -> RunConfig:
    """`raw` as a run, a method that this version does not have left out."""
    plain = raw.get("method", {}).get("name", "plain") in METHODS
    return validate(RunConfig, raw if plain else {k: v for k, v in raw.items() if k != "method"}, "converted")


def test_a_file_that_says_nothing_has_the_earlier_defaults(written: Write) -> None:
    found, _ = converted(written({}))
    assert found == {
        "name": "old",
        "model": {"hidden_size": 768, "intermediate_size": 3072},
        "data": {"path": "data/dolma", "order": "shipped"},
        "train": {"micro_batch": 8, "precision": "bf16"},
        "optimizer": {"grad_clip": None},
        "schedule": {"warmup_steps": 2500},
        "snapshot": {"early": False, "modules": ["self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj"]},
        "evaluate": {"every": 1000},
        "log": {"every": 100, "console_every": 100},
    }
    run = as_run(found)
    assert (run.train.steps, run.train.batch_size, run.optimizer.lr) == (200_000, 1024, 3e-4)
    assert (run.snapshot.every, run.checkpoint.every) == (1000, 1000)


def test_a_plain_file_as_text(plain: Raw, written: Write) -> None:
    text, _ = convert_config(written(plain))
    assert text == (
        "# Converted from old.yaml (pico-train). Its data is made by\n"
        "#   pico-train data prepare source.path=hub:pico-lm/pretokenized-dolma out=data/dolma seq_len=2048"
        " tokenizer.vocab_size=50304 validation_source.path=hub:pico-lm/pretokenized-paloma-tinsy"
        " validation_source.split=val max_tokens=11802240\n"
        "name: first-try\n"
        "model:\n  hidden_size: 48\n  intermediate_size: 96\n  num_hidden_layers: 3\n"
        "data:\n  path: data/dolma\n  order: shipped\n"
        "train:\n  steps: 120\n  batch_size: 48\n  micro_batch: 6\n  precision: bf16\n"
        "optimizer:\n  lr: 0.002\n  grad_clip: null\n"
        "schedule:\n  warmup_steps: 12\n"
        "snapshot:\n  every: 40\n  early: false\n  modules:\n  - self_attn.q_proj\n  - mlp.gate_proj\n"
        "checkpoint:\n  every: 40\n"
        "evaluate:\n  every: 40\n  perplexity:\n    batch_size: 6\n"
        "log:\n  every: 5\n  console_every: 5\n"
    )


def test_episodes_and_what_their_trainer_did(maml: Raw, written: Write) -> None:
    found, remarks = converted(written(maml))
    assert found["method"] == {
        "name": "maml",
        "options": {
            "probability": 0.3,
            "ways": 32,
            "shots": 4,
            "inner_steps": 5,
            "inner_lr": 0.001,
            "head_layers": 3,
            "head_width": 256,
            "head_init": "xavier",
            "outside_labels": "first_class",
            "shots_per": "row",
            "support_gradients": "added",
            "branch_per": "micro_batch",
        },
    }
    assert found["train"]["seq_len"] == 2047
    assert found["snapshot"] == {"every": 0}
    assert "did not stop there" in remarks


@pytest.mark.parametrize("off", [{"smlmt.enabled": False}, {"smlmt.hybrid_ratio": 0.0}])
def test_episodes_that_were_off_leave_plain_training(maml: Raw, written: Write, off: Raw) -> None:
    found, _ = converted(written(maml, **off))
    assert "method" not in found
    assert found["train"]["seq_len"] == 2047, "the trainer was pico-maml-train's all the same"


@pytest.mark.parametrize("name", ["relora", "maml"])
def test_a_missing_method_is_said_and_an_existing_one_checks_the_options(
    name: str, request: pytest.FixtureRequest, written: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(request.getfixturevalue(name))
    monkeypatch.delitem(METHODS, name, raising=False)
    assert f'no method "{name}", so pico-train check refuses the file' in converted(path)[1]
    monkeypatch.setitem(METHODS, name, METHODS["plain"])
    with pytest.raises(UserError, match=r"old.yaml, converted: \d+ mistakes\n  unknown key \"method\.options\."):
        convert_config(path)


@pytest.mark.parametrize(
    ("changes", "batch", "micro"),
    [
        ({}, 48, 6),
        ({"training.optimization.gradient_accumulation_steps": 5}, 40, 4),
        ({"data.dataset.name": "somebody/rows"}, 24, 6),
        ({"training.fabric.num_devices": 1, "training.optimization.gradient_accumulation_steps": 1}, 48, 48),
    ],
)
def test_rows_of_an_update(plain: Raw, written: Write, changes: Raw, batch: int, micro: int) -> None:
    """Rows a pass are rounded down; devices shared the rows of every data set but Dolma."""
    found, remarks = converted(written(plain, **changes))
    train = as_run(found).train
    assert (train.batch_size, train.rows_per_pass()) == (batch, micro)
    assert (f"an update had {batch} different rows, not 48" in remarks) == (batch != 48)
    assert ("read the same rows" in remarks) == ("data.dataset.name" in changes)


def earlier_factor(step: int, warmup: int, steps: int) -> float:
    """Of update `step`, 1-based: the scheduler of the earlier trainers counted finished updates."""
    done = step - 1
    return done / warmup if done < warmup else max(0.0, (steps - done) / max(1, steps - warmup))


@pytest.mark.parametrize(("warmup", "steps"), [(12, 120), (0, 50), (300, 120)])
def test_the_learning_rate_is_that_of_one_update_before(plain: Raw, written: Write, warmup: int, steps: int) -> None:
    """Exactly in the warm-up, also where training ends in it; within two updates' decay after it."""
    changes = {"training.optimization.lr_warmup_steps": warmup, "training.max_steps": steps}
    run = as_run(converted(written(plain, **changes))[0])
    for step in range(2, steps + 1):
        ours = run.optimizer.lr * lr_factor(run.schedule, step - 1, run.train.steps)
        theirs = 0.002 * earlier_factor(step, warmup, steps)
        slack = 0.0 if step <= warmup else 0.002 * 2 / (steps - warmup)
        assert math.isclose(ours, theirs, rel_tol=1e-12, abs_tol=slack)


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({}, ("train.gradients", "val.gradients", "val.activations")),
        ({"checkpointing.learning_dynamics.eval_data": None}, ("train.gradients",)),
    ],
)
def test_what_is_observed(plain: Raw, written: Write, changes: Raw, kinds: tuple[str, ...]) -> None:
    assert as_run(converted(written(plain, **changes))[0]).snapshot.kinds == kinds


@pytest.mark.parametrize("suffixes", [None, [], ["nowhere"]])
def test_no_layer_is_no_observation(plain: Raw, written: Write, suffixes: list[str] | None) -> None:
    found, remarks = converted(written(plain, **{"checkpointing.learning_dynamics.layer_suffixes": suffixes}))
    assert found["snapshot"] == {"every": 0}
    assert ("fits no module" in remarks) == bool(suffixes)


def test_the_result_passes_check_on_data_of_its_own(plain: Raw, written: Write, data_dir: Path, tmp_path: Path) -> None:
    model = {"model.vocab_size": 280, "model.max_seq_len": 32}
    found, _ = converted(written(plain, **model, **{"checkpointing.runs_dir": str(tmp_path / "runs")}))
    run = as_run({**found, "data": {**found["data"], "path": str(data_dir)}})
    lines = "\n".join(estimate(run, "converted"))
    assert "120 steps of 48 rows of 16" in lines
