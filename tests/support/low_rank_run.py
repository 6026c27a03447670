"""A low-rank run with known factors, written with the contract's own writers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pico_contract import codec, names
from pico_contract.layout import MODEL_WEIGHTS, SNAPSHOT_WEIGHTS, RunLayout, observed_file
from pico_contract.schema import CheckpointManifest, RunManifest, SnapshotManifest, TensorSet

Q_PROJ, DOWN_PROJ = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"
_OF_LAYER = {"self_attn.q_proj": (48, 48), "mlp.down_proj": (48, 64)}
LOW_RANK = {f"model.layers.{layer}.{name}": shape for layer in (0, 1) for name, shape in _OF_LAYER.items()}
FULL_RANK = {f"model.layers.{layer}.self_attn.v_proj": (16, 48) for layer in (0, 1)}
CONFIG = {
    "hidden_size": 48,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "num_hidden_layers": 2,
    "tie_word_embeddings": True,
}


@dataclass
class Projection:
    """A low-rank projection as a method would keep it: `step` trains the factors, `restart` merges them in fp32."""

    base: torch.Tensor
    rank: int
    scale: float
    generator: torch.Generator
    stored: torch.dtype = torch.float32
    a: torch.Tensor = field(init=False)
    b: torch.Tensor = field(init=False)
    merged: tuple[torch.Tensor, torch.Tensor] | None = None

    def __post_init__(self) -> None:
        self._draw()

    def _draw(self) -> None:
        out, into = self.base.shape
        self.a = torch.randn(self.rank, into, generator=self.generator).to(self.stored)
        self.b = torch.zeros(out, self.rank, dtype=self.stored)

    def step(self, size: float = 1e-3) -> None:
        self.merged = None
        for factor in (self.a, self.b):
            factor += (size * torch.randn(factor.shape, generator=self.generator)).to(self.stored)

    def restart(self, rank: int | None = None) -> None:
        self.merged = (self.a.clone(), self.scale * self.b)
        self.base = (self.base.float() + self.merged[1].float() @ self.merged[0].float()).to(self.base.dtype)
        self.rank = rank or self.rank
        self._draw()

    @property
    def weight(self) -> torch.Tensor:
        return self.base.float() + self.scale * (self.b.float() @ self.a.float())

    def tensors(self, module: str) -> dict[str, torch.Tensor]:
        """Those that only low-rank modules have."""
        found = {
            names.lora_A(module): self.a.clone(),
            names.lora_B(module): self.b.clone(),
            names.lora_scale(module): torch.tensor([self.scale]),
            names.base(module): self.base.clone(),
        }
        if self.merged is not None:
            found |= {names.merged_A(module): self.merged[0], names.merged_B(module): self.merged[1]}
        return found


@dataclass(frozen=True)
class Plan:
    """Which steps are observed and at which factors are merged, of how many; `warm` steps are full-rank."""

    observed: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6)
    restarts: Mapping[int, int | None] = field(default_factory=lambda: {2: None, 4: None, 6: None})
    """Step -> the rank from there on; None for the same."""
    rank: int = 4
    scale: float = 2.0
    warm: int = 0
    checkpoints: tuple[int, ...] = (6,)
    """Steps whose effective weights lie in a checkpoint, those of the others beside the factors."""
    stored: torch.dtype = torch.float32
    base: torch.dtype = torch.float32
    size: float = 1e-3
    """Of an entry's change in a step, of A as of B."""


def write_low_rank_run(root: Path, plan: Plan | None = None) -> RunLayout:
    """A run of as many updates as the last observed step."""
    plan = plan or Plan()
    layout, last = RunLayout(root), max(plan.observed)
    draws = torch.Generator().manual_seed(7)
    full = {name: torch.randn(shape, generator=draws) for name, shape in {**LOW_RANK, **FULL_RANK}.items()}
    low: dict[str, Projection] = {}
    codec.write_text(layout.manifest, _manifest(root.name, last).to_json())
    codec.write_text(layout.config, f"name: {root.name}\n")
    rows = [{"step": step, "tokens": 10 * step, "loss": 3.0, "lr": 0.1} for step in range(1, last + 1)]
    codec.write_text(layout.metrics, "".join(json.dumps(row) + "\n" for row in rows))
    for step in range(last + 1):
        for name, tensor in full.items() if step else ():
            if name not in low:
                full[name] = tensor + 1e-3 * torch.randn(tensor.shape, generator=draws)
        for one in low.values():
            one.step(plan.size)
            if step in plan.restarts:
                one.restart(plan.restarts[step])
        if step == plan.warm:
            bases = {name: full[name].to(plan.base) for name in LOW_RANK}
            low = {n: Projection(base, plan.rank, plan.scale, draws, plan.stored) for n, base in bases.items()}
        if step in plan.observed:
            _observe(layout, plan, step, {**full, **{name: one.weight for name, one in low.items()}}, low)
    return layout


def _observe(
    layout: RunLayout, plan: Plan, step: int, effective: dict[str, torch.Tensor], low: dict[str, Projection]
) -> None:
    weights = {f"{name}.weight": tensor for name, tensor in effective.items()}
    extra = {name: tensor for module, one in low.items() for name, tensor in one.tensors(module).items()}
    in_checkpoint = step in plan.checkpoints
    if in_checkpoint:
        with codec.publish(layout.checkpoint(step)) as draft:
            codec.save_tensors(draft / MODEL_WEIGHTS, weights)
            codec.seal(draft, CheckpointManifest(run=layout.root.name, step=step, tokens=10 * step))
    draws = torch.Generator().manual_seed(step)
    shapes = {name: t.shape for name, t in weights.items() if name.removesuffix(".weight") not in low}
    shapes |= {name: t.shape for name, t in extra.items() if ".lora_A" in name or ".lora_B" in name}
    shapes |= {names.lora_gain(module): torch.Size([1]) for module in low}
    of_train = {name: torch.randn(shape, generator=draws) for name, shape in shapes.items()}
    of_val = {name: torch.randn(tensor.shape, generator=draws) for name, tensor in weights.items()}
    sets = {"train": of_train, "val": of_val}
    observed = [
        TensorSet(
            file=observed_file(split, "gradients"),
            split=split,
            kind="gradients",
            dtype="float32",
            tensors={name: list(tensor.shape) for name, tensor in tensors.items()},
        )
        for split, tensors in sets.items()
    ]
    manifest = SnapshotManifest(
        run=layout.root.name,
        step=step,
        weights="checkpoint" if in_checkpoint else "snapshot",
        modules=list(effective),
        observed=observed,
    )
    with codec.publish(layout.snapshot(step)) as draft:
        codec.save_tensors(draft / SNAPSHOT_WEIGHTS, extra if in_checkpoint else {**weights, **extra})
        for split, tensors in sets.items():
            codec.save_tensors(draft / observed_file(split, "gradients"), tensors)
        codec.seal(draft, manifest)


def _manifest(name: str, last: int) -> RunManifest:
    return RunManifest(
        name=name,
        parent=None,
        status="finished",
        step=last,
        total_steps=last,
        heartbeat="2025-01-01T00:00:00+00:00",
        model=CONFIG,
        parameters={},
        method="relora",
        seeds={},
        data={},
        sessions=[],
    )
