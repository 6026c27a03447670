"""ReLoRA: pretraining by low-rank updates that are merged and begun anew (Lialin et al. 2023, arXiv
2307.05695)."""

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
    """Next-token prediction in which chosen projections move by s B A alone.

    After every `restart_every`-th update, W += s B A; A is drawn anew from `seed.method`, B is
    zero, and the optimizer forgets both. Before `warm_start_steps` everything trains. Snapshots get
    W, A, B and s, at a restart also the factors that it merged (see shared/CONTRACT.md).
    """

    Config = ReLoRAConfig
    low_rank = True
    config: ReLoRAConfig

    def __init__(self, config: Section) -> None:
        super().__init__(config)
        self.dropout = self.config.dropout > 0
        self.begun = self.config.warm_start_steps == 0
        self.since = 0
        self.history: list[tuple[int, Ranks]] = []
        self.saved: Mapping[str, torch.Tensor] = {}
        self.merged: dict[str, torch.Tensor] = {}
        self.layers: dict[str, LowRankLinear] = {}
        self.seed = self.parts = 0
        self.changed = False

    @property
    def shardable(self) -> bool:  # type: ignore[override]
        """Whether all that happens at a restart can be done on shares."""
        ours = self.config
        plain = ours.reset == "all" and ours.adaptive is None
        return plain and not ours.trainable_scale and ours.base_dtype == "float32"

    def check(self, schedule: ScheduleConfig, steps: int) -> None:
        """The learning rate may restart where the factors do, and nowhere else."""
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
        """Put low-rank layers where the options say; what is left trains as it is, but for what is
        frozen.

        Raises:
            UserError: a pattern fits nothing; a rank exceeds a module's smaller side; nothing is
                left to train.
        """
        self.seed = seed
        chosen = self._chosen(model)
        if self.begun:
            if not self.history:
                self.history.append((self.since, self._first_ranks(model, chosen)))
            for name, rank in self.ranks.items():
                self._replace(model, name, rank)
            self.saved = {}
        training = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        if not training:
            raise UserError(
                "method.options.frozen leaves nothing to train: take a pattern out of it"
            )
        return training

    def begin_step(self, step: int) -> BatchSource:
        """The next language-model rows; what the last update's restart merged has been observed."""
        self.merged, self.parts = {}, 0
        return "language_model"

    def loss(
        self, model: nn.Module, batch: torch.Tensor | None, step: int
    ) -> tuple[torch.Tensor, int, dict[str, float]]:
        """Of next-token prediction, with dropout in the low-rank path alone."""
        assert batch is not None  # begin_step asked for rows
        inputs, labels = batch[:, :-1], batch[:, 1:]
        with self._masks(step, batch.device):
            loss_sum = model(inputs, labels=labels)
        self.parts += 1
        return loss_sum, labels.numel(), self._scalars()

    def acts_after(self, step: int) -> bool:
        """At restarts alone."""
        every = self.config.restart_every
        return self.begun and every > 0 and step % every == 0

    def after_step(self, model: Decoder, optimizer: torch.optim.Optimizer, step: int) -> None:
        """The restart, in place: no parameter is a new object, unless its rank changes (see
        `rebuild_at`)."""
        if not self.acts_after(step):
            return
        self.since, scaled = step, self.config.merge_scale != "none"
        for name, layer in self.layers.items():
            self.merged[names.merged_A(name)] = layer.lora_A.weight.detach().clone()
            self.merged[names.merged_B(name)] = (
                layer.scaled_B() if scaled else layer.lora_B.weight.detach().clone()
            )
            layer.merge(scaled=scaled)
            layer.draw_A(self._draws(name))
        reset(
            self.config.reset,
            self.config.pruning_ratio,
            optimizer,
            self._factors(),
            self.seed,
            step,
        )
        if self.config.adaptive is not None:
            self._adapt(self.config.adaptive)

    def rebuild_at(self, step: int) -> bool:
        """At the end of the warm start, and where a restart has changed a rank."""
        if not self.begun and step == self.config.warm_start_steps:
            self.begun, self.since, self.changed = True, step, True
        return self.changed

    def effective_weights(self, model: Decoder) -> Iterator[tuple[str, torch.Tensor]]:
        """Low-rank layers as W + s B A, float32; everything else as it is."""
        return effective_weights(model)

    def extra_tensors(self, model: Decoder) -> dict[str, torch.Tensor]:
        """W, A, B and s of every low-rank module, and what the restart of this step has merged."""
        bases = {names.base(name): layer.base.weight for name, layer in self.layers.items()}
        scales = {
            names.lora_scale(name): torch.as_tensor(layer.scale).reshape(1)
            for name, layer in self.layers.items()
        }
        return {**bases, **self._factors(), **scales, **self.merged}

    def state_dict(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """W, A, B and gains, since merged weights do not tell them apart; factors whose rank
        changes are left to be drawn, as a restart without a change draws them."""
        tensors = dict(self.merged)
        for name, layer in self.layers.items():
            tensors[names.base(name)] = layer.base.weight.detach()
            if layer.lora_gain is not None:
                tensors[names.lora_gain(name)] = layer.lora_gain.detach()
            if layer.rank == self.ranks[name]:
                tensors[names.lora_A(name)] = layer.lora_A.weight.detach()
                tensors[names.lora_B(name)] = layer.lora_B.weight.detach()
        return tensors, {"begun": self.begun, "since": self.since, "ranks": self.history}

    def load_state_dict(
        self, tensors: Mapping[str, torch.Tensor], scalars: Mapping[str, Any]
    ) -> None:
        self.begun, self.since = scalars["begun"], scalars["since"]
        self.history = [(step, ranks) for step, ranks in scalars["ranks"]]
        self.merged = {name: tensor for name, tensor in tensors.items() if _is_merged(name)}
        self.saved = tensors

    @property
    def ranks(self) -> Ranks:
        """The rank of every low-rank module, from the newest change on; none before the end of a
        warm start."""
        return self.history[-1][1] if self.history else {}

    def _chosen(self, model: Decoder) -> list[str]:
        """Modules that are or become low-rank; what is frozen is frozen on the way."""
        linear = [
            name
            for name, module in model.model.named_modules(prefix="model")
            if isinstance(module, nn.Linear)
        ]
        chosen = names.match(self.config.modules, linear)
        spared = set(names.match(self.config.full, chosen))
        weighted = [name.removesuffix(".weight") for name, _ in model.named_parameters()]
        for name in names.match(self.config.frozen, weighted):
            model.get_submodule(name).requires_grad_(False)
            spared.add(name)
        return [name for name in chosen if name not in spared]

    def _first_ranks(self, model: Decoder, chosen: list[str]) -> Ranks:
        rank, ranks = self.config.rank, {}
        for name in chosen:
            side = min(model.get_parameter(f"{name}.weight").shape)
            if isinstance(rank, int) and rank > side:
                raise UserError(
                    f"method.options.rank is {rank}, more than {name} allows, whose smaller side is {side}"
                )
            ranks[name] = (
                rank
                if isinstance(rank, int)
                else min(max(round(rank * model.config.hidden_size), 1), side)
            )
        return ranks

    def _replace(self, model: Decoder, name: str, rank: int) -> None:
        """A low-rank layer around the weight of the plain one, or as it was saved."""
        ours, saved = self.config, self.saved
        plain = model.get_parameter(f"{name}.weight")
        layer = LowRankLinear(
            self._saved_as(names.base(name), plain).to(_device(model)),
            rank,
            ours.alpha,
            ours.dropout,
            gain=ours.trainable_scale,
            base_dtype=DTYPES[ours.base_dtype],
        )
        model.set_submodule(name, layer)
        self.layers[name] = layer
        with torch.no_grad():
            if layer.lora_gain is not None and names.lora_gain(name) in saved:
                layer.lora_gain.copy_(self._saved_as(names.lora_gain(name), layer.lora_gain))
            if names.lora_A(name) in saved:
                layer.lora_A.weight.copy_(self._saved_as(names.lora_A(name), layer.lora_A.weight))
                layer.lora_B.weight.copy_(self._saved_as(names.lora_B(name), layer.lora_B.weight))
            elif ours.init != "zeros" or self.since > ours.warm_start_steps:
                layer.draw_A(self._draws(name))

    def _saved_as(self, key: str, like: torch.Tensor) -> torch.Tensor:
        """Return the saved tensor `key`, or `like` where there is none; DamagedError where their
        shapes differ."""
        tensor = self.saved.get(key, like)
        if tensor.shape != like.shape:
            shapes = f"{tuple(tensor.shape)} where {tuple(like.shape)} is expected"
            raise DamagedError(f'the tensor "{key}" has shape {shapes}')
        return tensor

    def _draws(self, name: str) -> torch.Generator:
        return generator(self.seed, "lora_A", name, self.since)

    def _factors(self) -> dict[str, torch.Tensor]:
        return {
            key: parameter
            for name, layer in self.layers.items()
            for key, parameter in (
                (names.lora_A(name), layer.lora_A.weight),
                (names.lora_B(name), layer.lora_B.weight),
            )
        }

    def _adapt(self, config: AdaptiveConfig) -> None:
        """Ranks from the spectra of what was merged just now."""
        demands, costs, most = {}, {}, {}
        for name, layer in self.layers.items():
            values = singular_values(
                self.merged[names.merged_B(name)], self.merged[names.merged_A(name)]
            )
            energy = config.criterion == "energy"
            demands[name] = energy_rank(values, config.energy) if energy else effective_rank(values)
            shape = layer.base.weight.shape
            costs[name], most[name] = sum(shape), min(*shape, config.max_rank or min(shape))
        budget = sum(rank * costs[name] for name, rank in self.history[0][1].items())
        ranks = share_out(demands, costs, most, config.min_rank, budget)
        if ranks != self.ranks:
            self.history.append((self.since, ranks))
            self.changed = True

    def _scalars(self) -> dict[str, float]:
        """For metrics.jsonl, where ranks change; every module's own are in the method's saved
        scalars."""
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
        """Dropout's draws from torch's own generator, which is put back: they work in compiled
        layers and in those that are computed again."""
        if not self.dropout:
            yield
            return
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        process = torch.distributed.get_rank() if distributed else 0
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(derive(self.seed, "dropout", step, process, self.parts))
            yield


def _is_merged(tensor: str) -> bool:
    part = names.low_rank_part(tensor)
    return part is not None and part[1].startswith("merged")


def _device(model: Decoder) -> torch.device:
    return model.lm_head.weight.device
