"""Every key that an earlier project knew is accounted for: it shows in the result or by name in the remarks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pico_contract.errors import UserError
from pico_train.legacy.keys import PROJECTS
from pico_train.legacy.old import leaves

from ...support.earlier_models import converted

Write = Callable[..., Path]
Raw = dict[str, Any]
OF_EACH = pytest.mark.parametrize(("project", "fixture"), list(zip(PROJECTS, ("plain", "relora", "maml"), strict=True)))


def test_keys_that_no_code_read_are_listed_and_change_nothing(plain: Raw, written: Write) -> None:
    unread = {
        "data.dataset": "pico-lm/another",
        "training.learning_rate": 9.0,
        "training.fabric.strategy": "auto",
        "training.optimization.gradient_checkpointing": True,
    }
    found, remarks = converted(written(plain, **unread))
    assert found == converted(written(plain))[0]
    assert all(f"\n{key}: " in f"\n{remarks}" for key in unread)


@OF_EACH
def test_the_record_of_a_run_converts_as_the_file_that_it_ran(
    project: str, fixture: str, request: pytest.FixtureRequest, written: Write
) -> None:
    """training_config.yaml of an earlier run holds every key, defaults and all."""
    raw = request.getfixturevalue(fixture)
    expected, _ = converted(written(raw))
    given = dict(leaves(raw))
    whole = {key: given.get(key, default) for key, default in PROJECTS[project].items() if key != "model.relora"}
    if fixture == "relora":
        whole["model.model_type"] = "pico_relora_decoder"
    assert converted(written({}, **whole))[0] == expected


ELSE: Raw = {
    "model.attention_n_heads": 24,
    "model.attention_n_kv_heads": 6,
    "training.optimization.gradient_accumulation_steps": 2,
    "training.fabric.num_devices": 3,
    "training.fabric.precision": "32-true",
    "training.fabric.accelerator": "cpu",
    "evaluation.metrics": [],
    "evaluation.blimp.metric_uids": ["anaphor_gender_agreement"],
    "checkpointing.learning_dynamics.layer_suffixes": ["k_proj"],
    "model.relora.target_modules": ["swiglu"],
    "model.relora.reset_frequency": 36,
    "evaluation.blimp.samples_per_set": 10,
    "checkpointing.save_to_hf": True,
}
"""Another value where doubling, halving or appending to the default makes no valid one."""


def other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value * 2
    return value / 2 if isinstance(value, float) else f"{value or ''}x"


@OF_EACH
def test_no_key_of_a_file_is_dropped_without_a_word(
    project: str, fixture: str, request: pytest.FixtureRequest, written: Write
) -> None:
    """Every key that the project knew, given another value, shows in the result or by name in the remarks."""
    raw = request.getfixturevalue(fixture)
    before = converted(written(raw))
    silent = []
    for key, default in PROJECTS[project].items():
        if key == "model.relora":
            continue
        try:
            found, remarks = converted(written(raw, **{key: ELSE.get(key, other(default))}))
        except UserError as error:
            found, remarks = before[0], str(error).replace("old.yaml: ", "\n")
        if found == before[0] and f"\n{key}: " not in f"\n{remarks}":
            silent.append(key)
    assert silent == []
