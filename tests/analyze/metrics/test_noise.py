"""The gradient noise scale: a closed form, unbiasedness, invariances, and numpy from the paper's own formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_analyze import measure, open_run
from pico_analyze.linalg import GradientStack
from pico_analyze.linalg.decompositions import REAL
from pico_analyze.metrics.noise import gradient_covariance_trace, gradient_noise_scale, gradient_norm_squared
from pico_analyze.metrics.single import Outcome
from pico_contract import codec
from pico_contract.layout import MANIFEST, RunLayout, observed_file
from pico_contract.schema import SnapshotManifest, TensorSet

MODULE = "model.layers.0.self_attn.v_proj"
seeds = st.integers(0, 2**32 - 1)
counts = st.lists(st.integers(1, 40), min_size=2, max_size=7)


def stack(gradients: torch.Tensor | np.ndarray | list, terms: list[int]) -> GradientStack:
    return GradientStack(torch.as_tensor(gradients, dtype=REAL), torch.tensor(terms, dtype=REAL))


def drawn(seed: int, m: int, signal: float = 3.0) -> torch.Tensor:
    """m gradients (4, 5) about one that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    return signal + torch.randn(m, 4, 5, generator=generator, dtype=REAL)


def of_examples(examples: np.ndarray, terms: list[int]) -> np.ndarray:
    """Gradients of the mean loss of consecutive micro-batches of per-example gradients (N, size)."""
    return np.stack([part.mean(axis=0) for part in np.split(examples, np.cumsum(terms)[:-1])])


def in_the_paper(gradients: np.ndarray, small: int) -> tuple[float, float]:
    """(|G|^2, S) of McCandlish et al. 2018, appendix A.1, for micro-batches of `small` terms each."""
    big = small * len(gradients)
    norm_small = np.mean([np.sum(g * g) for g in gradients])
    norm_big = np.sum(gradients.mean(axis=0) ** 2)
    squared = (big * norm_big - small * norm_small) / (big - small)
    return squared, (norm_small - norm_big) / (1 / small - 1 / big)


def test_two_micro_batches_in_closed_form() -> None:
    """g = (3, 1) and (3, -1) of 8 terms each: G = (3, 0), tr S = 8 (1 + 1) / 1, |G*|^2 = 9 - 16 / 16."""
    found = stack([[3.0, 1.0], [3.0, -1.0]], [8, 8])
    assert gradient_covariance_trace(found) == Outcome(16.0)
    assert gradient_norm_squared(found) == Outcome(8.0)
    assert gradient_noise_scale(found) == Outcome(2.0)


def test_micro_batches_weigh_by_their_terms() -> None:
    """g = 4 of 1 term and 0 of 3: G = 1, tr S = 1 * 9 + 3 * 1."""
    found = stack([[4.0], [0.0]], [1, 3])
    assert gradient_covariance_trace(found) == Outcome(12.0)
    assert gradient_norm_squared(found) == Outcome(1.0 - 12.0 / 4)
    assert gradient_noise_scale(found) == Outcome(None, "no_signal")


@given(seeds, st.integers(2, 9), st.integers(1, 64))
@settings(deadline=None, max_examples=50)
def test_equal_micro_batches_give_the_formula_of_the_paper(seed: int, m: int, small: int) -> None:
    """1e-9 relative: the paper's form subtracts norms that agree in their first digits."""
    gradients = drawn(seed, m)
    squared, trace = in_the_paper(gradients.numpy(), small)
    found = stack(gradients, [small] * m)
    assert gradient_covariance_trace(found).value == pytest.approx(trace, rel=1e-9)
    assert gradient_norm_squared(found).value == pytest.approx(squared, rel=1e-9)
    assert gradient_noise_scale(found).value == pytest.approx(trace / squared, rel=1e-9)


@given(seeds, counts)
@settings(deadline=None, max_examples=50)
def test_the_definition_in_numpy(seed: int, terms: list[int]) -> None:
    gradients = drawn(seed, len(terms)).numpy()
    n = np.array(terms, dtype=np.float64)
    mean = sum(w * g for w, g in zip(n, gradients, strict=True)) / n.sum()
    trace = sum(w * np.sum((g - mean) ** 2) for w, g in zip(n, gradients, strict=True)) / (len(n) - 1)
    found = stack(gradients, terms)
    assert gradient_covariance_trace(found).value == pytest.approx(trace, rel=1e-12)
    assert gradient_norm_squared(found).value == pytest.approx(np.sum(mean**2) - trace / n.sum(), rel=1e-9)


