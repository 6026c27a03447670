"""The measurement table: one row per number, with a declared schema."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
from pico_contract.codec import replacing
from pico_contract.errors import DamagedError, UserError
from pico_contract.layout import AnalysisLayout

SCHEMA: dict[str, str] = {
    "run": "string",
    "step": "Int64",
    "tokens": "Int64",  # consumed up to the step; null where not recorded
    "split": "string",  # train | val; null for weights
    "kind": "string",
    "component": "string",  # name within the layer, or of a circuit
    "layer": "Int64",  # null outside the layers
    "head": "Int64",  # null for plain modules
    "module": "string",
    "metric": "string",
    "variant": "string",  # canonical JSON of the metric's parameters
    "reference_run": "string",
    "reference_step": "Int64",
    "reference_module": "string",
    "value": "float64",
    "status": "string",
    "unit": "string",
    "n": "Int64",  # rows of the matrix, length of a vector
    "d": "Int64",  # columns of the matrix, 1 for a vector
    "dtype": "string",  # as stored
    "tol": "float64",  # singular values at or below it count as zero
    "null_mean": "float64",
    "null_sd": "float64",
    "p": "float64",
}
_MEASURED = ("value", "status", "unit", "n", "d", "dtype", "tol", "null_mean", "null_sd", "p")
_BLOCK = 4096  # rows that are Python objects at a time, which take three times as much memory as typed columns
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How a cell begins that a spreadsheet computes instead of showing it."""
KEY = [column for column in SCHEMA if column not in _MEASURED]


def from_rows(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a table of the declared columns and dtypes; a column that a row lacks is null.

    Raises:
        ValueError: two rows differ in nothing but what was measured, which is an error of the
            program.
    """
    left = iter(rows)
    blocks = []
    while block := list(islice(left, _BLOCK)):
        columns = {name: [row.get(name) for row in block] for name in SCHEMA}
        blocks.append(_typed(pd.DataFrame(columns, dtype=object)))
    frame = (
        pd.concat(blocks, ignore_index=True)
        if blocks
        else _typed(pd.DataFrame(columns=list(SCHEMA)))
    )
    repeated = frame.duplicated(KEY)
    if repeated.any():
        raise ValueError(
            f"the same number was measured twice: {frame.loc[repeated, KEY].iloc[0].to_dict()}"
        )
    return frame


def joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The rows of several tables as one; a number that more than one of them holds is there
    once."""
    return pd.concat(frames).drop_duplicates(KEY, ignore_index=True)


def write(frame: pd.DataFrame, layout: AnalysisLayout) -> None:
    """Write table.parquet and its twin table.csv below `layout.root`, each replaced as a whole."""
    write_part(frame, layout.table)
    with replacing(layout.table_csv) as draft:
        for_spreadsheets(frame).to_csv(draft, index=False)


def for_spreadsheets(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with an apostrophe before each text that a spreadsheet would take for a formula;
    numbers are untouched.

    Such a text begins with =, +, -, @, a tab or a carriage return, which is written as \\r. Reading
    the CSV back, drop an apostrophe before one of these; the Parquet file holds every text as it
    is.
    """
    return frame.assign(
        **{str(name): _harmless(column) for name, column in frame.items() if _is_text(column)}
    )


def _is_text(column: pd.Series) -> bool:
    return isinstance(column.dtype, pd.StringDtype) or column.dtype == object


def _harmless(column: pd.Series) -> pd.Series:
    return column.map(lambda one: _cell(one) if isinstance(one, str) else one)


def _cell(text: str) -> str:
    # The writer does not quote a carriage return, which would end the row.
    mark = "'" if text.startswith(_FORMULA) else ""
    return mark + text.replace("\r", "\\r")


def write_part(frame: pd.DataFrame, path: Path) -> None:
    """Write a table, or a part of one, as Parquet, replaced as a whole."""
    with replacing(path) as draft:
        frame.to_parquet(draft, index=False)


def with_steps_of(frame: pd.DataFrame, parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """`frame` with the steps of `parts` (no two of one step) in place of its own, by step."""
    measured = {step for part in parts for step in part["step"]}
    kept = [one for one in (frame[~frame["step"].isin(measured)], *parts) if len(one)]
    whole = pd.concat(kept) if kept else frame
    return whole.sort_values("step", kind="stable", ignore_index=True)


def until(frame: pd.DataFrame, step: int) -> pd.DataFrame:
    """The rows of steps up to `step`, which is included."""
    return frame[frame["step"] <= step]


def read(path: Path) -> pd.DataFrame:
    """A table written by `write` (the Parquet file); UserError where it is missing, DamagedError
    where unreadable."""
    if not path.is_file():
        raise UserError(f"there is no table {path}: run the analysis first")
    try:
        return _typed(pd.read_parquet(path)[list(SCHEMA)])
    except (OSError, ValueError, KeyError) as error:
        raise DamagedError(
            f"{path} is not a measurement table ({' '.join(str(error).split())})"
        ) from None


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.astype(SCHEMA)
