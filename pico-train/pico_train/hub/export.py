"""Export a checkpoint as a plain Hugging Face model directory, in a smaller dtype if asked."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from pico_contract import codec
from pico_contract.directories import check_directory
from pico_contract.errors import DamagedError, UserError, in_one_line
from pico_contract.files import read_regular_text
from pico_contract.layout import (
    GENERATION_CONFIG,
    MANIFEST,
    MODEL_CONFIG,
    MODEL_WEIGHTS,
    TOKENIZER,
    TOKENIZER_CONFIG,
    RunLayout,
)
from pico_contract.schema import CheckpointManifest

from pico_train.checkpoint.load import intact_checkpoint
from pico_train.hub.model_card import exported_readme
from pico_train.model.hf import refuse_own_model
from pico_train.model.stock import difference, stock_tensors

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def export_checkpoint(
    run: Path, step: int | None = None, out: Path | None = None, dtype: str = "fp32"
) -> Path:
    """Write a checkpoint of `run` as a plain Hugging Face model, and return its new directory.

    It contains config.json, generation_config.json, model.safetensors in `dtype` (each weight
    rounded to nearest), tokenizer and model card, but no optimizer state and no manifest. The
    directory appears whole or not at all. If the process is killed, a hidden directory `.tmp-*`
    stays beside it and may be deleted.

    Args:
        step: the newest by default.
        out: a directory that does not exist yet; by default NAME-stepN, with -bf16 or -fp16, in the
            current directory.
        dtype: "fp32" (bit for bit the checkpoint's), "bf16" or "fp16".
    Raises:
        UserError: `dtype` is unknown, `out` exists or lies within a run, a weight has no finite
            value in `dtype`, the keep policy of the run removed the checkpoint meanwhile, or
            `intact_checkpoint` raises it.
        DamagedError: the checkpoint is damaged.
        OSError: the disk is full or fails.
    """
    if dtype not in DTYPES:
        raise UserError(f'--dtype is "{dtype}"; it can be {", ".join(DTYPES)}')
    layout, chosen = intact_checkpoint(run, step)
    target = out or _default_directory(layout, chosen, dtype)
    # Before the weights are read, which may take minutes.
    if not os.path.exists(target):
        check_directory(target)
    _require_outside_runs(target)
    taken = UserError(f"{target} exists already; choose another --out")
    if target.resolve().exists():
        raise taken
    try:
        _write(layout, chosen, target.resolve(), dtype)
    except (DamagedError, OSError) as error:
        # Another process may have made the directory, or a running run may have pruned the
        # checkpoint, since the checks above.
        if target.resolve().exists():
            raise taken from None
        if layout.checkpoint(chosen).is_dir():
            raise
        raise UserError(
            f"{layout.checkpoint(chosen)} was removed while it was read, as the run's keep policy has it: choose"
            " another --step"
        ) from error
    return target


def _default_directory(layout: RunLayout, step: int, dtype: str) -> Path:
    suffix = "" if dtype == "fp32" else f"-{dtype}"
    return Path(f"{layout.root.resolve().name}-step{step}{suffix}")


def _require_outside_runs(target: Path) -> None:
    for parent in target.resolve().parents:
        if RunLayout(parent).manifest.is_file():
            raise UserError(
                f"{target} lies within the run {parent}, whose directory is for what the run writes: choose --out"
            )


def _write(layout: RunLayout, step: int, target: Path, dtype: str) -> None:
    source = layout.checkpoint(step)
    files = codec.read_manifest(source / MANIFEST, CheckpointManifest).files
    texts = {}
    for name in (MODEL_CONFIG, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG):
        if name in files:
            texts[name] = read_regular_text(source / name)
    _check_stock(source, texts[MODEL_CONFIG])
    stored = str(DTYPES[dtype]).removeprefix("torch.")
    # transformers reads `dtype` since version 5, and `torch_dtype` before.
    config = json.loads(texts[MODEL_CONFIG]) | {"dtype": stored, "torch_dtype": stored}
    texts[MODEL_CONFIG] = json.dumps(config, indent=2)
    texts["README.md"] = exported_readme(layout, step, target.name, stored)
    weights = codec.read_tensors(source / MODEL_WEIGHTS)
    for name in weights:
        # In place of the original, so that the model is in memory only once.
        weights[name] = weights[name].to(DTYPES[dtype])
        # float16 ends at 65,504: a larger weight becomes infinite without an error.
        if not torch.isfinite(weights[name]).all():
            raise UserError(
                f'{source / MODEL_WEIGHTS}: "{name}" has values that are not finite in {dtype}'
            )
    with codec.publish(target, replace=False) as draft:
        codec.write_tensors(draft / MODEL_WEIGHTS, weights)
        for name, text in texts.items():
            codec.write_text(draft / name, text)


def _check_stock(source: Path, config: str) -> None:
    """Refuse a checkpoint that transformers would open as another model."""
    try:
        raw = json.loads(config)
        refuse_own_model(raw)
        expected = stock_tensors(raw)
    except ValueError as error:
        raise UserError(f"{source} cannot be exported: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(
            f"{source / MODEL_CONFIG} is not the configuration of a model ({in_one_line(error)})"
        ) from None
    file = codec.TensorFile(source / MODEL_WEIGHTS)
    problem = difference({name: file.shape(name) for name in file.names}, expected)
    if problem is not None:
        raise DamagedError(f"{file.path}: {problem}")
