"""Measure our decoders on one GPU: correctness, speed, memory, and the cost of observing and saving.

    make bench-gpu                                              # on a CUDA device, under 7 minutes
    PYTHONPATH=shared:pico-train python benchmarks/gpu.py       # the same where nothing of ours is installed
    python benchmarks/gpu.py --dry                              # tiny sizes on any device: does the program work?

One line of JSON follows each measurement, the most important ones first; a measurement that no longer fits into
`--minutes` is skipped and named; a table follows at the end. Exit code 1 means that a loss or a gradient was wrong. The
first part needs torch alone, so that it runs where neither pydantic nor datasets is installed (without transformers the
peer is left out); the cost of a snapshot and of a checkpoint, and a resume, need the packages of pico-train, and are
left out by name where one is missing.

MFU is (6 N + 12 L D T) operations a token (N: parameters that multiply) times tokens a second, over the peak of the
data sheet for dense bfloat16 where the device is known, else over the rate of a matrix product measured here.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pico_train.log.mfu import matmul_rate
from pico_train.model.cost import flops_per_token
from pico_train.model.decoder import Decoder, DecoderConfig
from pico_train.model.execution import apply_compile_and_checkpointing

PEAKS = {"H100": 989e12, "H200": 989e12, "GH200": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
"""Part of a device's name -> operations a second, dense bfloat16 with float32 accumulation, by its data sheet."""
SHAPES = {
    "tiny": DecoderConfig(),
    "small": DecoderConfig(hidden_size=384, intermediate_size=1536),
    "medium": DecoderConfig(hidden_size=768, intermediate_size=3072),
    "large": DecoderConfig(hidden_size=1536, intermediate_size=6144),
}
ROWS = {"tiny": 64, "small": 64, "medium": 32, "large": 16}
"""Rows of a forward pass that throughput is measured with, halved until they fit."""
SEQ_LEN = 2048
DRY = DecoderConfig(vocab_size=512, hidden_size=24, intermediate_size=48, num_hidden_layers=2)
LOSS_TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}
"""Relative: float32 sums in another order; bfloat16 keeps 8 bits, so single products are off by up to 2^-9 = 0.2%, and
the loss of an untrained model by about as much a layer."""
GRADIENT_TOLERANCE = {"fp32": 1e-4, "bf16": 1e-1}
"""Largest difference of an entry, relative to the largest entry of its gradient, after twelve layers."""


