"""How the layers of a training model are carried out: compiled, or with activations computed again
instead of kept.

None of it changes what a model is: parameters, their names and what hooks see of
`TrainState.plain_decoder` (which is always carried out as written) stay the same.
"""

from __future__ import annotations

from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from pico_train.model.decoder import Decoder, layer_forward


def apply_compile_and_checkpointing(model: Decoder, *, compiled: bool, checkpointing: bool) -> None:
    """Set how `model` runs its layers from now on.

    `compiled` compiles one layer, which serves all of them: a twelfth of the time that twelve take,
    and the head's loss is chunked by hand already. Shapes are fixed, as those of micro-batches are.
    `checkpointing` keeps a layer's input alone and runs the layer again in the backward pass (Chen
    et al. 2016): same gradients, a third more time. Otherwise cheap activations are recomputed, not
    kept (model/recompute.py), as a compiler decides by itself.
    """
    run = (
        torch.compile(layer_forward, dynamic=False)
        if compiled
        else partial(layer_forward, recompute=not checkpointing)
    )
    model.model.layer_forward = (
        partial(checkpoint, run, use_reentrant=False) if checkpointing else run
    )
