"""Observe a model at theta_t without disturbing its training: weights, gradients and activations.

Shapes: P probe rows, T positions a row predicts, M modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from pico_contract import codec, names
from pico_contract.layout import SNAPSHOT_WEIGHTS, TRAIN_BATCH, RunLayout, observed_file
from pico_contract.schema import CheckpointManifest, RowMap, SnapshotManifest, TensorSet
from pydantic import Field
from torch import nn

from pico_train.config import Section
from pico_train.model.decoder import Decoder
from pico_train.seeds import generator
from pico_train.state import TrainState

Tensors = dict[str, torch.Tensor]
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class PositionsConfig(Section):
    """At which positions of a probe row activations are kept."""

    rule: Literal["last", "mean", "all", "every", "sampled"] = "last"
    """last; mean over all; all; every k-th, ending with the last; k sampled ones, the same for every row."""
    k: int = Field(1, ge=1)
    """Stride of "every", number of "sampled"; not read otherwise."""


class SnapshotConfig(Section):
    """What is observed, and when. Step 0 and the last step are observed whenever anything is."""

    every: int = Field(1000, ge=0)
    """Updates between observations; 0 is off."""
    early: bool = True
    """Also observe at 1, 2, 4, 8, ... below `every`, where most changes fast."""
    modules: tuple[str, ...] = ("*_proj",)
    """Patterns of modules whose weights, gradients and activations are kept."""
    kinds: tuple[Literal["train.gradients", "val.gradients", "val.activations"], ...] = (
        "train.gradients",
        "val.gradients",
        "val.activations",
    )
    """What is kept beside the weights."""
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


@dataclass(frozen=True)
class Probe:
    """The validation rows on which every step is observed."""

    row_ids: torch.Tensor  # (P,) int64
    tokens: torch.Tensor  # (P, T + 1) int64


def positions(config: PositionsConfig, seq_len: int, fingerprint: str) -> list[int]:
    """The positions (0-based, ascending) that `config` keeps of rows of `seq_len`; [] for the mean over all."""
    if config.rule == "mean":
        return []
    if config.rule == "last":
        return [seq_len - 1]
    if config.rule == "all":
        return list(range(seq_len))
    if config.rule == "every":
        return sorted(range(seq_len - 1, -1, -config.k))
    drawn = torch.randperm(seq_len, generator=generator(0, "positions", fingerprint))[: config.k]
    return sorted(drawn.tolist())


def observed_modules(model: Decoder, patterns: Sequence[str]) -> list[str]:
    """Modules with a weight that fit `patterns`, in the model's order; UserError where one fits nothing.

    With tied embeddings the weight of a head is the embedding's, which is then observed too.
    """
    candidates = [
        name for name, module in model.named_modules() if isinstance(getattr(module, "weight", None), nn.Parameter)
    ]
    chosen = set(names.match(patterns, candidates))
    weights = {id(model.get_parameter(f"{name}.weight")) for name in chosen}
    chosen |= {name.removesuffix(".weight") for name, p in model.named_parameters() if id(p) in weights}
    return [name for name in candidates if name in chosen]


@dataclass
class Observer:
    """Observes the states of one run; `observe` begins a snapshot, `Pending.finish` writes it."""

    config: SnapshotConfig
    layout: RunLayout
    run: str
    probe: Probe
    modules: list[str]
    positions: list[int]
    micro_batch: int

    def observe(self, state: TrainState) -> Pending:
        """Everything of theta_t that needs no training batch, copied to CPU.

        Probe gradients are d(mean token loss over the probe) / d(effective weights), float32, evaluation mode, not
        clipped; activations are module outputs at the configured positions, rows in probe order (P * positions, width).
        """
        step, decoder = state.counters.step, state.plain_decoder()
        has_checkpoint = codec.damage(self.layout.checkpoint(step), CheckpointManifest) is None
        gradients, activations = self._probe_pass(decoder)
        return Pending(
            observer=self,
            step=step,
            weights={} if has_checkpoint else self._copied(self._weights(decoder)),
            extra=self._copied(state.method.extra_tensors(state.model)),
            val_gradients=gradients,
            val_activations=activations,
        )

    def _weights(self, decoder: Decoder) -> dict[str, nn.Parameter]:
        """The observed modules' weights; what is tied comes once, under the embedding's name."""
        chosen = {f"{name}.weight" for name in self.modules}
        return {name: parameter for name, parameter in decoder.named_parameters() if name in chosen}

    def train_gradients(self, parameters: dict[str, nn.Parameter]) -> Tensors:
        """Copies of the gradients of the observed modules' parameters as training has just computed them."""
        prefixes = tuple(f"{name}." for name in self.modules)
        chosen = {name: p.grad for name, p in parameters.items() if name.startswith(prefixes) and p.grad is not None}
        return self._copied(chosen)

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
        with torch.set_grad_enabled(wants_gradients), _capture(decoder, observed, self._pick, activations):
            for rows in self.probe.tokens.split(self.micro_batch):
                rows = rows.to(device)
                loss_sum = decoder(rows[:, :-1], labels=rows[:, 1:])
                if wants_gradients:
                    (loss_sum / self.probe.tokens[:, 1:].numel()).backward()
        gradients = {name: p.grad.to("cpu", dtype) for name, p in chosen.items() if p.grad is not None}
        return gradients, activations.tensors

    def _pick(self, output: torch.Tensor) -> torch.Tensor:
        """(rows, T, width) -> (rows * positions, width), row by row; the mean over T under the rule "mean"."""
        output = output.detach().float()
        picked = output[:, self.positions] if self.positions else output.mean(dim=1, keepdim=True)
        return picked.flatten(0, 1)

    def _copied(self, tensors: Mapping[str, torch.Tensor]) -> Tensors:
        """Copies on CPU in the storage dtype: the live ones change with the next update."""
        dtype = DTYPES[self.config.dtype]
        return {name: t.detach().to("cpu", dtype, copy=True) for name, t in tensors.items()}


