"""The class that computes the model of a run, checked before anything is trained."""

from __future__ import annotations

from pico_contract.errors import UserError

from pico_train.model.decoder import DecoderConfig
from pico_train.model.stock import Architecture, architecture_of


def checked_architecture(config: DecoderConfig, repo: str | None) -> Architecture:
    """Find the class that computes the decoder.

    Raises:
        UserError: the decoder has parts that no checkpoint can store; or checkpoints are to be
            pushed to the hub's `repo`, and no class of transformers computes them.
    """
    try:
        architecture = architecture_of(config)
    except ValueError as error:
        raise UserError(str(error)) from None
    if repo is not None and not architecture.is_stock:
        raise UserError(
            f"hub.repo is set, but no class of transformers computes this model ({architecture.departure}): set it to"
            " null"
        )
    return architecture
