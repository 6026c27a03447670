"""Every metric under a change of scale, and within its range: norms grow with the scale, nothing else depends on it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pico_analyze.linalg import FactoredMatrix, GradientStack, WeightUpdate, entries, spectra
from pico_analyze.linalg.sample import Sample
from pico_analyze.metrics import METRICS
from pico_analyze.metrics.single import Outcome

GROWS = {
    **dict.fromkeys(("frobenius_norm", "nuclear_norm", "spectral_norm", "max_abs"), 1),
    **dict.fromkeys(("gradient_covariance_trace", "gradient_norm_squared"), 2),
}
"""Metric -> the power of the scale that it grows with; 0 for all others."""
SCALES = [1e-305, 1e-200, 1e-160, 1e-80, 1e80, 1e160, 1e200, 1e302]
NARROW = [(torch.float32, 1e-30), (torch.float32, 1e30), (torch.bfloat16, 1e-30), (torch.float16, 2.0**-12)]
ROWS, WIDTH = 80, 60


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of(name: str, x: Any, y: Any) -> Outcome:
    """A metric of x, or of x and y, each of which may be a product."""
    metric = METRICS[name]
    if metric.needs == "update":
        return metric.fn(WeightUpdate(x, y))
    if metric.needs == "micro_batches":
        gradients = (entries(x) + entries(x).abs().max()).unflatten(
            0, (8, -1)
        )  # of a mean that is larger than the noise
        return metric.fn(GradientStack(gradients, torch.full((8,), 5.0, dtype=torch.float64)))
    make = {"spectrum": lambda m: spectra([m])[0], "entries": entries, "matrix": lambda m: m, "sample": Sample.of}
    given = [make[metric.needs](one) for one in ((x, y) if metric.arity == 2 else (x,))]
    return metric.fn(*given, **metric.parameters)


def samples(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Two matrices that resemble each other, as samples of rank 30, so that canonical correlations are below 1."""
    if METRICS[name].needs != "sample":
        return drawn(0, ROWS, WIDTH), drawn(0, ROWS, WIDTH) + drawn(1, ROWS, WIDTH)
    x, mixture = drawn(0, ROWS, 30), drawn(9, 30, WIDTH)
    return x @ mixture, (x + drawn(1, ROWS, 30)) @ mixture


def expected(name: str, before: Outcome, *scales: float) -> Outcome:
    power = GROWS.get(name, 0)
    decades = power * sum(math.log10(scale) for scale in scales)
    if abs(decades) > 306:  # beyond float64, which has infinity or 0 for it
        limit = math.copysign(math.inf, before.value or 0) if decades > 0 else pytest.approx(0, abs=1e-300)
        return Outcome(limit, before.status)
    factor = math.prod(scales) ** power
    return Outcome(before.value and pytest.approx(factor * before.value, rel=1e-6, abs=0), before.status)


@pytest.mark.parametrize("name", METRICS)
def test_all_of_them_have_a_value_here(name: str) -> None:
    assert of(name, *samples(name)).status == "ok"


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("scale", SCALES)
def test_of_float64_at_any_scale(name: str, scale: float) -> None:
    x, y = samples(name)
    assert of(name, scale * x, scale * y) == expected(name, of(name, x, y), scale)


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.arity == 2])
def test_similarities_of_samples_of_very_different_sizes(name: str) -> None:
    x, y = samples(name)
    if name != "relative_distance":
        assert of(name, 1e-200 * x, 1e200 * y) == expected(name, of(name, x, y), 1.0)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(("dtype", "scale"), NARROW)
def test_of_narrow_dtypes_at_the_ends_of_their_range(name: str, dtype: torch.dtype, scale: float) -> None:
    """Powers of two near `scale`, which round nothing (of float16 down to where subnormals begin)."""
    power = 2.0 ** round(math.log2(scale))
    x, y = (z.to(dtype) for z in samples(name))
    moved = [(power * z.double()).to(dtype) for z in (x, y)]
    if dtype == torch.float16:
        x, y = (z.double() / power for z in moved)  # what subnormals keep of it
        x, y = x.to(dtype), y.to(dtype)
    found, before = of(name, *moved), expected(name, of(name, x, y), power)
    assert found.status == before.status or dtype == torch.float16
    if found.status == "ok" and before.status == "ok" and name not in JUDGED:
        assert found.value == before.value


JUDGED = ("numerical_rank", "effective_condition_number", "condition_number", "pwcca")
"""Depend on the tolerance, of which that of float16 is absolute near its subnormals."""


@pytest.mark.parametrize(
    "name", [n for n, m in METRICS.items() if m.needs in ("spectrum", "matrix", "sample", "update")]
)
@pytest.mark.parametrize("scales", [(1e-200, 1e200), (1e200, 1e-170), (1e-200, 1e-200), (1e200, 1e200)])
def test_of_products_whose_factors_are_extreme(name: str, scales: tuple[float, float]) -> None:
    left, right, other = drawn(0, ROWS, 55), drawn(1, 55, WIDTH), drawn(2, ROWS, 55)
    a, b = scales
    found = of(name, FactoredMatrix(a * left, b * right), FactoredMatrix(a * (left + other), b * right))
    before = of(name, FactoredMatrix(left, right), FactoredMatrix(left + other, right))
    assert found == expected(name, before, a, b)


def test_float16_subnormals_have_their_norms() -> None:
    x = (2.0**-24 * torch.arange(1, 13).reshape(3, 4)).half()
    assert of("frobenius_norm", x, x).value == pytest.approx(2.0**-24 * math.sqrt(650), rel=1e-12)
    assert of("cosine", x, x).value == 1
    assert of("relative_distance", x, 2 * x).value == pytest.approx(0.5)


def bounds(name: str, rows: int, width: int) -> tuple[float, float]:
    k = min(rows, width)
    low, high = METRICS[name].range.strip("[]()").split(", ")
    known = {"k": float(k), "ln k": math.log(k), "inf": math.inf, "-inf": -math.inf}
    return known.get(low, 0.0) if low in known else float(low), known[high] if high in known else float(high)


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.needs != "micro_batches"])
def test_no_value_leaves_its_range_by_rounding(name: str) -> None:
    """200 samples and rotations of themselves, where similarities are 1 and rounding leads out of the range."""
    low, high = bounds(name, 40, 7)
    for seed in range(200):
        x = drawn(seed, 40, 7)
        turned = x @ torch.linalg.qr(drawn(seed + 1000, 7, 7)).Q
        for a, b in ((x, turned), (turned, -x), (torch.ones(40, 7) * (1 + seed / 7), x)):
            value = of(name, a, b).value
            assert value is None or low <= value <= high, (seed, value)


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.unit == "similarity"])
def test_similarities_have_an_angle(name: str) -> None:
    for seed in range(200):
        x = drawn(seed, 40, 7)
        turned = x @ torch.linalg.qr(drawn(seed + 1000, 7, 7)).Q
        value = of(name, x, turned).value
        assert value is not None
        assert not math.isnan(math.acos(value))
