"""What an earlier trainer could not run, or asks for what cannot be had, is refused by key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pico_contract.errors import UserError
from pico_train.legacy.config import convert_config

Write = Callable[..., Path]
Raw = dict[str, Any]

REFUSED = [
    ({"training.optimization.lr_rate": 1}, r'unknown key "training.optimization.lr_rate" \(did you mean "training.op'),
    ({"modle.d_model": 1, "trainer": 2}, r'"modle.d_model" \(did you mean "model.d_model"\); unknown key "trainer"'),
    ({"monitoring": "none"}, r'"monitoring" should be a section'),
    ({"data.dataset": 7}, r'"data.dataset" should be a section'),
    ({"training.max_steps": "many"}, r'training.max_steps: should be a whole number \(it is "many"\)'),
    ({"training.max_steps": 0}, r"training.max_steps: is 0; it should be at least 1"),
    ({"training.optimization.lr": None}, r"training.optimization.lr: should be a number \(it is null\)"),
    ({"model.n_layers": True}, r"model.n_layers: should be a whole number"),
    ({"checkpointing.save_every_n_steps": 0}, r"save_every_n_steps: is 0; it should be at least 1"),
    ({"model.model_type": "other"}, r'model.model_type: is "other"; only "pico_decoder" was trained'),
    ({"training.optimization.optimizer": "sgd"}, r'optimizer: only "adamw" was trained'),
    ({"training.optimization.lr_scheduler": "step"}, r"lr_scheduler: choose from: linear_with_warmup"),
    ({"training.optimization.lr_scheduler": "relora_jagged_cosine"}, r'"relora_jagged_cosine" needs the section'),
    ({"data.dataloader.batch_size": 4}, r"batch_size: 4 rows are fewer than 2 devices x 4 accumulated passes"),
    ({"evaluation.metrics": ["blimp"]}, r'evaluation.metrics: "blimp" was not evaluated; choose from: paloma'),
    ({"model.attention_n_heads": 7}, r"converted: .*num_attention_heads \(7\) does not divide hidden_size"),
    ({"model.relora": {}}, r"model.relora.target_modules: is needed for ReLoRA"),
]


@pytest.mark.parametrize(("changes", "sentence"), REFUSED)
def test_what_the_earlier_trainer_could_not_run_is_refused(
    plain: Raw, written: Write, changes: Raw, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        convert_config(written(plain, **changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model.relora.reset_frequency": "often"}, r"reset_frequency: is needed for ReLoRA"),
        ({"model.relora.lora_only": True}, r"lora_only: has no equivalent"),
        ({"model.relora.target_modules": ["conv"]}, r"target_modules: fits no linear layer"),
        ({"training.optimization.min_lr_ratio": 0.0}, r"min_lr_ratio: .* needs one above 0"),
        ({"training.optimization.restart_warmup_steps": 0}, r"restart_warmup_steps: .* needs at least 1"),
    ],
)
def test_low_rank_settings_that_could_not_run_are_refused(
    relora: Raw, written: Write, changes: Raw, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        convert_config(written(relora, **changes))
