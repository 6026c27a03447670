"""Import paths that user code, YAML files and entry points may name; a path that goes must leave the frozen list."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

PATHS = (Path(__file__).parent / "public_api.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("path", PATHS)
def test_a_public_path_can_be_imported(path: str) -> None:
    module, _, name = path.partition(":")
    assert hasattr(importlib.import_module(module), name)


def test_each_path_stands_once_in_order() -> None:
    assert sorted(set(PATHS)) == PATHS


def test_a_method_of_a_name_in_yaml_is_public() -> None:
    from pico_train.method import METHODS

    assert set(METHODS.values()) <= set(PATHS)
