"""Overrides of the command line."""

from __future__ import annotations

from typing import Any

import pytest
from pico_contract.errors import UserError
from pico_contract.overrides import apply_overrides, origin


@pytest.mark.parametrize(
    ("overrides", "result"),
    [
        ([], {"train": {"steps": 1}}),
        (["train.steps=3e-4"], {"train": {"steps": 3e-4}}),
        (["train.steps=2", "train.steps=3"], {"train": {"steps": 3}}),
        (["train={steps: off}"], {"train": {"steps": "off"}}),
        (["a.b.c=[1, x]"], {"train": {"steps": 1}, "a": {"b": {"c": [1, "x"]}}}),
        (["train.steps="], {"train": {"steps": None}}),
        (["name=a=b"], {"train": {"steps": 1}, "name": "a=b"}),
    ],
)
def test_the_value_is_yaml_and_the_last_wins(overrides: list[str], result: dict[str, Any]) -> None:
    raw: dict[str, Any] = {"train": {"steps": 1}}
    apply_overrides(raw, overrides)
    assert raw == result


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("steps", '"steps" is not an override: write key=value, for example train.steps=100'),
        ("=3", '"=3" is not an override'),
        ("a..b=3", '"a..b=3" is not an override'),
        ("a\n=3", "no key is called that"),
        (".".join("a" * 65) + "=3", "no key is called that"),
        ("train.steps.more=3", 'goes below "steps", which is a value and not a section'),
        ("a=[1", 'the value of the override "a=[1" is not valid YAML'),
    ],
)
def test_a_mistake_names_the_override(override: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        apply_overrides({"train": {"steps": 1}}, [override])
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("key", "overrides", "place"),
    [
        ("train.steps", [], "f"),
        ("train.steps", ["train.steps=1"], "the command line"),
        ("train.steps", ["train={}"], "the command line"),
        ("train", ["train.steps=1"], "the command line"),
        ("train.steps", ["train.step=1"], "f"),
        ("", [], "f"),
        ("", ["a=1"], "f with the overrides of the command line"),
    ],
)
def test_a_mistake_is_blamed_on_where_the_key_was_given(key: str, overrides: list[str], place: str) -> None:
    assert origin("f", key, overrides) == place
