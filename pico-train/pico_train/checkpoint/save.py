"""Save checkpoints: Hugging Face model directories with `state/` inside, whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pico_contract import codec
from pico_contract.errors import UserError
from pico_contract.layout import (
    GENERATION_CONFIG,
    METHOD_TENSORS,
    MODEL_CONFIG,
    MODEL_WEIGHTS,
    OPTIMIZER,
    SCALARS,
    TOKENIZER,
    TOKENIZER_CONFIG,
    RunLayout,
)
from pico_contract.schema import CheckpointManifest, FileEntry, StateManifest
from pydantic import Field

from pico_train.checkpoint.retention import KeepConfig
from pico_train.checkpoint.state import SavedState, stepped
from pico_train.config import Section
from pico_train.model.decoder import DecoderConfig
from pico_train.model.hf import SpecialTokens, generation_config, hf_config, tokenizer_config
from pico_train.model.stock import STOCK, Architecture, difference, expected_tensors, shapes_of


class CheckpointConfig(Section):
    """Schedule of checkpoints. The initialisation and the last step are always saved."""

    every: int = Field(1000, ge=0)
    """Updates between checkpoints; 0 saves only the first and the last."""
    keep: KeepConfig = KeepConfig()
    """Choice of the checkpoints that stay."""

    def steps(self, last: int) -> list[int]:
        """List the steps at which a run of `last` updates saves, ascending, if it never stops."""
        regular = range(0, last, self.every) if self.every else ()
        return sorted({0, last, *regular})


@dataclass(frozen=True)
class ModelMetadata:
    """The metadata that every checkpoint of a run has in common."""

    run: str
    config: DecoderConfig
    tokenizer: Path | None
    special_tokens: SpecialTokens
    architecture: Architecture = STOCK


def save_checkpoint(
    layout: RunLayout,
    saved: SavedState,
    metadata: ModelMetadata,
    metrics: FileEntry | None = None,
) -> Path:
    """Write the checkpoint of the step in `saved`; readers see it once this returns.

    `metrics` describes the bytes of metrics.jsonl up to that step.

    Raises:
        OSError: the disk is full or fails; nothing that was saved before is touched.
    """
    step = int(saved.counters["step"])
    with codec.publish(layout.checkpoint(step)) as draft:
        write_model(draft, saved.weights, metadata)
        _write_state(draft / layout.state(step).name, saved, step)
        # The manifest comes last: a directory without one is not a checkpoint.
        manifest = CheckpointManifest(
            run=metadata.run,
            step=step,
            tokens=int(saved.counters["tokens"]),
            metrics=metrics,
        )
        codec.seal(draft, manifest)
    return layout.checkpoint(step)


def _write_state(directory: Path, saved: SavedState, step: int) -> None:
    """Write the part of a checkpoint that only continuing the run needs."""
    directory.mkdir()
    codec.save_tensors(directory / OPTIMIZER, saved.optimizer)
    codec.save_tensors(directory / METHOD_TENSORS, saved.method_tensors)
    scalars = {
        "counters": saved.counters,
        "method": saved.method_scalars,
        "stepped": stepped(saved.optimizer),
    }
    codec.write_text(directory / SCALARS, json.dumps(scalars, indent=2, allow_nan=False))
    # A manifest of its own, because the keep policy may remove state/ and keep the model.
    codec.seal(directory, StateManifest(step=step))


def write_model(
    directory: Path, weights: Mapping[str, torch.Tensor], metadata: ModelMetadata
) -> None:
    """Write the files of a Hugging Face model into `directory`.

    Raises:
        UserError: `weights` differ from the tensors that config.json implies; names the first that
            does.
    """
    # Checked here, so that no checkpoint is ever written that cannot be loaded.
    problem = difference(
        shapes_of(weights), expected_tensors(metadata.config, metadata.architecture)
    )
    if problem is not None:
        raise UserError(
            f"{directory / MODEL_WEIGHTS} is not written, for {MODEL_CONFIG} implies other tensors: {problem}"
        )
    codec.save_tensors(directory / MODEL_WEIGHTS, weights)
    texts = {
        MODEL_CONFIG: hf_config(
            metadata.config, metadata.special_tokens, metadata.architecture
        ),
        GENERATION_CONFIG: generation_config(metadata.special_tokens),
    }
    if metadata.tokenizer is not None:
        shutil.copyfile(metadata.tokenizer, directory / TOKENIZER)
        texts[TOKENIZER_CONFIG] = tokenizer_config(
            metadata.config, metadata.special_tokens, metadata.tokenizer
        )
    for name, content in texts.items():
        codec.write_text(directory / name, json.dumps(content, indent=2))
