"""Low-rank settings of an earlier project, converted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pico_train.config import validate
from pico_train.method import METHODS
from pico_train.run import RunConfig

from ...support.earlier_models import converted

Write = Callable[..., Path]


Raw = dict[str, Any]


def as_run(raw: Raw) -> RunConfig:
    """`raw` as a run, a method that this version does not have left out."""
    plain = raw.get("method", {}).get("name", "plain") in METHODS
    return validate(RunConfig, raw if plain else {k: v for k, v in raw.items() if k != "method"}, "converted")


def test_low_rank_restarts_and_their_faults(relora: Raw, written: Write) -> None:
    found, remarks = converted(written(relora))
    assert found["method"] == {
        "name": "relora",
        "options": {
            "rank": 8,
            "alpha": 32,
            "dropout": 0.1,
            "restart_every": 24,
            "merge_scale": "none",
            "init": "zeros",
            "reset": "independent_pruning",
            "pruning_ratio": 0.999,
        },
    }
    assert found["schedule"] == {
        "name": "cosine",
        "warmup_steps": 12,
        "final_fraction": 0.2,
        "restart_every": 24,
        "restart_warmup_steps": 3,
    }
    assert found["snapshot"]["kinds"] == ["val.activations"]
    assert "merges came after updates 25, 49" in remarks
    assert as_run(found).train.batch_size == 48


def test_other_low_rank_settings(relora: Raw, written: Write) -> None:
    section = "model.relora"
    found, remarks = converted(
        written(relora, **{f"{section}.trainable_scaling": True, f"{section}.keep_original_weights": False})
    )
    assert found["method"]["options"]["trainable_scale"] is True
    assert "init" not in found["method"]["options"], "without the base, A was drawn as it should be"
    assert "tanh(s)" in remarks
    assert "base weights of zero" in remarks
