"""The registry of metrics: one literal table by name; users may add their own functions."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from pico_contract.errors import UserError, did_you_mean
from pico_contract.kinds import ACTIVATIONS, GRADIENTS, MICROBATCH_GRADIENTS, WEIGHTS

from pico_analyze.metrics import noise, pair, single

ENTRY = "unit of the entries"
_ALL = (WEIGHTS, GRADIENTS, ACTIVATIONS)
_SAMPLES = (ACTIVATIONS,)
_UPDATES = ("updates",)
_MICRO_BATCHES = (MICROBATCH_GRADIENTS,)


@dataclass(frozen=True)
class Metric:
    """A metric: a pure function, the input that it takes and how to read its value.

    Attributes:
        fn: returns an `Outcome`, or a number if it is a user's own function.
        arity: 1, or 2 for a function of the step and its reference.
        kinds: the kinds of tensors that it is defined for.
        needs: the input, for each argument: a `linalg.Spectrum`, the `entries` (a float64 tensor;
            the entries of a circuit are computed only on request), the `matrix` as it is stored (a
            tensor, or the `linalg.FactoredMatrix` of a circuit), a `linalg.sample.Sample`, a
            `linalg.WeightUpdate` or a `linalg.GradientStack`.
        parameters: keyword arguments of `fn`, which the column `variant` of the table records.
        caution: a comparison for which its numbers are not suited.
    """

    fn: Callable[..., Any]
    arity: Literal[1, 2]
    kinds: tuple[str, ...]
    needs: Literal["spectrum", "entries", "matrix", "sample", "update", "micro_batches"]
    unit: str
    range: str
    parameters: Mapping[str, float] = field(default_factory=dict)
    caution: str = ""

    @cached_property
    def variant(self) -> str:
        """The parameters as canonical JSON, a column of the table."""
        return json.dumps(dict(self.parameters), sort_keys=True)


_OF_ONE_SHAPE = "a worst case: comparable at one shape and dtype only"
_TWO_SIDED = "two-sided distance: not comparable with the packages powerlaw and plfit"

METRICS: dict[str, Metric] = {
    # Spectrum of one matrix
    "per": Metric(single.per, 1, _ALL, "spectrum", "fraction of full rank", "[0, 1]"),
    "effective_rank": Metric(
        single.effective_rank, 1, _ALL, "spectrum", "dimensions", "[0, k]"
    ),
    "condition_number": Metric(
        single.condition_number, 1, _ALL, "spectrum", "ratio", "[1, inf)"
    ),
    "effective_condition_number": Metric(
        single.effective_condition_number, 1, _ALL, "spectrum", "ratio", "[1, inf)"
    ),
    "numerical_rank": Metric(
        single.numerical_rank,
        1,
        _ALL,
        "spectrum",
        "dimensions",
        "[0, k]",
        caution=_OF_ONE_SHAPE,
    ),
    "stable_rank": Metric(single.stable_rank, 1, _ALL, "spectrum", "dimensions", "[0, k]"),
    "participation_ratio": Metric(
        single.participation_ratio, 1, _ALL, "spectrum", "dimensions", "[0, k]"
    ),
    "spectral_entropy": Metric(
        single.spectral_entropy, 1, _ALL, "spectrum", "nats", "[0, ln k]"
    ),
    "heavy_tail_exponent": Metric(
        single.heavy_tail_exponent,
        1,
        _ALL,
        "spectrum",
        "exponent",
        "(1, inf)",
        caution=_TWO_SIDED,
    ),
    "heavy_tail_ks": Metric(
        single.heavy_tail_ks, 1, _ALL, "spectrum", "distance", "[0, 1]", caution=_TWO_SIDED
    ),
    "heavy_tail_count": Metric(
        single.heavy_tail_count, 1, _ALL, "spectrum", "eigenvalues", "[2, k]"
    ),
    "frobenius_norm": Metric(single.frobenius_norm, 1, _ALL, "spectrum", ENTRY, "[0, inf)"),
    "nuclear_norm": Metric(single.nuclear_norm, 1, _ALL, "spectrum", ENTRY, "[0, inf)"),
    "spectral_norm": Metric(single.spectral_norm, 1, _ALL, "spectrum", ENTRY, "[0, inf)"),
    # Entries of one matrix or vector
    "max_abs": Metric(single.max_abs, 1, _ALL, "entries", ENTRY, "[0, inf)"),
    "gini": Metric(single.gini, 1, _ALL, "entries", "index", "[0, 1)"),
    "hoyer": Metric(single.hoyer, 1, _ALL, "entries", "index", "[0, 1]"),
    "kurtosis": Metric(single.kurtosis, 1, _ALL, "entries", "ratio", "[-2, inf)"),
    "near_zero_share": Metric(
        single.near_zero_share,
        1,
        _ALL,
        "entries",
        "share of entries",
        "[0, 1]",
        {"fraction": 0.01},
    ),
    # One sample of activations
    "anisotropy": Metric(single.anisotropy, 1, _SAMPLES, "sample", "similarity", "[-1, 1]"),
    "intrinsic_dimension": Metric(
        single.intrinsic_dimension, 1, _SAMPLES, "sample", "dimensions", "[0, k]"
    ),
    "dead_units": Metric(
        single.dead_units, 1, _SAMPLES, "sample", "share of columns", "[0, 1]"
    ),
    # One update
    "update_to_weight_ratio": Metric(
        single.update_to_weight_ratio, 1, _UPDATES, "update", "ratio", "[0, inf)"
    ),
    # Gradients of micro-batches
    "gradient_noise_scale": Metric(
        noise.gradient_noise_scale, 1, _MICRO_BATCHES, "micro_batches", "tokens", "[0, inf)"
    ),
    "gradient_covariance_trace": Metric(
        noise.gradient_covariance_trace,
        1,
        _MICRO_BATCHES,
        "micro_batches",
        "nats^2 tokens",
        "[0, inf)",
    ),
    "gradient_norm_squared": Metric(
        noise.gradient_norm_squared, 1, _MICRO_BATCHES, "micro_batches", "nats^2", "(-inf, inf)"
    ),
    # Two samples of the same rows
    "cka": Metric(pair.cka, 2, _SAMPLES, "sample", "similarity", "[0, 1]"),
    "cka_debiased": Metric(pair.cka_debiased, 2, _SAMPLES, "sample", "similarity", "[-1, 1]"),
    "cka_rbf": Metric(
        pair.cka_rbf, 2, _SAMPLES, "sample", "similarity", "[0, 1]", {"bandwidth": 0.8}
    ),
    "svcca": Metric(
        pair.svcca, 2, _SAMPLES, "sample", "similarity", "[0, 1]", {"variance": 0.99}
    ),
    "pwcca": Metric(pair.pwcca, 2, _SAMPLES, "sample", "similarity", "[0, 1]"),
    "procrustes": Metric(pair.procrustes, 2, _SAMPLES, "sample", "similarity", "[0, 1]"),
    "subspace_overlap": Metric(
        pair.subspace_overlap, 2, _SAMPLES, "sample", "similarity", "[0, 1]", {"k": 10}
    ),
    "mutual_knn": Metric(
        pair.mutual_knn, 2, _SAMPLES, "sample", "similarity", "[0, 1]", {"k": 10}
    ),
    # Two matrices or vectors
    "cosine": Metric(pair.cosine, 2, _ALL, "matrix", "similarity", "[-1, 1]"),
    "relative_distance": Metric(pair.relative_distance, 2, _ALL, "matrix", "ratio", "[0, inf)"),
}


def resolve(metrics: Sequence[str | Callable[..., Any]] | None) -> dict[str, Metric]:
    """Return name -> metric for a choice of metrics.

    Args:
        metrics: names of `METRICS`, functions of a float64 tensor, or `module:attribute`; None for
            all of METRICS.

    Raises:
        UserError: an unknown name (with the nearest), a module that does not import, two different
            metrics of one name.
    """
    chosen: dict[str, Metric] = {}
    for item in METRICS if metrics is None else metrics:
        name, metric = _resolve_one(item)
        # The name is the key of the table, so it must identify the function.
        if chosen.get(name, metric) != metric or METRICS.get(name, metric) != metric:
            raise UserError(
                f'two different metrics are called "{name}": give the function another name'
            )
        chosen[name] = metric
    return chosen


def _resolve_one(item: str | Callable[..., Any]) -> tuple[str, Metric]:
    if not isinstance(item, str):
        name = getattr(item, "__name__", type(item).__name__)
        return name, _users_own(item)
    if ":" in item:
        return item, _users_own(_load(item))
    if item not in METRICS:
        raise UserError(f'there is no metric "{item}"{did_you_mean(item, METRICS)}')
    return item, METRICS[item]


def _users_own(fn: Callable[..., Any]) -> Metric:
    return Metric(fn, 1, _ALL, "entries", "", "")


def _load(reference: str) -> Any:
    """Import the attribute that `module:attribute` names; the module must be importable."""
    module, _, attribute = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError, ValueError) as error:
        raise UserError(f'the metric "{reference}" cannot be loaded ({error})') from None
