"""The record that a run keeps of itself: run.json, config.yaml, the conditions of each session."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
import socket
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from pico_contract import codec
from pico_contract.errors import DamagedError, UserError
from pico_contract.layout import MANIFEST, RunLayout
from pico_contract.provenance import code_references, code_state, module_digests
from pico_contract.schema import CheckpointManifest, RunManifest
from pico_contract.verify import EDITED_SINCE_RECORDED

from pico_train.checkpoint.init_from import resolved_source
from pico_train.config import identity, read_yaml, to_yaml, validate
from pico_train.log.mfu import matmul_rate, measures
from pico_train.model.cost import count_parameters
from pico_train.model.stock import STOCK, Architecture
from pico_train.run.config import RunConfig
from pico_train.run.job import Job

_RECORDED_ORDER = {"shuffled": "shuffled", "sequential": "shipped"}
"""`data.order` -> its name in run.json, which stays what it was when the configuration called it
so."""


def new_manifest(job: Job) -> RunManifest:
    """Build the run.json of a run that starts."""
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
        data={
            "fingerprint": data.fingerprint,
            "path": str(config.data.path),
            "order": _RECORDED_ORDER[config.data.order],
            "batch_size": config.train.batch_size,
            **({} if job.loader.rows.blocks else {"rows": job.loader.rows.n_rows}),
        },
        sessions=[],
        architecture=job.metadata.architecture.record(),
        stock=job.metadata.architecture.is_stock,
    )


def check_identity(job: Job) -> None:
    """Refuse to continue a run of this name whose identity differs.

    Raises:
        UserError: lists every changed key with its old and new value.
    """
    raw = read_yaml(job.layout.config)
    _check_method(job, raw.get("method"))
    old = validate(RunConfig, raw, str(job.layout.config))
    changed = _changed_keys(identity(old), identity(job.config))
    manifest = codec.read_manifest(job.layout.manifest, RunManifest)
    if changed_architecture := _changed_architecture(job, manifest):
        changed.append(changed_architecture)
    recorded, fingerprint = manifest.data.get("fingerprint"), job.data.manifest.fingerprint
    if recorded != fingerprint:
        changed.append(f"the data's fingerprint ({str(recorded)[:12]} -> {fingerprint[:12]})")
    if changed:
        raise _another_run(job, ", ".join(changed))


def _changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    differing = [key for key in now if before.get(key) != now[key]]
    return [f"{key} ({before.get(key)} -> {now[key]})" for key in differing]


def _check_method(job: Job, method: Any) -> None:
    """Refuse another method before the configuration is validated.

    Validating would import the code that the other run names.
    """
    if not isinstance(method, dict):
        return
    before, now = method.get("name"), job.config.method.name
    if before != now and code_references(method):
        raise _another_run(job, f"method.name ({before} -> {now})")


def _another_run(job: Job, changes: str) -> UserError:
    return UserError(
        f"{job.layout.root} is another run: {changes} changed;"
        " choose another name, or undo the change"
    )


def write_config(job: Job) -> str:
    """Write config.yaml, the resolved configuration of this session, and return its sha256."""
    text = to_yaml(job.config)
    codec.write_text(job.layout.config, text)
    return hashlib.sha256(text.encode()).hexdigest()


def edited_files(layout: RunLayout, manifest: RunManifest, newest: int | None) -> list[str]:
    """Return a warning for each file of a run that was changed since training wrote it.

    The files are run.json, those whose digest it records, and metrics.jsonl up to the checkpoint to
    continue from.
    """
    found = []
    # run.json carries its own digest; it holds those of config.yaml and the probe.
    try:
        codec.read_manifest(layout.manifest, RunManifest, digest=True)
    except DamagedError as error:
        found.append(str(error))
    for path in (layout.config, layout.probe):
        digest = manifest.digests.get(path.name)
        if digest is not None and path.is_file() and codec.sha256_file(path) != digest:
            found.append(f"{path} {EDITED_SINCE_RECORDED}")
    # metrics.jsonl grows; a checkpoint records the digest of the part before it.
    if newest is not None:
        checkpoint = layout.checkpoint(newest) / MANIFEST
        entry = codec.read_manifest(checkpoint, CheckpointManifest).metrics
        text = layout.metrics.read_bytes() if layout.metrics.is_file() else b""
        if entry is not None and hashlib.sha256(text[: entry.size]).hexdigest() != entry.sha256:
            found.append(
                f"{layout.metrics} is not what it was when step {newest} was saved: it was edited or damaged"
            )
    return [f"warning: {sentence}; the run is continued with it" for sentence in found]


def _changed_architecture(job: Job, manifest: RunManifest) -> str | None:
    """Say how the decoder differs from the one that the run began with."""
    now = job.metadata.architecture
    before = _recorded_architecture(manifest)
    # The departure is prose about the difference; name and source identify the decoder.
    same_class = before.name == now.name
    if same_class and before.source_sha256 == now.source_sha256:
        return None
    return f"the decoder ({before} -> {now}; {now.departure or before.departure})"


def _recorded_architecture(manifest: RunManifest) -> Architecture:
    recorded = manifest.architecture
    # A run of a version that recorded none was a stock Llama.
    if not recorded.get("name"):
        return STOCK
    fields = [field.name for field in dataclasses.fields(Architecture)]
    return Architecture(**{name: str(recorded.get(name, "")) for name in fields})


def session_record(job: Job, from_step: int) -> dict[str, Any]:
    """Record the conditions of this session; see `CONDITIONS`."""
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
        # "highest" is IEEE; "high" may be TF32 on CUDA.
        "fp32_products": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "matmul_rate": _matmul_rate(job),
        "python": platform.python_version(),
        "packages": {
            name: version(name)
            for name in ("torch", "numpy", "accelerate", "safetensors", "pico-train")
        },
        **_code_record(job),
    }


def _code_record(job: Job) -> dict[str, Any]:
    """Record the code of this session: its commit, the difference, and the user's own modules."""
    code, config = code_state("pico_train"), job.config
    observers = [section.model_dump(mode="json") for section in config.observe]
    user_modules = code_references([config.method.name, observers])
    return {
        "commit": code.commit,
        "dirty": code.dirty,
        "difference": code.difference,
        "modules": module_digests(user_modules),
    }


