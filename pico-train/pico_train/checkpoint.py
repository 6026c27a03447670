"""Checkpoints: a Hugging Face model directory with `state/` inside, written whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from pico_contract import codec
from pico_contract.errors import DamagedError, UserError, in_one_line
from pico_contract.layout import (
    GENERATION_CONFIG,
    MANIFEST,
    METHOD_TENSORS,
    MODEL_CONFIG,
    MODEL_WEIGHTS,
    OPTIMIZER,
    SCALARS,
    TOKENIZER,
    TOKENIZER_CONFIG,
    RunLayout,
    parse_step,
)
from pico_contract.schema import CheckpointManifest, FileEntry, StateManifest
from pydantic import Field

from pico_train.config import Section
from pico_train.keep import KeepConfig
from pico_train.model.decoder import DecoderConfig
from pico_train.model.hf import SpecialTokens, generation_config, hf_config, tokenizer_config
from pico_train.model.stock import STOCK, Architecture, difference, expected_tensors, shapes_of
from pico_train.model_folder import check_tensors, read_geometry, read_token_ids, read_weights
from pico_train.state import Counters, SavedState, stepped


class CheckpointConfig(Section):
    """When checkpoints are saved. The initialisation and the last step always are."""

    every: int = Field(1000, ge=0)
    """Updates between checkpoints; 0 saves only the first and the last."""
    keep: KeepConfig = KeepConfig()
    """Which of them stay."""

    def steps(self, last: int) -> list[int]:
        """The steps at which a run of `last` updates saves, ascending, if it is never stopped."""
        return sorted({0, last, *(range(0, last, self.every) if self.every else ())})


@dataclass(frozen=True)
class ModelCard:
    """What every checkpoint of a run says beside its weights."""

    run: str
    config: DecoderConfig
    tokenizer: Path | None
    special_tokens: SpecialTokens
    architecture: Architecture = STOCK


def save_checkpoint(layout: RunLayout, saved: SavedState, card: ModelCard, metrics: FileEntry | None = None) -> Path:
    """Write checkpoints/step_t for the step in `saved`; it exists for readers once this returns.

    `metrics` is what metrics.jsonl holds up to that step.

    Raises:
        OSError: the disk is full or fails; nothing that was saved before is touched.
    """
    step = int(saved.counters["step"])
    with codec.publish(layout.checkpoint(step)) as draft:
        write_model(draft, saved.weights, card)
        state = draft / layout.state(step).name
        state.mkdir()
        codec.save_tensors(state / OPTIMIZER, saved.optimizer)
        codec.save_tensors(state / METHOD_TENSORS, saved.method_tensors)
        scalars = {"counters": saved.counters, "method": saved.method_scalars, "stepped": stepped(saved.optimizer)}
        codec.write_text(state / SCALARS, json.dumps(scalars, indent=2, allow_nan=False))
        codec.seal(state, StateManifest(step=step))
        tokens = int(saved.counters["tokens"])
        manifest = CheckpointManifest(run=card.run, step=step, tokens=tokens, metrics=metrics)
        codec.seal(draft, manifest)
    return layout.checkpoint(step)


def write_model(directory: Path, weights: Mapping[str, torch.Tensor], card: ModelCard) -> None:
    """Write the files of a Hugging Face model into `directory`.

    Raises:
        UserError: `weights` are not the tensors that config.json implies; names the first that differs.
    """
    problem = difference(shapes_of(weights), expected_tensors(card.config, card.architecture))
    if problem is not None:
        raise UserError(
            f"{directory / MODEL_WEIGHTS} is not written, for {MODEL_CONFIG} implies other tensors: {problem}"
        )
    codec.save_tensors(directory / MODEL_WEIGHTS, weights)
    texts = {
        MODEL_CONFIG: hf_config(card.config, card.special_tokens, card.architecture),
        GENERATION_CONFIG: generation_config(card.special_tokens),
    }
    if card.tokenizer is not None:
        shutil.copyfile(card.tokenizer, directory / TOKENIZER)
        texts[TOKENIZER_CONFIG] = tokenizer_config(card.config, card.special_tokens, card.tokenizer)
    for name, content in texts.items():
        codec.write_text(directory / name, json.dumps(content, indent=2))


def load_checkpoint(
    layout: RunLayout, step: int, run: str | None = None, config: DecoderConfig | None = None
) -> SavedState:
    """Read the state saved at `step`; the caller has verified that it is intact (`newest_intact`).

    Raises:
        DamagedError: its tensors are not what its config.json implies, or that is not the geometry `config`;
            scalars.json is not what a checkpoint holds; or `run` is given, and the checkpoint was copied here from a
            run of another name.
    """
    directory, state = layout.checkpoint(step), layout.state(step)
    owner = codec.read_manifest(directory / MANIFEST, CheckpointManifest).run
    if run not in (None, owner):
        raise DamagedError(f'{directory} is a checkpoint of the run "{owner}", not of "{run}": move it away')
    geometry = read_geometry(directory)
    if config not in (None, geometry):
        raise DamagedError(f"{directory / MODEL_CONFIG} has another geometry than the run: {geometry}")
    check_tensors(directory, geometry)
    counters, method, stepped = _read_scalars(state / SCALARS)
    return SavedState(
        weights=codec.read_tensors(directory / MODEL_WEIGHTS),
        optimizer=codec.read_tensors(state / OPTIMIZER),
        method_tensors=codec.read_tensors(state / METHOD_TENSORS),
        method_scalars=method,
        counters=counters,
        stepped=stepped,
        place=state,
    )


def _read_scalars(path: Path) -> tuple[dict[str, Any], dict[str, Any], list[str] | None]:
    """Read counters, scalars of the method, and the parameters that the optimizer has stepped (None: not recorded)."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        counters, method, stepped = raw["counters"], raw["method"], raw.get("stepped")
        Counters(**counters)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path} does not hold the counters of a checkpoint ({in_one_line(error)})") from None
    wrong = [field.name for field in fields(Counters) if str(field.type) != type(counters.get(field.name)).__name__]
    if wrong:
        raise DamagedError(f"{path}: counters.{wrong[0]} is missing or of a wrong type")
    if not isinstance(method, dict):
        raise DamagedError(f'{path}: "method" should be an object')
    if stepped is not None and not (isinstance(stepped, list) and all(isinstance(name, str) for name in stepped)):
        raise DamagedError(f'{path}: "stepped" should be a list of names')
    return counters, method, stepped


