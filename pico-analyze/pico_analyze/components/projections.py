"""The projections of one attention or MLP at one step, as linear layers for every family.

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
    """The attention of one module at one step, with the number of its heads."""

    source: Source
    module: str
    step: int
    layout: Layout
    heads: Heads

    def rows(self, role: Role, kind: str, split: str | None = None) -> torch.Tensor:
        """Read one projection with its heads along the rows.

        Shapes: (H * hd or G * hd, D), of the output projection (D, H * hd), of activations
        (width, P).

        Raises:
            UserError: the step does not have it.
            DamagedError: it cannot be read, or its rows are not those of so many heads.
        """
        name = f"{self.module}.{self.layout.names[role]}"
        matrix = self.source.tensor(self.step, kind, name, split)
        if kind == "activations" or self._is_transposed():
            matrix = matrix.T
        if not self.layout.is_fused(role):
            return matrix
        division = division_of(self.source.model, self.module, self.layout)
        if division is None:
            raise UserError(f"how {name} is divided is not known")
        try:
            return divided(matrix, division, self.heads)[role]
        except ValueError as error:
            raise DamagedError(f"{name} of {self.source.name}: {error}") from None

    def _is_transposed(self) -> bool:
        return _is_transposed(self.source, self.module, self.layout.names["query"], self.step)


def attention_at(source: Source, module: str, step: int, roles: Sequence[Role]) -> Attention:
    """Find the attention of `module` at a step that has the weights of `roles`.

    Raises:
        UserError: the step does not have them, or no configuration gives the number of heads.
        NotObservedError: the step has other heads than the source as a whole, so the two cannot be
            compared.
    """
    layout = _layout(source, module, step, ATTENTIONS, roles)
    heads = heads_of(model_at(source, step), module)
    usual = heads_of(source.model, module)
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


def mlp_at(
    source: Source, module: str, step: int, kind: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read up (I, D) and down (D, I) of an MLP.

    Of a matrix that fuses up and gate, up is the half to which no nonlinearity is applied.

    Raises:
        UserError: the step does not have them.
    """
    layout = _layout(source, module, step, MLPS, ("up", "down"))
    up = source.tensor(step, kind, f"{module}.{layout.names['up']}")
    down = source.tensor(step, kind, f"{module}.{layout.names['down']}")
    if _is_transposed(source, module, layout.names["up"], step):
        up, down = up.T, down.T
    # Some families use the same name for a matrix that is not fused: its width tells.
    if layout.half is not None and up.shape[0] == 2 * down.shape[1]:
        up = up.chunk(2)[layout.half]
    return up, down


def _layout(
    source: Source, module: str, step: int, known: Sequence[Layout], roles: Sequence[Role]
) -> Layout:
    stored = source.modules(step, "weights")
    inside = [name for name in stored if name.startswith(f"{module}.")]
    layout = layouts(inside, known, roles).get(module)
    if layout is None:
        lacking = " and ".join(roles)
        raise UserError(f"step {step} of {source.name} does not hold the {lacking} of {module}")
    return layout


def _is_transposed(source: Source, module: str, name: str, step: int) -> bool:
    if name not in TRANSPOSED:
        return False
    return is_transposed(
        source.model, module, source.tensor(step, "weights", f"{module}.{name}")
    )
