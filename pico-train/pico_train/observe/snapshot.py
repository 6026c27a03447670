"""Observe a model at theta_t without disturbing its training: weights, gradients and activations.

Shapes: P probe rows, T positions a row predicts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pico_contract import codec, names
from pico_contract.kinds import MICROBATCH_GRADIENTS, observation_name
from pico_contract.layout import SNAPSHOT_WEIGHTS, TRAIN_BATCH, RunLayout, observed_file
from pico_contract.observer import KindSplit, Observation
from pico_contract.schema import RowMap, SnapshotManifest, TensorSet
from pydantic import Field
from torch import nn

from pico_train.checkpoint.state import TrainState
from pico_train.config import Section
from pico_train.model.decoder import Decoder
from pico_train.observe.activations import Activations, capture
from pico_train.observe.microbatch_gradients import MicroBatchGradients
from pico_train.observe.probe import PositionsConfig, Probe
from pico_train.sharding import full_tensors

Tensors = dict[str, torch.Tensor]
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class SnapshotConfig(Section):
    """What is observed, and when. Step 0 and the last step are observed whenever anything is."""

    every: int = Field(1000, ge=0)
    """Updates between observations; 0 is off."""
    early: bool = True
    """Also observe at 1, 2, 4, 8, ... below `every`, where most changes fast."""
    modules: tuple[str, ...] = ("*_proj",)
    """Patterns of modules whose weights, gradients and activations are kept."""
    kinds: tuple[
        Literal[
            "train.gradients", "train.microbatch_gradients", "val.gradients", "val.activations"
        ],
        ...,
    ] = (
        "train.gradients",
        "val.gradients",
        "val.activations",
    )
    """What is kept beside the weights. Gradients of each micro-batch take as many times the room of
    one gradient."""
    probe_rows: int = Field(32, ge=1)
    """Validation rows of the probe, chosen by the data's fingerprint alone."""
    positions: PositionsConfig = PositionsConfig()
    """At which positions activations are kept."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """How tensors are stored."""

    def due(self, step: int, last: int) -> bool:
        """Whether theta_step is observed in a run of `last` updates."""
        if self.every == 0:
            return False
        regular = step % self.every == 0 or step == last
        return regular or (self.early and step < self.every and step & (step - 1) == 0)

    def steps(self, last: int) -> list[int]:
        """The steps that are observed in a run of `last` updates, ascending."""
        powers = (2**i for i in range(last.bit_length()))
        candidates = {0, last, *powers, *(range(0, last, self.every) if self.every else ())}
        return sorted(step for step in candidates if step <= last and self.due(step, last))


def observed_modules(model: Decoder, patterns: Sequence[str]) -> list[str]:
    """Modules with a weight that fit `patterns`, in the model's order; UserError where one fits
    nothing.

    With tied embeddings the weight of a head is the embedding's, which is then observed too.
    """
    candidates = _weighted(model)
    chosen = set(names.match(patterns, candidates))
    weights = {id(model.get_parameter(f"{name}.weight")) for name in chosen}
    chosen |= {
        name.removesuffix(".weight") for name, p in model.named_parameters() if id(p) in weights
    }
    return [name for name in candidates if name in chosen]


def observed_extra(
    extra: Mapping[str, torch.Tensor], model: Decoder, modules: Sequence[str]
) -> Tensors:
    """Of a method's extra tensors, those that lie in no module of the plain decoder that is not
    observed."""
    others = tuple(f"{name}." for name in _weighted(model) if name not in modules)
    return {name: tensor for name, tensor in extra.items() if not name.startswith(others)}


def _weighted(model: Decoder) -> list[str]:
    return [
        name
        for name, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), nn.Parameter)
    ]


@dataclass
class Observer:
    """Observes the states of one run; `observe` begins a snapshot, `Pending.finish` hands it over
    to be written."""

    config: SnapshotConfig
    layout: RunLayout
    run: str
    probe: Probe
    modules: list[str]
    positions: list[int]
    micro_batch: int

    def observe(
        self,
        state: TrainState,
        *,
        in_checkpoint: bool = False,
        store: bool = True,
        share: bool = False,
    ) -> Pending | None:
        """Everything of theta_t that needs no training batch, copied to CPU: in one pass, whoever
        it is for.

        `in_checkpoint` says that a checkpoint of theta_t is on disk before the snapshot is, which
        then leaves the weights to it; `store` is to write a snapshot; `share` is to hand the
        tensors to observers, weights included. Probe gradients are d(mean token loss over the
        probe) / d(effective weights), float32, evaluation mode, not clipped; activations are module
        outputs at the configured positions, rows in probe order (P * positions, width).

        Where the state is sharded every process takes part, and those that only give their shares
        get None.
        """
        step, decoder = state.counters.step, state.plain_decoder()
        extra = full_tensors(
            observed_extra(state.method.extra_tensors(state.model), decoder, self.modules)
        )
        if next(decoder.parameters()).is_meta:
            return None
        gradients, activations = self._probe_pass(decoder)
        return Pending(
            observer=self,
            step=step,
            tokens=state.counters.tokens,
            store=store,
            in_checkpoint=in_checkpoint,
            weights={} if in_checkpoint and not share else self._copied(self._weights(decoder)),
            extra=self._copied(extra),
            val_gradients=gradients,
            val_activations=activations,
        )

    def _weights(self, decoder: Decoder) -> dict[str, nn.Parameter]:
        """The observed modules' weights; what is tied comes once, under the embedding's name."""
        chosen = {f"{name}.weight" for name in self.modules}
        return {name: parameter for name, parameter in decoder.named_parameters() if name in chosen}

    def train_gradients(self, parameters: dict[str, nn.Parameter]) -> Tensors:
        """Copies of the gradients of the observed modules' parameters as training has just computed
        them; where they are sharded every process takes part, and all but the main one get none."""
        if "train.gradients" not in self.config.kinds:
            return {}
        chosen = self._trained(parameters)
        return self._copied(
            full_tensors({name: p.grad for name, p in chosen.items() if p.grad is not None})
        )

    def micro_batches(self, parameters: dict[str, nn.Parameter]) -> MicroBatchGradients | None:
        """What takes the gradient of each micro-batch of the observed modules' parameters; None
        where none asks."""
        if observation_name("train", MICROBATCH_GRADIENTS) not in self.config.kinds:
            return None
        return MicroBatchGradients(self._trained(parameters), DTYPES[self.config.dtype])

    def _trained(self, parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        prefixes = tuple(f"{name}." for name in self.modules)
        return {name: p for name, p in parameters.items() if name.startswith(prefixes)}

    def _probe_pass(self, decoder: Decoder) -> tuple[Tensors, Tensors]:
        wants_gradients = "val.gradients" in self.config.kinds
        wants_activations = "val.activations" in self.config.kinds
        if not (wants_gradients or wants_activations):
            return {}, {}
        chosen = self._weights(decoder)
        for name, parameter in decoder.named_parameters():
            parameter.requires_grad_(wants_gradients and name in chosen)
        dtype = DTYPES[self.config.dtype]
        activations = Activations(len(self.probe.tokens) * max(len(self.positions), 1), dtype)
        observed = self.modules if wants_activations else []
        device = next(decoder.parameters()).device
        with (
            torch.set_grad_enabled(wants_gradients),
            capture(decoder, observed, self._pick, activations),
        ):
            for rows in self.probe.tokens.split(self.micro_batch):
                rows = rows.to(device)
                loss_sum = decoder(rows[:, :-1], labels=rows[:, 1:])
                if wants_gradients:
                    (loss_sum / self.probe.tokens[:, 1:].numel()).backward()
        gradients = {
            name: p.grad.to("cpu", dtype) for name, p in chosen.items() if p.grad is not None
        }
        return gradients, activations.tensors

    def _pick(self, output: torch.Tensor) -> torch.Tensor:
        """(rows, T, width) -> (rows * positions, width), row by row; the mean over T under the rule
        "mean"."""
        output = output.detach().float()
        picked = output[:, self.positions] if self.positions else output.mean(dim=1, keepdim=True)
        return picked.flatten(0, 1)

    def _copied(self, tensors: Mapping[str, torch.Tensor]) -> Tensors:
        """Copies on CPU in the storage dtype: the live ones change with the next update."""
        dtype = DTYPES[self.config.dtype]
        return {
            name: t.detach().to("cpu", dtype, copy=True)
            for name, t in tensors.items()
            if not t.is_meta
        }


@dataclass
class FromTraining:
    """What training computes at theta_t for update t + 1, and on what."""

    gradients: Tensors
    batch: Tensors
    objective: str
    dropout: bool
    micro_batches: MicroBatchGradients | None = None


@dataclass
class Pending:
    """An observation of theta_t that waits for the gradient which training computes at theta_t, for
    update t + 1.

    `weights` may be empty where a checkpoint of theta_t holds them.
    """

    observer: Observer
    step: int
    tokens: int
    store: bool
    in_checkpoint: bool
    weights: Tensors
    extra: Tensors
    val_gradients: Tensors
    val_activations: Tensors

    def finish(
        self, train: FromTraining | None, submit: Callable[[Callable[[], None]], None]
    ) -> Observation:
        """All that was seen of theta_t; where it is to be stored, `submit` gets what writes
        snapshots/step_t.

        Without `train` (after the last update) the absence of what training computes is recorded.
        """
        sets = [
            (one, tensors)
            for one, tensors in self._sets(train)
            if observation_name(one.split, one.kind) in self._kinds
        ]
        if self.store:
            submit(lambda: self._write(sets, train))
        held: dict[KindSplit, Mapping[str, torch.Tensor]] = {
            ("weights", None): {**self.weights, **self.extra}
        }
        held |= {(one.kind, one.split): tensors for one, tensors in sets}
        terms = next((tuple(one.terms) for one, _ in sets if one.terms), ())
        return Observation(self.step, self.tokens, held, terms)

    @property
    def _kinds(self) -> tuple[str, ...]:
        return self.observer.config.kinds

    def _sets(self, train: FromTraining | None) -> Iterator[tuple[TensorSet, Tensors]]:
        if train is not None:
            about = (train.objective, "trained parameters, before clipping", train.dropout)
            yield self._set("train", "gradients", train.gradients, *about), train.gradients
            parts = train.micro_batches
            if parts is not None and len(parts.terms) > 1:
                yield (
                    self._set("train", MICROBATCH_GRADIENTS, parts.stacks, *about, parts.terms),
                    parts.stacks,
                )
        loss = "mean next-token negative log-likelihood over the probe, nats"
        yield (
            self._set("val", "gradients", self.val_gradients, loss, "effective weights"),
            self.val_gradients,
        )
        yield self._set("val", "activations", self.val_activations), self.val_activations

    def _write(self, sets: Sequence[tuple[TensorSet, Tensors]], train: FromTraining | None) -> None:
        files = {one.file: tensors for one, tensors in sets}
        # No checkpoint holds a method's extra tensors.
        kept = {**({} if self.in_checkpoint else self.weights), **self.extra}
        if kept:
            files[SNAPSHOT_WEIGHTS] = kept
        if train is not None and any(one.split == "train" for one, _ in sets):
            files[TRAIN_BATCH] = train.batch
        with codec.publish(self.observer.layout.snapshot(self.step)) as draft:
            for name, tensors in files.items():
                codec.save_tensors(draft / name, tensors)
            codec.seal(draft, self._manifest([one for one, _ in sets], train))

    def _manifest(self, sets: list[TensorSet], train: FromTraining | None) -> SnapshotManifest:
        observer = self.observer
        there = {observation_name(one.split, one.kind) for one in sets}
        why = "final_step" if train is None else "single_micro_batch"
        return SnapshotManifest(
            run=observer.run,
            step=self.step,
            weights="checkpoint" if self.in_checkpoint else "snapshot",
            modules=observer.modules,
            observed=sets,
            row_map=RowMap(
                rule=observer.config.positions.rule,
                positions=observer.positions,
                probe_rows=len(observer.probe.row_ids),
            ),
            absent={kind: why for kind in self._kinds if kind not in there},
        )

    def _set(
        self,
        split: str,
        kind: str,
        tensors: Tensors,
        objective: str = "",
        parameters: str = "",
        dropout: bool = False,
        terms: Sequence[int] = (),
    ) -> TensorSet:
        return TensorSet(
            file=observed_file(split, kind),
            split=split,
            kind=kind,
            dtype=self.observer.config.dtype,
            tensors={name: list(tensor.shape) for name, tensor in tensors.items()},
            objective=objective,
            parameters=parameters,
            dropout=dropout,
            terms=list(terms),
        )
