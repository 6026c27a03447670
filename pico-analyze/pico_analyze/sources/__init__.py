"""What the engine asks of a place that steps and tensors come from; one module per format implements it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from pico_contract.errors import DamagedError, UserError, did_you_mean

MICROBATCH_GRADIENTS = "microbatch_gradients"
"""The kind of the gradients of each micro-batch's mean loss, stacked: (m, ...) where a gradient is (...)."""
KINDS = ("weights", "gradients", "activations", MICROBATCH_GRADIENTS)
SPLITS = ("train", "val")


class Source(Protocol):
    """A series of observed steps of one model.

    Five attributes more are used where a source has them: `fingerprint` (see `pico_analyze.cache`), without which
    results are not kept; `probe` (see `pico_analyze.comparison`), without which activations are compared with those of
    any run that has as many rows; `positions` (`KnowsPositions`), without which each row of activations counts as a
    sequence of its own; `at_once`, the number of steps whose files fit where they are fetched to, or None;
    and `terms` (`CountsTerms`), without which nothing is measured of gradients of micro-batches.
    """

    @property
    def name(self) -> str:
        """Name in the `run` column of the table."""

    @property
    def model(self) -> Mapping[str, Any]:
        """Geometry under Hugging Face configuration names."""

    @property
    def steps(self) -> Sequence[int]:
        """Steps with something intact to read, ascending."""

    @property
    def damaged(self) -> Mapping[int, Sequence[str]]:
        """Step -> one sentence for each of its directories that is not intact."""

    def tokens(self, step: int) -> int | None:
        """Training tokens consumed up to `step`; None where it is not recorded."""

    def splits(self, step: int, kind: str) -> list[str | None]:
        """Splits of which `step` holds `kind`; [None] for weights, [] where it holds none."""

    def modules(self, step: int, kind: str, split: str | None = None) -> list[str]:
        """Names of the modules that have a tensor of `kind` at `step`."""

    def tensor(self, step: int, kind: str, module: str, split: str | None = None) -> torch.Tensor:
        """The tensor in its stored dtype, on CPU."""


@runtime_checkable
class CountsTerms(Protocol):
    """A source that may hold gradients of micro-batches."""

    def terms(self, step: int, split: str | None) -> Sequence[int]:
        """Terms of the loss in each micro-batch of `microbatch_gradients`; empty where the step holds none."""


@runtime_checkable
class KnowsPositions(Protocol):
    """A source that knows how many positions of each probe row its activations hold."""

    def positions(self, step: int) -> int:
        """Rows of activations that belong to one probe row, one after the other, at `step`; 1 if not recorded."""


_GEOMETRY = {
    "hidden_size": ("d_model", "n_embd"),
    "intermediate_size": ("activation_hidden_dim", "n_inner", "ffn_dim"),
    "num_hidden_layers": ("n_layers", "n_layer"),
    "num_attention_heads": ("attention_n_heads", "n_head"),
    "num_key_value_heads": ("attention_n_kv_heads",),
    "head_dim": (),
    "vocab_size": (),
    "tie_word_embeddings": (),
}


def geometry(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a foreign model configuration says of the shape, under Hugging Face's usual names; the rest is dropped."""
    found = {name: [config[key] for key in (name, *others) if key in config] for name, others in _GEOMETRY.items()}
    first = {name: values[0] for name, values in found.items() if values}
    return {name: value for name, value in first.items() if isinstance(value, bool) or _is_count(value)}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value > 0


def check_kind(kind: str) -> None:
    """Raise UserError, with the nearest, for what is not one of KINDS."""
    if kind not in KINDS:
        raise UserError(f'there is no kind "{kind}"{did_you_mean(kind, KINDS)}')


def no_step(place: object, step: int, steps: Sequence[int], damaged: Mapping[int, Sequence[str]]) -> UserError:
    """Why `place` has no `step`: it is damaged, or was never there, with the nearest that is."""
    if step in damaged:
        return UserError(f"step {step} of {place} is damaged: {damaged[step][0]}")
    near = min(steps, key=lambda known: abs(known - step), default=None)
    hint = f"; the nearest is {near}" if near is not None else ": nothing was observed yet"
    return UserError(f"{place} has no step {step}{hint}")


def no_module(place: object, kind: str, module: str, known: Iterable[str]) -> UserError:
    """`place` holds no `kind` of `module`, with the nearest that it does hold."""
    return UserError(f'{place} has no {kind} of the module "{module}"{did_you_mean(module, known)}')


def stamp(paths: Iterable[Path]) -> str:
    """sha256 of the paths, sizes and times of files: it changes with them, and does not cost reading them."""
    try:
        found = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    except OSError as error:
        raise DamagedError(f"{error.filename} cannot be read ({error.strerror})") from None
    return hashlib.sha256(repr(found).encode()).hexdigest()
