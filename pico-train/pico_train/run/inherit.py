"""The geometry, token ids and weights that a run inherits from `init_from`, if it is set."""

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
    """Fill in the keys of the section `model` that `raw` lacks, from the model at `init_from`.

    An existing run has its geometry in its own config.yaml, since the model that it started from
    may be gone. If no model can be read, `raw` stays unchanged, and `check_source` explains why
    before anything is trained.
    """
    source, given = raw.get("init_from"), raw.get("model", {})
    if not isinstance(source, str) or not isinstance(given, Mapping):
        return raw
    # Every key is given, and there is nothing to inherit.
    if all(field.name in given for field in dataclasses.fields(DecoderConfig)):
        return raw
    try:
        inherited = _recorded_geometry(raw) or dataclasses.asdict(initial_geometry(source))
    except UserError:
        return raw
    return {**raw, "model": {**inherited, **given}}


def _recorded_geometry(raw: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read the geometry that the run of this name recorded, if it had the same `init_from`."""
    name = raw.get("name")
    runs_dir = raw.get("runs_dir", "runs")
    if not isinstance(name, str) or not isinstance(runs_dir, str):
        return None
    layout = RunLayout(Path(runs_dir) / name)
    if not layout.manifest.is_file() or not layout.config.is_file():
        return None
    recorded = read_yaml(layout.config)
    # With another source this is another run, and its identity check will say so.
    if recorded.get("init_from") != raw["init_from"]:
        return None
    return recorded.get("model")


def check_source(source: str, config: DecoderConfig) -> None:
    """Check that the model at `source` has the geometry `config`, and the tensors that go with it.

    Raises:
        UserError: names every key that differs with both values, or the first tensor that does not
            fit.
    """
    inherited = dataclasses.asdict(initial_geometry(source))
    wanted = dataclasses.asdict(config)
    differing = [
        f"model.{name} is {wanted[name]} but there {value}"
        for name, value in inherited.items()
        if name not in _FREE and not _equal(wanted[name], value)
    ]
    if differing:
        raise UserError(f'init_from "{source}" has another geometry: {"; ".join(differing)}')
    check_initial_tensors(source, config)


def load_source(model: Decoder, source: str) -> None:
    """Load the weights at `source` into `model`; errors as `check_source`."""
    check_source(source, model.config)
    try:
        load_weights(model, initial_weights(source))
    except ValueError as error:
        raise UserError(f'init_from "{source}": {error}') from None


def inherited_token_ids(layout: RunLayout, source: str | None) -> SpecialTokens:
    """Read the token ids that a run inherits from the model at `source`; {} if it has none.

    An existing run has them in its checkpoints, since the model that it started from may be gone.
    """
    if source is None:
        return {}
    steps = codec.listed_steps(layout.checkpoints) if layout.manifest.is_file() else []
    if steps:
        return read_token_ids(layout.checkpoint(steps[0]))
    return initial_token_ids(source)


def own_vocabulary(vocabulary: Vocabulary, token_ids: SpecialTokens) -> Vocabulary:
    """Return `vocabulary` with the start token that the model's own configuration names."""
    name, start = start_token(token_ids)
    return dataclasses.replace(vocabulary, eos=start, start_name=name)


def differing_ends(data: SpecialTokens, model: SpecialTokens) -> str | None:
    """Return a warning if documents of the data end with another token than the model's texts."""
    data_eos, model_eos = data.get("eos"), model.get("eos")
    accepted = model_eos if isinstance(model_eos, list) else [model_eos]
    if data_eos is None or data_eos in accepted:
        return None
    return (
        f"documents of the data end with id {data_eos}, while the model that the run started from"
        f" ends texts with {model_eos}"
    )


def _equal(wanted: Any, inherited: Any) -> bool:
    # transformers computes in float32, so files say 9.999999747378752e-06 for 1e-5.
    if isinstance(wanted, float) and isinstance(inherited, float | int):
        return ctypes.c_float(wanted).value == ctypes.c_float(inherited).value
    return bool(wanted == inherited)