CONDITIONS = (
    *("processes", "sharding", "micro_batch", "device", "precision"),
    *("compile", "fp32_products", "threads", "packages"),
)
"""Entries of a session under which a resumed run equals an uninterrupted one bit for bit."""


def changed_conditions(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List the `CONDITIONS` that differ between two sessions, as `threads 2 -> 4`.

    A condition that an earlier version did not record yet is not compared.
    """
    before = {"sharding": "none", **before}  # the only choice when it was not recorded
    recorded = [key for key in CONDITIONS if key in before]
    differing = [key for key in recorded if before[key] != now.get(key)]
    return [f"{key} {before[key]} -> {now.get(key)}" for key in differing]


def changed_code(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List the parts of the code that differ between two sessions, one line each.

    The parts are the commit, the working tree, the user's own modules, and packages. A part that an
    earlier version did not record is not compared.
    """
    lines = []
    old_commit, commit = before.get("commit"), now["commit"]
    if old_commit != commit:
        lines.append(f"the code's commit changed: {_short(old_commit)} -> {_short(commit)}")
    if "dirty" in before and before.get("difference") != now["difference"]:
        lines.append(f"the code's working tree changed: {_tree(before)} -> {_tree(now)}")
    if "modules" in before:
        modules = _differing(before["modules"], now["modules"])
        lines += [f"your module {line}" for line in modules]
    old_packages = before.get("packages", {})
    packages = _differing(old_packages, now["packages"])
    lines += [f"the package {line}" for line in packages]
    return lines


def _differing(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return [
        f"{name} changed: {_short(before.get(name))} -> {_short(now.get(name))}"
        for name in names
    ]


def _tree(session: Mapping[str, Any]) -> str:
    if session.get("dirty") is None:
        return "unknown"
    return f"edited ({_short(session['difference'])})" if session["dirty"] else "as committed"


def _short(text: str | None) -> str:
    return "none" if text is None else str(text)[:12]


def kept_micro_batch(job: Job, sessions: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the micro-batch of the newest session on as many processes of the same device."""
    # Memory decides the size, and with it the device and the share of each process.
    here = {"processes": job.runtime.processes, "device": _device_name(job.runtime.device)}
    alike = (session for session in reversed(sessions) if here.items() <= session.items())
    return next((session["micro_batch"] for session in alike), None)


def _matmul_rate(job: Job) -> float | None:
    """Measure the rate of matrix products of this process, while the others measure theirs."""
    if not measures(job.config.log.mfu, job.runtime.device):
        return None
    return matmul_rate(job.runtime.device, job.precision, torch.get_num_threads())


def _device_name(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return f"{device.type} {name}"
