"""A checkpoint as a model directory of its own: smaller if asked, without what only training and its proof need."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from pico_contract import codec
from pico_contract.errors import UserError
from pico_contract.layout import GENERATION_CONFIG, MODEL_CONFIG, MODEL_WEIGHTS, TOKENIZER, TOKENIZER_CONFIG, RunLayout

from pico_train.commands import intact_checkpoint
from pico_train.readme import exported_readme

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def export_checkpoint(run: Path, step: int | None = None, out: Path | None = None, dtype: str = "fp32") -> Path:
    """Write a checkpoint of `run` as a plain Hugging Face model; returns its new directory, there whole or not at all.

    It holds config.json, generation_config.json, model.safetensors in `dtype` (each weight rounded to nearest),
    tokenizer and model card: no optimizer state and no manifest.

    Args:
        step: the newest by default.
        out: a directory that does not exist yet; NAME-stepN, with -bf16 or -fp16, in the current one by default.
        dtype: "fp32" (bit for bit the checkpoint's), "bf16" or "fp16".
    Raises:
        UserError: an unknown dtype, `out` exists or lies within the run, a weight has no value in `dtype`, or what
            `intact_checkpoint` refuses.
        DamagedError: the checkpoint is damaged.
        OSError: the disk is full or fails.
    """
    if dtype not in DTYPES:
        raise UserError(f'--dtype is "{dtype}"; it can be {", ".join(DTYPES)}')
    layout, chosen = intact_checkpoint(run, step)
    target = out or Path(f"{layout.root.resolve().name}-step{chosen}{'' if dtype == 'fp32' else f'-{dtype}'}")
    if target.exists():
        raise UserError(f"{target} exists already; choose another --out")
    if target.resolve().is_relative_to(layout.root.resolve()):
        raise UserError(f"{target} lies within the run {run}, whose directory is for what the run writes: choose --out")
    _write(layout, chosen, target, DTYPES[dtype])
    return target


def _write(layout: RunLayout, step: int, target: Path, dtype: torch.dtype) -> None:
    source = layout.checkpoint(step)
    weights = {name: tensor.to(dtype) for name, tensor in codec.read_tensors(source / MODEL_WEIGHTS).items()}
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f'{source / MODEL_WEIGHTS}: "{name}" has values that are not finite in {dtype}')
    config = json.loads((source / MODEL_CONFIG).read_text(encoding="utf-8"))
    config |= dict.fromkeys(("dtype", "torch_dtype"), str(dtype).removeprefix("torch."))
    with codec.publish(target) as draft:
        codec.write_tensors(draft / MODEL_WEIGHTS, weights)
        for name in (GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG):
            if (source / name).is_file():
                shutil.copyfile(source / name, draft / name)
        codec.write_text(draft / "README.md", exported_readme(layout, step, target.name))
        codec.write_text(draft / MODEL_CONFIG, json.dumps(config, indent=2))
