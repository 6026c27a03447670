"""Which files of a model folder hold its weights, and why a folder in another format is not
read."""

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
"""Pickles beside a model that hold no weights."""
WEIGHT_SUFFIXES = (SAFETENSORS, *_PICKLES, *_OTHERS)


class UnsupportedError(DamagedError):
    """A model whose weights are intact but in a form that is not read; the sentence names the
    remedy."""


def is_model(names: Collection[str]) -> bool:
    """Whether files of these names look like a model, in whatever format."""
    return MODEL_CONFIG in names or any(_holds_weights(name) for name in names)


def weight_files(
    place: str, names: Collection[str], read_json: Callable[[str], Mapping[str, Any]]
) -> list[str]:
    """Choose the files in safetensors that hold a model's weights.

    Args:
        place: where the model lies, for messages.
        names: of the files that lie there.
        read_json: reads one of them.

    Raises:
        UnsupportedError: the weights are there in another format only.
        DamagedError: shards are missing, or there are no weights at all.
    """
    if MODEL_WEIGHTS in names:
        return [MODEL_WEIGHTS]
    if INDEX in names:
        return _of_index(place, names, read_json)
    if ADAPTER in names:
        return [ADAPTER]
    found = sorted(name for name in names if name.endswith(SAFETENSORS))
    if found and _SHARD.fullmatch(found[0]):
        return _of_shards(place, found)
    if len(found) == 1:
        return found
    if found:
        raise DamagedError(
            f"{place} has several files of weights and no index that says which: {_listed(found)}"
        )
    raise _other_format(place, names)


def shards_of_index(place: str, index: Mapping[str, Any]) -> list[str]:
    """The files that an index of shards names; DamagedError if it names none, or files
    elsewhere."""
    named = index.get("weight_map")
    if not (
        isinstance(named, dict) and named and all(isinstance(file, str) for file in named.values())
    ):
        raise DamagedError(f"{place} has no weight_map of tensors to files")
    files = sorted(set(named.values()))
    for file in files:
        if PurePath(file).name != file:
            raise DamagedError(f'{place} names "{file}", which is not a file beside it')
    return files


def _of_index(
    place: str, names: Collection[str], read_json: Callable[[str], Mapping[str, Any]]
) -> list[str]:
    files = shards_of_index(f"{place}/{INDEX}", read_json(INDEX))
    absent = [file for file in files if file not in names]
    if absent:
        raise DamagedError(
            f"{place}/{absent[0]} does not exist, though the index names it: {_count(absent, files)}"
        )
    return files


def _of_shards(place: str, found: list[str]) -> list[str]:
    """Shards without their index, which is not needed if all are there."""
    shards = [match for name in found if (match := _SHARD.fullmatch(name))]
    first, count = shards[0], int(shards[0]["count"])
    wanted = [
        f"{first['stem']}-{number:0{len(first['number'])}}-of-{first['count']}{SAFETENSORS}"
        for number in range(1, count + 1)
    ]
    absent = [file for file in wanted if file not in found]
    if absent:
        raise DamagedError(f"{place}/{absent[0]} does not exist: {_count(absent, wanted)}")
    if len(found) != count:
        raise DamagedError(
            f"{place} has files of weights that are not of one set of shards: {_listed(found)}"
        )
    return wanted


def _count(absent: Collection[str], files: Collection[str]) -> str:
    return f"{len(absent)} of {len(files)} shards are missing"


def _other_format(place: str, names: Collection[str]) -> DamagedError:
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
    held = f"it has {_listed(sorted(names))}" if names else "it has no files"
    return DamagedError(f"{place} has neither {MODEL_WEIGHTS} nor an index of shards; {held}")


def _holds_weights(name: str) -> bool:
    return name.endswith(WEIGHT_SUFFIXES) and not _STATE.fullmatch(name)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def is_pointer(first: bytes) -> bool:
    """Whether a file that begins with these bytes is a pointer of Git LFS in place of the file
    itself."""
    return first.startswith(b"version https://git-lfs")


def pointer_sentence(path: object) -> str:
    """What to say of a pointer of Git LFS."""
    return f"{path} is a pointer of Git LFS and not the file itself: fetch it with `git lfs pull`"
