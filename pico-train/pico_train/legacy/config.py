"""Conversion of an earlier project's YAML file to ours, with remarks on all that differs.

Each function from `_same` to `_evaluate` converts one section of the file into pieces: settings of
ours, and remarks.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pico_contract import strict_yaml

from pico_train.config import validate
from pico_train.legacy.keys import NOWHERE, PICO, SAME, UNREAD
from pico_train.legacy.method import NOTE, Piece, method_pieces
from pico_train.legacy.modules import chosen_patterns, earlier_modules
from pico_train.legacy.old import JAGGED, OldConfig, leaves, read_old
from pico_train.method import METHODS
from pico_train.run.config import DataConfig, RunConfig
from pico_train.run.job import build_method

DOLMA = "pico-lm/pretokenized-dolma"
DOLMA_ROWS, DOLMA_IDS = 10_000 * 20_480, 2049
"""Rows of this data set, and ids of a row."""
PRECISIONS = {"bf16-mixed": "bf16", "32-true": "fp32", "32": "fp32"}
ACCELERATORS = {"cuda": "auto", "gpu": "auto", "mps": "auto", "auto": "auto", "cpu": "cpu"}

_DYNAMICS = "checkpointing.learning_dynamics"
"""The section of an earlier file that says what is observed."""
_INITIAL = (
    "note: initial weights were torch's defaults (embeddings of deviation 1) from seed 42; here all are of deviation"
    " model.initializer_range. To begin with the very weights, convert step_0 and set init_from"
)
_AMBIGUOUS = (
    "note: pico-maml-train has files of this shape too, and trained episodes by default; for one of those, add"
    " `smlmt: {}` to it and convert again"
)
_PALOMA = (
    "paloma becomes perplexity on the validation rows, exp of the mean loss"
    " (it was the mean of per-text perplexities)"
)


def convert_config(path: Path) -> tuple[str, list[str]]:
    """Return (our YAML with the settings that differ from the defaults, remarks).

    Settings are those that the earlier trainer used: its defaults for missing keys, and its actual
    behaviour if the documentation said something else. The result is a valid configuration of a
    run, apart from a method that this version lacks.

    Raises:
        UserError: as `read_old`; the earlier trainer could not have run the file; or a setting
            cannot be reproduced.
    """
    old = read_old(path)
    settings, notes = _convert(old)
    remarks = [*_left_behind(old), *notes]
    _check_converted(settings, f"{path}, converted")
    command = _preparation(old, settings)
    head = f"# Converted from {path.name} ({old.project}). Its data is made by\n#   {command}\n"
    return head + strict_yaml.dump(_nested(_differing(settings))), remarks


def _convert(old: OldConfig) -> tuple[dict[str, Any], list[str]]:
    """Convert all sections: (settings by our dotted keys, remarks)."""
    settings, remarks = {}, []
    for part in (_same, _run, _data, _batch, _schedule, _snapshot, _evaluate, method_pieces):
        for key, value in part(old):
            if key == NOTE:
                remarks.append(value)
            else:
                # A later section may correct an earlier one, as a warm-up beyond the end does.
                settings[key] = value
    return settings, remarks


def _check_converted(settings: dict[str, Any], source: str) -> None:
    """Refuse settings that are not a valid configuration of a run."""
    # A later version may have the method that this one lacks.
    if settings.get("method.name", "plain") not in METHODS:
        settings = {k: v for k, v in settings.items() if not k.startswith("method.")}
    config = validate(RunConfig, _nested(settings), source)
    build_method(config.method, source)


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in settings.items():
        *parents, leaf = key.split(".")
        section = result
        for part in parents:
            section = section.setdefault(part, {})
        section[leaf] = value
    return result


def _differing(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Select the settings that differ from our defaults, in the order of our sections and keys."""
    config = RunConfig(name="none", data=DataConfig(path=Path()))
    differing = {}
    for key, default in leaves(config.model_dump(mode="json")):
        # Name and path have no default; those above only fill their places.
        is_required = key in ("name", "data.path")
        if key in settings and (is_required or settings[key] != default):
            differing[key] = settings[key]
    return differing


