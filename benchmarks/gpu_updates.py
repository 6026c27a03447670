"""The measurements of benchmarks/gpu.py that need no run: updates of ours and of transformers on random tokens."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pico_train.model.cost import flops_per_token
from pico_train.model.decoder import Decoder, DecoderConfig
from pico_train.model.execution import carry_out
from torch import nn

WIDTHS = {"tiny": 96, "small": 384, "medium": 768, "large": 1536}
ROWS = {"tiny": 64, "small": 64, "medium": 32, "large": 16}
PEAK = {"H100": 989e12, "H200": 989e12}
LOSS_TOLERANCE = {"fp32": 1e-5, "bf16": 5e-3}
GRADIENT_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
"""Largest |g - g0| / |g0| of a parameter: the order of sums in fp32; in bf16 2^-9 a product, through 12 layers."""

Result = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """Where and at which size everything is measured."""

    dry: bool
    device: torch.device

    @property
    def seq_len(self) -> int:
        return 32 if self.dry else 2048

    @property
    def block_seconds(self) -> float:
        """About how long a timed block of updates lasts."""
        return 0.01 if self.dry else 1.5

    def shape(self, name: str) -> DecoderConfig:
        if self.dry:
            return DecoderConfig(64, 24, 48, 2, 12, 4, 64)
        return DecoderConfig(hidden_size=WIDTHS[name], intermediate_size=4 * WIDTHS[name])

    def rows(self, name: str) -> int:
        return 2 if self.dry else ROWS[name]

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class Skip(Exception):
    """A measurement that cannot be made here; says why."""


class Updates:
    """Updates of a model by fused AdamW with clipping, on fixed random tokens; `loss_of` gives the mean loss."""

    def __init__(
        self, at: Setting, model: nn.Module, rows: int, loss_of: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        self.at, self.model, self.loss_of = at, model, loss_of
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        draws = torch.Generator().manual_seed(1)
        vocabulary = next(model.parameters()).shape[0]
        self.ids = torch.randint(vocabulary, (rows, at.seq_len + 1), generator=draws).to(at.device)

    def step(self) -> None:
        with torch.autocast(self.at.device.type, dtype=torch.bfloat16):
            loss = self.loss_of(self.ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def ours(
    at: Setting, name: str, rows: int, *, compiled: bool = False, checkpointing: bool = False, seed: int = 0
) -> Updates:
    """Build our decoder, with weights that are drawn on the device, and its updates."""
    torch.manual_seed(seed)
    with at.device:
        model = Decoder(at.shape(name))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.02) if parameter.dim() > 1 else parameter.fill_(1.0)
    carry_out(model, compiled=compiled and not at.dry, checkpointing=checkpointing)
    terms = rows * at.seq_len
    return Updates(at, model, rows, lambda ids: model(ids[:, :-1], labels=ids[:, 1:]) / terms)


def peer(at: Setting, name: str, rows: int) -> Updates:
    """Build the same decoder as transformers has it, compiled as a whole, with its own loss."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise Skip(f"transformers cannot be imported: {error}") from None
    shape = at.shape(name)
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        max_position_embeddings=shape.max_position_embeddings,
    )
    with at.device:
        model = LlamaForCausalLM(config)
    run = model if at.dry else torch.compile(model, dynamic=False)
    return Updates(at, model, rows, lambda ids: run(input_ids=ids[:, :-1], labels=ids[:, :-1], use_cache=False).loss)


def pace(at: Setting, name: str, build: Callable[[int], Updates]) -> Result:
    """Measure tokens a second, MFU and peak memory; half the rows where they do not fit."""
    rows, updates = at.rows(name), None
    while True:
        updates = None  # which would hold the memory of the attempt before
        clear(at)
        try:
            updates = build(rows)
            warm_up = seconds_of(at, updates.step, 3)
            break
        except torch.OutOfMemoryError:
            rows //= 2
            if rows == 0:
                raise Skip("a single row does not fit") from None
    once = seconds_of(at, updates.step, 1)
    steps = max(1, round(at.block_seconds / once))
    blocks = sorted(seconds_of(at, updates.step, steps) / steps for _ in range(3))
    a_second = rows * at.seq_len / blocks[1]
    return {
        "rows": rows,
        "tokens_per_second": round(a_second),
        "mfu": mfu(at, a_second * flops_per_token(at.shape(name), at.seq_len)),
        "step_ms": round(1000 * blocks[1], 2),
        "spread": round(blocks[2] / blocks[0] - 1, 4),
        "warm_up_s": round(warm_up, 1),
        "peak_gib": peak_gib(at),
    }


