"""Observation of a model at theta_t, without disturbing its training.

The loop calls `Observer.begin` at theta_t, which copies weights, activations and probe gradients,
and `Observing.finish` when the gradient of update t + 1 has been computed at theta_t.

Shapes: P probe rows, T positions a row predicts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from pico_contract import names
from pico_contract.kinds import MICROBATCH_GRADIENTS, observation_name
from pico_contract.layout import SNAPSHOT_WEIGHTS, TRAIN_BATCH, RunLayout
from pico_contract.observer import KindSplit, Observation
from pico_contract.schema import RowMap, SnapshotManifest
from pydantic import Field
from torch import nn

from pico_train.checkpoint.state import TrainState
from pico_train.config import Section
from pico_train.model.decoder import Decoder
from pico_train.observe.activations import Activations, capture
from pico_train.observe.microbatch_gradients import MicroBatchGradients
from pico_train.observe.observed import Observed, ObservedSet, Snapshot, Tensors, observed_set
from pico_train.observe.probe import PositionsConfig, Probe
from pico_train.sharding import full_tensors

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class SnapshotConfig(Section):
    """The choice of tensors and steps to observe.

    Step 0 and the last step are observed if any step is.
    """

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
    """Kinds stored beside the weights. Gradients of each micro-batch take as many times the space of
    one gradient."""
    probe_rows: int = Field(32, ge=1)
    """Validation rows of the probe, chosen by the data's fingerprint alone."""
    positions: PositionsConfig = PositionsConfig()
    """Positions of a row whose activations are stored."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Dtype of all stored tensors but the weights of a checkpoint, which stay float32. In float16,
    numbers below 6e-8 become 0."""

    def due(self, step: int, last: int) -> bool:
        """Whether theta_step is observed in a run of `last` updates."""
        if self.every == 0:
            return False
        regular = step % self.every == 0 or step == last
        # step & (step - 1) is 0 for powers of two, and for 0.
        return regular or (self.early and step < self.every and step & (step - 1) == 0)

    def steps(self, last: int) -> list[int]:
        """List the steps that are observed in a run of `last` updates, ascending."""
        powers = (2**i for i in range(last.bit_length()))
        regular = range(0, last, self.every) if self.every else ()
        candidates = {0, last, *powers, *regular}
        return sorted(step for step in candidates if step <= last and self.due(step, last))


def observed_modules(model: Decoder, patterns: Sequence[str]) -> list[str]:
    """List the modules with a weight that match `patterns`, in the model's order.

    With tied embeddings the weight of the head is the embedding's, which is then observed too.

    Raises:
        UserError: a pattern matches nothing.
    """
    candidates = _weighted(model)
    chosen = set(names.match(patterns, candidates))
    # By identity, because named_parameters lists a tied weight only under its first name.
    weights = {id(model.get_parameter(f"{name}.weight")) for name in chosen}
    chosen |= {
        name.removesuffix(".weight") for name, p in model.named_parameters() if id(p) in weights
    }
    return [name for name in candidates if name in chosen]


def observed_extra(
    extra: Mapping[str, torch.Tensor], model: Decoder, modules: Sequence[str]
) -> Tensors:
    """Select a method's extra tensors, except those in modules that are not observed."""
    unobserved = tuple(f"{name}." for name in _weighted(model) if name not in modules)
    return {name: tensor for name, tensor in extra.items() if not name.startswith(unobserved)}


def _weighted(model: Decoder) -> list[str]:
    return [
        name
        for name, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), nn.Parameter)
    ]


@dataclass(frozen=True)
class ObservationDue:
    """The purposes of observing theta_t: a snapshot, a measurement by other packages, neither."""

    store: bool = True
    """Write a snapshot."""
    share: bool = False
    """Show the tensors, weights included, to observers of other packages."""
    in_checkpoint: bool = False
    """A checkpoint of theta_t is on disk before the snapshot is: it has the weights."""

    @property
    def anything(self) -> bool:
        """Whether theta_t is observed at all."""
        return self.store or self.share


class Computed(Protocol):
    """An update whose gradients lie in `.grad`, not clipped yet."""

    def batch(self) -> Tensors:
        """Return the rows and tokens that it was computed on; empty if it read no rows."""
        ...


class Observing:
    """The observation of one theta_t, until training has computed its gradient for update t + 1.

    This base class observes nothing: the loop treats a step that is not due like any other.
    """

    def take_pass(self, terms: int, passes: int) -> None:
        """Look at the gradient that a pass over `terms` terms, one of `passes`, has just left."""

    def end_passes(self) -> None:
        """Leave in `.grad` the sum over the passes, as if nobody had looked."""

    def finish(self, update: Computed | None) -> Observed | None:
        """Return all that was seen of theta_t; `update` is None after the last update."""
        return None


