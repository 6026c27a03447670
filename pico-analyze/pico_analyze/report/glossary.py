"""The words of a report: the meaning of a status, of a metric's values, and of a component."""

from __future__ import annotations

STATUSES = {
    "zero": "the tensor is zero, or has no variance, so that the definition gives 0 or nothing",
    "rank_deficient": "a singular value is not above the rounding of the stored precision, so that a condition number "
    "would measure noise; the effective condition number and the numerical rank say what can be said",
    "within_rounding": "the tensor is not zero, but no more than rounding to the stored precision can have done",
    "not_unique": "several answers fit the definition equally: canonical correlations that repeat, which leaves their "
    "weights open, or directions of one size of which only some are to be taken",
    "n_less_than_d": "too few distinct rows, or too few sequences, for the definition: observe more probe rows",
    "too_few": "fewer than 50 singular values that differ: a power law's exponent could not be told from chance; or a "
    "single micro-batch, which has no spread",
    "no_signal": "the estimate of the squared gradient is not positive: so few micro-batches do not tell it from noise",
    "missing": "the step does not hold what was asked for",
    "damaged": "the file that holds it is not readable, or its bytes are not those that were written",
    "non_finite": "the tensor, or the result, holds NaN or infinity",
}
"""Status of the measurement table -> its meaning; `ok` needs no words."""

# Metric -> the meaning of a high or low value, as a clause that begins in lower case.
_METRICS = {
    # Spectra.
    "per": "near 1 a matrix uses all its directions equally; it falls as few directions come to hold most of it",
    "effective_rank": "how many directions a matrix uses, as if they were all of one size",
    "condition_number": "how many times larger the largest stretch is than the smallest; 1 is best conditioned",
    "effective_condition_number": "as the condition number, over what is above rounding",
    "numerical_rank": "directions above the worst that rounding to the stored precision can have done, which grows "
    "with the width: comparable at one shape and dtype only",
    "stable_rank": "near 1 one direction dominates",
    "participation_ratio": "how many directions hold most of the squared norm; the largest count more than in the "
    "effective rank",
    "spectral_entropy": "0 where one direction holds all, highest where all are of one size",
    "heavy_tail_exponent": "smaller where few directions stand out ever further; worth reading only where the fit is "
    "good and of many values. The fit takes the two-sided distance: it is not comparable with the packages powerlaw "
    "and plfit, which take the one-sided distance and cap the exponent",
    "heavy_tail_ks": "how far the largest eigenvalues are from a power law (two-sided distance): small where the "
    "exponent means something",
    "heavy_tail_count": "how many eigenvalues lie in the tail that the power law is fitted to",
    # Sizes and entries.
    "frobenius_norm": "the size of the whole tensor",
    "nuclear_norm": "the sum of its singular values, which grows with size and with rank",
    "spectral_norm": "the size of its largest direction",
    "max_abs": "the size of its largest entry",
    "gini": "0 where all entries are of one magnitude, towards 1 where few hold everything",
    "hoyer": "0 where all entries are of one magnitude, 1 where a single one is not zero",
    "kurtosis": "0 for a bell curve, above where rare entries stand far out",
    "near_zero_share": "the share of entries below a hundredth of the typical size; 0.008 for a bell curve",
    # Samples of activations.
    "anisotropy": "near 1 all rows point the same way, near 0 they spread over all directions",
    "intrinsic_dimension": "how many directions hold most of the variance of the rows",
    "dead_units": "the share of units that say the same whatever they are shown",
    # Updates and gradients.
    "update_to_weight_ratio": "how far the weights went since the window began, in sizes of what they were; a layer "
    "far below the others hardly learns",
    "gradient_noise_scale": "the batch, in tokens, at which noise and signal of the gradient are of one size: a larger "
    "one than that hardly makes a step better",
    "gradient_covariance_trace": "how much the gradient differs from token to token; its sum over modules, by that of "
    "the squared norm, is the noise scale of the model",
    "gradient_norm_squared": "the size of the gradient without what noise adds to it; below 0 where noise hides it",
    # Similarities and distances to a reference.
    "cka": "1 where two samples are alike up to rotation and scale; biased upwards where rows are few",
    "cka_debiased": "1 where two samples are alike up to rotation and scale, about 0 where they are unrelated",
    "cka_rbf": "as CKA, weighing near rows more than far ones",
    "svcca": "1 where the directions that hold nearly all variance are those of the reference, whatever their sizes",
    "pwcca": "how much of the step's sample a linear map of the reference explains, large directions counting most",
    "procrustes": "1 where a rotation and a scale turn one sample into the other",
    "subspace_overlap": "the share of the largest directions that is common to both",
    "mutual_knn": "how many of a row's nearest neighbours stay its nearest; rows that tie count by expectation",
    "cosine": "1 where two tensors point the same way, 0 where they are at right angles, -1 where they are opposite",
    "relative_distance": "how far a tensor is from the reference, in sizes of the reference",
}

# Last part of a component's name -> what it is.
_COMPONENTS = {
    "ov_circuit": "what a head writes to the residual stream where it attends to one position alone: O V of that head",
    "ov_circuit_joined": "the OV circuits of all heads side by side",
    "ov_induced_change": "how one step of gradient descent changes the OV circuit of a head, to first order",
    "ov_induced_change_joined": "the induced changes of all heads side by side",
    "qk_circuit": "what a head compares positions by, at distance 0: Q transposed times K of that head. In models that "
    "normalise queries and keys (q_norm and k_norm, as Qwen3, OLMo 2 and Gemma 3) it is not the score: there each "
    "query and key is divided by its norm and multiplied by gains, which are not part of the circuit",
    "mlp_path": "the MLP with all gates open: down times up",
    "lora_update": "the scaled product of a projection's low-rank factors: what the running cycle has added to the "
    "base so far, and at the step of a restart all that the cycle which ended there added. It grows within a cycle and "
    "starts again from nothing after a restart, so that steps compare where they lie alike in their cycles. Its rank "
    "is at most that of the factors: PER, a fraction of the whole matrix, stays low, and effective rank and numerical "
    "rank say how much of the given rank is used. To be compared with the updates of a full-rank run over as many "
    "steps, not with gradients, which are of single batches",
    "cumulative_lora_update": "the update of a projection over the window, summed from the factors of every restart "
    "in it and so free of the rounding of the weights. Its rank grows by that of the factors with each restart; where "
    "it stays behind, cycles repeat directions of earlier ones. Missing where a restart in the window was not "
    "observed, or where the projection was not low-rank at both ends",
}


def meaning(status: str) -> str:
    """Explain a status; a status that a user's metric gives is left to its definition."""
    return STATUSES.get(status, "the definition of the metric says when it gives no value")


def reading(metric: str) -> str:
    """Say what a high or low value means, as a clause; "" for a user's metric."""
    return _METRICS.get(metric, "")


def component(name: str) -> str:
    """Explain a component that is made of several matrices; "" for a plain module."""
    return _COMPONENTS.get(name.rpartition(".")[2], "")


def caption(how_to_read: str, metric: str | None) -> str:
    """Join how a figure is read with what a high or low value of its metric says."""
    clause = reading(metric) if metric else ""
    return f"{how_to_read} {clause[:1].upper()}{clause[1:]}." if clause else how_to_read
