"""Old names of configuration keys and values: accepted for ever, said once, and refused beside the new ones."""

from __future__ import annotations

from typing import Any

import pytest
from pico_contract.errors import UserError
from pico_contract.renames import ANALYSIS, RUN, Renames

TABLES = [RUN, ANALYSIS]


def nested(key: str, value: Any) -> dict[str, Any]:
    first, _, rest = key.partition(".")
    return {first: nested(rest, value) if rest else value}


@pytest.mark.parametrize("table", TABLES)
def test_a_key_stays_in_its_section_and_a_new_name_is_no_old_one(table: Renames) -> None:
    for old, new in table.keys.items():
        assert old.rpartition(".")[0] == new.rpartition(".")[0]
        assert new not in table.keys
    for values in table.values.values():
        assert not set(values) & set(values.values())


@pytest.mark.parametrize(("table", "old", "new"), [(t, *pair) for t in TABLES for pair in t.keys.items()])
def test_every_old_key_is_replaced_and_named(table: Renames, old: str, new: str) -> None:
    assert table.current(nested(old, 8), "run.yaml") == nested(new, 8)
    assert table.current(nested(new, 8), "run.yaml") == nested(new, 8)
    assert list(table.old_names(nested(old, 8))) == [f"{old} is now called {new}"]
    assert list(table.old_names(nested(new, 8))) == []
    assert table.current_overrides([f"{old}=a=b", "x=1"]) == [f"{new}=a=b", "x=1"]
    assert list(table.old_keys([f"{old}=8", f"{new}=8", "x=1"])) == [f"{old} is now called {new}"]


@pytest.mark.parametrize(("table", "old", "new"), [(t, *pair) for t in TABLES for pair in t.keys.items()])
def test_both_names_are_refused(table: Renames, old: str, new: str) -> None:
    sentence = f"{old} is the old name of {new}, and both are given: leave out {old}"
    with pytest.raises(UserError, match=rf"^the command line: {sentence}$"):
        table.current_overrides([f"{new}=1", f"{old}=1"])
    section, _, name = old.rpartition(".")
    both = {name: 1, new.rpartition(".")[2]: 2}
    with pytest.raises(UserError, match=rf"^run\.yaml: {sentence}$"):
        table.current(both, "run.yaml", section)


def test_an_old_value_is_replaced_and_named() -> None:
    assert RUN.current({"data": {"order": "shipped"}}, "run.yaml") == {"data": {"order": "sequential"}}
    assert list(RUN.old_names({"data": {"order": "shipped"}})) == ["data.order: shipped is now called sequential"]
    assert list(RUN.old_names({"data": {"order": "sequential"}})) == []


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"train": None, "data": [1]},
        {"train.hours": 8},
        {"hours": 8, "evaluate": {"train": {"hours": 8}}},
        {"data": {"order": ["shipped"]}, "order": "shipped"},
        {1: {"hours": 1}, "method": {"options": {"micro_batch": 2}}},
    ],
)
def test_nothing_else_is_touched(raw: dict[Any, Any]) -> None:
    assert RUN.current(raw, "run.yaml") == raw
    assert list(RUN.old_names(raw)) == []


def test_the_original_stays_as_it_was() -> None:
    raw = {"train": {"hours": 8}}
    RUN.current(raw, "run.yaml")
    assert raw == {"train": {"hours": 8}}