def seconds_of(at: Setting, step: Callable[[], None], count: int) -> float:
    at.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        step()
    at.synchronize()
    return time.perf_counter() - start


def mfu(at: Setting, operations: float) -> float | None:
    """Return the share of the device's peak, where that is known."""
    name = torch.cuda.get_device_name() if at.device.type == "cuda" else ""
    known = next((peak for word, peak in PEAK.items() if word in name), None)
    return None if known is None else round(operations / known, 4)


def peak_gib(at: Setting) -> float | None:
    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if at.device.type == "cuda" else None


def clear(at: Setting) -> None:
    """Give back the memory of what was measured before, and forget what was compiled for it."""
    gc.collect()
    torch.compiler.reset()
    if at.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def correctness(at: Setting, precision: str) -> Result:
    """Compare loss and gradients, in every way to run layers, with those of plain autograd in float32 on the CPU."""
    cpu = Setting(at.dry, torch.device("cpu"))
    rows, length = 2, min(at.seq_len, 256)
    reference = ours(cpu, "small", rows)
    ids = reference.ids[:, : length + 1]
    expected = reference.model(ids[:, :-1], labels=ids[:, 1:], double_backward=True) / (rows * length)
    expected.backward()
    found: Result = {}
    for way, options in ways(at).items():
        model = ours(at, "small", rows, **options).model
        model.load_state_dict(reference.model.state_dict())
        there = ids.to(at.device)
        with torch.autocast(at.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = model(there[:, :-1], labels=there[:, 1:]) / (rows * length)
        loss.backward()
        pairs = zip(model.parameters(), reference.model.parameters(), strict=True)
        worst = max(float((p.grad.cpu() - q.grad).norm() / q.grad.norm()) for p, q in pairs)
        found[way] = {"loss_error": abs(loss.item() / expected.item() - 1), "gradient_error": worst}
    tolerances = LOSS_TOLERANCE[precision], GRADIENT_TOLERANCE[precision]
    errors = [(errors["loss_error"], errors["gradient_error"]) for errors in found.values()]
    holds = all(loss <= tolerances[0] and gradient <= tolerances[1] for loss, gradient in errors)
    return {"holds": holds, "tolerances": tolerances, **found}


def ways(at: Setting) -> dict[str, dict[str, bool]]:
    """List how layers may be run; --dry compiles nothing."""
    plain: dict[str, dict[str, bool]] = {"plain": {}, "checkpointing": {"checkpointing": True}}
    compiled = {"compiled": {"compiled": True}, "compiled_checkpointing": {"compiled": True, "checkpointing": True}}
    return plain if at.dry else plain | compiled


def largest_micro_batch(at: Setting, name: str, checkpointing: bool) -> Result:
    """Find by doubling how many rows fit a pass, and measure the peak of the last that did."""
    rows, fitting, peak, most = at.rows(name), 0, None, 8 if at.dry else 4096
    while rows <= most:
        clear(at)
        try:
            ours(at, name, rows, checkpointing=checkpointing).step()
            at.synchronize()
        except torch.OutOfMemoryError:
            break
        fitting, peak, rows = rows, peak_gib(at), 2 * rows
    return {"rows": fitting, "peak_gib": peak, "next_does_not_fit": rows if rows <= most else None}


def resume(at: Setting) -> Result:
    """Compare four updates with two, a copy of the state through the CPU into new objects, and two more."""
    whole, first, second = (ours(at, "tiny", at.rows("tiny"), seed=seed) for seed in (0, 0, 9))
    for updates, steps in ((whole, 4), (first, 2)):
        for _ in range(steps):
            updates.step()
    second.model.load_state_dict({name: tensor.cpu() for name, tensor in first.model.state_dict().items()})
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    for _ in range(2):
        second.step()
    pairs = list(zip(whole.model.parameters(), second.model.parameters(), strict=True))
    return {
        "bit_identical": all(torch.equal(a, b) for a, b in pairs),
        "largest_difference": max(float((a - b).detach().abs().max()) for a, b in pairs),
    }
