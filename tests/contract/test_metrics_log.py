"""Rows of metrics.jsonl: what is a row, what is damage, and what a crash leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_contract.metrics_log import Line, parse_row, read_lines, read_rows

ROW = {"step": 3, "tokens": 96, "loss": 2.5, "lr": 1e-3}


@pytest.mark.parametrize(
    "row",
    [
        ROW,
        {"step": 1},
        {"step": 1, "tokens": 0},
        {"step": 1, "loss": 3},
        {"step": (1 << 63) - 1, "loss": float("inf")},
        {"step": 1, "loss": 1e30, "of the method": None},
    ],
)
def test_an_object_with_a_step_is_a_row(row: dict[str, object]) -> None:
    assert parse_row(json.dumps(row)) == row


def test_a_loss_that_is_not_a_number_is_a_loss() -> None:
    row = parse_row('{"step": 1, "loss": NaN}')
    assert row is not None
    assert row["loss"] != row["loss"]


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[1]", "3", "null", '"step"', "{}", '{"tokens": 3}', '{"step": null}', '{"step": "1"}'),
        *('{"step": 0}', '{"step": -1}', '{"step": 1.0}', '{"step": true}', '{"step": 9223372036854775808}'),
        *('{"step": 1, "tokens": 2.5}', '{"step": 1, "tokens": "2"}', '{"step": 1, "tokens": true}'),
        *('{"step": 1, "loss": null}', '{"step": 1, "loss": "2"}', '{"step": 1, "loss": 1' + "0" * 400 + "}"),
        *('{"step": 1' + "0" * 5000 + "}", "[" * 100_000),
    ],
)
def test_anything_else_is_not_a_row(text: str) -> None:
    assert parse_row(text) is None


@pytest.mark.parametrize("end", ['{"step": 3, "lo', '{"step": 3, "loss": 2.', "\x00\x00", '{"step": 3, "a": "\udc80'])
def test_a_line_that_a_crash_cut_short_is_left_out(tmp_path: Path, end: str) -> None:
    """C4.1: the rows before it are read."""
    path = tmp_path / "metrics.jsonl"
    whole = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    text = "".join(json.dumps(row) + "\n" for row in whole) + end
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert read_rows(path) == whole


def test_lines_are_numbered_and_damaged_ones_kept_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n\nno row\n{"step": 2}\n')
    assert read_lines(path) == [
        Line(1, '{"step": 1}', {"step": 1}),
        Line(2, "", None),
        Line(3, "no row", None),
        Line(4, '{"step": 2}', {"step": 2}),
    ]


def test_a_file_that_is_missing_empty_or_a_link_has_no_rows(tmp_path: Path) -> None:
    """C3.4: a link is not followed."""
    other, link, empty = tmp_path / "other.jsonl", tmp_path / "metrics.jsonl", tmp_path / "empty.jsonl"
    other.write_text('{"step": 1}\n')
    link.symlink_to(other)
    empty.touch()
    assert [read_rows(path) for path in (other, link, empty, tmp_path / "none.jsonl")] == [[{"step": 1}], [], [], []]


@settings(deadline=None)
@given(st.dictionaries(st.text(), st.one_of(st.none(), st.text(), st.integers(), st.booleans())))
def test_a_row_survives_with_whatever_a_method_adds(extra: dict[str, object]) -> None:
    row = extra | ROW
    assert parse_row(json.dumps(row)) == row
