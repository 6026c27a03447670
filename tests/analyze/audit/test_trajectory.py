"""Weights from step to step: what lies out of line is found, and what only moves is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from pico_analyze.audit.trajectory import duplicates, walk
from pico_contract.codec import save_tensors

LOG_STEPS = (0, 1, 2, 4, 8, 16, 32, 64, 100, 200, 300, 400, 500)
Tensors = dict[str, torch.Tensor]
Write = Callable[[dict[int, Tensors]], list[tuple[str, int, str]]]


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def path(steps: Sequence[int], power: float = 0.5) -> dict[int, Tensors]:
    """From W at step 0 to about W + V at the last step, with t^power, each step with some noise of its own."""
    start, way = noise(0, 8, 6), noise(1, 8, 6)
    return {
        t: {"a.weight": start + (t / steps[-1]) ** power * way + 0.002 * noise(10 + t, 8, 6), "b.weight": start + t}
        for t in steps
    }


@pytest.fixture
def found(tmp_path: Path) -> Write:
    """`found({step: tensors})` writes a file a step and walks them."""

    def write(weights: dict[int, Tensors], still: set[int] = frozenset()) -> list[tuple[str, int, str]]:
        paths = {step: tmp_path / f"{step}.safetensors" for step in weights}
        for step, tensors in weights.items():
            save_tensors(paths[step], tensors)
        return list(walk(paths, set(still)))

    return write


@pytest.mark.parametrize("power", [0.25, 0.5, 1.0, 2.0])
@pytest.mark.parametrize(
    "steps", [LOG_STEPS, tuple(range(0, 1000, 100)), (0, 1, 2, 4, 8, 16, 32, 64), (0, 1, 2, 512, 9000), (0, 7), (3,)]
)
def test_weights_that_only_move_are_in_line(found: Write, steps: tuple[int, ...], power: float) -> None:
    assert found({t: {"a.weight": tensors["a.weight"]} for t, tensors in path(steps, power).items()}) == []


def test_a_random_walk_is_in_line(found: Write) -> None:
    moves = torch.cumsum(noise(3, 30, 8, 6), dim=0)
    assert found({t: {"a.weight": moves[t]} for t in range(30)}) == []


@pytest.mark.parametrize("step", LOG_STEPS[1:-1])
def test_a_step_of_another_run_lies_aside(found: Write, step: int) -> None:
    weights = path(LOG_STEPS)
    weights[step]["a.weight"] = noise(99, 8, 6)
    ((check, at, sentence),) = found(weights)
    assert (check, at) == ("discontinuity", step)
    assert sentence.startswith("1 of 2 tensors are out of line: a.weight is 1.")
    assert "of its norm away from steps " in sentence


@pytest.mark.parametrize("step", [32, 64, 200, 300, 500])
def test_a_jump_of_the_norm_is_found_where_it_leads_to(found: Write, step: int) -> None:
    weights = {t: {"a.weight": noise(0, 8, 6) + 1e-3 * noise(t, 8, 6)} for t in LOG_STEPS}
    for t in LOG_STEPS[LOG_STEPS.index(step) :]:
        weights[t]["a.weight"] *= 3
    ((check, at, sentence),) = found(weights)
    assert (check, at) == ("discontinuity", step)
    assert "1 of 1 tensors are out of line: a.weight moves by 2 of its norm from step" in sentence


def test_a_small_share_of_the_norm_is_never_a_jump(found: Write) -> None:
    weights = {t: {"a.weight": noise(0, 8, 6) + 1e-6 * noise(t, 8, 6)} for t in LOG_STEPS}
    weights[100]["a.weight"] *= 1.04
    assert found(weights) == []
    weights[100]["a.weight"] *= 1.04
    assert [at for _, at, _ in found(weights)] == [100]


def test_equal_steps_are_found_with_the_first_of_them(found: Write) -> None:
    weights = path(LOG_STEPS)
    weights[8] = weights[16] = weights[400]
    faults = [(at, sentence) for check, at, sentence in found(weights) if check == "duplicate"]
    assert faults == [
        (16, "its weights are bit-identical to those of step 8"),
        (400, "its weights are bit-identical to those of step 8"),
    ]


def test_equal_steps_are_those_whose_common_tensors_are_equal() -> None:
    one, other = b"1", b"2"
    assert list(duplicates({0: {"a": one, "norm": one}, 1: {"a": other, "norm": one}}, set())) == []
    assert list(duplicates({0: {"a": one, "norm": one}, 1: {"a": one}}, set())) == [(0, 1)]
    assert list(duplicates({0: {"a": one}, 1: {"b": one}}, set())) == []


def test_steps_without_an_update_between_them_may_be_equal() -> None:
    same = {0: {"a": b"1"}, 1: {"a": b"1"}, 2: {"a": b"1"}}
    assert list(duplicates(same, {1})) == [(0, 2)]
    assert list(duplicates(same, {1, 2})) == []


def test_other_dtypes_and_shapes_are_read(found: Write) -> None:
    weights = {
        t: {"s": torch.tensor(1.0 + t), "h": noise(t, 3).bfloat16(), "e": torch.empty(0, 4)} for t in range(0, 40, 10)
    }
    assert found(weights) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(found: Write, value: float) -> None:
    weights = path(LOG_STEPS)
    weights[64]["b.weight"][0, 0] = value
    assert found(weights) == [("damage", 64, "b.weight holds NaN or infinity")]


def test_factors_that_are_reset_by_design_are_passed_over(found: Write) -> None:
    weights = path(LOG_STEPS)
    for t in LOG_STEPS:
        weights[t]["a.lora_B.weight"] = noise(5, 3, 3) * (1000.0 if t == 64 else 1.0)
    assert found(weights) == []


def test_a_file_that_is_no_safetensors_is_damage_and_the_rest_is_read(found: Write, tmp_path: Path) -> None:
    weights = path(LOG_STEPS)
    assert found(weights) == []
    (tmp_path / "64.safetensors").write_bytes(b"no tensors here")
    ((check, at, sentence),) = walk({t: tmp_path / f"{t}.safetensors" for t in LOG_STEPS}, set())
    assert (check, at) == ("damage", 64)
    assert sentence.startswith("is not a safetensors file")
