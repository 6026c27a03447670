"""What the optimizer forgets at a restart, on AdamW with moments of a thousand updates."""

from __future__ import annotations

import pytest
import torch
from pico_train.method.relora.optimizer_reset import MOMENTS, reset
from torch import nn

LR = 1e-2
AGED = 1000


def aged() -> tuple[nn.Parameter, torch.optim.Optimizer]:
    """A parameter after many updates by gradients of unit deviation and a mean of 1, as persistent ones have."""
    draws = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.zeros(40, 50))
    optimizer = torch.optim.AdamW([parameter], lr=LR, weight_decay=0.0, fused=True)
    for _ in range(AGED):
        parameter.grad = 1 + torch.randn(parameter.shape, generator=draws)
        optimizer.step()
    return parameter, optimizer


def next_update(parameter: nn.Parameter, optimizer: torch.optim.Optimizer, seed: int = 1) -> torch.Tensor:
    """|move| of each entry, in learning rates, by one more gradient of the same kind."""
    before = parameter.detach().clone()
    parameter.grad = 1 + torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    optimizer.step()
    return (parameter.detach() - before).abs() / LR


def test_all_is_as_at_the_beginning() -> None:
    parameter, optimizer = aged()
    reset("all", 0.9, optimizer, {"p": parameter}, 0, 8)
    assert not any(tensor.any() for tensor in optimizer.state[parameter].values())
    torch.testing.assert_close(next_update(parameter, optimizer), torch.ones(40, 50), rtol=1e-3, atol=0)


@pytest.mark.parametrize("how", ["shared_pruning", "magnitude_pruning"])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.999, 1.0])
def test_one_mask_and_a_new_counter_keep_the_first_update_small(how: str, ratio: float) -> None:
    """At most sqrt(1 + 81 / 999 m^2 / v) by Cauchy's inequality, 1.04 where m^2 <= v."""
    parameter, optimizer = aged()
    reset(how, ratio, optimizer, {"p": parameter}, 0, 8)
    masks = [optimizer.state[parameter][entry] == 0 for entry in MOMENTS]
    assert torch.equal(*masks)
    assert masks[0].float().mean().item() == pytest.approx(ratio, abs=0.04)
    assert next_update(parameter, optimizer).max() < 1.1


def test_magnitudes_decide_which_moments_stay() -> None:
    parameter, optimizer = aged()
    moment = optimizer.state[parameter]["exp_avg"].clone().abs()
    reset("magnitude_pruning", 0.75, optimizer, {"p": parameter}, 0, 8)
    kept = optimizer.state[parameter]["exp_avg"] != 0
    assert moment[kept].min() >= moment[~kept].max()
    assert kept.sum() == 500


def test_masks_of_their_own_and_an_old_counter_move_entries_by_many_learning_rates() -> None:
    """Both moments gone: 0.1 / sqrt(0.001) = 3.16, and the bias corrections of an old counter leave it so (of 1,000
    updates: 3.16 * sqrt(1 - 0.999^1001) = 2.51). The second alone gone: beyond any bound."""
    parameter, optimizer = aged()
    reset("independent_pruning", 0.5, optimizer, {"p": parameter}, 0, 8)
    first, second = (optimizer.state[parameter][entry] == 0 for entry in MOMENTS)
    assert not torch.equal(first, second)
    moved = next_update(parameter, optimizer)
    torch.testing.assert_close(moved[first & second], torch.full_like(moved, 2.514)[first & second], rtol=1e-2, atol=0)
    assert moved[~first & second].median() > 10


def test_masks_are_of_the_seed_the_name_and_the_step() -> None:
    def kept(seed: int, name: str, step: int) -> torch.Tensor:
        parameter, optimizer = nn.Parameter(torch.zeros(30, 30)), torch.optim.AdamW([nn.Parameter(torch.zeros(1))])
        ones = {entry: torch.ones(30, 30) for entry in MOMENTS}
        optimizer.state[parameter] = {**ones, "step": torch.ones(())}
        reset("shared_pruning", 0.5, optimizer, {name: parameter}, seed, step)
        return optimizer.state[parameter]["exp_avg"]

    assert torch.equal(kept(0, "a", 4), kept(0, "a", 4))
    for other in ((1, "a", 4), (0, "b", 4), (0, "a", 8)):
        assert not torch.equal(kept(0, "a", 4), kept(*other))


def test_a_parameter_that_was_never_updated_has_nothing_to_forget() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([parameter])
    reset("shared_pruning", 0.5, optimizer, {"p": parameter}, 0, 8)
    assert not optimizer.state
