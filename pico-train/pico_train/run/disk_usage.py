"""The disk space that a run takes, from its configuration alone, to within a few percent."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from pico_contract import codec
from pico_contract.kinds import MICROBATCH_GRADIENTS, observation_name
from pico_contract.layout import observed_file
from pico_contract.schema import CheckpointManifest, RowMap, SnapshotManifest, TensorSet
from torch import nn

from pico_train.model.cost import on_meta
from pico_train.model.decoder import Decoder
from pico_train.observe.snapshot import DTYPES, observed_extra
from pico_train.run.dry_run import Phase, phases
from pico_train.run.job import Job

MANIFEST_BYTES = 2_700
"""Bytes of a checkpoint's configurations and manifests."""
ROW_BYTES = 260
"""Bytes of a row of metrics.jsonl."""
_ENTRY_BYTES = 300
"""Bytes of one tensor file's entry in a snapshot's manifest: size, hash, what gradients are of."""
_ROW_ID_BYTES = 8
_TOKEN_BYTES = 4

Shapes = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class StoredSteps:
    """The steps of which a run stores models and states of checkpoints, and snapshots.

    `saved` are the steps that ever had a checkpoint. If such a step has no model any more, its
    observed weights were moved to its snapshot.
    """

    models: Collection[int]
    states: Collection[int]
    saved: Collection[int]
    observed: Collection[int]


