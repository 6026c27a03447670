"""The model that `init_from` names: a checkpoint of a run, or a Hugging Face directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from pico_contract import codec
from pico_contract.errors import DamagedError, UserError
from pico_contract.layout import MANIFEST, RunLayout, parse_step
from pico_contract.schema import CheckpointManifest

from pico_train.checkpoint.model_folder import (
    check_tensors,
    read_geometry,
    read_token_ids,
    read_weights,
)
from pico_train.model.decoder import DecoderConfig
from pico_train.model.hf import SpecialTokens


def initial_geometry(source: str) -> DecoderConfig:
    """Read the geometry of `source`.

    `source` is RUN@STEP, RUN@latest, or any Llama-shaped Hugging Face directory.

    Raises:
        UserError: the run, step or directory does not exist, a file is damaged, or the architecture
            is not Llama's.
    """
    folder = _weights_directory(source)
    with _naming_source(source):
        return read_geometry(folder)


def initial_weights(source: str) -> dict[str, torch.Tensor]:
    """Read the weights of `source`; the sha256 of a checkpoint of ours are verified first.

    Raises:
        UserError: as `initial_geometry`; a .safetensors file is missing or damaged.
    """
    folder = _weights_directory(source, hashes=True)
    with _naming_source(source):
        return read_weights(folder)


def check_initial_tensors(source: str, config: DecoderConfig) -> None:
    """Check that the tensors of `source` fit geometry `config`; errors as `initial_weights`."""
    folder = _weights_directory(source)
    with _naming_source(source):
        check_tensors(folder, config)


def initial_token_ids(source: str) -> SpecialTokens:
    """Read the token ids that the configuration of `source` names; errors as `initial_geometry`."""
    folder = _weights_directory(source)
    with _naming_source(source):
        return read_token_ids(folder)


@contextmanager
def _naming_source(source: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise type(error)(f'init_from "{source}": {error}') from None


def resolved_source(source: str) -> str:
    """Return `source` with "latest" replaced by the step that it means now."""
    directory = _weights_directory(source)
    step = parse_step(directory.name)
    if "@" not in source or step is None:
        return source
    run = directory.parent.parent
    # A later checkpoint changes what "latest" means, so the record needs the step.
    return f"{run}@{step}"


def _weights_directory(source: str, *, hashes: bool = False) -> Path:
    directory = _named_directory(source)
    # Any other directory has no manifest to compare with.
    is_checkpoint = parse_step(directory.name) is not None and (directory / MANIFEST).is_file()
    if is_checkpoint:
        problem = codec.verify_directory(directory, CheckpointManifest, hashes=hashes)
        if problem is not None:
            raise DamagedError(f'init_from "{source}": {problem}')
    return directory


def _named_directory(source: str) -> Path:
    run, separator, step = source.rpartition("@")
    # A directory may have an @ in its name.
    if separator and not Path(source).is_dir():
        return _checkpoint_directory(source, run, step)
    if RunLayout(Path(source)).manifest.is_file():
        raise UserError(
            f'init_from "{source}" is a run: name a step, or write "{source}@latest"'
        )
    return Path(source)


def _checkpoint_directory(source: str, run: str, step: str) -> Path:
    layout = RunLayout(Path(run))
    if not layout.manifest.is_file():
        raise UserError(
            f'init_from "{source}": {run} is not a run directory (it has no {layout.manifest.name})'
        )
    steps = codec.intact_steps(layout.checkpoints, CheckpointManifest)
    for intact in reversed(steps):
        if step == "latest" or (step.isdecimal() and int(step) == intact):
            return layout.checkpoint(intact)
    known = ", ".join(map(str, steps)) or "none"
    raise UserError(
        f'init_from "{source}": {run} has no intact checkpoint "{step}"; it has: {known}'
    )
