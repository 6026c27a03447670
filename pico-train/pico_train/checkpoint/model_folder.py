"""Any Llama-shaped Hugging Face model directory: its geometry, its token ids and its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pico_contract import codec
from pico_contract.errors import DamagedError, UserError
from pico_contract.layout import GENERATION_CONFIG, MODEL_CONFIG, MODEL_WEIGHTS

from pico_train.model.cost import on_meta
from pico_train.model.decoder import Decoder, DecoderConfig
from pico_train.model.hf import EMBEDDING, HEAD, SpecialTokens, config_from_hf, load_weights
from pico_train.model.stock import difference, shapes_of

_ROTARY_BUFFER = "rotary_emb.inv_freq"
"""Old checkpoints store the rotary frequencies, which follow from config.json; transformers ignores
them as well."""


def read_geometry(folder: Path) -> DecoderConfig:
    """Read the geometry of the model in `folder` from its config.json.

    Raises:
        UserError: there is no such directory or no config.json in it, or the model has a feature
            that this decoder lacks, which is named.
    """
    path = folder / MODEL_CONFIG
    try:
        return config_from_hf(_read_object(path))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def read_token_ids(folder: Path) -> SpecialTokens:
    """Read the ids of bos, eos and pad of the model in `folder`, as far as its own configuration
    names them.

    generation_config.json goes before config.json, as in transformers' `generate`. Negative ids
    mean "none".

    Raises:
        UserError: as `read_geometry`; an id is not an integer, or lies beyond the vocabulary.
    """
    path, generation = folder / MODEL_CONFIG, folder / GENERATION_CONFIG
    config = _read_object(path)
    places = [(generation, _read_object(generation))] if generation.is_file() else []
    found: dict[str, int | list[int]] = {}
    for place, raw in [*places, (path, config)]:
        for role in ("bos", "eos", "pad"):
            value = raw.get(f"{role}_token_id")
            ids = [value] if isinstance(value, int) else value or []
            if not isinstance(ids, list) or any(
                type(i) is not int or i >= config.get("vocab_size", 0) for i in ids
            ):
                wanted = f"an id below vocab_size ({config.get('vocab_size')})"
                raise UserError(
                    f"{place}: {role}_token_id should be {wanted} (it is {json.dumps(value)})"
                )
            if ids and min(ids) >= 0:
                found.setdefault(role, ids if len(ids) > 1 else ids[0])
    return found


def start_token(token_ids: SpecialTokens) -> tuple[str, int | None]:
    """Return role and id of the token that texts begin after: bos, or eos if that is the same or
    the only one."""
    bos, eos = (_first(token_ids.get(role)) for role in ("bos", "eos"))
    return ("eos", eos) if bos in (None, eos) else ("bos", bos)


def _first(ids: int | list[int] | None) -> int | None:
    return ids[0] if isinstance(ids, list) else ids


def check_tensors(folder: Path, config: DecoderConfig) -> None:
    """Check that the tensors in `folder` are those of a decoder of geometry `config`, by name,
    shape and type.

    Only the headers of the files are read.

    Raises:
        UserError: as `read_weights`; DamagedError: names the first tensor that does not fit, and
            its file.
    """
    stored = {
        name: file for file in map(codec.TensorFile, weight_files(folder)) for name in file.names
    }
    shapes = {
        name: file.shape(name) for name, file in stored.items() if not name.endswith(_ROTARY_BUFFER)
    }
    expected = shapes_of(dict(on_meta(config).named_parameters()))
    if config.tie_word_embeddings and HEAD in shapes:
        expected[HEAD] = expected[EMBEDDING]  # which may be stored twice
    if problem := difference(shapes, expected):
        named = next((name for name in shapes if f'"{name}"' in problem), None)
        raise DamagedError(f"{stored[named].path if named else weight_files(folder)[0]}: {problem}")
    for name in shapes:
        if not stored[name].dtype(name).startswith(("F", "BF")):
            kind = stored[name].dtype(name)
            raise DamagedError(
                f'{stored[name].path}: the tensor "{name}" is {kind}, not floating-point'
            )


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of the model in `folder`, from one safetensors file or from those that its
    index names.

    Raises:
        UserError: there is no safetensors file.
        DamagedError: a file is missing or damaged, or the index does not parse.
    """
    tensors = {
        name: tensor
        for file in weight_files(folder)
        for name, tensor in codec.read_tensors(file).items()
    }
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(_ROTARY_BUFFER)}


def weight_files(folder: Path) -> list[Path]:
    """List the safetensors files of the model in `folder`; errors as `read_weights`."""
    whole, index = folder / MODEL_WEIGHTS, folder / f"{MODEL_WEIGHTS}.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        raise UserError(f"{folder} holds neither {whole.name} nor {index.name}")
    return sorted({folder / name for name in _weight_map(index).values()})


def load_model(folder: Path) -> Decoder:
    """Load the model in `folder` as a decoder in evaluation mode, float32, on CPU.

    Raises:
        UserError: as `read_geometry` and `read_weights`.
        DamagedError: the tensors are not those that config.json implies; names the first.
    """
    decoder = Decoder(read_geometry(folder))
    try:
        load_weights(decoder, read_weights(folder))
    except ValueError as error:
        raise DamagedError(f"{folder / MODEL_WEIGHTS}: {error}") from None
    return decoder.eval()


def _read_object(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path} is not a JSON file that can be read ({error})") from None
    if not isinstance(raw, dict):
        raise DamagedError(f"{path} holds a {type(raw).__name__} where an object is expected")
    return raw


def _weight_map(index: Path) -> dict[str, str]:
    """Return tensor -> file, as the index of a Hugging Face model in several files has it."""
    weight_map = _read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) for name in weight_map.values()
    ):
        raise DamagedError(f'{index} is not an index of weights: it has no "weight_map"')
    if linked := next((name for name in weight_map.values() if Path(name).name != name), None):
        raise DamagedError(f'{index} names "{linked}", which is not a plain file name')
    return weight_map
