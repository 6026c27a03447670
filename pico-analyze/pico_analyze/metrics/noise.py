"""Noise of gradients, from the gradients of micro-batches at one point.

Micro-batch i of m has n_i terms of the loss (tokens) and the gradient g_i of their mean; N = sum
n_i, and G = sum n_i g_i / N is the gradient of the batch. If terms were drawn independently, each
with a gradient of mean G* and covariance S, then E|g_i - G*|^2 would be tr(S) / n_i, and the two
estimates here would have the expectations tr(S) and |G*|^2. But tokens of a row are not
independent, so the noise measured is that of batches made of such rows, counted in tokens.

Source: McCandlish et al. 2018, "An empirical model of large-batch training", appendix A.1. With
equal n_i = B_small and N = B_big these are its estimates, |G_small|^2 being the mean of |g_i|^2,
summed without its cancellation.
"""

from __future__ import annotations

from typing import NamedTuple

from pico_analyze.linalg.matrix import GradientStack
from pico_analyze.linalg.scaling import normalized_entries, times_power
from pico_analyze.metrics.single import Outcome


class Estimates(NamedTuple):
    """Unbiased estimates of tr(S) and of |G*|^2, which may be negative, divided by 2^exponent."""

    trace: float
    squared: float
    exponent: int


def gradient_noise_scale(stack: GradientStack) -> Outcome:
    """Compute the noise scale B_simple = tr(S) / |G*|^2 of one parameter from unbiased estimates.

    In [0, inf), tokens. It is the batch at which noise and signal are equally large: far below it a
    larger batch improves a step almost in proportion, far above it hardly at all. For a whole
    model, average `gradient_covariance_trace` and `gradient_norm_squared` over nearby steps, sum
    each over the parameters, and divide; a mean of ratios is not the noise scale. None (no_signal)
    if the estimate of |G*|^2 is not positive, None (too_few) for a single micro-batch.
    Source: McCandlish et al. 2018, "An empirical model of large-batch training", sec. 2.2 and
    appendix A.1.
    """
    estimates = _estimates(stack)
    if isinstance(estimates, Outcome):
        return estimates
    # Noise can hide the gradient; without noise the gradient itself is zero.
    if estimates.squared <= 0:
        return Outcome(None, "no_signal" if estimates.trace > 0 else "zero")
    return Outcome(estimates.trace / estimates.squared)


def gradient_covariance_trace(stack: GradientStack) -> Outcome:
    """Compute sum n_i |g_i - G|^2 / (m - 1), the unbiased estimate of tr(S).

    In [0, inf), nats^2 tokens. None (too_few) for a single micro-batch. Source: McCandlish et al.
    2018, "An empirical model of large-batch training", appendix A.1.
    """
    estimates = _estimates(stack)
    if isinstance(estimates, Outcome):
        return estimates
    return Outcome(times_power(estimates.trace, estimates.exponent))


def gradient_norm_squared(stack: GradientStack) -> Outcome:
    """Compute |G|^2 - tr(S) / N, the unbiased estimate of |G*|^2.

    In (-inf, inf), nats^2; below 0 if noise hides the gradient. None (too_few) for a single
    micro-batch. Source: McCandlish et al. 2018, "An empirical model of large-batch training",
    appendix A.1.
    """
    estimates = _estimates(stack)
    if isinstance(estimates, Outcome):
        return estimates
    return Outcome(times_power(estimates.squared, estimates.exponent))


def _estimates(stack: GradientStack) -> Estimates | Outcome:
    """Estimate tr(S) and |G*|^2, or return the outcome of every metric if that is impossible."""
    if len(stack.n_tokens) != len(stack.gradients):
        return Outcome(None, "missing")
    scaled, exponent = normalized_entries(stack.gradients)
    # A micro-batch without terms of the loss carries no information; it does not count in m.
    has_terms = stack.n_tokens > 0
    n_tokens = stack.n_tokens[has_terms]
    gradients = scaled[has_terms].flatten(1)
    m = len(n_tokens)
    if m < 2:
        return Outcome(None, "too_few")
    total = n_tokens.sum()
    mean = n_tokens @ gradients / total
    squared_deviations = (gradients - mean).square().sum(dim=1)
    trace = float(n_tokens @ squared_deviations) / (m - 1)
    squared_norm = float(mean.square().sum())
    # |G|^2 exceeds |G*|^2 by tr(S) / N on average.
    squared = squared_norm - trace / float(total)
    return Estimates(trace, squared, 2 * exponent)
