"""Parsed JSON as values of declared types."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from pico_contract.errors import DamagedError
from pico_contract.typed_json import build, non_finite


@dataclass
class Inner:
    n: int


@dataclass
class Outer:
    name: str
    inner: Inner
    maybe: Inner | None = None
    numbers: list[float] = field(default_factory=list)
    by_name: dict[str, Inner] = field(default_factory=dict)
    anything: Any = None


WHOLE = {"name": "a", "inner": {"n": 1}, "numbers": [1, 2.5], "by_name": {"x": {"n": 2}}, "anything": [{}]}


def test_a_whole_object_is_built_at_every_depth() -> None:
    built = build(Outer, WHOLE, "f")
    assert built == Outer("a", Inner(1), None, [1.0, 2.5], {"x": Inner(2)}, [{}])
    assert [type(number) for number in built.numbers] == [float, float]


def test_what_has_a_default_may_be_left_out_or_null() -> None:
    assert build(Outer, {"name": "a", "inner": {"n": 1}}, "f") == Outer("a", Inner(1))
    assert build(Outer, {"name": "a", "inner": {"n": 1}, "maybe": None}, "f").maybe is None
    assert build(Outer, {"name": "a", "inner": {"n": 1}, "maybe": {"n": 3}}, "f").maybe == Inner(3)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": 3}, "f: name should be str but is 3"),
        ({"inner": {"n": True}}, "f: inner: n should be int but is True"),
        ({"inner": {"n": 1.0}}, "f: inner: n should be int but is 1.0"),
        ({"inner": {}}, 'f: inner lacks the key "n"'),
        ({"inner": []}, "f: inner should be an object but is []"),
        ({"maybe": 3}, "f: maybe should be an object but is 3"),
        ({"numbers": [1, "2"]}, "f: numbers[1] should be float but is '2'"),
        ({"numbers": [True]}, "f: numbers[0] should be float but is True"),
        ({"numbers": {}}, "f: numbers should be list but is {}"),
        ({"by_name": {"x": 1}}, "f: by_name: x should be an object but is 1"),
        ({"by_name": []}, "f: by_name should be dict but is []"),
    ],
)
def test_a_wrong_type_is_named_with_its_place(changes: dict[str, Any], sentence: str) -> None:
    """C3.6: the file and the key."""
    with pytest.raises(DamagedError) as caught:
        build(Outer, WHOLE | changes, "f")
    assert str(caught.value) == sentence


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_number_that_json_does_not_have_is_named(value: float) -> None:
    raw = {"a": [1.0, {"b": value}], "c": math.nan}
    assert non_finite(raw, "f") == f"f: a: 1: b is {value}, which is not a number of JSON"


def test_finite_numbers_text_and_nothing_are_json() -> None:
    assert non_finite({"a": [1, 2.5, "nan", None, True, (3.0,)]}, "f") is None
