"""Read geometry, token ids and weights of any Llama-shaped Hugging Face model directory."""

from __future__ import annotations

import json
from collections.abc import Iterable
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
"""Suffix of the rotary frequencies in old checkpoints. They follow from config.json, and
transformers ignores them as well."""


def read_geometry(folder: Path) -> DecoderConfig:
    """Read the geometry of the model in `folder` from its config.json.

    Raises:
        UserError: the directory or its config.json does not exist, or the model has a feature that
            this decoder lacks; names it.
    """
    path = folder / MODEL_CONFIG
    try:
        return config_from_hf(_read_object(path))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def read_token_ids(folder: Path) -> SpecialTokens:
    """Read the ids of bos, eos and pad that the model's own configuration names.

    generation_config.json takes precedence over config.json, as in transformers' `generate`.
    Negative ids mean "none".

    Raises:
        UserError: as `read_geometry`; an id is not an integer, or lies beyond the vocabulary.
    """
    path, generation = folder / MODEL_CONFIG, folder / GENERATION_CONFIG
    config = _read_object(path)
    vocab_size = config.get("vocab_size")
    token_ids = {}
    if generation.is_file():
        token_ids = _token_ids(generation, _read_object(generation), vocab_size)
    for role, ids in _token_ids(path, config, vocab_size).items():
        token_ids.setdefault(role, ids)
    return token_ids


def _token_ids(
    path: Path, raw: dict[str, Any], vocab_size: int | None
) -> dict[str, int | list[int]]:
    token_ids: dict[str, int | list[int]] = {}
    for role in ("bos", "eos", "pad"):
        ids = _ids(path, f"{role}_token_id", raw, vocab_size)
        if ids and min(ids) >= 0:
            token_ids[role] = ids if len(ids) > 1 else ids[0]
    return token_ids


def _ids(path: Path, key: str, raw: dict[str, Any], vocab_size: int | None) -> list[int]:
    """Read the ids under `key`, which may be an integer, a list of integers, or missing."""
    value = raw.get(key)
    ids = [value] if isinstance(value, int) else value or []
    if isinstance(ids, list) and all(_is_id(i, vocab_size or 0) for i in ids):
        return ids
    wanted = f"an id below vocab_size ({vocab_size})"
    raise UserError(f"{path}: {key} should be {wanted} (it is {json.dumps(value)})")


def _is_id(value: Any, vocab_size: int) -> bool:
    # A Boolean is an `int` too.
    return type(value) is int and value < vocab_size


def start_token(token_ids: SpecialTokens) -> tuple[str, int | None]:
    """Return role and id of the token before a text: bos, or eos if that is the same or alone."""
    bos, eos = (_first(token_ids.get(role)) for role in ("bos", "eos"))
    return ("eos", eos) if bos in (None, eos) else ("bos", bos)


def _first(ids: int | list[int] | None) -> int | None:
    return ids[0] if isinstance(ids, list) else ids


def check_tensors(folder: Path, config: DecoderConfig) -> None:
    """Check that the tensors in `folder` are those of a decoder of geometry `config`.

    Names, shapes and types are compared; only the headers of the files are read.

    Raises:
        UserError: as `read_weights`.
        DamagedError: names the first tensor that does not fit, and its file.
    """
    paths = weight_files(folder)
    files = _tensors_by_file(paths)
    shapes = {name: file.shape(name) for name, file in files.items()}
    parameters = dict(on_meta(config).named_parameters())
    # The meta device has shapes without memory, so that checking a large model is cheap.
    expected = shapes_of(parameters)
    if config.tie_word_embeddings and HEAD in shapes:
        # Tied weights may be stored twice.
        expected[HEAD] = expected[EMBEDDING]
    problem = difference(shapes, expected)
    if problem is not None:
        path = _blamed(files, problem) or paths[0]
        raise DamagedError(f"{path}: {problem}")
    _check_dtypes(files)


def _blamed(files: dict[str, codec.TensorFile], problem: str) -> Path | None:
    """Return the file of the tensor that `problem` names; None if the tensor is missing."""
    for name, file in files.items():
        if f'"{name}"' in problem:
            return file.path
    return None


def _check_dtypes(files: dict[str, codec.TensorFile]) -> None:
    for name, file in files.items():
        dtype = file.dtype(name)
        # safetensors calls its floating-point types F64, F32, F16, BF16 and F8_...
        if not dtype.startswith(("F", "BF")):
            raise DamagedError(
                f'{file.path}: the tensor "{name}" is {dtype}, not floating-point'
            )


def _tensors_by_file(paths: list[Path]) -> dict[str, codec.TensorFile]:
    """Return tensor name -> file, without tensors that a decoder does not need."""
    files = {}
    for path in paths:
        file = codec.TensorFile(path)
        files.update({name: file for name in file.names if not name.endswith(_ROTARY_BUFFER)})
    return files


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of the model in `folder`, from one safetensors file or several.

    Raises:
        UserError: there is no safetensors file.
        DamagedError: a file is missing or damaged, or the index does not parse.
    """
    tensors: dict[str, torch.Tensor] = {}
    for file in weight_files(folder):
        tensors.update(codec.read_tensors(file))
    return {
        name: tensor for name, tensor in tensors.items() if not name.endswith(_ROTARY_BUFFER)
    }


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
        DamagedError: the tensors are not those that config.json implies; names the first that is
            not.
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
    """Read tensor name -> file name from the index of a model in several files."""
    weight_map = _read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not _are_texts(weight_map.values()):
        raise DamagedError(f'{index} is not an index of weights: it has no "weight_map"')
    for name in weight_map.values():
        # A path could lead out of the directory.
        if Path(name).name != name:
            raise DamagedError(f'{index} names "{name}", which is not a plain file name')
    return weight_map


def _are_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)
