"""Low-rank updates of projections, from stored factors: of one cycle, and over a window of steps.

A low-rank projection is W = base + scale * B @ A, (m, n), with B (m, r) and A (r, n). A restart
adds scale * B @ A to the base, draws A anew and sets B to zero; its step holds what was merged
(shared/CONTRACT.md, section 4). Source: Lialin et al. 2023, "ReLoRA: high-rank training through
low-rank updates", sec. 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from pico_contract import names
from pico_contract.errors import DamagedError, UserError

from pico_analyze import linalg
from pico_analyze.linalg.decompositions import REAL
from pico_analyze.linalg.matrix import FactoredMatrix, Matrix
from pico_analyze.sources.base import NotObservedError, Source

MERGED_AS_SUMMED = 1e-3
"""How far merges may be from the products of what they merged, in sizes of those: TF32 rounds by
2^-11."""


class Change(NamedTuple):
    """What a projection changed by over a window."""

    matrix: FactoredMatrix
    start: torch.Tensor  # (m, n) float64: what it was at the start of the window


def lora_update(
    source: Source, module: str, step: int, kind: str, split: str | None
) -> list[Matrix]:
    """scale * B @ A, (m, n) of rank at most r: what the running cycle has added to the base so far.

    At the step of a restart it is what that merged, the whole update of the cycle that ended there.
    Zero (status `zero`) where a cycle begins without a restart: at initialisation and at the end of
    a full-rank warm start.

    It is judged, like every product, by the rounding of its stored factors
    (`linalg.storage_error`). A full-rank matrix of the same update, W(t2) - W(t1), also carries the
    rounding of W, which is relative to the size of W.
    """
    return [_merged(source, module, step) or _running(source, module, step)]


def cumulative_lora_update(source: Source, module: str, start: int, end: int) -> Change:
    """W(end) - W(start) through factors, (m, n): the sum of what every restart in (start, end]
    merged and of the running update at `end`, less the running update at `start`, as one product of
    all these factors side by side.

    From a step at which B is zero to the k-th restart after it the rank is at most k * r. The
    tolerance is the sum of those of the summed updates: the base and its rounding play no part.

    Raises:
        UserError: the module is not low-rank at one of the two steps.
        DamagedError: a file is not readable.
        NotObservedError: a restart in the window was not observed.
    """
    steps = [step for step in source.steps if start < step <= end]
    merged = [found for step in steps if (found := _merged(source, module, step))]
    before, after = _running(source, module, start), _running(source, module, end)
    base = source.tensor(start, "weights", names.base(module))
    if not explains(merged, base, source.tensor(end, "weights", names.base(module))):
        between = f"between step {start} and step {end}"
        raise NotObservedError(f"{between} factors were merged at a step that was not observed")
    return Change(
        FactoredMatrix.sum_of(*merged, after, before.times(-1)), base.to(REAL) + before.dense()
    )


def base_dtypes(source: Source, modules: Sequence[str], step: int) -> list[torch.dtype]:
    """The dtypes in which the bases of those of `modules` that are low-rank are stored: merges are
    rounded there."""
    if not modules:
        return []
    available = {*source.modules(step, "weights")}
    low_rank = [
        module for module in modules if names.lora_B(module).removesuffix(".weight") in available
    ]
    return [source.tensor(step, "weights", names.base(module)).dtype for module in low_rank]


def _running(source: Source, module: str, step: int) -> FactoredMatrix:
    """scale * B @ A; UserError where the module is not low-rank at `step`."""
    left, right, scale = (
        source.tensor(step, "weights", name(module))
        for name in (names.lora_B, names.lora_A, names.lora_scale)
    )
    return FactoredMatrix(left, right, float(scale))


def _merged(source: Source, module: str, step: int) -> FactoredMatrix | None:
    """What was merged at `step`; None where nothing was."""
    try:
        left, right = (
            source.tensor(step, "weights", name(module))
            for name in (names.merged_B, names.merged_A)
        )
    except DamagedError:
        raise
    except UserError:
        return None
    return FactoredMatrix(left, right)


def explains(merged: Sequence[FactoredMatrix], old: torch.Tensor, new: torch.Tensor) -> bool:
    """Whether the base (m, n) went from `old` to `new` by `merged` alone, up to rounding.

    Each merge rounds the base once, by half an eps of its entries at most, and its own product as
    computed. What is within that is too small to matter: it is less than `MERGED_AS_SUMMED` of the
    sum, or cannot be seen in the base.
    """
    rest = new.to(REAL) - old.to(REAL)
    for one in merged:
        rest -= one.dense()
    sizes = sum(linalg.norm(one) for one in merged)
    eps = torch.finfo(linalg.coarser(old.dtype, new.dtype)).eps
    rounding = (len(merged) + 1) * eps * (max(linalg.norm(old), linalg.norm(new)) + sizes)
    return (
        not linalg.norm(rest) > rounding + MERGED_AS_SUMMED * sizes
    )  # NaN is reported as such where it is measured
