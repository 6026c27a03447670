"""The projections of one attention or MLP at one step, read as linear layers whatever its family
stores.

Shapes as in `pico_analyze.components.architectures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pico_contract.errors import DamagedError, UserError

from pico_analyze.components.architectures import (
    ATTENTIONS,
    MLPS,
    TRANSPOSED,
    Layout,
    Role,
    divided,
    division_of,
    is_transposed,
    layouts,
)
from pico_analyze.sources.base import NotObservedError, Source, model_at
from pico_analyze.sources.model_config import Heads, heads_of


@dataclass(frozen=True)
class Attention:
    """The attention of one module at one step, and how its projections are divided into heads."""

    source: Source
    module: str
    step: int
    layout: Layout
    heads: Heads

    def rows(self, role: Role, kind: str, split: str | None = None) -> torch.Tensor:
        """One projection: (H * hd or G * hd, D), the output projection (D, H * hd); of activations
        (width, P).

        Raises:
            UserError: the step does not hold it.
            DamagedError: it cannot be read, or its rows are not those of so many heads.
        """
        name = self.layout.names[role]
        stored = self.source.tensor(self.step, kind, f"{self.module}.{name}", split)
        found = stored.T if kind == "activations" or self._is_transposed() else stored
        if not self.layout.is_fused(role):
            return found
        division = division_of(self.source.model, self.module, self.layout)
        if division is None:
            raise UserError(f"how {self.module}.{name} is divided is not known")
        try:
            return divided(found, division, self.heads)[role]
        except ValueError as error:
            raise DamagedError(f"{self.module}.{name} of {self.source.name}: {error}") from None

    def _is_transposed(self) -> bool:
        return _is_transposed(self.source, self.module, self.layout.names["query"], self.step)


def attention_at(source: Source, module: str, step: int, roles: Sequence[Role]) -> Attention:
    """The attention of `module` at a step that holds the weights of `roles`.

    Raises:
        UserError: the step does not hold them, or no configuration gives the number of heads.
        NotObservedError: the step has other heads than the source as a whole: the two cannot be
            compared.
    """
    layout = _layout(source, module, step, ATTENTIONS, roles)
    heads, usual = heads_of(model_at(source, step), module), heads_of(source.model, module)
    if heads is None or usual is None:
        raise UserError(
            f"the configuration of {source.name} does not give the number of heads of {module}"
        )
    if heads != usual:
        raise NotObservedError(
            f"{module} has {heads.queries} heads and {heads.groups} key-value heads at step {step} of {source.name}, "
            f"but {usual.queries} and {usual.groups} at its last step: circuits of these steps cannot be compared"
        )
    return Attention(source, module, step, layout, heads)


def mlp_at(source: Source, module: str, step: int, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """up (I, D) and down (D, I) of an MLP; of a fused matrix the half that no nonlinearity is
    applied to.

    Raises:
        UserError: the step does not hold them.
    """
    layout = _layout(source, module, step, MLPS, ("up", "down"))
    up, down = (
        source.tensor(step, kind, f"{module}.{layout.names[role]}") for role in ("up", "down")
    )
    if _is_transposed(source, module, layout.names["up"], step):
        up, down = up.T, down.T
    if layout.half is not None and up.shape[0] == 2 * down.shape[1]:
        up = up.chunk(2)[layout.half]
    return up, down


def _layout(
    source: Source, module: str, step: int, known: Sequence[Layout], roles: Sequence[Role]
) -> Layout:
    available = [name for name in source.modules(step, "weights") if name.startswith(f"{module}.")]
    found = layouts(available, known, roles)
    if module not in found:
        raise UserError(
            f"step {step} of {source.name} does not hold the {' and '.join(roles)} of {module}"
        )
    return found[module]


def _is_transposed(source: Source, module: str, name: str, step: int) -> bool:
    if name not in TRANSPOSED:
        return False
    return is_transposed(source.model, module, source.tensor(step, "weights", f"{module}.{name}"))
