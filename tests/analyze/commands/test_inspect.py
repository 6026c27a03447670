"""`inspect` and `metrics`: what a source holds, and which metrics are known."""

from __future__ import annotations

from pico_analyze.metrics import METRICS
from pico_contract.layout import MANIFEST, RunLayout

from ...support.command_line import Command


def test_inspect_says_what_a_run_holds(command: Command, layout: RunLayout) -> None:
    (layout.snapshot(0) / MANIFEST).unlink()
    code, out, _ = command("inspect", layout.root)
    assert code == 0
    assert "run small: finished at step 2 of 2, method plain" in out
    assert "hidden_size 16" in out
    assert "observed steps (2): 1, 2" in out
    weights = next(line for line in out.splitlines() if line.startswith("weights at 2 steps: "))
    assert {"self_attn.q_proj", "model.norm", "lm_head"} <= set(weights.partition(": ")[2].split(", "))
    assert "gradients (train) at 1 steps: " in out
    assert "activations (val) at 2 steps: " in out
    assert f"damaged at step 0: {layout.snapshot(0) / MANIFEST} does not exist" in out


def test_metrics_lists_each_with_kinds_unit_range_and_source(command: Command) -> None:
    code, out, _ = command("metrics")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == list(METRICS)
    assert (
        "one matrix of weights|gradients|activations; fraction of full rank, [0, 1]; Diehl Martinez et al. 2024" in out
    )
    for line in out.splitlines():
        of, unit_and_range, source = line.split("; ", maxsplit=2)
        assert "one matrix of " in of or "a pair of " in of
        assert unit_and_range.endswith(("]", ")"))
        assert any(letter.isdigit() for letter in source), line  # a year, a section or an equation
