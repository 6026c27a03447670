"""The measurement table: its schema, and what is written and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pico_analyze import table
from pico_contract.errors import DamagedError, UserError
from pico_contract.layout import AnalysisLayout

CONTRACT = (
    *("run", "step", "tokens", "split", "kind", "component", "layer", "head", "module", "metric", "variant"),
    *("reference_run", "reference_step", "reference_module"),
    *("value", "status", "unit", "n", "d", "dtype", "tol", "null_mean", "null_sd", "p"),
)


def row(**changes: Any) -> dict[str, Any]:
    return {
        "run": "small",
        "step": 1,
        "kind": "weights",
        "component": "mlp.up_proj",
        "layer": 0,
        "module": "model.layers.0.mlp.up_proj",
        "metric": "per",
        "variant": "{}",
        "value": 1 / 3,
        "status": "ok",
    } | changes


@pytest.fixture
def frame() -> pd.DataFrame:
    others = [
        row(head=3, value=None, status="rank_deficient"),
        row(step=2, tokens=2**53 + 1, value=5e-324),
        row(step=3),
    ]
    return table.from_rows([row(split="val", unit="fraction, of full rank", tol=1.1e-7), *others])


def test_columns_and_dtypes_are_those_of_the_contract(frame: pd.DataFrame) -> None:
    assert list(frame.columns) == list(table.SCHEMA) == list(CONTRACT)
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == table.SCHEMA


def test_what_a_row_lacks_is_null(frame: pd.DataFrame) -> None:
    assert frame["tokens"].isna().tolist() == [True, True, False, True]
    assert frame["value"].isna().tolist() == [False, True, False, False]
    assert frame["p"].isna().all()


@pytest.mark.parametrize("column", table.KEY)
def test_rows_may_differ_in_any_part_of_the_key(column: str) -> None:
    other = 7 if table.SCHEMA[column] == "Int64" else "other"
    assert len(table.from_rows([row(), row(**{column: other})])) == 2


@pytest.mark.parametrize("column", ["value", "status", "unit", "n", "dtype", "tol"])
def test_rows_that_differ_only_in_what_was_measured_are_refused(column: str) -> None:
    other = "other" if table.SCHEMA[column] == "string" else 7
    with pytest.raises(ValueError, match="measured twice"):
        table.from_rows([row(), row(**{column: other})])


def test_parquet_and_csv_hold_the_same(frame: pd.DataFrame, tmp_path: Path) -> None:
    layout = AnalysisLayout(tmp_path / "analysis" / "default")
    table.write(frame, layout)
    back = table.read(layout.table)
    twin = pd.read_csv(layout.table_csv, dtype=table.SCHEMA)
    pd.testing.assert_frame_equal(back, frame, check_exact=True)
    pd.testing.assert_frame_equal(twin, frame, check_exact=True)
    assert sorted(path.name for path in layout.root.iterdir()) == ["table.csv", "table.parquet"]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", '=HYPERLINK("x")'])
def test_a_text_that_a_spreadsheet_would_compute_is_harmless_in_the_csv_alone(text: str, tmp_path: Path) -> None:
    layout = AnalysisLayout(tmp_path)
    frame = table.from_rows([row(run=text, value=-1.5, step=3)])
    table.write(frame, layout)
    twin = pd.read_csv(layout.table_csv, dtype=table.SCHEMA)
    assert (twin["run"][0], twin["value"][0], twin["step"][0]) == ("'" + text.replace("\r", "\\r"), -1.5, 3)
    pd.testing.assert_frame_equal(table.read(layout.table), frame, check_exact=True)


@pytest.mark.parametrize("text", ["a=b", "x-1", "'=1", "", "model.layers.0"])
def test_other_text_is_in_the_csv_as_it_is(text: str, tmp_path: Path) -> None:
    frame = table.from_rows([row(run=text)])
    assert table.for_spreadsheets(frame)["run"][0] == text


def test_an_earlier_table_is_replaced(frame: pd.DataFrame, tmp_path: Path) -> None:
    layout = AnalysisLayout(tmp_path)
    table.write(frame, layout)
    table.write(frame.iloc[:1], layout)
    assert len(table.read(layout.table)) == 1


def test_no_table_is_a_mistake_and_a_broken_one_is_damaged(frame: pd.DataFrame, tmp_path: Path) -> None:
    layout = AnalysisLayout(tmp_path)
    with pytest.raises(UserError, match="run the analysis first"):
        table.read(layout.table)
    table.write(frame, layout)
    whole = layout.table.read_bytes()
    for broken in (b"", b"not parquet", whole[: len(whole) // 2], whole[:4] + bytes(len(whole) - 8) + whole[-4:]):
        layout.table.write_bytes(broken)
        with pytest.raises(DamagedError, match="is not a measurement table"):
            table.read(layout.table)


def test_a_parquet_file_of_something_else_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    pd.DataFrame({"x": np.arange(3)}).to_parquet(path)
    with pytest.raises(DamagedError, match="is not a measurement table"):
        table.read(path)
    frame = table.from_rows([row()])
    frame["step"] = "many"
    frame.to_parquet(path)
    with pytest.raises(DamagedError, match="is not a measurement table"):
        table.read(path)