@dataclass(frozen=True)
class Storage:
    """Bytes of the checkpoints, snapshots and metrics that `job` writes.

    Evaluations and logs (kilobytes) and whatever observers write come on top.
    """

    job: Job

    @cached_property
    def phases(self) -> list[Phase]:
        """The phases of the run, as shapes."""
        return phases(self.job)

    @cached_property
    def model(self) -> int:
        """Bytes of a checkpoint without state/."""
        tokenizer = self.job.metadata.tokenizer
        tokenizer_bytes = 0 if tokenizer is None else tokenizer.stat().st_size
        weights = dict(self._decoder.named_parameters())
        return file_bytes(weights) + tokenizer_bytes + MANIFEST_BYTES

    @cached_property
    def state(self) -> int:
        """Bytes of state/ after the first update, in the phase where it is largest.

        It holds the optimizer's state, complete once it has stepped, and that of the method.
        """
        return max(file_bytes(phase.optimizer) + _method_bytes(phase) for phase in self.phases)

    @cached_property
    def kinds(self) -> dict[str, int]:
        """Bytes of a snapshot by kind of tensor.

        `weights` are those of a step that never had a checkpoint; `moved` are those of a removed
        checkpoint, which keep its float32; `extra` are the method's own, in the same file.
        """
        dtype = DTYPES[self.job.config.snapshot.dtype]
        files = {"weights": self._weights, **self._sets}
        # Headers count too: small models have files of a few kilobytes.
        sizes = {kind: file_bytes(_cast(tensors, dtype)) for kind, tensors in files.items()}
        extra = _cast(self._extra, dtype)
        sizes["extra"] = file_bytes(extra) if extra else 0
        sizes["moved"] = file_bytes(self._weights)
        return sizes

    @cached_property
    def snapshot(self) -> int:
        """Bytes of a snapshot without weights, of any step but the last."""
        tensors = sum(self.kinds[kind] for kind in self._sets)
        return tensors + self.kinds["extra"] + self._batch + self._manifest

    @property
    def observation(self) -> int:
        """Bytes of a snapshot with weights, which main memory holds until it is written."""
        return self.snapshot + self.kinds["weights"]

    def bytes(self, stored: StoredSteps) -> int:
        """Return the bytes of all checkpoints and snapshots."""
        return self.checkpoints(stored) + self.snapshots(stored)

    def checkpoints(self, stored: StoredSteps) -> int:
        """Return the bytes of all checkpoints."""
        models = self.model * len(stored.models)
        stepped = set(stored.states) - {0}
        states = self.state * len(stepped)
        # Before the first update the optimizer has no state.
        if 0 in stored.states:
            states += _method_bytes(self.phases[0])
        return models + states

    def snapshots(self, stored: StoredSteps) -> int:
        """Return the bytes of all snapshots."""
        observed, saved = set(stored.observed), set(stored.saved)
        own_weights = observed - saved
        moved_weights = observed & (saved - set(stored.models))
        size = self.snapshot * len(observed)
        size += self.kinds["weights"] * len(own_weights)
        size += self.kinds["moved"] * len(moved_weights)
        # No update follows the last step.
        if self.job.config.train.steps in observed:
            size -= self._training
        return size

    def after(
        self, saved: list[int], observed: Collection[int], stateless: Collection[int] = ()
    ) -> StoredSteps:
        """Apply the keep policy to the checkpoints `saved` (ascending), some of them
        `stateless`."""
        keep, last = self.job.config.checkpoint.keep, self.job.config.train.steps
        models = keep.models(saved, last)
        states = keep.states([step for step in models if step not in stateless])
        return StoredSteps(models, states, saved, observed)

    def peak(
        self, saved: list[int], observed: list[int], stateless: Collection[int] = ()
    ) -> int:
        """Return the largest number of bytes on disk at any time.

        Usage only grows, since each save adds more than the policy then removes for it. The peak
        is therefore either the end, or the moment of the last save before the policy is applied.
        """
        # Just before the last save, neither its checkpoint nor its snapshot exists.
        earlier = [step for step in observed if step < saved[-1]]
        before = self.after(saved[:-1], earlier, stateless)
        end = self.after(saved, observed, stateless)
        return max(self.bytes(end), self.bytes(before) + self.model + self.state)

    def metrics(self, since: int = 0) -> int:
        """Return the bytes of the rows of metrics.jsonl beyond update `since`."""
        updates = self.job.config.train.steps - since
        return ROW_BYTES * (updates // self.job.config.log.every)

    @cached_property
    def _decoder(self) -> Decoder:
        return on_meta(self.job.config.model)

    @cached_property
    def _weights(self) -> dict[str, torch.Tensor]:
        """Weights of the observed modules; tied ones come once."""
        parameters = dict(self._decoder.named_parameters())
        names = [f"{module}.weight" for module in self.job.observer.modules]
        return {name: parameters[name] for name in names if name in parameters}

    @property
    def _trained(self) -> Shapes:
        """Parameters of the observed modules that train in the last phase."""
        prefixes = tuple(f"{module}." for module in self.job.observer.modules)
        parameters = self.phases[-1].parameters
        return {name: p for name, p in parameters.items() if name.startswith(prefixes)}

    @property
    def _extra(self) -> Shapes:
        """The method's own tensors of a snapshot in the last phase."""
        phase = self.phases[-1]
        extra = phase.method.extra_tensors(phase.model)
        return observed_extra(extra, self._decoder, self.job.observer.modules)

    @cached_property
    def _sets(self) -> dict[str, Shapes]:
        """Kind -> name -> a tensor of the shape that a snapshot stores."""
        train, trained = self.job.config.train, self._trained
        # Gradients of micro-batches are observed in one process alone.
        n_passes = train.batch_size // train.rows_per_pass()
        every = {
            "train.gradients": trained,
            observation_name("train", MICROBATCH_GRADIENTS): {
                name: p.expand(n_passes, *p.shape) for name, p in trained.items()
            },
            "val.gradients": self._weights,
            "val.activations": self._activations,
        }
        kinds = self.job.config.snapshot.kinds
        return {kind: tensors for kind, tensors in every.items() if kind in kinds}

    @property
    def _activations(self) -> Shapes:
        """Outputs of the observed modules; without positions, the mean over them is stored."""
        observer = self.job.observer
        rows = len(observer.probe.row_ids) * max(len(observer.positions), 1)
        widths = {name: _width(self._decoder.get_submodule(name)) for name in observer.modules}
        return {name: torch.empty(rows, width, device="meta") for name, width in widths.items()}

    @property
    def _batch(self) -> int:
        """Bytes of the row ids and tokens of an update, stored with what is observed of it."""
        if not any(kind.startswith("train.") for kind in self._sets):
            return 0
        row_bytes = _ROW_ID_BYTES + _TOKEN_BYTES * (self.job.seq_len + 1)
        return self.job.config.train.batch_size * row_bytes

    @property
    def _training(self) -> int:
        """Bytes of everything in a snapshot that comes from the update after its step."""
        sizes = self.kinds.items()
        return sum(size for kind, size in sizes if kind.startswith("train.")) + self._batch

    @cached_property
    def _manifest(self) -> int:
        observer = self.job.observer
        sets = [self._tensor_set(kind) for kind in self._sets]
        # Any rule will do: the estimate needs the length of the text to a few bytes.
        row_map = RowMap(rule="last", positions=observer.positions, probe_rows=0)
        manifest = SnapshotManifest(
            run=observer.run,
            step=0,
            weights="checkpoint",
            modules=observer.modules,
            observed=sets,
            row_map=row_map,
        )
        return len(manifest.to_json()) + _ENTRY_BYTES * len(sets)

    def _tensor_set(self, kind: str) -> TensorSet:
        split, name = kind.split(".")
        return TensorSet(
            file=observed_file(split, name),
            split=split,
            kind=name,
            dtype=self.job.observer.config.dtype,
            tensors={tensor: list(shape.shape) for tensor, shape in self._sets[kind].items()},
        )


def remaining(job: Job, newest: int | None) -> int:
    """Return the peak of bytes that a session which continues from step `newest` adds to the disk.

    For a run that has not begun, `newest` is None.
    """
    start = -1 if newest is None else newest
    last = job.config.train.steps
    saved_in_all = job.config.checkpoint.steps(last)
    observed = job.config.snapshot.steps(last)
    future = [step for step in saved_in_all if step > start]
    if not future:
        return 0
    storage = Storage(job)
    now = _stored_at(job, start, observed)
    saved = [*now.saved, *future]
    # A checkpoint without state counts for its model only, and never regains its state.
    stateless = set(now.saved).difference(now.states)
    peak = storage.peak(saved, observed, stateless)
    metrics = storage.metrics(max(start, 0))
    return peak - storage.bytes(now) + metrics


def _stored_at(job: Job, step: int, observed: list[int]) -> StoredSteps:
    """Return what is on disk up to `step`, if a run observes the steps `observed`."""
    layout = job.layout
    intact = codec.intact_steps(layout.checkpoints, CheckpointManifest)
    saved = [earlier for earlier in intact if earlier <= step]
    states = [earlier for earlier in saved if layout.state(earlier).is_dir()]
    snapshots = [earlier for earlier in observed if earlier <= step]
    return StoredSteps(saved, states, saved, snapshots)


def file_bytes(tensors: Shapes) -> int:
    """Return the bytes of the safetensors file of `tensors`, header included.

    The layout is that of safetensors' README, section "Format": the header's length in 8 bytes,
    the header padded to a multiple of 8 bytes, and the tensors.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start = end
        end += tensor.nbytes
        header[name] = {
            # Only the length of the name counts, to within a few bytes.
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"))
    length = len(text)
    padding = -length % 8
    return 8 + length + padding + end


def _cast(tensors: Shapes, dtype: torch.dtype) -> Shapes:
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def _method_bytes(phase: Phase) -> int:
    """Return the bytes that the method stores in state/."""
    tensors, _ = phase.method.state_dict()
    return file_bytes(tensors)


def _width(module: nn.Module) -> int:
    """Return the width of a module's output."""
    shape = module.get_parameter("weight").shape
    return shape[-1] if isinstance(module, nn.Embedding) else shape[0]
