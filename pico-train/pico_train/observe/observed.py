"""All that was seen of one theta_t: to be measured by other packages, and to be written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pico_contract import codec
from pico_contract.kinds import observation_name
from pico_contract.layout import observed_file
from pico_contract.observer import Observation
from pico_contract.schema import SnapshotManifest, TensorSet

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class ObservedSet:
    """Tensors of one kind and split, with their entry of the manifest."""

    about: TensorSet
    tensors: Tensors

    @property
    def name(self) -> str:
        """Split and kind, as `snapshot.kinds` spells them."""
        return observation_name(self.about.split, self.about.kind)


def observed_set(
    split: str,
    kind: str,
    tensors: Tensors,
    dtype: str,
    *,
    objective: str = "",
    parameters: str = "",
    dropout: bool = False,
    terms: Sequence[int] = (),
) -> ObservedSet:
    """Describe `tensors` as the manifest does: shapes, and for gradients of what and by what."""
    about = TensorSet(
        file=observed_file(split, kind),
        split=split,
        kind=kind,
        dtype=dtype,
        tensors={name: list(tensor.shape) for name, tensor in tensors.items()},
        objective=objective,
        parameters=parameters,
        dropout=dropout,
        terms=list(terms),
    )
    return ObservedSet(about, tensors)


@dataclass
class Snapshot:
    """A snapshot that is complete and not yet on disk."""

    directory: Path
    files: dict[str, Tensors]
    manifest: SnapshotManifest

    def write(self) -> None:
        """Publish snapshots/step_t."""
        with codec.publish(self.directory) as draft:
            for name, tensors in self.files.items():
                codec.save_tensors(draft / name, tensors)
            codec.seal(draft, self.manifest)


@dataclass(frozen=True)
class Observed:
    """All that was seen of theta_t; `snapshot` is None if none is due."""

    observation: Observation
    snapshot: Snapshot | None