@dataclass
class Pending:
    """A snapshot of theta_t that waits for the gradient which training computes at theta_t, for update t + 1.

    `weights` is empty where a checkpoint of theta_t holds them.
    """

    observer: Observer
    step: int
    weights: Tensors
    extra: Tensors
    val_gradients: Tensors
    val_activations: Tensors

    def finish(
        self, train_gradients: Tensors | None, batch: Tensors | None, *, objective: str = "", dropout: bool = False
    ) -> None:
        """Write snapshots/step_t. Without `train_gradients` (after the last update) their absence is recorded."""
        observer, layout = self.observer, self.observer.layout
        manifest = self._manifest(objective, dropout)
        files: dict[str, Tensors] = {}
        # No checkpoint holds a method's extra tensors.
        kept = {**self.weights, **self.extra}
        if kept:
            files[SNAPSHOT_WEIGHTS] = kept
        if "train.gradients" in observer.config.kinds:
            if train_gradients is None:
                manifest.absent["train.gradients"] = "final_step"
            else:
                files[observed_file("train", "gradients")] = train_gradients
                files[TRAIN_BATCH] = batch or {}
        if self.val_gradients:
            files[observed_file("val", "gradients")] = self.val_gradients
        if self.val_activations:
            files[observed_file("val", "activations")] = self.val_activations
        manifest.observed = [s for s in manifest.observed if s.file in files]
        for tensor_set in manifest.observed:
            tensor_set.tensors = {name: list(t.shape) for name, t in files[tensor_set.file].items()}
        with codec.publish(layout.snapshot(self.step)) as draft:
            for name, tensors in files.items():
                codec.save_tensors(draft / name, tensors)
            codec.seal(draft, manifest)

    def _manifest(self, objective: str, dropout: bool) -> SnapshotManifest:
        config, probe = self.observer.config, self.observer.probe
        mean_loss = "mean next-token negative log-likelihood over the probe, nats"
        return SnapshotManifest(
            run=self.observer.run,
            step=self.step,
            weights="snapshot" if self.weights else "checkpoint",
            modules=self.observer.modules,
            observed=[
                self._set("train", "gradients", objective, "trained parameters, before clipping", dropout),
                self._set("val", "gradients", mean_loss, "effective weights"),
                self._set("val", "activations"),
            ],
            row_map=RowMap(
                rule=config.positions.rule, positions=self.observer.positions, probe_rows=len(probe.row_ids)
            ),
        )

    def _set(
        self, split: str, kind: str, objective: str = "", parameters: str = "", dropout: bool = False
    ) -> TensorSet:
        return TensorSet(
            file=observed_file(split, kind),
            split=split,
            kind=kind,
            dtype=self.observer.config.dtype,
            tensors={},
            objective=objective,
            parameters=parameters,
            dropout=dropout,
        )


@dataclass
class Activations:
    """Tensors of `rows` rows on CPU, filled part by part: where every position is kept they are the largest thing in
    memory, and joining parts would take it twice."""

    rows: int
    dtype: torch.dtype
    tensors: Tensors = field(default_factory=dict)
    filled: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, part: torch.Tensor) -> None:
        """The next rows of `name`, (rows of the part, width), on any device."""
        if name not in self.tensors:
            self.tensors[name] = torch.empty(self.rows, part.shape[1], dtype=self.dtype)
        start = self.filled.get(name, 0)
        self.filled[name] = start + len(part)
        self.tensors[name][start : self.filled[name]] = part


@contextmanager
def _capture(
    decoder: Decoder, modules: Sequence[str], pick: Callable[[torch.Tensor], torch.Tensor], activations: Activations
) -> Iterator[None]:
    """While active, add `pick(output)` of each of `modules` to `activations` at every forward pass.

    The head is the exception: the loss never calls it as a module, so its output is formed from the last norm's at
    the kept positions alone (the mean over positions passes through a linear map).
    """

    def keep(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: activations.add(name, pick(output))

    def keep_logits(name: str) -> Callable[..., None]:
        weight = decoder.lm_head.weight.detach()
        return lambda module, inputs, output: activations.add(name, pick(output) @ weight.T)

    handles = []
    for name in modules:
        module = decoder.get_submodule(name)
        hooked, hook = (decoder.model.norm, keep_logits(name)) if module is decoder.lm_head else (module, keep(name))
        handles.append(hooked.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