def newest_intact(layout: RunLayout) -> tuple[int | None, list[str]]:
    """(the newest step that a run can continue from, or None; one sentence for each newer one that is damaged).

    Every sha256 is compared, newest first, until one checkpoint passes. Those whose state/ was removed are models only.
    """
    damaged: list[str] = []
    for step in reversed(codec.listed_steps(layout.checkpoints)):
        if not layout.state(step).exists():
            continue
        problem = codec.damage(layout.checkpoint(step), CheckpointManifest, hashes=True) or codec.damage(
            layout.state(step), StateManifest, hashes=True
        )
        if problem is None:
            return step, damaged
        damaged.append(f"checkpoint {step} is damaged and skipped: {problem}")
    return None, damaged


def initial_geometry(source: str) -> DecoderConfig:
    """Read the geometry of `source`: RUN@STEP (RUN@latest), or any Llama-shaped Hugging Face directory.

    Raises:
        UserError: no such run, step or directory, a damaged file, or an architecture that is not Llama's.
    """
    folder = _weights_directory(source)
    with _naming_source(source):
        return read_geometry(folder)


def initial_weights(source: str) -> dict[str, torch.Tensor]:
    """Read the weights of `source`; a checkpoint of ours is compared by sha256 first.

    Raises:
        UserError: as `initial_geometry`; no .safetensors file, or a missing or damaged one.
    """
    folder = _weights_directory(source, hashes=True)
    with _naming_source(source):
        return read_weights(folder)


def check_initial_tensors(source: str, config: DecoderConfig) -> None:
    """Check that the tensors of `source` are those of geometry `config`; errors as `initial_weights`."""
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
    """`source` as `initial_weights` takes it, with "latest" replaced by the step that it means now."""
    directory = _weights_directory(source)
    step = parse_step(directory.name)
    return f"{directory.parent.parent}@{step}" if "@" in source and step is not None else source


def _weights_directory(source: str, *, hashes: bool = False) -> Path:
    directory = _named_directory(source)
    if parse_step(directory.name) is not None and (directory / MANIFEST).is_file():  # a checkpoint of ours
        problem = codec.damage(directory, CheckpointManifest, hashes=hashes)
        if problem is not None:
            raise DamagedError(f'init_from "{source}": {problem}')
    return directory


def _named_directory(source: str) -> Path:
    run, at, step = source.rpartition("@")
    if not at or Path(source).is_dir():
        if RunLayout(Path(source)).manifest.is_file():
            raise UserError(f'init_from "{source}" is a run: name a step, or write "{source}@latest"')
        return Path(source)
    layout = RunLayout(Path(run))
    if not layout.manifest.is_file():
        raise UserError(f'init_from "{source}": {run} is not a run directory (it has no {layout.manifest.name})')
    steps = codec.intact_steps(layout.checkpoints, CheckpointManifest)
    chosen = steps[-1] if step == "latest" and steps else int(step) if step.isdecimal() else None
    if chosen not in steps:
        known = ", ".join(map(str, steps)) or "none"
        raise UserError(f'init_from "{source}": {run} has no intact checkpoint "{step}"; it has: {known}')
    return layout.checkpoint(chosen)
