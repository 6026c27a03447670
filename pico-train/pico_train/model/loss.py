"""Next-token loss in chunks, without the logits of all tokens.

The logits (N, V) of all tokens would be by far the largest tensor of a small model. The loss
therefore goes through a few tokens at a time, and computes their gradient while their logits exist.

Shapes: N tokens, D width, V vocabulary, C tokens a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

IGNORE = -100
_CHUNK_BYTES = {"cpu": 16 << 20, "cuda": 512 << 20, "mps": 256 << 20}
"""Size of a chunk's logits: on a CPU the passes over it should find it in the last-level cache."""
_WITHOUT_FLOAT64 = ("mps",)


def chunk_tokens(vocab_size: int, device: torch.device) -> int:
    """Return how many tokens' logits are computed at a time."""
    return max(16, _CHUNK_BYTES.get(device.type, 64 << 20) // (4 * vocab_size))


def plain_loss_sum(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Compute the sum of `fused_loss_sum` from all logits at once, by autograd alone.

    It is differentiable twice, and the tests' oracle.
    """
    return F.cross_entropy(
        (hidden @ weight.T).float(), labels, ignore_index=IGNORE, reduction="sum"
    )


def fused_loss_sum(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Compute the sum over tokens of -ln softmax(hidden @ weight.T)[label].

    Args:
        hidden: (N, D), any float dtype; weight: (V, D), the same dtype or, under autocast, float32.
        labels: (N,) int64; -100 is left out.
    Returns:
        A scalar, float32 (float64 for float64 input). Differentiable once.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        hidden = hidden.to(torch.get_autocast_dtype(device))
    if not torch.is_grad_enabled():  # without this the gradient would be computed in vain
        hidden, weight = hidden.detach(), weight.detach()
    # The function chooses its own dtypes: products in that of `hidden`, sums in float32 or wider.
    with torch.autocast(device, enabled=False):
        return _FusedLossSum.apply(hidden, weight, labels)


class _FusedLossSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        compute = _compute_weight(hidden, weight)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        summed = wide if hidden.device.type in _WITHOUT_FLOAT64 else torch.float64
        total = torch.zeros((), dtype=summed, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        chunks = _chunks(hidden, compute)
        # One buffer for the logits of all chunks: allocating a new one each time costs a pass.
        buffer = hidden.new_empty(chunks[0].stop if chunks else 0, weight.shape[0])
        for rows in chunks:
            states, chunk = hidden[rows], labels[rows]
            kept = (chunk != IGNORE)[:, None]  # (C, 1)
            # -100 is no index; `kept` removes the loss and gradient of such a token.
            target = chunk.clamp(min=0)[:, None]  # (C, 1)
            logits = torch.mm(states, compute.T, out=buffer[: len(chunk)]).to(wide)
            target_logits = logits.gather(1, target)
            # ln sum exp(logits) = top + ln sum exp(logits - top), which cannot overflow.
            top = logits.amax(1, keepdim=True)
            block = logits.sub_(top).exp_()
            mass = block.sum(1, keepdim=True)
            losses = (top + mass.log() - target_logits) * kept  # (C, 1)
            total += losses.sum(dtype=summed)
            if not (needs_hidden or needs_weight):
                continue
            # d loss / d logits = softmax - onehot = (block - mass * onehot) / mass. The division
            # happens on the narrow side of the products, (C, D): every pass over the block, (C, V),
            # costs as much as a product here.
            block = block.scatter_add_(1, target, -mass).to(compute.dtype)
            share = kept / mass
            if grad_hidden is not None:
                torch.mm(block, compute, out=grad_hidden[rows]).mul_(share)
            if grad_weight is not None:
                _accumulate(grad_weight, block, (states * share).to(compute.dtype))
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total.to(wide)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return _scaled(grad_hidden, grad), _scaled(grad_weight, grad), None


def token_nll(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compute -ln softmax(hidden @ weight.T)[label] of each token, (N,) float32; 0 at -100.

    It goes in chunks as well, and has no gradient.
    """
    with torch.no_grad():
        compute = _compute_weight(hidden, weight)
        parts = [
            F.cross_entropy(
                (hidden[rows] @ compute.T).float(),
                labels[rows],
                ignore_index=IGNORE,
                reduction="none",
            )
            for rows in _chunks(hidden, compute)
        ]
        return torch.cat(parts)


def _compute_weight(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Cast `weight` to the dtype of `hidden`, which may be bfloat16 under autocast."""
    return weight if weight.dtype == hidden.dtype else weight.to(hidden.dtype)


def _chunks(hidden: torch.Tensor, weight: torch.Tensor) -> list[slice]:
    size, tokens = chunk_tokens(weight.shape[0], hidden.device), hidden.shape[0]
    return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]


def _accumulate(total: torch.Tensor, block: torch.Tensor, hidden: torch.Tensor) -> None:
    if total.dtype == block.dtype:
        total.addmm_(block.T, hidden)
    else:
        # addmm_ needs a single dtype, but here the product is bfloat16 and the sum float32.
        total += block.T @ hidden


def _scaled(gradient: torch.Tensor | None, factor: torch.Tensor) -> torch.Tensor | None:
    """Multiply `gradient` by `factor`, but not in place: a retained graph may ask for it again."""
    # `loss.backward()` passes 1, which needs no pass; looking at it on a GPU would make it wait.
    if gradient is None or (factor.device.type == "cpu" and factor.item() == 1.0):
        return gradient
    return gradient * factor.to(gradient.dtype)
