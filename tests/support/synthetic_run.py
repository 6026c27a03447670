"""A synthetic run with snapshots and a checkpoint, written with the contract's own writers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from pico_contract import codec
from pico_contract.layout import MODEL_WEIGHTS, SNAPSHOT_WEIGHTS, RunLayout, observed_file
from pico_contract.schema import CheckpointManifest, RowMap, RunManifest, SnapshotManifest, TensorSet

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """Geometry of a synthetic model."""

    width: int = 16
    inner: int = 24
    heads: int = 4
    kv_heads: int = 2
    layers: int = 2
    vocab: int = 20
    rows: int = 12

    @property
    def config(self) -> dict[str, int | bool]:
        return {
            "hidden_size": self.width,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "num_hidden_layers": self.layers,
            "tie_word_embeddings": True,
        }

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """Module -> (out, in)."""
        kv = self.width // self.heads * self.kv_heads
        of_layer = {
            "self_attn.q_proj": (self.width, self.width),
            "self_attn.k_proj": (kv, self.width),
            "self_attn.v_proj": (kv, self.width),
            "self_attn.o_proj": (self.width, self.width),
            "mlp.gate_proj": (self.inner, self.width),
            "mlp.up_proj": (self.inner, self.width),
            "mlp.down_proj": (self.width, self.inner),
        }
        return {f"model.layers.{i}.{name}": shape for i in range(self.layers) for name, shape in of_layer.items()}


def weights(shape: Shape, step: int, *, whole: bool) -> Tensors:
    """Random weights of a step; `whole` adds what only a checkpoint holds."""
    generator = torch.Generator().manual_seed(step)
    tensors = {f"{name}.weight": torch.randn(s, generator=generator) for name, s in shape.projections.items()}
    if whole:
        tensors["model.embed_tokens.weight"] = torch.randn(shape.vocab, shape.width, generator=generator)
        tensors["model.norm.weight"] = torch.rand(shape.width, generator=generator)
    return tensors


def activations(shape: Shape, step: int) -> Tensors:
    generator = torch.Generator().manual_seed(1000 + step)
    return {name: torch.randn(shape.rows, out, generator=generator) for name, (out, _) in shape.projections.items()}


def write_checkpoint(layout: RunLayout, shape: Shape, step: int) -> None:
    with codec.publish(layout.checkpoint(step)) as draft:
        codec.save_tensors(draft / MODEL_WEIGHTS, weights(shape, step, whole=True))
        codec.seal(draft, CheckpointManifest(run="synthetic", step=step, tokens=100 * step))


def write_snapshot(layout: RunLayout, shape: Shape, step: int, *, last: bool = False, own_weights: bool = True) -> None:
    sets = {
        ("val", "gradients"): weights(shape, step + 7, whole=False),
        ("val", "activations"): activations(shape, step),
    }
    if not last:
        sets["train", "gradients"] = weights(shape, step + 8, whole=False)
    observed = [
        TensorSet(
            file=observed_file(split, kind),
            split=split,
            kind=kind,
            dtype="float32",
            tensors={name: list(t.shape) for name, t in tensors.items()},
        )
        for (split, kind), tensors in sets.items()
    ]
    manifest = SnapshotManifest(
        run="synthetic",
        step=step,
        weights="snapshot" if own_weights else "checkpoint",
        modules=list(shape.projections),
        observed=observed,
        row_map=RowMap(rule="last", positions=[7], probe_rows=shape.rows),
        absent={"train.gradients": "final_step"} if last else {},
    )
    with codec.publish(layout.snapshot(step)) as draft:
        if own_weights:
            codec.save_tensors(draft / SNAPSHOT_WEIGHTS, weights(shape, step, whole=False))
        for (split, kind), tensors in sets.items():
            codec.save_tensors(draft / observed_file(split, kind), tensors)
        codec.seal(draft, manifest)


def write_run(root: Path, shape: Shape, steps: tuple[int, ...] = (0, 1, 2)) -> RunLayout:
    """A run with snapshots at `steps`; the last one's weights lie in a checkpoint."""
    layout = RunLayout(root)
    manifest = RunManifest(
        name=root.name,
        parent=None,
        status="finished",
        step=steps[-1],
        total_steps=steps[-1],
        heartbeat="2025-01-01T00:00:00+00:00",
        model=shape.config,
        parameters={},
        method="plain",
        seeds={},
        data={},
        sessions=[],
    )
    codec.write_text(layout.manifest, manifest.to_json())
    codec.write_text(layout.metrics, '{"step": 1, "tokens": 100}\n{"step": 2, "tok')
    write_checkpoint(layout, shape, steps[-1])
    for step in steps:
        write_snapshot(layout, shape, step, last=step == steps[-1], own_weights=step != steps[-1])
    return layout