@pytest.mark.parametrize("terms", [[4, 4, 4, 4], [1, 3, 4, 8]])
def test_both_estimates_are_unbiased(terms: list[int]) -> None:
    """1,000 batches of per-example gradients of known mean and covariance; 5 standard errors of the mean."""
    generator = np.random.default_rng(5)
    mean, deviations = np.array([1.0, -2.0, 0.5]), np.array([2.0, 0.5, 1.0])
    found = []
    for _ in range(1000):
        examples = mean + deviations * generator.standard_normal((sum(terms), 3))
        batch = stack(of_examples(examples, terms), terms)
        found.append((gradient_covariance_trace(batch).value, gradient_norm_squared(batch).value))
    estimates = np.array(found)
    expected = np.array([np.sum(deviations**2), np.sum(mean**2)])
    error = estimates.std(axis=0) / math.sqrt(len(estimates))
    assert (np.abs(estimates.mean(axis=0) - expected) < 5 * error).all()
    without_correction = expected[0] / np.array([len(terms), sum(terms)])
    assert (5 * error < without_correction).all()  # so that the assertion above could fail


@given(seeds, counts, st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=50)
def test_scale_of_the_loss_and_order_of_the_micro_batches_change_nothing(
    seed: int, terms: list[int], scale: float
) -> None:
    gradients = drawn(seed, len(terms))
    before = gradient_noise_scale(stack(gradients, terms))
    turned = torch.randperm(len(terms), generator=torch.Generator().manual_seed(seed))
    for other in (
        stack(scale * gradients, terms),
        stack(gradients[turned], [terms[i] for i in turned.tolist()]),
        stack(gradients.flatten(1), terms),
    ):
        after = gradient_noise_scale(other)
        assert (after.status, after.value) == (before.status, pytest.approx(before.value, rel=1e-9))


@given(seeds, counts)
@settings(deadline=None, max_examples=50)
def test_the_scale_is_in_terms(seed: int, terms: list[int]) -> None:
    """The same gradients from micro-batches of twice the terms: the noise of a term is twice as large."""
    gradients = drawn(seed, len(terms))
    once, twice = (gradient_noise_scale(stack(gradients, [k * n for n in terms])) for k in (1, 2))
    assert twice.value == pytest.approx(2 * once.value, rel=1e-12)


@pytest.mark.parametrize(
    ("gradients", "terms", "expected"),
    [
        ([[1.0], [-1.0]], [4, 4], Outcome(None, "no_signal")),
        ([[0.0], [0.0]], [4, 4], Outcome(None, "zero")),
        ([[2.0], [2.0]], [4, 4], Outcome(0.0)),
        ([[2.0]], [4], Outcome(None, "too_few")),
        ([[2.0], [0.0]], [4, 0], Outcome(None, "too_few")),
        ([[2.0], [1.0]], [], Outcome(None, "missing")),
    ],
)
def test_where_there_is_no_scale_a_status_says_why(gradients: list, terms: list[int], expected: Outcome) -> None:
    assert gradient_noise_scale(stack(gradients, terms)) == expected


def with_micro_batches(layout: RunLayout, step: int, terms: list[int]) -> torch.Tensor:
    """Gradients of micro-batches of one module added to a snapshot; they are given back."""
    gradients = drawn(step, 4).float()
    directory = layout.snapshot(step)
    manifest = codec.read_manifest(directory / MANIFEST, SnapshotManifest)
    file = observed_file("train", "microbatch_gradients")
    codec.save_tensors(directory / file, {f"{MODULE}.weight": gradients})
    manifest.observed.append(
        TensorSet(
            file=file,
            split="train",
            kind="microbatch_gradients",
            dtype="float32",
            tensors={f"{MODULE}.weight": [4, 4, 5]},
            terms=terms,
        )
    )
    codec.seal(directory, manifest)
    return gradients


def test_a_run_that_stored_them_is_measured_by_default(layout: RunLayout) -> None:
    gradients = {step: with_micro_batches(layout, step, [16, 16, 16, 8]) for step in (0, 1)}
    frame = measure(open_run(layout.root), components=["v_proj", "ov_circuit"], splits=["train"])
    rows = frame[frame["kind"] == "microbatch_gradients"]
    assert set(rows["metric"]) == {"gradient_noise_scale", "gradient_covariance_trace", "gradient_norm_squared"}
    scale = rows[rows["metric"] == "gradient_noise_scale"].set_index("step")
    assert scale[["module", "unit", "status", "dtype"]].drop_duplicates().to_numpy().tolist() == [
        [MODULE, "tokens", "ok", "float32"]
    ]
    assert scale[["n", "d"]].drop_duplicates().to_numpy().tolist() == [[4, 20]]
    for step, one in gradients.items():
        assert scale.loc[step, "value"] == gradient_noise_scale(stack(one, [16, 16, 16, 8])).value


def test_without_the_terms_nothing_is_made_up(layout: RunLayout) -> None:
    with_micro_batches(layout, 0, [])
    frame = measure(open_run(layout.root), ["gradient_noise_scale"], ["v_proj"], steps=[0])
    assert frame["status"].tolist() == ["missing"]
