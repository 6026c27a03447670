"""Configurations in the layout of the earlier projects, with values of our own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from ...support.earlier_models import drawn, saved

PLAIN: dict[str, Any] = {
    "data": {"dataloader": {"batch_size": 48}},
    "checkpointing": {
        "run_name": "first-try",
        "save_every_n_steps": 40,
        "learning_dynamics": {"layer_suffixes": ["attention.q_proj", "swiglu.w_0"], "batch_size": 4},
    },
    "model": {"d_model": 48, "activation_hidden_dim": 96, "n_layers": 3},
    "monitoring": {"logging": {"log_every_n_steps": 5}},
    "training": {
        "max_steps": 120,
        "fabric": {"num_nodes": 1, "num_devices": 2},
        "optimization": {"lr": 0.002, "lr_warmup_steps": 12, "gradient_accumulation_steps": 4},
    },
    "evaluation": {"paloma": {"batch_size": 6}},
}


@pytest.fixture
def plain() -> dict[str, Any]:
    """A file of pico-train 1.x: 48 rows over 2 devices and 4 passes."""
    return copy.deepcopy(PLAIN)


@pytest.fixture
def relora(plain: dict[str, Any]) -> dict[str, Any]:
    """A file of relora-pico: rank 8, a restart every 24 steps."""
    plain["model"]["relora"] = {"target_modules": ["attention", "swiglu"], "reset_frequency": 24, "r": 8}
    extra = {"lr_scheduler": "relora_jagged_cosine", "min_lr_ratio": 0.2, "restart_warmup_steps": 3}
    plain["training"]["optimization"].update(extra)
    return plain


@pytest.fixture
def maml(plain: dict[str, Any]) -> dict[str, Any]:
    """A file of pico-maml-train: episodes with probability 0.3."""
    plain["smlmt"] = {"hybrid_ratio": 0.3, "inner_steps": 5, "classifier_head": {"num_layers": 3}}
    return plain


@pytest.fixture
def written(tmp_path: Path) -> Any:
    """Write a mapping, its dotted changes made first, as `old.yaml`."""

    def write(raw: dict[str, Any], **changes: Any) -> Path:
        raw = copy.deepcopy(raw)
        for key, value in changes.items():
            *parents, leaf = key.split(".")
            section = raw
            for part in parents:
                section = section.setdefault(part, {})
            section[leaf] = value
        path = tmp_path / "old.yaml"
        path.write_text(yaml.safe_dump(raw))
        return path

    return write


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The directory of an earlier checkpoint."""
    return saved(tmp_path / "step_20", drawn())