def _left_behind(old: OldConfig) -> Iterator[str]:
    # A key at null or false asked for nothing, so nothing is lost without it.
    for key, value in old.given.items():
        if key in UNREAD:
            yield f"{key}: {UNREAD[key]}"
        elif key in NOWHERE and value not in (None, False, ""):
            yield f"{key}: {NOWHERE[key]}"


def _same(old: OldConfig) -> Iterator[Piece]:
    yield from ((new, old[key]) for key, new in SAME.items())
    # A run of relora-pico recorded the second name beside model.relora.
    types = ("pico_decoder", "pico_relora_decoder") if old.relora else ("pico_decoder",)
    if old["model.model_type"] not in types:
        raise old.refuse(
            "model.model_type",
            f'is "{old["model.model_type"]}"; only "pico_decoder" was trained',
        )
    if old["training.optimization.optimizer"] != "adamw":
        raise old.refuse("training.optimization.optimizer", 'only "adamw" was trained')
    yield "optimizer.grad_clip", None
    yield (
        NOTE,
        "note: gradients were not clipped, whatever the earlier documentation said: optimizer.grad_clip is null",
    )
    yield NOTE, _INITIAL


def _run(old: OldConfig) -> Iterator[Piece]:
    name = old["checkpointing.run_name"] or old.path.stem
    # A run's name here begins with a letter or digit, so leading punctuation has to go.
    allowed = re.sub(r"[^A-Za-z0-9._-]+", "-", str(name)).lstrip("._-") or "converted"
    yield "name", allowed
    if allowed != name:
        yield (
            NOTE,
            f'checkpointing.run_name: "{name}" becomes "{allowed}": letters, digits, ".", "_" and "-" are allowed',
        )
    yield "log.console_every", old["monitoring.logging.log_every_n_steps"]
    if not old["checkpointing.training.auto_resume"]:
        yield (
            NOTE,
            "checkpointing.training.auto_resume: a run of that name is always continued; take another name",
        )
    if old.project == "pico-train":
        yield NOTE, _AMBIGUOUS
    if old.maml:
        yield (
            NOTE,
            "training.max_steps: pico-maml-train did not stop there; here it is the end, and the schedule's",
        )
        yield (
            NOTE,
            "model.vocab_size: pico-maml-train took the tokenizer's length, [MASK] added; set it for that shape",
        )


def _data(old: OldConfig) -> Iterator[Piece]:
    yield "data.path", _directory(old)
    yield "data.order", "sequential"
    if old.maml:
        yield "train.seq_len", min(old["model.max_seq_len"], DOLMA_IDS) - 1
        yield (
            NOTE,
            "note: rows were cut to their last model.max_seq_len ids; train.seq_len keeps as many, the first",
        )


def _directory(old: OldConfig) -> str:
    name = old["data.dataset.name"]
    return "data/dolma" if name == DOLMA else f"data/{name.rpartition('/')[2]}"


def _preparation(old: OldConfig, settings: Mapping[str, Any]) -> str:
    """Write the command that prepares the run's data directory."""
    name = old["data.dataset.name"]
    length = DOLMA_IDS if name == DOLMA else old["model.max_seq_len"] + 1
    wanted = {
        "source.path": f"hub:{name}",
        "out": _directory(old),
        "seq_len": length - 1,
        "tokenizer.vocab_size": old["model.vocab_size"],
        **_held_out(old, observed=settings["snapshot.every"] > 0),
    }
    rows = settings["train.steps"] * settings["train.batch_size"]
    # A bound spares preparing rows that the run never reads; Dolma needs none if all are read.
    if name != DOLMA or rows < DOLMA_ROWS:
        wanted["max_tokens"] = rows * length
    overrides = [f"{key}={value}" for key, value in wanted.items()]
    return shlex.join(["pico-train", "data", "prepare", *overrides])


