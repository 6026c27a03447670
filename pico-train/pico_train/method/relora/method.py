"""ReLoRA: pretraining by low-rank updates, merged and restarted (Lialin et al. 2023).

The paper is arXiv 2307.05695. The layer is in `lora.py`, the optimizer's part of a restart in
`optimizer_reset.py`, ranks that change in `adaptive_rank.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pico_contract import names
from pico_contract.errors import DamagedError, UserError
from torch import nn

from pico_train.config import Section
from pico_train.method.base import BatchSource, Method
from pico_train.method.relora.adaptive_rank import (
    effective_rank,
    energy_rank,
    share_out,
    singular_values,
    total_cost,
)
from pico_train.method.relora.config import AdaptiveConfig, ReLoRAConfig
from pico_train.method.relora.lora import LowRankLinear, effective_weights
from pico_train.method.relora.optimizer_reset import reset
from pico_train.model.decoder import Decoder
from pico_train.schedule import ScheduleConfig
from pico_train.seeds import derive, generator

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Ranks = dict[str, int]


class ReLoRA(Method):
    """Next-token prediction in which chosen projections change by s B A only.

    After every `restart_every`-th update, s B A is added to W, A is drawn again from
    `seed.method`, B becomes zero, and the optimizer forgets both. Before `warm_start_steps`
    every parameter trains. Snapshots get W, A, B and s, and at a restart also the factors that
    it merged (see shared/CONTRACT.md).
    """

    Config = ReLoRAConfig
    low_rank = True
    config: ReLoRAConfig

    def __init__(self, config: Section) -> None:
        super().__init__(config)
        self.dropout = self.config.dropout > 0
        self.seed = 0
        self.layers: dict[str, LowRankLinear] = {}
        # The state that is saved: whether the warm start is over, the update of the last restart,
        # (step, ranks) of every change of ranks, and the factors that the last restart merged.
        self.begun = self.config.warm_start_steps == 0
        self.since = 0
        self.history: list[tuple[int, Ranks]] = []
        self.merged: dict[str, torch.Tensor] = {}
        # Tensors of a checkpoint, between `load_state_dict` and `prepare`.
        self.saved: Mapping[str, torch.Tensor] = {}
        # Micro-batches of this update so far, and whether the loop must rebuild after it.
        self.parts = 0
        self.changed = False

    @property
    def shardable(self) -> bool:  # type: ignore[override]
        """Whether every operation of a restart works on sharded parameters."""
        options = self.config
        is_plain_restart = options.reset == "all" and options.adaptive is None
        return (
            is_plain_restart and not options.trainable_scale and options.base_dtype == "float32"
        )

    def check(self, schedule: ScheduleConfig, steps: int) -> None:
        """Check that the learning rate restarts only with the factors and low-rank updates happen.

        Raises:
            UserError: the schedule restarts at other updates, or the warm start takes all of them.
        """
        every = self.config.restart_every
        if schedule.restart_every and schedule.restart_every != every:
            raise UserError(
                f"schedule.restart_every is {schedule.restart_every}, but method.options.restart_every is {every}: set"
                " them to the same number, or the schedule's to 0"
            )
        if self.config.warm_start_steps >= steps:
            raise UserError(
                f"method.options.warm_start_steps ({self.config.warm_start_steps}) leaves none of train.steps"
                f" ({steps}) to low-rank updates"
            )

    def prepare(self, model: Decoder, data: Any, seed: int) -> dict[str, nn.Parameter]:
        """Replace the chosen layers by low-rank ones, and return every parameter that is not frozen.

        Raises:
            UserError: a pattern fits nothing, a rank exceeds a module's smaller side, or nothing is
                left to train.
        """
        self.seed = seed
        candidates, frozen = self._candidates(model), self._freeze(model)
        chosen = [name for name in candidates if name not in frozen]
        if self.begun:
            if not self.history:
                self.history.append((self.since, self._first_ranks(model, chosen)))
            for name, rank in self.ranks.items():
                self._replace(model, name, rank)
            self.saved = {}
        parameters = dict(model.named_parameters())
        # Low-rank layers hold their W frozen.
        trained = {name: p for name, p in parameters.items() if p.requires_grad}
        if not trained:
            raise UserError(
                "method.options.frozen leaves nothing to train: take a pattern out of it"
            )
        return trained

    def begin_step(self, step: int) -> BatchSource:
        """Ask for the next language-model rows."""
        # Snapshots have stored what the last restart merged, so it is dropped here.
        self.merged, self.parts = {}, 0
        return "language_model"

    def loss(
        self, model: nn.Module, batch: torch.Tensor | None, step: int
    ) -> tuple[torch.Tensor, int, dict[str, float]]:
        """Return the next-token loss, with dropout on the low-rank path only."""
        assert batch is not None  # begin_step asked for rows
        inputs, labels = batch[:, :-1], batch[:, 1:]
        with self._masks(step, batch.device):
            loss_sum = model(inputs, labels=labels)
        # Each micro-batch of an update gets its own masks.
        self.parts += 1
        return loss_sum, labels.numel(), self._scalars()

    def acts_after(self, step: int) -> bool:
        """Return whether update `step` ends with a restart."""
        every = self.config.restart_every
        return self.begun and every > 0 and step % every == 0

    def after_step(self, model: Decoder, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Restart in place: every parameter stays the same object unless its rank changes.

        If a rank changes, `rebuild_at` says so.
        """
        if not self.acts_after(step):
            return
        options = self.config
        self.since = step
        for name, layer in self.layers.items():
            self._restart(name, layer)
        reset(
            options.reset,
            options.pruning_ratio,
            optimizer,
            self._all_factors(),
            self.seed,
            step,
        )
        if options.adaptive is not None:
            self._adapt(options.adaptive)

    def _restart(self, name: str, layer: LowRankLinear) -> None:
        """Merge the factors of a layer into its weight, and begin with new ones."""
        is_scaled = self.config.merge_scale != "none"
        # Snapshots store the factors that go, since the merged W does not show them.
        merged_B = layer.scaled_B() if is_scaled else layer.lora_B.weight.detach().clone()
        self.merged[names.merged_A(name)] = layer.lora_A.weight.detach().clone()
        self.merged[names.merged_B(name)] = merged_B
        layer.merge(scaled=is_scaled)
        layer.draw_A(self._draws(name))

    def rebuild_at(self, step: int) -> bool:
        """Return whether the warm start ends here, or a restart has changed a rank."""
        if not self.begun and step == self.config.warm_start_steps:
            # The rebuilt instance makes the layers low-rank in `prepare`.
            self.begun, self.since, self.changed = True, step, True
        return self.changed

    def effective_weights(self, model: Decoder) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield low-rank layers as W + s B A in float32 and every other parameter unchanged."""
        return effective_weights(model)

    def extra_tensors(self, model: Decoder) -> dict[str, torch.Tensor]:
        """Return W, A, B and s of every low-rank module, and what a restart at this step merged."""
        bases = {names.base(name): layer.base.weight for name, layer in self.layers.items()}
        scales = {
            names.lora_scale(name): torch.as_tensor(layer.scale).reshape(1)
            for name, layer in self.layers.items()
        }
        return {**bases, **self._all_factors(), **scales, **self.merged}

    def state_dict(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return W, A, B and gains, which merged weights do not tell apart, and the ranks so far."""
        tensors = dict(self.merged)
        for name, layer in self.layers.items():
            tensors |= self._layer_state(name, layer)
        return tensors, {"begun": self.begun, "since": self.since, "ranks": self.history}

    def _layer_state(self, name: str, layer: LowRankLinear) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = {names.base(name): layer.base.weight}
        if layer.lora_gain is not None:
            tensors[names.lora_gain(name)] = layer.lora_gain
        # If the rank changes, the factors are left out: a resume draws them as the restart would.
        if layer.rank == self.ranks[name]:
            tensors |= _factors(name, layer)
        return {key: tensor.detach() for key, tensor in tensors.items()}

    def load_state_dict(
        self, tensors: Mapping[str, torch.Tensor], scalars: Mapping[str, Any]
    ) -> None:
        """Take back what `state_dict` returned; `prepare` builds the layers from it."""
        self.begun, self.since = scalars["begun"], scalars["since"]
        self.history = [(step, ranks) for step, ranks in scalars["ranks"]]
        # A snapshot of this step may still be due after a resume.
        self.merged = {name: tensor for name, tensor in tensors.items() if _is_merged(name)}
        self.saved = tensors

    @property
    def ranks(self) -> Ranks:
        """The current rank of every low-rank module; empty before the end of a warm start."""
        return self.history[-1][1] if self.history else {}

    def _candidates(self, model: Decoder) -> list[str]:
        """Return the linear layers that become low-rank unless they are frozen."""
        modules = model.model.named_modules(prefix="model")
        linear = [name for name, module in modules if isinstance(module, nn.Linear)]
        chosen = names.match(self.config.modules, linear)
        full_rank = names.match(self.config.full, chosen)
        return [name for name in chosen if name not in full_rank]

    def _freeze(self, model: Decoder) -> list[str]:
        """Freeze modules as the options say, and return their names."""
        weighted = [name.removesuffix(".weight") for name, _ in model.named_parameters()]
        frozen = names.match(self.config.frozen, weighted)
        for name in frozen:
            model.get_submodule(name).requires_grad_(False)
        return frozen

    def _first_ranks(self, model: Decoder, chosen: list[str]) -> Ranks:
        """Return the configured rank of every chosen module."""
        rank, ranks = self.config.rank, {}
        for name in chosen:
            side = min(model.get_parameter(f"{name}.weight").shape)
            if isinstance(rank, float):
                fraction_of_width = round(rank * model.config.hidden_size)
                ranks[name] = min(max(fraction_of_width, 1), side)
            elif rank <= side:
                ranks[name] = rank
            else:
                raise UserError(
                    f"method.options.rank is {rank}, more than {name} allows, whose smaller side is {side}"
                )
        return ranks

    def _replace(self, model: Decoder, name: str, rank: int) -> None:
        """Put a low-rank layer around the weight of the plain one, or restore the saved layer."""
        options = self.config
        # The effective weight, unless a saved W replaces it below.
        plain = model.get_parameter(f"{name}.weight")
        # W may have been saved in another type than the plain weight's.
        layer = LowRankLinear(
            self._saved_as(names.base(name), plain).to(_device(model)),
            rank,
            options.alpha,
            options.dropout,
            gain=options.trainable_scale,
            base_dtype=DTYPES[options.base_dtype],
        )
        model.set_submodule(name, layer)
        self.layers[name] = layer
        self._fill(name, layer)

    @torch.no_grad()
    def _fill(self, name: str, layer: LowRankLinear) -> None:
        """Give a new layer its saved factors and gain, or draw A."""
        if layer.lora_gain is not None:
            self._restore(names.lora_gain(name), layer.lora_gain)
        is_first_cycle = self.since <= self.config.warm_start_steps
        is_saved = names.lora_A(name) in self.saved
        if is_saved:
            for key, factor in _factors(name, layer).items():
                self._restore(key, factor)
        elif self.config.init != "zeros" or not is_first_cycle:
            layer.draw_A(self._draws(name))

    def _restore(self, key: str, parameter: torch.Tensor) -> None:
        parameter.copy_(self._saved_as(key, parameter))

    def _saved_as(self, key: str, like: torch.Tensor) -> torch.Tensor:
        """Return the saved tensor `key`, or `like` if none is saved.

        Raises:
            DamagedError: their shapes differ.
        """
        tensor = self.saved.get(key, like)
        if tensor.shape != like.shape:
            shapes = f"{tuple(tensor.shape)} where {tuple(like.shape)} is expected"
            raise DamagedError(f'the tensor "{key}" has shape {shapes}')
        return tensor

    def _draws(self, name: str) -> torch.Generator:
        return generator(self.seed, "lora_A", name, self.since)

    def _all_factors(self) -> dict[str, torch.Tensor]:
        factors: dict[str, torch.Tensor] = {}
        for name, layer in self.layers.items():
            factors |= _factors(name, layer)
        return factors

    def _adapt(self, config: AdaptiveConfig) -> None:
        """Choose ranks from the spectra of the updates that this restart merged."""
        demands: dict[str, float] = {}
        costs: dict[str, int] = {}
        most: dict[str, int] = {}
        for name, layer in self.layers.items():
            shape = layer.base.weight.shape
            smaller_side = min(shape)
            demands[name] = self._demand(config, name)
            costs[name] = sum(shape)
            most[name] = min(smaller_side, config.max_rank or smaller_side)
        # The parameters of the first, uniform ranks are the budget of all later ones.
        _, first_ranks = self.history[0]
        budget = total_cost(first_ranks, costs)
        ranks = share_out(demands, costs, most, config.min_rank, budget)
        if ranks != self.ranks:
            self.history.append((self.since, ranks))
            self.changed = True

    def _demand(self, config: AdaptiveConfig, name: str) -> float:
        """Return the rank that a module's merged update asks for."""
        B, A = self.merged[names.merged_B(name)], self.merged[names.merged_A(name)]
        values = singular_values(B, A)
        if config.criterion == "energy":
            return energy_rank(values, config.energy)
        return effective_rank(values)

    def _scalars(self) -> dict[str, float]:
        """Return mean, smallest and largest rank for metrics.jsonl, if ranks adapt.

        The ranks of all modules are in the saved state.
        """
        if self.config.adaptive is None or not self.ranks:
            return {}
        ranks = self.ranks.values()
        return {
            "rank_mean": sum(ranks) / len(ranks),
            "rank_min": min(ranks),
            "rank_max": max(ranks),
        }

    @contextmanager
    def _masks(self, step: int, device: torch.device) -> Iterator[None]:
        """Seed torch's own generator for dropout, and restore it afterwards.

        Only that generator works in compiled layers and in layers that backward recomputes.
        """
        if not self.dropout:
            yield
            return
        is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        process = torch.distributed.get_rank() if is_distributed else 0
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(derive(self.seed, "dropout", step, process, self.parts))
            yield


def _factors(name: str, layer: LowRankLinear) -> dict[str, torch.Tensor]:
    """Return A and B of a layer by their stored names."""
    return {
        names.lora_A(name): layer.lora_A.weight,
        names.lora_B(name): layer.lora_B.weight,
    }


def _is_merged(tensor: str) -> bool:
    module_and_part = names.low_rank_part(tensor)
    return module_and_part is not None and module_and_part[1].startswith("merged")


def _device(model: Decoder) -> torch.device:
    return model.lm_head.weight.device
