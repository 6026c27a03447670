"""Low-rank updates of projections, from stored factors: of one cycle, and over a window of steps.

A low-rank projection is W = base + scale * B @ A, (m, n), with B (m, r) and A (r, n). A restart
adds scale * B @ A to the base, draws A anew and sets B to zero; its step stores the merged factors
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
"""Tolerated relative difference between a merge and the product of its factors.

TF32 rounds by 2^-11.
"""


class Change(NamedTuple):
    """The change of a projection over a window."""

    matrix: FactoredMatrix
    start: torch.Tensor  # (m, n) float64, at the start of the window


def lora_update(
    source: Source, module: str, step: int, kind: str, split: str | None
) -> list[Matrix]:
    """Read scale * B @ A, (m, n) of rank at most r: the update of the current cycle so far.

    At the step of a restart it is the merged update, the whole one of the cycle that ended there.
    It is zero (status `zero`) if a cycle begins without a restart: at initialisation and at the end
    of a full-rank warm start.

    Its tolerance follows, as for every product, from the rounding of its stored factors
    (`linalg.storage_error`). A full-rank matrix of the same update, W(t2) - W(t1), also carries the
    rounding of W, which is relative to the size of W.
    """
    return [_merged(source, module, step) or _running(source, module, step)]


def cumulative_lora_update(source: Source, module: str, start: int, end: int) -> Change:
    """Compute W(end) - W(start), (m, n), as one product of all factors side by side.

    It is the sum of the updates that restarts in (start, end] merged and of the running update at
    `end`, minus the running update at `start`.

    From a step at which B is zero to the k-th restart after it the rank is at most k * r. The
    tolerance is the sum of those of the summed updates: the base and its rounding play no part.

    Raises:
        UserError: the module is not low-rank at one of the two steps.
        DamagedError: a file is not readable.
        NotObservedError: a restart in the window was not observed.
    """
    merged = []
    for step in source.steps:
        product = _merged(source, module, step) if start < step <= end else None
        if product is not None:
            merged.append(product)
    before = _running(source, module, start)
    after = _running(source, module, end)
    name = names.base(module)
    base = source.tensor(start, "weights", name)
    last_base = source.tensor(end, "weights", name)
    # The base changes by merges alone, so a change beyond them shows a restart that is not stored.
    if not explains(merged, base, last_base):
        between = f"between step {start} and step {end}"
        raise NotObservedError(f"{between} factors were merged at a step that was not observed")
    change = FactoredMatrix.sum_of(*merged, after, before.times(-1))
    weights_at_start = base.to(REAL) + before.dense()
    return Change(change, weights_at_start)


def base_dtypes(source: Source, modules: Sequence[str], step: int) -> list[torch.dtype]:
    """List the dtypes of the bases of low-rank `modules`, to which each merge is rounded."""
    if not modules:
        return []
    stored = {*source.modules(step, "weights")}
    factors = {module: names.lora_B(module).removesuffix(".weight") for module in modules}
    low_rank = [module for module, factor in factors.items() if factor in stored]
    return [source.tensor(step, "weights", names.base(module)).dtype for module in low_rank]


def _running(source: Source, module: str, step: int) -> FactoredMatrix:
    """Read scale * B @ A; UserError if the module is not low-rank at `step`."""
    left = source.tensor(step, "weights", names.lora_B(module))
    right = source.tensor(step, "weights", names.lora_A(module))
    scale = source.tensor(step, "weights", names.lora_scale(module))
    return FactoredMatrix(left, right, float(scale))


def _merged(source: Source, module: str, step: int) -> FactoredMatrix | None:
    """Read the update that was merged at `step`; None if there is none."""
    try:
        left = source.tensor(step, "weights", names.merged_B(module))
        right = source.tensor(step, "weights", names.merged_A(module))
    except DamagedError:
        raise  # it is a UserError too, but says that factors exist
    except UserError:
        return None
    return FactoredMatrix(left, right)


def explains(merged: Sequence[FactoredMatrix], old: torch.Tensor, new: torch.Tensor) -> bool:
    """Whether the base (m, n) went from `old` to `new` by `merged` alone, up to rounding.

    Each merge rounds the base once, by half an eps of its entries at most, and its own product as
    computed. A rest within that is too small to matter: it is less than `MERGED_AS_SUMMED` of the
    sum, or cannot be seen in the base.
    """
    rest = new.to(REAL) - old.to(REAL)
    sizes = 0.0
    for product in merged:
        rest -= product.dense()
        sizes += linalg.norm(product)
    base_size = max(linalg.norm(old), linalg.norm(new))
    dtype = linalg.coarser(old.dtype, new.dtype)
    eps = torch.finfo(dtype).eps
    n_roundings = len(merged) + 1
    rounding = n_roundings * eps * (base_size + sizes)
    tolerance = rounding + MERGED_AS_SUMMED * sizes
    is_larger = linalg.norm(rest) > tolerance
    # A rest of NaN passes: it is reported as non-finite when it is measured.
    return not is_larger
