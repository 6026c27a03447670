"""The demo's first 20 updates, against the text in demo_losses.txt."""

import runpy
from pathlib import Path

import pytest

TOLERANCE = 1e-4
"""Nats. One thread or two, and generic or AVX2 kernels, gave losses that agree to all six digits of the file; the room
is for other builds of torch, whose matrix products may round otherwise."""


@pytest.mark.slow
def test_the_demos_first_losses_are_the_golden_ones(tmp_path: Path):
    golden_lines = runpy.run_path(str(Path(__file__).with_name("make.py")))["golden_lines"]
    found = [line.split() for line in golden_lines(tmp_path)]
    golden = [line.split() for line in Path(__file__).with_name("demo_losses.txt").read_text().splitlines()]
    assert [words[0] for words in found] == [words[0] for words in golden]
    assert found[0] == golden[0], "the prepared tokens differ"
    assert found[-1] == golden[-1], "the rows that were read differ"
    for (step, loss), (_, expected) in zip(found[1:-1], golden[1:-1], strict=True):
        assert float(loss) == pytest.approx(float(expected), abs=TOLERANCE), f"update {step}"