@dataclasses.dataclass
class Clock:
    """The time that is left, and what has been said so far."""

    minutes: float
    out: Path | None
    began: float = dataclasses.field(default_factory=time.monotonic)
    lines: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def left(self) -> float:
        """Seconds until the end."""
        return self.minutes * 60 - (time.monotonic() - self.began)

    def say(self, **values: Any) -> None:
        """Print one line of JSON at once, and keep it."""
        line = json.dumps({**values, "at_s": round(time.monotonic() - self.began, 1)})
        print(line, flush=True)
        self.lines.append(values)
        if self.out is not None:
            with self.out.open("a", encoding="utf-8") as handle:
                handle.write(line + "\n")

    def measure(self, name: str, seconds: float, work: Callable[[], dict[str, Any]]) -> None:
        """Run `work`, expected to take `seconds`, if it still fits; one that fails costs itself alone."""
        if self.left() < seconds:
            self.say(measurement=name, left_out=f"needs about {seconds:.0f} s of the {max(self.left(), 0):.0f} s left")
            return
        try:
            found = work()
        except ImportError as error:
            found = {"left_out": f"{error.name} is not installed here"}
        except Exception as error:  # a report from a rented machine must not end at its first surprise
            found = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        self.say(measurement=name, **found)
        free(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def free(device: torch.device) -> None:
    """Give back memory and compiled code of what was measured before."""
    gc.collect()
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def finish(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def initialised(config: DecoderConfig) -> Decoder:
    """Build a decoder whose weights depend on its shape alone."""
    model = Decoder(config)
    model.init_weights(lambda name: torch.Generator().manual_seed(sum(name.encode())))
    return model


def drawn(config: DecoderConfig, rows: int, seq_len: int) -> torch.Tensor:
    """Draw token ids (rows, seq_len + 1)."""
    return torch.randint(config.vocab_size, (rows, seq_len + 1), generator=torch.Generator().manual_seed(0))


def loss_and_gradients(model: Decoder, rows: torch.Tensor, bf16: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """Compute the mean loss and every gradient, as float64 on CPU."""
    device = next(model.parameters()).device
    ids = rows.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        loss = model(ids[:, :-1], labels=ids[:, 1:]) / ids[:, 1:].numel()
    loss.backward()
    gradients = {name: p.grad.double().cpu() for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), gradients


def correctness(config: DecoderConfig, device: torch.device, seq_len: int, compiled: bool) -> dict[str, Any]:
    """Compare loss and gradients in fp32 and bf16 on the device with fp32 on CPU."""
    rows = drawn(config, 2, seq_len)
    expected, truth = loss_and_gradients(initialised(config), rows, bf16=False)
    found: dict[str, Any] = {"loss_cpu_fp32": expected, "compiled": compiled}
    for precision in ("fp32", "bf16"):
        model = initialised(config).to(device)
        apply_compile_and_checkpointing(model, compiled=compiled, checkpointing=False)
        loss, gradients = loss_and_gradients(model, rows, bf16=precision == "bf16")
        apart = {name: relative(gradients[name], truth[name]) for name in truth}
        worst = max(apart, key=lambda name: apart[name])
        loss_apart = abs(loss / expected - 1)
        right = loss_apart <= LOSS_TOLERANCE[precision] and apart[worst] <= GRADIENT_TOLERANCE[precision]
        found[precision] = {"loss": loss_apart, "gradient": apart[worst], "of": worst, "right": right}
    return found


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest entry of what is expected."""
    return float((found - expected).abs().max() / expected.abs().max())


Step = Callable[[torch.Tensor], None]


def our_step(config: DecoderConfig, device: torch.device, compiled: bool, checkpointing: bool) -> Step:
    """One update of our decoder: bfloat16 autocast, clipping to 1, fused AdamW on float32 weights."""
    model = initialised(config).to(device)
    apply_compile_and_checkpointing(model, compiled=compiled, checkpointing=checkpointing)
    return _update(model, device, lambda ids: model(ids[:, :-1], labels=ids[:, 1:]) / ids[:, 1:].numel())


def peer_step(config: DecoderConfig, device: torch.device, compiled: bool) -> Step:
    """The same update of transformers' Llama of the same shape, compiled as a whole, with its own loss."""
    from transformers import LlamaConfig, LlamaForCausalLM

    same = {key: value for key, value in dataclasses.asdict(config).items() if key != "rope_theta"}
    llama = LlamaForCausalLM(LlamaConfig(**same, attn_implementation="sdpa")).to(device)
    forward = torch.compile(llama) if compiled else llama
    # It shifts the labels itself: equal rows in, one predicted token a row fewer than ours.
    return _update(llama, device, lambda ids: forward(input_ids=ids[:, :-1], labels=ids[:, :-1], use_cache=False).loss)


def _update(model: torch.nn.Module, device: torch.device, loss_of: Callable[[torch.Tensor], torch.Tensor]) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)

    def step(ids: torch.Tensor) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


@contextmanager
def memory_errors() -> Iterator[list[str]]:
    """Collect the message if the body does not fit into the device's memory."""
    messages: list[str] = []
    try:
        yield messages
    except torch.OutOfMemoryError as error:
        messages.append(str(error).splitlines()[0])


def throughput(make: Callable[[], Step], setting: Setting, config: DecoderConfig, rows: int) -> dict[str, Any]:
    """Measure tokens a second, MFU and peak memory of an update, with `rows` halved until they fit."""
    while rows >= 1:
        with memory_errors() as no_memory:
            return _throughput(make(), setting, config, rows)
        free(setting.device)
        if no_memory and rows == 1:
            break
        rows //= 2
    return {"failed": "not even one row fits"}


def _throughput(step: Step, setting: Setting, config: DecoderConfig, rows: int) -> dict[str, Any]:
    ids = drawn(config, rows, setting.seq_len).to(setting.device)
    started = time.perf_counter()
    for _ in range(setting.warm_up):
        step(ids)
    finish(setting.device)
    first = time.perf_counter() - started
    taken = []
    while len(taken) < setting.least or (sum(taken) < setting.seconds and len(taken) < 50):
        start = time.perf_counter()
        step(ids)
        finish(setting.device)
        taken.append(time.perf_counter() - start)
    pace = rows * setting.seq_len / statistics.median(taken)
    peak = torch.cuda.max_memory_allocated() if setting.device.type == "cuda" else None
    return {
        "rows": rows,
        "tokens_per_second": round(pace, 1),
        "mfu": round(pace * flops_per_token(config, setting.seq_len) / setting.peak, 4),
        "peak_gib": None if peak is None else round(peak / 2**30, 2),
        "updates": len(taken),
        "spread": round(max(taken) / min(taken), 3),
        "warm_up_s": round(first, 1),
    }


def largest_rows(setting: Setting, config: DecoderConfig, checkpointing: bool, most: int) -> dict[str, Any]:
    """Double the rows of a forward and backward pass until they no longer fit, or `most` are reached."""
    step = our_step(config, setting.device, compiled=False, checkpointing=checkpointing)
    fitting, rows, peak = 0, 1, 0
    while rows <= most:
        with memory_errors() as no_memory:
            step(drawn(config, rows, setting.seq_len).to(setting.device))
            finish(setting.device)
        if no_memory:
            break
        fitting, rows = rows, 2 * rows
        peak = torch.cuda.max_memory_allocated() if setting.device.type == "cuda" else 0
    return {"rows": fitting, "stopped_at_most": fitting == most, "peak_gib": round(peak / 2**30, 2)}


@dataclasses.dataclass(frozen=True)
class Setting:
    """The device and the duration of a measurement."""

    device: torch.device
    peak: float
    """Operations a second that MFU is taken of."""
    seq_len: int
    warm_up: int
    least: int
    """Fewest timed updates."""
    seconds: float
    """Time after which no further update is timed."""
    compiles: bool
    """Whether layers are compiled; on a CPU that takes minutes and shows nothing."""


def known_peak(device: torch.device) -> tuple[float, str]:
    """The peak of bfloat16 products on the device, and where it is from."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    peak = next((value for part, value in PEAKS.items() if part in name), None)
    if peak is not None:
        return peak, "data sheet, dense bfloat16"
    return matmul_rate(device, "bf16", torch.get_num_threads()), "largest rate of a matrix product measured here"


def speeds(clock: Clock, setting: Setting, shapes: dict[str, DecoderConfig], rows: dict[str, int]) -> None:
    """Measure the throughput of every shape: the two that matter most compiled, beside the peer, then the rest."""

    def ours(name: str, compiled: bool = False, checkpointing: bool = False) -> None:
        compiled = compiled and setting.compiles
        label = " ".join(filter(None, ["ours", name, "compiled" * compiled, "checkpointing" * checkpointing]))
        config = shapes[name]
        make = partial(our_step, config, setting.device, compiled, checkpointing)
        clock.measure(label, 25, lambda: throughput(make, setting, config, rows[name]))

    def peer(name: str) -> None:
        config = shapes[name]
        make = partial(peer_step, config, setting.device, setting.compiles)
        label = f"transformers {name}{' compiled' if setting.compiles else ''}"
        clock.measure(label, 60, lambda: throughput(make, setting, config, rows[name]))

    for name in ("large", "medium"):
        ours(name, compiled=True)
        peer(name)
    for name in ("small", "tiny", "medium", "large") if setting.compiles else ("small", "tiny"):
        ours(name)
    for name in ("large", "medium"):
        ours(name, compiled=True, checkpointing=True)


def of_runs(what: str, config: DecoderConfig, seq_len: int) -> dict[str, Any]:
    """Measure one of gpu_runs.py, which imports all of pico-train."""
    import gpu_runs  # beside this file

    return getattr(gpu_runs, what)(config, seq_len)


def table(lines: list[dict[str, Any]]) -> str:
    """Lay out what was measured, one line each."""
    rows = []
    for line in lines:
        name = str(line.get("measurement", ""))
        rest = {key: value for key, value in line.items() if key not in ("measurement", "warm_up_s", "updates")}
        rows.append(f"{name:<36} " + "  ".join(f"{key} {_short(value)}" for key, value in rest.items()))
    paces = {str(line.get("measurement")): line.get("tokens_per_second") for line in lines}
    for name in ("large", "medium"):
        ours, peer = paces.get(f"ours {name} compiled"), paces.get(f"transformers {name} compiled")
        if ours and peer:
            rows.append(f"{name}: {ours / peer:.2f} times transformers compiled (aim: at least 1.2)")
    return "\n".join(rows)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} {_short(inner)}" for key, inner in value.items()) + "}"
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1e3 else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="tiny sizes, on whatever device there is")
    parser.add_argument("--minutes", type=float, default=7.0, help="time for everything")
    folder = os.environ.get("OUT")
    default = Path(folder) / "gpu.jsonl" if folder else None
    parser.add_argument("--out", type=Path, default=default, help="file of the JSON lines; $OUT/gpu.jsonl where OUT is")
    given = parser.parse_args()
    if not (given.dry or torch.cuda.is_available()):
        sys.exit("no CUDA device here: --dry runs tiny sizes on a CPU")
    clock = Clock(given.minutes, given.out)
    run(clock, given.dry)
    print(table(clock.lines), flush=True)
    if wrong := [line["measurement"] for line in clock.lines if is_wrong(line)]:
        sys.exit(f"not what a CPU computes in float32: {', '.join(wrong)}")


def is_wrong(line: dict[str, Any]) -> bool:
    """Whether a measurement of correctness found a difference that rounding does not explain."""
    return any(isinstance(value, dict) and value.get("right") is False for value in line.values())


def run(clock: Clock, dry: bool) -> None:
    """Measure everything that the time allows."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak, source = known_peak(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    tflops = round(peak / 1e12, 1)
    clock.say(measurement="device", name=name, torch=torch.__version__, peak_tflops=tflops, peak_from=source)
    compiles = device.type == "cuda"
    setting = (
        Setting(device, peak, seq_len=64, warm_up=1, least=2, seconds=0.0, compiles=compiles)
        if dry
        else Setting(device, peak, SEQ_LEN, warm_up=3, least=5, seconds=4.0, compiles=compiles)
    )
    shapes = dict.fromkeys(SHAPES, DRY) if dry else SHAPES
    rows = dict.fromkeys(SHAPES, 2) if dry else ROWS
    tokens = 64 if dry else 256
    clock.measure("correctness", 15, lambda: correctness(shapes["small"], device, tokens, compiled=False))
    if compiles:
        clock.measure("correctness compiled", 40, lambda: correctness(shapes["small"], device, tokens, compiled=True))
    speeds(clock, setting, shapes, rows)
    for what, shape in (("snapshot_cost", "small"), ("checkpoint_cost", "large"), ("resume_identity", "tiny")):
        label = f"{what.replace('_', ' ')} {shape}"
        clock.measure(label, 30, partial(of_runs, what, shapes[shape], 64 if dry else 512))
    for shape in ("large", "medium", "small", "tiny"):
        search = partial(largest_rows, setting, shapes[shape], checkpointing=False, most=4 if dry else 512)
        clock.measure(f"largest micro-batch {shape}", 15, search)


if __name__ == "__main__":
    main()
