"""Write docs/scale.md, the cost of decoder large at scale, with every figure computed here.

Assumptions are the constants below; everything else follows from the configuration and from `model/cost.py`.
"""

from __future__ import annotations

import math
from pathlib import Path

from pico_train.config import load
from pico_train.model.cost import activation_bytes, count_parameters, flops_per_token, matmul_parameters
from pico_train.run import RunConfig

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "pico-train/configs/pico-decoder-large.yaml"
DOCUMENT = ROOT / "docs/scale.md"
TEMPLATE = ROOT / "benchmarks/scale.md.in"

GPUS, NODES, SEQ_LEN, PASS_ROWS = 16, 2, 2048, 16
PEAK, SHARE = 989e12, 0.40  # dense bf16 operations a second of an H100, and the share of them that training gets
GPU_MEMORY = 80e9
LINK = 50e9  # bytes a second between two nodes (400 Gbit/s)
ROWS = 10_000 * 20_480  # of the data set
TOKEN_BYTES = 2  # at least, on the wire: uint16; Parquet packs ids of 16 bits about as tightly


def figures() -> dict[str, float]:
    """Every figure of the page, in plain units (bytes, seconds, operations)."""
    config = load(RunConfig, CONFIG)
    model, steps, batch = config.model, config.train.steps, config.train.batch_size
    parameters, a_token = count_parameters(model)["total"], flops_per_token(model, SEQ_LEN)
    tokens = steps * batch * SEQ_LEN
    rate = PEAK * SHARE
    step = batch * SEQ_LEN * a_token / (GPUS * rate)
    exchange = 2 * (GPUS - 1) / GPUS * 4 * parameters
    copies = 2 * matmul_parameters(model)
    kept = activation_bytes(model, PASS_ROWS * SEQ_LEN, bf16=True)
    checkpoint, saved = 12 * parameters, steps // config.checkpoint.every + 1
    return {
        "parameters": parameters,
        "matmul": matmul_parameters(model),
        "layers": model.num_hidden_layers,
        "width": model.hidden_size,
        "inner": model.intermediate_size,
        "heads": model.num_attention_heads,
        "steps": steps,
        "batch": batch,
        "tokens": tokens,
        "a_token": a_token,
        "operations": tokens * a_token,
        "hours_at_100": tokens * a_token / 1e14 / 3600,
        "rate": rate,
        "gpu_hours": tokens * a_token / rate / 3600,
        "hours": tokens * a_token / rate / 3600 / GPUS,
        "step": step,
        "state": 16 * parameters,
        "copies": copies,
        "kept_row": (kept - copies) / PASS_ROWS,
        "kept": kept,
        "held": 16 * parameters + kept,
        "checkpoint": checkpoint,
        "saved": saved,
        "checkpoints": saved * checkpoint - 8 * parameters,
        "models": (saved - 1) * 4 * parameters + checkpoint,
        "read": tokens / SEQ_LEN * (SEQ_LEN + 1) * TOKEN_BYTES,
        "read_rate": batch * (SEQ_LEN + 1) * TOKEN_BYTES / step,
        "shard_steps": ROWS / 10_000 / batch,
        "exchange": exchange,
        "exchange_time": exchange / LINK,
        "exchange_share": exchange / LINK / (step + exchange / LINK),
        "epochs": steps * batch / ROWS,
        "ten_state": 160 * parameters,
        "sharded": 160 * parameters / GPUS,
        "ten_gpus": 10 * GPUS,
        "fitting": 2 ** math.floor(math.log2(10 * GPUS)),
        "ten_step": batch * SEQ_LEN * a_token / (2 ** math.floor(math.log2(10 * GPUS)) * rate),
        "ten_share": exchange
        / LINK
        / (batch * SEQ_LEN * a_token / (2 ** math.floor(math.log2(10 * GPUS)) * rate) + exchange / LINK),
        "ten_days": tokens * a_token / rate / GPUS / 8640,
        "ten_disk": (10 * (saved - 1) + 1) * checkpoint - 8 * parameters,
        "ten_epochs": 10 * steps * batch / ROWS,
    }


def page() -> str:
    """The document."""
    exact = figures()
    scaled = {
        **exact,
        "gpus": GPUS,
        "nodes": NODES,
        "share": SHARE,
        "peak": PEAK / 1e12,
        "gpu_memory": GPU_MEMORY / 1e9,
        "link": LINK / 1e9,
        "seq_len": SEQ_LEN,
        "row_length": SEQ_LEN + 1,
        "pass_rows": PASS_ROWS,
        "rows": ROWS,
        "rate": exact["rate"] / 1e12,
        "days": exact["hours"] / 24,
        "rows_each": exact["batch"] / GPUS,
        "passes": exact["batch"] / GPUS / PASS_ROWS,
        "models_count": int(exact["saved"]) - 1,
        "shard_time": exact["shard_steps"] * exact["step"],
        "read_rate": exact["read_rate"] / 1e6,
    }
    for name in (
        *("state", "copies", "kept_row", "kept", "held", "checkpoint", "read"),
        "exchange",
        "ten_state",
        "sharded",
    ):
        scaled[name] = exact[name] / 1e9
    for name in ("checkpoints", "models", "ten_disk"):
        scaled[name] = exact[name] / 1e12
    return TEMPLATE.read_text(encoding="utf-8").format(**scaled)


if __name__ == "__main__":
    DOCUMENT.write_text(page(), encoding="utf-8")
    print(f"wrote {DOCUMENT.relative_to(ROOT)}")
