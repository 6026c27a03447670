"""What a run takes over from the model that it starts from (`init_from`): geometry, token ids,
weights."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pico_contract import codec
from pico_contract.errors import UserError
from pico_contract.layout import RunLayout

from pico_train.checkpoint.init_from import (
    check_initial_tensors,
    initial_geometry,
    initial_token_ids,
    initial_weights,
)
from pico_train.checkpoint.model_folder import read_token_ids, start_token
from pico_train.config import read_yaml
from pico_train.data.tokenizer import Vocabulary
from pico_train.model.decoder import Decoder, DecoderConfig
from pico_train.model.hf import SpecialTokens, load_weights

_FREE = ("max_position_embeddings", "initializer_range")
"""Keys of the geometry on which no weight depends."""


def complete_geometry(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Fill in the keys of the section `model` that `raw` does not give, from the model that
    `init_from` names.

    A run that exists has its geometry in its own config.yaml: the model that it started from may be
    gone. Where there is no model that can be read, `raw` stays as it is, and `check_source` says
    why before anything is trained.
    """
    source, given = raw.get("init_from"), raw.get("model", {})
    fields = [field.name for field in dataclasses.fields(DecoderConfig)]
    if not (isinstance(source, str) and isinstance(given, Mapping)) or all(
        name in given for name in fields
    ):
        return raw
    try:
        inherited = _of_existing_run(raw) or dataclasses.asdict(initial_geometry(source))
    except UserError:
        return raw
    return {**raw, "model": {**inherited, **given}}


def _of_existing_run(raw: Mapping[str, Any]) -> dict[str, Any] | None:
    name, runs_dir = raw.get("name"), raw.get("runs_dir", "runs")
    if not (isinstance(name, str) and isinstance(runs_dir, str)):
        return None
    layout = RunLayout(Path(runs_dir) / name)
    if not (layout.manifest.is_file() and layout.config.is_file()):
        return None
    before = read_yaml(layout.config)
    return before.get("model") if before.get("init_from") == raw["init_from"] else None


def check_source(source: str, config: DecoderConfig) -> None:
    """Check that the model at `source` has the geometry `config`, and the tensors that go with it.

    Floats are compared as float32, in which transformers computes with them: files say
    9.999999747378752e-06 for 1e-5.

    Raises:
        UserError: names every key that differs with both values, or the first tensor that does not
            fit.
    """
    found = initial_geometry(source)
    differing = [
        f"model.{field.name} is {getattr(config, field.name)} but there {getattr(found, field.name)}"
        for field in dataclasses.fields(found)
        if field.name not in _FREE
        and not _equal(getattr(config, field.name), getattr(found, field.name))
    ]
    if differing:
        raise UserError(f'init_from "{source}" has another geometry: {"; ".join(differing)}')
    check_initial_tensors(source, config)


def load_source(model: Decoder, source: str) -> None:
    """Give `model` the weights at `source`; errors as `check_source`."""
    check_source(source, model.config)
    try:
        load_weights(model, initial_weights(source))
    except ValueError as error:
        raise UserError(f'init_from "{source}": {error}') from None


def inherited_token_ids(layout: RunLayout, source: str | None) -> SpecialTokens:
    """Read the token ids that the run in `layout` has from the model at `source`; {} where it
    started from no model.

    Those of a run that exists are in its checkpoints: the model that it started from may be gone.
    """
    if source is None:
        return {}
    steps = codec.listed_steps(layout.checkpoints) if layout.manifest.is_file() else []
    return read_token_ids(layout.checkpoint(steps[0])) if steps else initial_token_ids(source)


def own_vocabulary(vocabulary: Vocabulary, token_ids: SpecialTokens) -> Vocabulary:
    """Let texts begin after the start token that the model's own configuration names, not after
    that of the data."""
    name, start = start_token(token_ids)
    return dataclasses.replace(vocabulary, eos=start, start_name=name)


def differing_ends(data: SpecialTokens, own: SpecialTokens) -> str | None:
    """Say where the data end their documents with another token than the model that a run started
    from."""
    theirs, ends = data.get("eos"), own.get("eos")
    if theirs is None or theirs in (ends if isinstance(ends, list) else [ends]):
        return None
    return (
        f"documents of the data end with id {theirs}, while the model that the run started from"
        f" ends texts with {ends}"
    )


def _equal(given: Any, found: Any) -> bool:
    if isinstance(given, float) and isinstance(found, float | int):
        return ctypes.c_float(given).value == ctypes.c_float(found).value
    return bool(given == found)
