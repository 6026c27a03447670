"""What pico-analyze 1.0 printed for a run of pico-train 1.0, and under which key our table has it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from pico_analyze.components.circuits import CIRCUITS
from pico_contract.names import canonical

LAST = 30
EPS = 2.0**-23
"""Of float32, in which the earlier tool computed."""
OURS = {
    "cka": "cka",
    "condition_number": "condition_number",
    "gini": "gini",
    "hoyer": "hoyer",
    "norm_frobenius": "frobenius_norm",
    "norm_inf": "max_abs",
    "norm_nuclear": "nuclear_norm",
    "per": "per",
    "pwcca_simple": "pwcca",
}
ELEMENTWISE = ("gini", "hoyer", "max_abs")
GROUPS = ("same", "rounding", "v_o", "noise", "pwcca")

Values = dict[tuple[Any, ...], tuple[float | None, str]]
"""(metric, kind, plain, module, head, step) -> value and status."""


class Number(NamedTuple):
    """What the earlier tool printed: of a module, of one head's circuit, or (`joined`) of all heads side by side."""

    metric: str
    kind: str
    plain: bool
    module: str
    head: int | None
    step: int
    value: float

    @property
    def joined(self) -> bool:
        return not self.plain and self.head is None


def place() -> Path:
    """Directory of the run, the configurations and what was printed."""
    folder = os.environ.get("PICO_TEST_DATA")
    found = Path(folder or "").parent / "reference" / "pico-1x"
    if folder is None or not found.is_dir():
        pytest.skip("no reference/pico-1x beside the directory that PICO_TEST_DATA names")
    return found


def printed(folder: Path) -> Iterator[Number]:
    """The numbers of one configuration, a file a step."""
    for path in sorted(folder.glob("step_*.json")):
        for key, value in json.loads(path.read_text()).items():
            name, kind, head = re.fullmatch(r"(.+)\.(weights|gradients|activations)(?:\.heads\.(\d+))?", key).groups()
            module = canonical(name.replace(".ov_circuit", ".self_attn"))
            step = int(path.stem.removeprefix("step_"))
            plain = not name.endswith(".ov_circuit")
            yield Number(OURS[folder.name], kind, plain, module, None if head is None else int(head), step, value)


def values(frame: pd.DataFrame) -> Values:
    """A table of ours by the keys of `key_of`."""
    found = {}
    for row in frame.to_dict("records"):
        head = None if pd.isna(row["head"]) else int(row["head"])
        key = (row["metric"], row["kind"], row["component"] not in CIRCUITS, row["module"], head, row["step"])
        assert key not in found
        found[key] = (None if pd.isna(row["value"]) else row["value"], row["status"])
    return found


def key_of(number: Number) -> tuple[Any, ...]:
    return number[:-1]


def relative(ours: float, number: Number) -> float:
    return abs(ours / number.value - 1)


def group_of(number: Number) -> str:
    """Which outcome of docs/legacy_numbers.md a number has."""
    if number.metric == "pwcca":
        return "pwcca"
    if number.plain:
        return "rounding" if number.metric == "condition_number" else "same"
    if number.kind == "weights":
        return "v_o"
    if number.metric == "condition_number" and not (number.joined and number.kind == "gradients"):
        return "noise"
    return "same"