@dataclass
class Observer:
    """Observes the states of one run."""

    config: SnapshotConfig
    layout: RunLayout
    run: str
    probe: Probe
    modules: list[str]
    positions: list[int]
    micro_batch: int

    def begin(self, state: TrainState, due: ObservationDue) -> Observing:
        """Copy to CPU everything of theta_t that needs no training batch.

        Probe gradients are d(mean token loss over the probe) / d(effective weights), float32,
        evaluation mode, not clipped; activations are module outputs at the configured positions,
        rows in probe order (P * positions, width).

        If the state is sharded every process takes part, but only the main one sees anything.
        """
        if not due.anything:
            return Observing()
        decoder = state.plain_decoder()
        extra_tensors = state.method.extra_tensors(state.model)
        extra = full_tensors(observed_extra(extra_tensors, decoder, self.modules))
        # In a sharded run only the main process has the whole decoder.
        if next(decoder.parameters()).is_meta:
            return _Contributing(self, state)
        gradients, activations = self._probe_pass(decoder)
        needs_weights = due.share or not due.in_checkpoint
        return _Recording(
            observer=self,
            state=state,
            due=due,
            step=state.counters.step,
            tokens=state.counters.tokens,
            weights=self._copied(self._weights(decoder)) if needs_weights else {},
            extra=self._copied(extra),
            val_gradients=gradients,
            val_activations=activations,
            parts=self._micro_batches(state.parameters),
        )

    def _weights(self, decoder: Decoder) -> dict[str, nn.Parameter]:
        """The observed modules' weights; tied ones come once, under the embedding's name."""
        chosen = {f"{name}.weight" for name in self.modules}
        return {
            name: parameter for name, parameter in decoder.named_parameters() if name in chosen
        }

    def train_gradients(self, parameters: dict[str, nn.Parameter]) -> Tensors:
        """Copy the gradients of the observed modules' parameters as training has computed them.

        If they are sharded every process takes part, and only the main one gets any.
        """
        if "train.gradients" not in self.config.kinds:
            return {}
        chosen = self._trained(parameters)
        return self._copied(
            full_tensors({name: p.grad for name, p in chosen.items() if p.grad is not None})
        )

    def _micro_batches(self, parameters: dict[str, nn.Parameter]) -> MicroBatchGradients | None:
        if observation_name("train", MICROBATCH_GRADIENTS) not in self.config.kinds:
            return None
        return MicroBatchGradients(self._trained(parameters), DTYPES[self.config.dtype])

    def _trained(self, parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        # By prefix, because a method may train other tensors of a module than its weight.
        prefixes = tuple(f"{name}." for name in self.modules)
        return {name: p for name, p in parameters.items() if name.startswith(prefixes)}

    def _probe_pass(self, decoder: Decoder) -> tuple[Tensors, Tensors]:
        """Run the probe; return (gradients, activations) as far as they are configured."""
        wants_gradients = "val.gradients" in self.config.kinds
        wants_activations = "val.activations" in self.config.kinds
        if not (wants_gradients or wants_activations):
            return {}, {}
        chosen = self._weights(decoder)
        # The plain decoder has its own parameters: those of training keep their flags and `.grad`.
        for name, parameter in decoder.named_parameters():
            parameter.requires_grad_(wants_gradients and name in chosen)
        dtype = DTYPES[self.config.dtype]
        activations = Activations(len(self.probe.tokens) * max(len(self.positions), 1), dtype)
        captured = self.modules if wants_activations else []
        device = next(decoder.parameters()).device
        predicted = self.probe.tokens[:, 1:].numel()
        with (
            torch.set_grad_enabled(wants_gradients),
            capture(decoder, captured, self._pick, activations),
        ):
            for rows in self.probe.tokens.split(self.micro_batch):
                rows = rows.to(device)
                loss_sum = decoder(rows[:, :-1], labels=rows[:, 1:])
                # Backward for each part: the gradient adds up, and one part's activations are kept.
                if wants_gradients:
                    (loss_sum / predicted).backward()
        gradients = {
            name: p.grad.to("cpu", dtype) for name, p in chosen.items() if p.grad is not None
        }
        return gradients, activations.tensors

    def _pick(self, output: torch.Tensor) -> torch.Tensor:
        """(rows, T, width) -> (rows * positions, width), row by row; "mean" is the mean over T."""
        output = output.detach().float()
        picked = (
            output[:, self.positions] if self.positions else output.mean(dim=1, keepdim=True)
        )
        return picked.flatten(0, 1)

    def _copied(self, tensors: Mapping[str, torch.Tensor]) -> Tensors:
        """Copy to CPU in the storage dtype: the live tensors change with the next update."""
        dtype = DTYPES[self.config.dtype]
        return {
            name: t.detach().to("cpu", dtype, copy=True)
            for name, t in tensors.items()
            # In a sharded run only the main process gets data; the others hold meta tensors.
            if not t.is_meta
        }


@dataclass
class _Contributing(Observing):
    """The part of a process that gives its shards to the main one and sees nothing."""

    observer: Observer
    state: TrainState

    def finish(self, update: Computed | None) -> None:
        if update is not None:
            # The result is not used: shards are gathered only if every process takes part.
            self.observer.train_gradients(self.state.parameters)


@dataclass
class _Recording(Observing):
    """An observation of theta_t that waits for the gradient of update t + 1."""

    observer: Observer
    state: TrainState
    due: ObservationDue
    step: int
    tokens: int
    weights: Tensors
    """Empty if a checkpoint of theta_t has them and nobody else asks for them."""
    extra: Tensors
    val_gradients: Tensors
    val_activations: Tensors
    parts: MicroBatchGradients | None

    def take_pass(self, terms: int, passes: int) -> None:
        if self.parts is not None:
            self.parts.take(terms, passes)

    def end_passes(self) -> None:
        if self.parts is not None:
            self.parts.put_back()

    def finish(self, update: Computed | None) -> Observed:
        candidates = [] if update is None else self._train_sets()
        candidates += self._probe_sets()
        sets = [each for each in candidates if each.name in self.observer.config.kinds]
        snapshot = self._snapshot(sets, update) if self.due.store else None
        return Observed(self._observation(sets), snapshot)

    def _train_sets(self) -> list[ObservedSet]:
        gradients = self.observer.train_gradients(self.state.parameters)
        sets = [self._train_set("gradients", gradients)]
        parts = self.parts
        # The gradient of a single micro-batch is the gradient of the batch.
        if parts is not None and len(parts.terms) > 1:
            sets.append(self._train_set(MICROBATCH_GRADIENTS, parts.stacks, parts.terms))
        return sets

    def _train_set(self, kind: str, tensors: Tensors, terms: Sequence[int] = ()) -> ObservedSet:
        method = self.state.method
        return observed_set(
            "train",
            kind,
            tensors,
            self.observer.config.dtype,
            objective=method.objective,
            parameters="trained parameters, before clipping",
            dropout=method.dropout,
            terms=terms,
        )

    def _probe_sets(self) -> list[ObservedSet]:
        dtype = self.observer.config.dtype
        gradients = observed_set(
            "val",
            "gradients",
            self.val_gradients,
            dtype,
            objective="mean next-token negative log-likelihood over the probe, nats",
            parameters="effective weights",
        )
        return [gradients, observed_set("val", "activations", self.val_activations, dtype)]

    def _observation(self, sets: Sequence[ObservedSet]) -> Observation:
        tensors: dict[KindSplit, Mapping[str, torch.Tensor]] = {
            ("weights", None): {**self.weights, **self.extra}
        }
        terms: tuple[int, ...] = ()
        for each in sets:
            tensors[each.about.kind, each.about.split] = each.tensors
            terms = terms or tuple(each.about.terms)
        return Observation(self.step, self.tokens, tensors, terms)

    def _snapshot(self, sets: Sequence[ObservedSet], update: Computed | None) -> Snapshot:
        files = {each.about.file: each.tensors for each in sets}
        # A checkpoint has the weights, but no method's extra tensors.
        weights = {} if self.due.in_checkpoint else self.weights
        if weights or self.extra:
            files[SNAPSHOT_WEIGHTS] = {**weights, **self.extra}
        has_train = any(each.about.split == "train" for each in sets)
        if update is not None and has_train:
            files[TRAIN_BATCH] = update.batch()
        manifest = self._manifest(sets, is_last=update is None)
        directory = self.observer.layout.snapshot(self.step)
        return Snapshot(directory, files, manifest)

    def _manifest(self, sets: Sequence[ObservedSet], *, is_last: bool) -> SnapshotManifest:
        observer = self.observer
        present = {each.name for each in sets}
        reason = "final_step" if is_last else "single_micro_batch"
        return SnapshotManifest(
            run=observer.run,
            step=self.step,
            weights="checkpoint" if self.due.in_checkpoint else "snapshot",
            modules=observer.modules,
            observed=[each.about for each in sets],
            row_map=RowMap(
                rule=observer.config.positions.rule,
                positions=observer.positions,
                probe_rows=len(observer.probe.row_ids),
            ),
            absent={kind: reason for kind in observer.config.kinds if kind not in present},
        )
