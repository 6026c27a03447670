"""Ways to run the layers of a model that trains: compiled, or recomputing instead of keeping.

None of them changes what a model is. Parameters, their names, and what hooks see of
`TrainState.plain_decoder` (which always runs as its layers are written) stay the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pico_train.model.decoder import Decoder, KVCache, RMSNorm, SwiGLU, layer_forward
from pico_train.model.recompute import address, recompute_in_backward


def apply_compile_and_checkpointing(
    model: Decoder, *, compiled: bool, checkpointing: bool
) -> None:
    """Set how `model` runs its layers from now on.

    `compiled` compiles one layer, which serves all of them: a twelfth of the time that twelve take,
    and the head's loss is chunked by hand already. Shapes are fixed, as those of micro-batches are.
    `checkpointing` keeps only a layer's input and runs the layer again in the backward pass (Chen
    et al. 2016): same gradients, a third more time. With neither, norms and activations are
    recomputed, which costs next to no time; a compiler decides so by itself.
    """
    run = torch.compile(layer_forward, dynamic=False) if compiled else layer_forward
    if checkpointing:
        run = partial(checkpoint, run, use_reentrant=False)
    elif not compiled:
        cheap = {layer: _cheap_modules(layer) for layer in model.model.layers}
        run = partial(layer_forward_recomputing, cheap)
    model.model.layer_forward = run


def _cheap_modules(layer: nn.Module) -> list[nn.Module]:
    """List the modules of `layer` that compute elementwise, norms included."""
    return [m for m in layer.modules() if isinstance(m, RMSNorm | SwiGLU | nn.SiLU)]


def layer_forward_recomputing(
    cheap: Mapping[nn.Module, Sequence[nn.Module]],
    layer: nn.Module,
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    cache: KVCache | None,
) -> torch.Tensor:
    """Run `layer`, whose `cheap` modules compute their outputs again in the backward pass."""
    if address(x) == 0:  # torch.func allows no hooks on saved tensors
        return layer_forward(layer, x, cos, sin, cache)
    with recompute_in_backward(cheap[layer]):
        return layer_forward(layer, x, cos, sin, cache)
