"""A linear layer with a frozen weight and a trained low-rank update (LoRA, Hu et al. 2022).

Shapes: m outputs, n inputs, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from pico_train.model.decoder import Decoder
from pico_train.sharding import sharded_like


class LowRankLinear(nn.Module):
    """The layer y = W x + s B A dropout(x), with s = alpha / r times the trained gain, if any.

    Parameters: `base.weight` W (m, n), frozen; `lora_A.weight` A (r, n); `lora_B.weight` B (m, r),
    zero at first; `lora_gain` (1,), one at first, or None.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        rank: int,
        alpha: float,
        dropout: float,
        *,
        gain: bool,
        base_dtype: torch.dtype,
    ) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        # On the meta device nn.Linear draws nothing from torch's own generator; weights follow.
        with torch.device("meta"):
            self.base = nn.Linear(inputs, outputs, bias=False)
            self.lora_A = nn.Linear(inputs, rank, bias=False)
            self.lora_B = nn.Linear(rank, outputs, bias=False)
        self.base.weight = nn.Parameter(weight.detach().to(base_dtype), requires_grad=False)
        self.lora_A.weight = nn.Parameter(torch.zeros(rank, inputs, device=weight.device))
        self.lora_B.weight = nn.Parameter(torch.zeros(outputs, rank, device=weight.device))
        # A gain of one and a B of zero: the layer begins as the plain one.
        self.lora_gain = nn.Parameter(torch.ones(1, device=weight.device)) if gain else None
        self.rank, self.ratio, self.dropout = rank, alpha / rank, dropout

    @property
    def scale(self) -> float | torch.Tensor:
        """The scale s: a number, or a tensor (1,) if it trains."""
        return self.ratio if self.lora_gain is None else self.ratio * self.lora_gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., n) to (..., m)."""
        # The scale is applied to the r-wide activations, the smallest tensor on this path.
        low = self.scale * self.lora_A(F.dropout(x, self.dropout, self.training))
        return F.linear(x, self._base_for(x)) + self.lora_B(low)

    def _base_for(self, x: torch.Tensor) -> torch.Tensor:
        """Return W in the type of `x`, unless autocast converts both anyway."""
        # Autocast narrows both operands; without it their types must agree.
        weight = self.base.weight
        return weight if torch.is_autocast_enabled(x.device.type) else weight.to(x.dtype)

    @torch.no_grad()
    def effective(self) -> torch.Tensor:
        """Return W + s B A, (m, n) float32: the plain layer of equal function without dropout."""
        return self.base.weight.float() + self.scaled_B() @ self.lora_A.weight

    @torch.no_grad()
    def scaled_B(self) -> torch.Tensor:
        """Return s B, (m, r)."""
        return self.scale * self.lora_B.weight

    @torch.no_grad()
    def merge(self, *, scaled: bool = True) -> None:
        """Add s B A to W in float32, rounded once to W's dtype, and set B to zero.

        `scaled=False` reproduces a fault of relora-pico: it leaves s out.
        """
        if scaled:
            merged = self.effective()
        else:
            merged = self.base.weight.float() + self.lora_B.weight @ self.lora_A.weight
        self.base.weight.copy_(merged)
        self.lora_B.weight.zero_()

    @torch.no_grad()
    def draw_A(self, generator: torch.Generator) -> None:
        """Draw A from U(-1 / sqrt(n), 1 / sqrt(n)), on CPU in float32."""
        # On CPU, so that every device and sharding gets the same numbers.
        drawn = torch.empty(self.lora_A.weight.shape, dtype=torch.float32, device="cpu")
        # Kaiming with a = sqrt(5) has this range; it is the initialisation of LoRA's own code.
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
        self.lora_A.weight.copy_(sharded_like(self.lora_A.weight, drawn))


def low_rank_layers(model: Decoder) -> Iterator[tuple[str, LowRankLinear]]:
    """Yield (module name, layer) of every low-rank layer, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, LowRankLinear):
            yield name, module


def effective_weights(model: Decoder) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (Hugging Face name, tensor) of the plain decoder that computes the same function.

    Low-rank layers give merged copies.
    """
    layers = dict(low_rank_layers(model))
    # Parameters within a low-rank layer are replaced by its merged weight.
    inside = tuple(f"{name}." for name in layers)
    for name, parameter in model.named_parameters():
        if not name.startswith(inside):
            yield name, parameter
    for name, layer in layers.items():
        yield f"{name}.weight", layer.effective()
