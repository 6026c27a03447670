"""Sentences about a configuration that its schema refuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pytest
from pico_contract.config_errors import MOST_SENTENCES, describe, dotted
from pydantic import BaseModel, ConfigDict, Field, ValidationError


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rate: float = Field(gt=0)
    rule: Literal["last", "mean"] = "last"


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    inner: Inner = Inner(rate=1.0)
    steps: Inner | list[int] = []
    many: dict[str, int] = {}


def described(raw: dict[str, Any], overrides: Sequence[str] = (), under: str = "") -> str:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(raw, strict=True)
    return describe(Outer, raw, caught.value.errors(include_url=False), "f.yaml", overrides, under)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ({}, 'the key "name" is missing'),
        ({"nme": "a"}, 'unknown key "nme" at the top level; did you mean "name"?'),
        ({"name": 3}, "name: should be a valid string (it is 3)"),
        ({"name": "a", "inner": 3}, "inner: should be a section (it is 3)"),
        ({"name": "a", "inner": {"rate": 0.0}}, "inner.rate: should be greater than 0 (it is 0.0)"),
        ({"name": "a", "inner": {}}, 'the key "inner.rate" is missing'),
        (
            {"name": "a", "inner": {"rate": 1.0, "rul": "x"}},
            'unknown key "inner.rul" in section "inner"; did you mean "rule"?',
        ),
        (
            {"name": "a", "inner": {"rate": 1.0, "rule": "first"}},
            "inner.rule: should be 'last' or 'mean' (it is \"first\")",
        ),
        ({"name": "a", "steps": 3}, "steps: should be a section or a list (it is 3)"),
        ({"name": "a", "steps": [1, "x"]}, 'steps.1: should be a valid integer (it is "x")'),
        ({"name": "a", "many": {"a": 1, "b": None}}, "many.b: should be a valid integer (it is null)"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_key(raw: dict[str, Any], sentence: str) -> None:
    assert described(raw) == f"f.yaml: {sentence}"


def test_a_key_below_a_section_is_named_in_full() -> None:
    assert described({"name": 3}, under="method.options").startswith("f.yaml: method.options.name: should be")


def test_several_mistakes_have_a_line_each_and_their_place() -> None:
    raw = {"name": 3, "inner": {"rate": -1.0}}
    here = ["name: should be a valid string (it is 3)", "inner.rate: should be greater than 0 (it is -1.0)"]
    assert described(raw).splitlines() == ["f.yaml: 2 mistakes", *(f"  {sentence}" for sentence in here)]
    mixed = described(raw, ["inner.rate=-1.0"]).splitlines()
    assert mixed == ["f.yaml: 2 mistakes", f"  {here[0]}", f"  the command line: {here[1]}"]


def test_more_mistakes_than_one_can_read_are_counted() -> None:
    raw = {"name": "a", "many": dict.fromkeys(map(str, range(MOST_SENTENCES + 5)), "x")}
    lines = described(raw).splitlines()
    assert len(lines) == MOST_SENTENCES + 2
    assert lines[0] == f"f.yaml: {MOST_SENTENCES + 5} mistakes"
    assert lines[-1] == "  and 5 more"


def test_keys_are_joined_as_an_override_writes_them() -> None:
    assert dotted(("steps", 1, "rate")) == "steps.1.rate"
    assert dotted(()) == ""
