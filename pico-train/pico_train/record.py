"""What a run says of itself: run.json, config.yaml, and under which conditions each of its sessions computed."""

from __future__ import annotations

import dataclasses
import platform
import socket
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pico_contract import codec
from pico_contract.errors import UserError
from pico_contract.schema import RunManifest

from pico_train.checkpoint import resolved_source
from pico_train.config import identity, read_yaml, to_yaml, validate
from pico_train.model.cost import count_parameters
from pico_train.model.stock import STOCK, Architecture
from pico_train.run import Job, RunConfig
from pico_train.utilisation import matmul_rate, measures


def new_manifest(job: Job) -> RunManifest:
    """run.json of a run that starts."""
    config, data = job.config, job.data.manifest
    return RunManifest(
        created=codec.utc_now(),
        name=config.name,
        parent=resolved_source(config.init_from) if config.init_from is not None else None,
        status="running",
        step=0,
        total_steps=config.train.steps,
        heartbeat=codec.utc_now(),
        model=dataclasses.asdict(config.model),
        parameters=count_parameters(config.model),
        method=config.method.name,
        seeds=config.seed.model_dump(),
        data={"fingerprint": data.fingerprint, "path": str(config.data.path), "order": config.data.order},
        sessions=[],
        architecture=job.card.architecture.record(),
        stock=job.card.architecture.is_stock,
    )


def check_identity(job: Job) -> None:
    """Refuse to continue a run of this name whose identity differs.

    Raises:
        UserError: lists every changed key with its old and new value.
    """
    old = validate(RunConfig, read_yaml(job.layout.config), str(job.layout.config))
    before, now = identity(old), identity(job.config)
    changed = [f"{key} ({before.get(key)} -> {now.get(key)})" for key in now if before.get(key) != now[key]]
    manifest = codec.read_manifest(job.layout.manifest, RunManifest)
    if changed_architecture := _changed_architecture(job, manifest):
        changed.append(changed_architecture)
    recorded = manifest.data.get("fingerprint")
    if recorded != job.data.manifest.fingerprint:
        changed.append(f"the data's fingerprint ({str(recorded)[:12]} -> {job.data.manifest.fingerprint[:12]})")
    if changed:
        raise UserError(
            f"{job.layout.root} is another run: {', '.join(changed)} changed; choose another name, or undo the change"
        )


def _changed_architecture(job: Job, manifest: RunManifest) -> str | None:
    """Say how the decoder differs from the one that the run began with."""
    now = job.card.architecture
    known = {field.name: str(manifest.architecture.get(field.name, "")) for field in dataclasses.fields(now)}
    before = Architecture(**known) if known["name"] else STOCK
    if (before.name, before.source_sha256) == (now.name, now.source_sha256):
        return None
    return f"the decoder ({before} -> {now}; {now.departure or before.departure})"


def write_config(job: Job) -> None:
    """config.yaml: the resolved configuration of the newest session."""
    codec.write_text(job.layout.config, to_yaml(job.config))


def session_record(job: Job, from_step: int) -> dict[str, Any]:
    """What this session runs on: bit-identical continuation holds between sessions that agree on it."""
    return {
        "started": codec.utc_now(),
        "from_step": from_step,
        "host": socket.gethostname(),
        "processes": job.runtime.processes,
        "sharding": job.config.train.sharding,
        "micro_batch": job.micro_batch,
        "device": _device_name(job.runtime.device),
        "precision": job.precision,
        "compile": job.compiled,
        "activation_checkpointing": job.config.train.activation_checkpointing,
        "fp32_products": torch.get_float32_matmul_precision(),  # "highest" is IEEE, "high" may be TF32 on CUDA
        "threads": torch.get_num_threads(),
        "matmul_rate": _matmul_rate(job),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("torch", "numpy", "accelerate", "safetensors", "pico-train")},
        "commit": _git_commit(),
    }


CONDITIONS = (
    *("processes", "sharding", "micro_batch", "device", "precision", "compile", "fp32_products", "threads", "packages"),
)
"""Entries of a session under which a resumed run equals an uninterrupted one bit for bit."""


def changed_conditions(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Which of `CONDITIONS` differ between two sessions, as `threads 2 -> 4`."""
    before = {"sharding": "none", **before}  # of a session that began before there was a choice
    return [
        f"{key} {before.get(key)} -> {now.get(key)}"
        for key in CONDITIONS
        if before.get(key, now.get(key)) != now.get(key)  # earlier versions recorded fewer of them
    ]


def kept_micro_batch(job: Job, sessions: Sequence[Mapping[str, Any]]) -> int | None:
    """The micro-batch of the newest session on as many processes of the same device; None where there was none."""
    here = {"processes": job.runtime.processes, "device": _device_name(job.runtime.device)}
    alike = (session for session in reversed(sessions) if here.items() <= session.items())
    return next((session["micro_batch"] for session in alike), None)


def _matmul_rate(job: Job) -> float | None:
    """Of one process, while the others measure theirs."""
    if not measures(job.config.log.mfu, job.runtime.device):
        return None
    return matmul_rate(job.runtime.device, job.precision, torch.get_num_threads())


def _device_name(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return f"{device.type} {name}"


def _git_commit() -> str | None:
    """The commit that this code was checked out from; None where it is installed, though it be below a repository."""
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        return _git("rev-parse", "HEAD").strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    root = Path(__file__).resolve().parent
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=True).stdout
