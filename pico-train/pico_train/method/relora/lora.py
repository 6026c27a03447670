"""A linear layer with a frozen weight and a low-rank update that trains beside it (LoRA, Hu et al.
2022, section 4).

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
    """y = W x + s B A dropout(x), s = alpha / r times a trained gain where there is one.

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
        with torch.device(
            "meta"
        ):  # weights are given below, and nothing is drawn from torch's own generator
            self.base = nn.Linear(inputs, outputs, bias=False)
            self.lora_A = nn.Linear(inputs, rank, bias=False)
            self.lora_B = nn.Linear(rank, outputs, bias=False)
        self.base.weight = nn.Parameter(weight.detach().to(base_dtype), requires_grad=False)
        self.lora_A.weight = nn.Parameter(torch.zeros(rank, inputs, device=weight.device))
        self.lora_B.weight = nn.Parameter(torch.zeros(outputs, rank, device=weight.device))
        self.lora_gain = nn.Parameter(torch.ones(1, device=weight.device)) if gain else None
        self.rank, self.ratio, self.dropout = rank, alpha / rank, dropout

    @property
    def scale(self) -> float | torch.Tensor:
        """s, a tensor (1,) where it trains."""
        return self.ratio if self.lora_gain is None else self.ratio * self.lora_gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., n) -> (..., m). The scale is applied where the tensor is narrowest."""
        low = self.scale * self.lora_A(F.dropout(x, self.dropout, self.training))
        return F.linear(x, self._base_for(x)) + self.lora_B(low)

    def _base_for(self, x: torch.Tensor) -> torch.Tensor:
        """A base in bfloat16 is made wide where autocast would not narrow the rest."""
        weight = self.base.weight
        return weight if torch.is_autocast_enabled(x.device.type) else weight.to(x.dtype)

    @torch.no_grad()
    def effective(self) -> torch.Tensor:
        """W + s B A, (m, n) float32: the weight of the plain layer that computes the same without
        dropout."""
        return self.base.weight.float() + self.scaled_B() @ self.lora_A.weight

    @torch.no_grad()
    def scaled_B(self) -> torch.Tensor:
        """s B, (m, r)."""
        return self.scale * self.lora_B.weight

    @torch.no_grad()
    def merge(self, *, scaled: bool = True) -> None:
        """W += s B A in float32, rounded once to W's dtype; B becomes zero. `scaled=False` leaves s
        out, a fault."""
        whole = (
            self.effective()
            if scaled
            else self.base.weight.float() + self.lora_B.weight @ self.lora_A.weight
        )
        self.base.weight.copy_(whole)
        self.lora_B.weight.zero_()

    @torch.no_grad()
    def draw_A(self, generator: torch.Generator) -> None:
        """Draw A from U(-1 / sqrt(n), 1 / sqrt(n)), on CPU in float32: Kaiming with a = sqrt(5), as
        LoRA's own code."""
        drawn = torch.empty(self.lora_A.weight.shape, dtype=torch.float32, device="cpu")
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
        self.lora_A.weight.copy_(sharded_like(self.lora_A.weight, drawn))


def low_rank_layers(model: Decoder) -> Iterator[tuple[str, LowRankLinear]]:
    """(module name, layer) of every low-rank layer, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, LowRankLinear):
            yield name, module


def effective_weights(model: Decoder) -> Iterator[tuple[str, torch.Tensor]]:
    """(Hugging Face name, tensor) of the plain decoder that computes the same; low-rank layers are
    merged copies."""
    layers = dict(low_rank_layers(model))
    inside = tuple(f"{name}." for name in layers)
    for name, parameter in model.named_parameters():
        if not name.startswith(inside):
            yield name, parameter
    for name, layer in layers.items():
        yield f"{name}.weight", layer.effective()
