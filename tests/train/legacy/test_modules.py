"""Layers that the substrings of an earlier project chose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ...support.earlier_models import converted

Write = Callable[..., Path]


Raw = dict[str, Any]


@pytest.mark.parametrize(
    ("targets", "modules"),
    [
        (["ATTENTION.Q"], ["self_attn.q_proj"]),
        (["layers.1.swiglu"], [f"model.layers.1.mlp.{p}_proj" for p in ("gate", "up", "down")]),
        (["v_proj", "de_embedding"], ["self_attn.v_proj"]),
        (["attention", "w_"], None),
    ],
)
def test_targets_are_the_layers_that_the_substrings_fitted(
    relora: Raw, written: Write, targets: list[str], modules: list[str] | None
) -> None:
    found, _ = converted(written(relora, **{"model.relora.target_modules": targets}))
    assert found["method"]["options"].get("modules") == modules
