"""What a run takes on disk, from its configuration alone, to a few percent."""

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
"""Of a checkpoint's configurations and manifests."""
ROW_BYTES = 260
"""Of a row of metrics.jsonl."""

Shapes = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class StoredSteps:
    """Steps of which a run holds something: models and states of checkpoints, and snapshots.

    Of `saved`, the steps that ever had a checkpoint, those without a model have moved their weights
    to the snapshot.
    """

    models: Collection[int]
    states: Collection[int]
    saved: Collection[int]
    observed: Collection[int]


@dataclass(frozen=True)
class Storage:
    """Bytes of what `job` writes. Evaluations and logs (kB), and what observers write, come on
    top."""

    job: Job

    @cached_property
    def model(self) -> int:
        """A checkpoint without state/."""
        tokenizer = self.job.metadata.tokenizer
        return (
            file_bytes(dict(self._decoder.named_parameters()))
            + (tokenizer.stat().st_size if tokenizer is not None else 0)
            + MANIFEST_BYTES
        )

    @cached_property
    def state(self) -> int:
        """state/ after the first update, of the phase whose is largest: what the optimizer holds
        once it has stepped, and what the method keeps."""
        return max(file_bytes(phase.optimizer) + _of_method(phase) for phase in self.phases)

    @cached_property
    def phases(self) -> list[Phase]:
        """Of the run, on shapes."""
        return phases(self.job)

    @cached_property
    def kinds(self) -> dict[str, int]:
        """A snapshot by kind; `weights` are stored where no checkpoint ever held them, `moved` are
        those of one, and `extra` is the method's own, in the same file."""
        config = self.job.config.snapshot
        files = {"weights": self._weights, **self._sets}
        sizes = {
            kind: file_bytes(_as(tensors, DTYPES[config.dtype])) for kind, tensors in files.items()
        }
        extra = _as(self._extra, DTYPES[config.dtype])
        return {
            **sizes,
            "extra": file_bytes(extra) if extra else 0,
            "moved": file_bytes(self._weights),
        }

    @cached_property
    def snapshot(self) -> int:
        """A snapshot without weights, of any step but the last."""
        return (
            sum(self.kinds[kind] for kind in [*self._sets, "extra"]) + self._batch + self._manifest
        )

    @property
    def observation(self) -> int:
        """A snapshot with weights: what is held in memory until it is written."""
        return self.snapshot + self.kinds["weights"]

    def bytes(self, stored: StoredSteps) -> int:
        """Of checkpoints and snapshots."""
        return self.checkpoints(stored) + self.snapshots(stored)

    def checkpoints(self, stored: StoredSteps) -> int:
        """Of checkpoints; the initialisation has no moments yet."""
        first = _of_method(self.phases[0]) * (0 in stored.states)
        return self.model * len(stored.models) + self.state * len({*stored.states} - {0}) + first

    def snapshots(self, stored: StoredSteps) -> int:
        """Of snapshots; the last has nothing of training."""
        gone, last = set(stored.saved) - set(stored.models), self.job.config.train.steps
        observed = set(stored.observed)
        own = observed - set(stored.saved)
        of_training = (
            sum(size for kind, size in self.kinds.items() if kind.startswith("train."))
            + self._batch
        )
        return (
            self.snapshot * len(observed)
            + self.kinds["weights"] * len(own)
            + self.kinds["moved"] * len(observed & gone)
            - of_training * (last in observed)
        )

    def after(
        self, saved: list[int], observed: Collection[int], stateless: Collection[int] = ()
    ) -> StoredSteps:
        """What there is once the keep policy was applied to the checkpoints `saved` (ascending)."""
        keep, last = self.job.config.checkpoint.keep, self.job.config.train.steps
        models = keep.models(saved, last)
        states = keep.states([step for step in models if step not in stateless])
        return StoredSteps(models, states, saved, observed)

    def peak(self, saved: list[int], observed: list[int], stateless: Collection[int] = ()) -> int:
        """The most that there is at one time: at the end, or at the last save before the policy was
        applied to it.

        What is kept never becomes less, since a save adds more than the policy then removes for it.
        """
        before = self.after(saved[:-1], [step for step in observed if step < saved[-1]], stateless)
        end = self.after(saved, observed, stateless)
        return max(self.bytes(end), self.bytes(before) + self.model + self.state)

    def metrics(self, since: int = 0) -> int:
        """Of the rows of metrics.jsonl beyond update `since`."""
        return ROW_BYTES * ((self.job.config.train.steps - since) // self.job.config.log.every)

    @cached_property
    def _decoder(self) -> Decoder:
        return on_meta(self.job.config.model)

    @cached_property
    def _weights(self) -> dict[str, torch.Tensor]:
        return {
            f"{name}.weight": self._decoder.get_parameter(f"{name}.weight") for name in self._untied
        }

    @property
    def _trained(self) -> Shapes:
        """What trains of the observed modules, in the last phase."""
        inside = tuple(f"{name}." for name in self.job.observer.modules)
        return {
            name: p for name, p in self.phases[-1].parameters.items() if name.startswith(inside)
        }

    @property
    def _extra(self) -> Shapes:
        """The method's own tensors of a snapshot, in the last phase."""
        last = self.phases[-1]
        return observed_extra(
            last.method.extra_tensors(last.model), self._decoder, self.job.observer.modules
        )

    @property
    def _untied(self) -> list[str]:
        own = {name for name, _ in self._decoder.named_parameters()}
        return [name for name in self.job.observer.modules if f"{name}.weight" in own]

    @cached_property
    def _sets(self) -> dict[str, Shapes]:
        """Kind -> name -> a tensor of the shape that a snapshot holds."""
        job, train, weights, trained = self.job, self.job.config.train, self._weights, self._trained
        rows = len(job.observer.probe.row_ids) * max(len(job.observer.positions), 1)
        pieces = train.batch_size // train.rows_per_pass()
        every = {
            "train.gradients": trained,
            observation_name("train", MICROBATCH_GRADIENTS): {
                name: p.expand(pieces, *p.shape) for name, p in trained.items()
            },
            "val.gradients": weights,
            "val.activations": {
                name: torch.empty(
                    rows, _output_width(self._decoder.get_submodule(name)), device="meta"
                )
                for name in job.observer.modules
            },
        }
        return {
            kind: tensors for kind, tensors in every.items() if kind in job.config.snapshot.kinds
        }

    @property
    def _batch(self) -> int:
        """Rows and tokens of an update, 8 and 4 bytes each."""
        observes_training = any(kind.startswith("train.") for kind in self._sets)
        return (
            self.job.config.train.batch_size * (8 + 4 * (self.job.seq_len + 1)) * observes_training
        )

    @cached_property
    def _manifest(self) -> int:
        observer, sets = self.job.observer, []
        for kind, tensors in self._sets.items():
            split, name = kind.split(".")
            shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
            file = observed_file(split, name)
            sets.append(
                TensorSet(
                    file=file, split=split, kind=name, dtype=observer.config.dtype, tensors=shapes
                )
            )
        row_map = RowMap(rule="last", positions=observer.positions, probe_rows=0)
        text = SnapshotManifest(
            run=observer.run,
            step=0,
            weights="checkpoint",
            modules=observer.modules,
            observed=sets,
            row_map=row_map,
        ).to_json()
        return len(text) + 300 * len(sets)  # sizes and hashes, and what the gradients are of


def remaining(job: Job, newest: int | None) -> int:
    """Bytes that a session which goes on from `newest` adds to what is there, at most at one
    time."""
    start, storage, layout = -1 if newest is None else newest, Storage(job), job.layout
    future = [step for step in job.config.checkpoint.steps(job.config.train.steps) if step > start]
    if not future:
        return 0
    there = [
        step for step in codec.intact_steps(layout.checkpoints, CheckpointManifest) if step <= start
    ]
    stateless = [step for step in there if not layout.state(step).is_dir()]
    observed = job.config.snapshot.steps(job.config.train.steps)
    now = StoredSteps(
        there, set(there) - set(stateless), there, [step for step in observed if step <= start]
    )
    peak = storage.peak([*there, *future], observed, stateless)
    return peak - storage.bytes(now) + storage.metrics(max(start, 0))


def file_bytes(tensors: Shapes) -> int:
    """Bytes of the safetensors file of `tensors`, its header included (safetensors' README,
    "Format")."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [end, end + size],
        }
        end += size
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + length + -length % 8 + end


def _as(tensors: Shapes, dtype: torch.dtype) -> Shapes:
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def _of_method(phase: Phase) -> int:
    """What a method keeps in state/."""
    return file_bytes(phase.method.state_dict()[0])


def _output_width(module: nn.Module) -> int:
    shape = module.get_parameter("weight").shape
    return shape[-1] if isinstance(module, nn.Embedding) else shape[0]