def _held_out(old: OldConfig, *, observed: bool) -> dict[str, Any]:
    """Choose the source of validation rows: the probe's, else the evaluation's, else a fraction."""
    probe = old["checkpointing.learning_dynamics.eval_data"]
    if observed and probe:
        return {"validation_source.path": f"hub:{probe}", "validation_source.split": "val"}
    if old["evaluation.metrics"]:
        name, split = (
            old["evaluation.paloma.dataset_name"],
            old["evaluation.paloma.dataset_split"],
        )
        return {"validation_source.path": f"hub:{name}", "validation_source.split": split}
    return {"validation_fraction": 0.0001 if observed else 0}


def _batch(old: OldConfig) -> Iterator[Piece]:
    """Convert the batch: rows of a pass x passes x devices that read different rows."""
    devices = old["training.fabric.num_nodes"] * old["training.fabric.num_devices"]
    passes = old["training.optimization.gradient_accumulation_steps"]
    asked = old["data.dataloader.batch_size"]
    rows = asked // (devices * passes)
    if rows == 0:
        raise old.refuse(
            "data.dataloader.batch_size",
            f"{asked} rows are fewer than {devices} devices x {passes} accumulated passes",
        )
    # Only the shards of Dolma were split between devices.
    readers = devices if old["data.dataset.name"] == DOLMA else 1
    batch = rows * passes * readers
    yield "train.batch_size", batch
    yield "train.micro_batch_size", rows if rows < batch else None
    if readers < devices:
        yield (
            NOTE,
            f"data.dataset.name: of a data set other than {DOLMA}, all {devices} devices read the same rows",
        )
    if batch != asked:
        yield (
            NOTE,
            f"data.dataloader.batch_size: an update had {batch} different rows, not {asked}",
        )
    if devices > 1:
        yield (
            NOTE,
            f"training.fabric: {devices} devices are not asked for in a run's file; {rows} rows a pass are kept",
        )
    yield from _device(old)


def _device(old: OldConfig) -> Iterator[Piece]:
    precision = str(old["training.fabric.precision"])
    accelerator = old["training.fabric.accelerator"]
    if precision not in PRECISIONS:
        yield (
            NOTE,
            f'training.fabric.precision: "{precision}" has no equivalent; train.precision stays "auto"',
        )
    if accelerator not in ACCELERATORS:
        yield (
            NOTE,
            f'training.fabric.accelerator: "{accelerator}" has no equivalent; train.device stays "auto"',
        )
    yield "train.precision", PRECISIONS.get(precision, "auto")
    yield "train.device", ACCELERATORS.get(accelerator, "auto")


def _schedule(old: OldConfig) -> Iterator[Piece]:
    section = "training.optimization"
    steps, warmup = old["training.max_steps"], old[f"{section}.lr_warmup_steps"]
    if old[f"{section}.lr_scheduler"] == JAGGED:
        yield from _jagged(old)
    elif old[f"{section}.lr_scheduler"] != "linear_with_warmup":
        raise old.refuse(
            f"{section}.lr_scheduler", f"choose from: linear_with_warmup, {JAGGED}"
        )
    else:
        for key in (f"{section}.restart_warmup_steps", f"{section}.min_lr_ratio"):
            if key in old.given:
                yield NOTE, f"{key}: linear_with_warmup did not read it"
    # A warm-up here may not outlast training, so it ends at the rate that training reached.
    if warmup > steps:
        yield "schedule.warmup_steps", steps
        yield "optimizer.lr", old[f"{section}.lr"] * steps / warmup
        yield (
            NOTE,
            f"{section}.lr_warmup_steps: training ends in the warm-up; lr and warm-up are those that it reaches",
        )
    yield (
        NOTE,
        "note: update t had about the learning rate that update t - 1 has here; the first update had 0",
    )


