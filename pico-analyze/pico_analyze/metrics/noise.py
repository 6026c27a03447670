"""Noise of gradients, from the gradients of micro-batches at one point.

Micro-batch i of m has n_i terms of the loss (tokens) and the gradient g_i of their mean; N = sum
n_i, and G = sum n_i g_i / N is the gradient of the batch. Were terms drawn independently, with a
gradient of mean G* and covariance S each, E|g_i - G*|^2 would be tr(S) / n_i, and the two estimates
here have the expectations tr(S) and |G*|^2. Tokens of a row are not independent: what is measured
is the noise of batches made of such rows, counted in tokens.

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
    """Both without bias: tr(S), and |G*|^2, which may be negative; each divided by 2^exponent."""

    trace: float
    squared: float
    exponent: int


def gradient_noise_scale(of: GradientStack) -> Outcome:
    """B_simple = tr(S) / |G*|^2 of one parameter, from unbiased estimates of both; in [0, inf),
    tokens.

    The batch at which noise and signal are of one size: far below it a larger batch makes a step
    better almost in proportion, far above it hardly. Of a whole model it is the sum of
    `gradient_covariance_trace` over the parameters by that of `gradient_norm_squared`, each
    averaged over nearby steps, and no mean of ratios. None (no_signal) where the estimate of |G*|^2
    is not positive, (too_few) for a single micro-batch. Source: McCandlish et al. 2018, "An
    empirical model of large-batch training", sec. 2.2 and appendix A.1.
    """
    found = _estimates(of)
    if isinstance(found, Outcome):
        return found
    if found.squared <= 0:
        return Outcome(None, "no_signal" if found.trace > 0 else "zero")
    return Outcome(found.trace / found.squared)


def gradient_covariance_trace(of: GradientStack) -> Outcome:
    """sum n_i |g_i - G|^2 / (m - 1), which estimates tr(S) without bias; in [0, inf), nats^2
    tokens.

    None (too_few) for a single micro-batch.
    Source: McCandlish et al. 2018, "An empirical model of large-batch training", appendix A.1.
    """
    found = _estimates(of)
    return (
        found if isinstance(found, Outcome) else Outcome(times_power(found.trace, found.exponent))
    )


def gradient_norm_squared(of: GradientStack) -> Outcome:
    """|G|^2 - tr(S) / N, which estimates |G*|^2 without bias; in (-inf, inf), nats^2, below 0 where noise hides it.

    None (too_few) for a single micro-batch.
    Source: McCandlish et al. 2018, "An empirical model of large-batch training", appendix A.1.
    """
    found = _estimates(of)
    return (
        found if isinstance(found, Outcome) else Outcome(times_power(found.squared, found.exponent))
    )


def _estimates(of: GradientStack) -> Estimates | Outcome:
    """A micro-batch without terms says nothing and counts for none."""
    if len(of.n_tokens) != len(of.gradients):
        return Outcome(None, "missing")
    scaled, exponent = normalized_entries(of.gradients)
    n_tokens, gradients = of.n_tokens[of.n_tokens > 0], scaled[of.n_tokens > 0].flatten(1)
    if len(n_tokens) < 2:
        return Outcome(None, "too_few")
    mean = n_tokens @ gradients / n_tokens.sum()
    trace = float(n_tokens @ (gradients - mean).square().sum(dim=1)) / (len(n_tokens) - 1)
    return Estimates(
        trace, float(mean.square().sum()) - trace / float(n_tokens.sum()), 2 * exponent
    )
