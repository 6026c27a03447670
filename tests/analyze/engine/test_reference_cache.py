"""The cache of references: a budget, of which the first step is free, and room after a release."""

from __future__ import annotations

import torch
from pico_analyze.components.select import ComponentKey
from pico_analyze.engine.inputs import MetricInputs
from pico_analyze.engine.reference_cache import ReferenceCache, StepInputs

A_STEP = 8 * 4 * 3


def inputs() -> StepInputs:
    """A matrix of 4 x 3, which counts in float64."""
    return {ComponentKey("v_proj", 0, None, "v_proj"): MetricInputs(torch.zeros(4, 3), torch.float32)}


def test_steps_are_refused_beyond_the_budget_and_accepted_after_a_release() -> None:
    cache = ReferenceCache(2 * A_STEP, counts_samples=False)
    first = inputs()
    assert cache.put(0, first)
    assert cache.put(1, inputs())
    assert not cache.put(2, inputs())
    assert (cache.is_full, len(cache), cache.get(0) is first, cache.get(2)) == (True, 2, True, None)
    cache.release(2)
    assert cache.is_full
    cache.release(0)
    assert (cache.is_full, len(cache), cache.get(0)) == (False, 1, None)
    assert cache.put(2, inputs())


def test_the_first_step_is_accepted_whatever_its_size() -> None:
    cache = ReferenceCache(0, counts_samples=False)
    assert cache.put(0, inputs())
    assert not cache.put(1, inputs())


def test_samples_take_more_than_the_matrix() -> None:
    cache = ReferenceCache(2 * A_STEP, counts_samples=True)
    assert cache.put(0, inputs())
    assert not cache.put(1, inputs())
