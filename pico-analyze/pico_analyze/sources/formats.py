"""Formats of weights: the files to read in a model folder, and remedies for unsupported formats."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import PurePath
from typing import Any

from pico_contract.errors import DamagedError
from pico_contract.layout import MODEL_CONFIG, MODEL_WEIGHTS

INDEX = f"{MODEL_WEIGHTS}.index.json"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
SAFETENSORS = ".safetensors"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_OTHERS = {
    ".gguf": ("GGUF (llama.cpp)", "take the Hugging Face model that it was made from"),
    ".ggml": ("GGML (llama.cpp)", "take the Hugging Face model that it was made from"),
    ".onnx": ("ONNX", "take the Hugging Face model that it was exported from"),
    ".h5": ("TensorFlow", "AutoModel.from_pretrained(DIR, from_tf=True).save_pretrained(DIR)"),
    ".msgpack": ("Flax", "AutoModel.from_pretrained(DIR, from_flax=True).save_pretrained(DIR)"),
    ".npz": ("NumPy", "save its arrays with safetensors.numpy.save_file"),
    ".distcp": (
        "a distributed checkpoint of torch",
        "python -m torch.distributed.checkpoint.format_utils dcp_to_torch",
    ),
}
_STATE = re.compile(
    r"(?:training_args|optimizer|scheduler|scaler|rng_state|random_states|trainer_state).*"
)
"""Pickles beside a model that contain no weights."""
WEIGHT_SUFFIXES = (SAFETENSORS, *_PICKLES, *_OTHERS)


class UnsupportedError(DamagedError):
    """A model whose weights are intact but in an unsupported form; the message names the remedy."""


def is_model(names: Collection[str]) -> bool:
    """Return whether files of these names look like a model, in any format."""
    return MODEL_CONFIG in names or any(_holds_weights(name) for name in names)


def weight_files(
    place: str, names: Collection[str], read_json: Callable[[str], Mapping[str, Any]]
) -> list[str]:
    """List the files in safetensors that contain a model's weights.

    Args:
        place: the folder or address of the model, for messages.
        names: the names of its files.
        read_json: reads one of them.

    Raises:
        UnsupportedError: the weights are there only in another format.
        DamagedError: shards are missing, or there are no weights at all.
    """
    if MODEL_WEIGHTS in names:
        return [MODEL_WEIGHTS]
    if INDEX in names:
        return _indexed_shards(place, names, read_json)
    if ADAPTER in names:
        return [ADAPTER]
    files = sorted(name for name in names if name.endswith(SAFETENSORS))
    if not files:
        raise _other_format(place, names)
    if _SHARD.fullmatch(files[0]):
        return _shards_without_index(place, files)
    if len(files) > 1:
        raise DamagedError(
            f"{place} has several files of weights and no index that says which: {_listed(files)}"
        )
    return files


def shards_of_index(place: str, index: Mapping[str, Any]) -> list[str]:
    """List the files that an index of shards names.

    Raises:
        DamagedError: it names none, or one that is not beside it.
    """
    weight_map = index.get("weight_map")
    values = weight_map.values() if isinstance(weight_map, dict) else ()
    if not values or not all(isinstance(file, str) for file in values):
        raise DamagedError(f"{place} has no weight_map of tensors to files")
    files = sorted(set(values))
    for file in files:
        # A path such as `../other` would lead out of the model.
        if PurePath(file).name != file:
            raise DamagedError(f'{place} names "{file}", which is not a file beside it')
    return files


def _indexed_shards(
    place: str, names: Collection[str], read_json: Callable[[str], Mapping[str, Any]]
) -> list[str]:
    files = shards_of_index(f"{place}/{INDEX}", read_json(INDEX))
    absent = [file for file in files if file not in names]
    if absent:
        raise DamagedError(
            f"{place}/{absent[0]} does not exist, though the index names it: {_count(absent, files)}"
        )
    return files


def _shards_without_index(place: str, files: list[str]) -> list[str]:
    """Check that files, the first of which is a shard, are one complete set of shards.

    Their index is not needed then.
    """
    wanted = _complete_set(files[0])
    absent = [file for file in wanted if file not in files]
    if absent:
        raise DamagedError(f"{place}/{absent[0]} does not exist: {_count(absent, wanted)}")
    if len(files) != len(wanted):
        raise DamagedError(
            f"{place} has files of weights that are not of one set of shards: {_listed(files)}"
        )
    return wanted


def _complete_set(shard: str) -> list[str]:
    """List the names of all shards in the set of one."""
    match = _SHARD.fullmatch(shard)
    assert match is not None
    stem, width, count = match["stem"], len(match["number"]), match["count"]
    numbers = range(1, int(count) + 1)
    return [f"{stem}-{number:0{width}}-of-{count}{SAFETENSORS}" for number in numbers]


def _count(absent: Collection[str], files: Collection[str]) -> str:
    return f"{len(absent)} of {len(files)} shards are missing"


def _other_format(place: str, names: Collection[str]) -> DamagedError:
    """Return the error of a model without files in safetensors, with the remedy if there is one."""
    pickles = sorted(name for name in names if name.endswith(_PICKLES) and _holds_weights(name))
    if pickles:
        return UnsupportedError(
            f"{place} has {pickles[0]}, a pickle, which is not read since it may run code; save it as safetensors: "
            "AutoModel.from_pretrained(DIR).save_pretrained(DIR, safe_serialization=True)"
        )
    for name in sorted(names):
        if (suffix := PurePath(name).suffix) in _OTHERS:
            what, remedy = _OTHERS[suffix]
            return UnsupportedError(
                f"{place} has {name}, which is {what} and is not read; save it as safetensors: {remedy}"
            )
    files = f"it has {_listed(sorted(names))}" if names else "it has no files"
    return DamagedError(f"{place} has neither {MODEL_WEIGHTS} nor an index of shards; {files}")


def _holds_weights(name: str) -> bool:
    return name.endswith(WEIGHT_SUFFIXES) and not _STATE.fullmatch(name)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def is_pointer(first: bytes) -> bool:
    """Return whether a file that begins with these bytes is only a pointer of Git LFS."""
    return first.startswith(b"version https://git-lfs")


def pointer_sentence(path: object) -> str:
    """Say in one sentence that a file is a pointer of Git LFS, and how to fetch the file."""
    return (
        f"{path} is a pointer of Git LFS and not the file itself: fetch it with `git lfs pull`"
    )
