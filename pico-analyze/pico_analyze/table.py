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
KEY = [column for column in SCHEMA if column not in _MEASURED]
"""The columns that tell one number from all others."""
# Rows of Python objects take three times the memory of typed columns, so only a block of them
# exists at a time.
_BLOCK = 4096
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings of cells that a spreadsheet computes instead of showing them."""


def from_rows(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Make a table of the declared columns and dtypes; a column that a row lacks is null.

    Raises:
        ValueError: two rows are about the same number, which is an error of the program.
    """
    remaining = iter(rows)
    blocks = []
    while block := list(islice(remaining, _BLOCK)):
        columns = {name: [row.get(name) for row in block] for name in SCHEMA}
        blocks.append(_typed(pd.DataFrame(columns, dtype=object)))
    if not blocks:
        return _typed(pd.DataFrame(columns=list(SCHEMA)))
    frame = pd.concat(blocks, ignore_index=True)
    repeated = frame.duplicated(KEY)
    if repeated.any():
        first = frame.loc[repeated, KEY].iloc[0].to_dict()
        raise ValueError(f"the same number was measured twice: {first}")
    return frame


def joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Join several tables, taking a number that more than one of them has only once."""
    return pd.concat(frames).drop_duplicates(KEY, ignore_index=True)


def write(frame: pd.DataFrame, layout: AnalysisLayout) -> None:
    """Write table.parquet and its twin table.csv below `layout.root`, each replaced as a whole."""
    write_part(frame, layout.table)
    with replacing(layout.table_csv) as draft:
        for_spreadsheets(frame).to_csv(draft, index=False)


def for_spreadsheets(frame: pd.DataFrame) -> pd.DataFrame:
    """Put an apostrophe before each text that a spreadsheet would take for a formula.

    Such a text begins with =, +, -, @, a tab or a carriage return, which is written as \\r. Numbers
    are untouched. When reading the CSV back, drop an apostrophe before one of these; the Parquet
    file has every text unchanged.
    """
    texts = {str(name): column for name, column in frame.items() if _is_text(column)}
    return frame.assign(**{name: _harmless(column) for name, column in texts.items()})


def _is_text(column: pd.Series) -> bool:
    return isinstance(column.dtype, pd.StringDtype) or column.dtype == object


def _harmless(column: pd.Series) -> pd.Series:
    return column.map(lambda value: _cell(value) if isinstance(value, str) else value)


def _cell(text: str) -> str:
    # The writer does not quote a carriage return, which would end the row.
    mark = "'" if text.startswith(_FORMULA) else ""
    return mark + text.replace("\r", "\\r")


def write_part(frame: pd.DataFrame, path: Path) -> None:
    """Write a table, or a part of one, as Parquet, replaced as a whole."""
    with replacing(path) as draft:
        frame.to_parquet(draft, index=False)


def with_steps_of(frame: pd.DataFrame, parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Replace or add the steps of `parts`, which share none, and sort by step."""
    replaced = {step for part in parts for step in part["step"]}
    # A resumed run measures steps again that the table already has.
    others = frame[~frame["step"].isin(replaced)]
    filled = [rows for rows in (others, *parts) if len(rows)]
    whole = pd.concat(filled) if filled else frame
    return whole.sort_values("step", kind="stable", ignore_index=True)


def until(frame: pd.DataFrame, step: int) -> pd.DataFrame:
    """Select the rows of steps up to and including `step`."""
    return frame[frame["step"] <= step]


def read(path: Path) -> pd.DataFrame:
    """Read a table that `write` wrote.

    Raises:
        UserError: there is no such file.
        DamagedError: it is not readable.
    """
    if not path.is_file():
        raise UserError(f"there is no table {path}: run the analysis first")
    try:
        return _typed(pd.read_parquet(path)[list(SCHEMA)])
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise DamagedError(f"{path} is not a measurement table ({reason})") from None


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.astype(SCHEMA)