def _jagged(old: OldConfig) -> Iterator[Piece]:
    section = "training.optimization"
    ratio, restart = old[f"{section}.min_lr_ratio"], old[f"{section}.restart_warmup_steps"]
    if not old.relora:
        raise old.refuse(
            f"{section}.lr_scheduler", f'"{JAGGED}" needs the section model.relora'
        )
    if not 0 < ratio <= 1:
        raise old.refuse(
            f"{section}.min_lr_ratio", f'"{JAGGED}" needs one above 0, up to 1 (it is {ratio})'
        )
    if restart == 0:
        raise old.refuse(f"{section}.restart_warmup_steps", f'"{JAGGED}" needs at least 1')
    yield "schedule.name", "cosine"
    yield "schedule.final_fraction", ratio
    yield "schedule.restart_every", old["model.relora.reset_frequency"]
    yield "schedule.restart_warmup_steps", restart


def _snapshot(old: OldConfig) -> Iterator[Piece]:
    """Convert what was stored at checkpoints: tensors of modules, or nothing."""
    section, layers = _DYNAMICS, old["model.n_layers"]
    suffixes = old[f"{section}.layer_suffixes"] or []
    modules = chosen_patterns(
        lambda name: any(suffix in name for suffix in suffixes), earlier_modules(layers), layers
    )
    is_observed = bool(modules) and not old.maml
    yield "snapshot.every", old["checkpointing.save_every_n_steps"] if is_observed else 0
    if old.maml:
        yield from _unobserved(old)
        return
    if suffixes and not modules:
        yield (
            NOTE,
            f"{section}.layer_suffixes: fits no module, so nothing was stored (it is {suffixes})",
        )
    if not modules:
        return
    yield "snapshot.early", False  # earlier trainers took no extra snapshots of the first steps
    yield "snapshot.modules", modules
    yield "snapshot.kinds", _observed_kinds(old)
    if old.relora:
        yield (
            NOTE,
            "note: relora-pico stored no gradients; add train.gradients and val.gradients to snapshot.kinds",
        )
    if old[f"{section}.eval_data"]:
        yield (
            NOTE,
            f"{section}.eval_data: the probe is snapshot.probe_rows validation rows of the data directory",
        )
    if old[f"{section}.sequence_idx"] != -1:
        yield (
            NOTE,
            f"{section}.sequence_idx: one position other than the last has no equivalent; see snapshot.positions",
        )
    yield (
        NOTE,
        "note: activations of the training rows were stored too; here they are of the probe's rows alone",
    )


def _unobserved(old: OldConfig) -> Iterator[Piece]:
    """Remark on the keys of observations that pico-maml-train ignored while it trained."""
    given = [key for key in old.given if key.startswith(_DYNAMICS) and key not in NOWHERE]
    for key in given or [_DYNAMICS]:
        yield (
            NOTE,
            f"{key}: pico-maml-train stored none of it while it trained; set snapshot.every to observe",
        )


def _observed_kinds(old: OldConfig) -> list[str]:
    """List the kinds of tensors that were stored; gradients were not in low-rank runs."""
    kinds = [] if old.relora else ["train.gradients"]
    if old[f"{_DYNAMICS}.eval_data"]:
        kinds += ["val.activations"] if old.relora else ["val.gradients", "val.activations"]
    return kinds


def _evaluate(old: OldConfig) -> Iterator[Piece]:
    key = "evaluation.metrics"
    metrics = old[key] or []
    known = {"paloma", "blimp"} if old.project == "relora-pico" else {"paloma"}
    # The earlier trainers evaluated whenever they saved.
    yield "evaluate.every", old["checkpointing.save_every_n_steps"] if metrics else 0
    for metric in metrics:
        if metric not in known:
            raise old.refuse(
                key, f'"{metric}" was not evaluated; choose from: {", ".join(sorted(known))}'
            )
    if "paloma" in metrics:
        yield NOTE, f"{key}: {_PALOMA}"
    if "blimp" in metrics:
        yield NOTE, f"{key}: blimp has no equivalent in a run's file"
    if old["evaluation.paloma.max_length"] != PICO["evaluation.paloma.max_length"]:
        # max_length counts the ids of a text; seq_len counts the predicted ones, one fewer.
        yield "evaluate.perplexity.seq_len", old["evaluation.paloma.max_length"] - 1
