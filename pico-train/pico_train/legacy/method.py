"""Conversion of the method sections of earlier files: low-rank restarts, meta-learning episodes.

The option names are those of the studies (docs/converting.md lists them). Published numbers rest on
some faults of the earlier code. Each fault becomes an option that repeats it; without the option,
the method follows its definition.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pico_train.legacy.modules import chosen_patterns, linear_modules
from pico_train.legacy.old import OldConfig
from pico_train.method import METHODS

NOTE = ""
"""The key of a piece that is a remark instead of a setting."""
Piece = tuple[str, Any]
"""A setting (our dotted key, value), or a remark (NOTE, text)."""

_RELORA_FAULTS = (
    "note: merge_scale, init and reset repeat faults of relora-pico (factors merged without alpha / r; both zero"
    " at first, so nothing reaches them until the first merge; moments pruned apart from each other, the step"
    " kept); leave them out for ReLoRA as published by Lialin et al."
)
_MAML_FAULTS = (
    "note: outside_labels, shots_per, support_gradients and branch_per repeat faults of pico-maml-train (labels"
    " outside the classes count as the first; k_shot masks a row instead of shots a class; gradients of the"
    " support set stay in the outer step; episode or not is drawn for every micro-batch); leave them out for"
    " episodes as defined"
)


def method_pieces(old: OldConfig) -> Iterator[Piece]:
    """Convert the method to `method.name` and `method.options`; nothing if it was plain."""
    if old.relora:
        name, options = "relora", _relora(old)
    # At a ratio of 0 no episode is ever drawn, so the run is a plain one.
    elif old.maml and old["smlmt.enabled"] and old["smlmt.hybrid_ratio"] > 0:
        name, options = "maml", _maml(old)
    else:
        return
    # Options are nested below one key, so their remarks have to be separated first.
    remarks = []
    chosen: dict[str, Any] = {}
    for key, value in options:
        if key == NOTE:
            remarks.append((NOTE, value))
        else:
            chosen[key] = value
    yield "method.name", name
    yield "method.options", chosen
    yield from remarks
    if name not in METHODS:
        yield (
            NOTE,
            f'note: this version has no method "{name}", so pico-train check refuses the file until it has',
        )


def _relora(old: OldConfig) -> Iterator[Piece]:
    section = "model.relora"
    for key, wanted in (("target_modules", list), ("reset_frequency", int)):
        if not isinstance(old[f"{section}.{key}"], wanted):
            raise old.refuse(f"{section}.{key}", "is needed for ReLoRA, as in relora-pico")
    if old[f"{section}.lora_only"]:
        raise old.refuse(
            f"{section}.lora_only",
            "has no equivalent: layers without base weights are not trained here",
        )
    yield from _targets(old)
    yield "rank", old[f"{section}.r"]
    yield "alpha", old[f"{section}.lora_alpha"]
    yield "dropout", old[f"{section}.lora_dropout"]
    if old[f"{section}.trainable_scaling"]:
        yield "trainable_scale", True
        yield (
            NOTE,
            f"{section}.trainable_scaling: the scale was tanh(s) with s = 1 at first; lora_alpha had no effect",
        )
    yield "restart_every", old[f"{section}.reset_frequency"]
    yield from _relora_faults(old)


def _targets(old: OldConfig) -> Iterator[Piece]:
    """Convert the target modules to `modules`, unless they are all linear modules of all layers."""
    layers = old["model.n_layers"]
    modules = linear_modules(layers)
    # relora-pico looked for each target as a substring of the module's name, in lower case.
    targets = [str(target).lower() for target in old["model.relora.target_modules"]]
    patterns = chosen_patterns(
        lambda name: any(target in name for target in targets), modules, layers
    )
    every = chosen_patterns(lambda name: name.startswith("layers."), modules, layers)
    if "lm_head" in patterns:
        patterns.remove("lm_head")
        yield (
            NOTE,
            "model.relora.target_modules: the head stays full-rank, since the loss here needs its whole weight",
        )
    if not patterns:
        raise old.refuse(
            "model.relora.target_modules",
            f"fits no linear layer of the decoder (it is {targets})",
        )
    if patterns != every:
        yield "modules", patterns


def _relora_faults(old: OldConfig) -> Iterator[Piece]:
    """Repeat the faults of relora-pico on which its published numbers rest."""
    yield "merge_scale", "none"
    if old["model.relora.keep_original_weights"]:
        yield "init", "zeros"
    else:
        yield (
            NOTE,
            "model.relora.keep_original_weights: base weights of zero have no equivalent; they are drawn here",
        )
    yield "reset", "independent_pruning"
    yield "pruning_ratio", 0.999
    yield NOTE, _RELORA_FAULTS
    every = old["model.relora.reset_frequency"]
    yield (
        NOTE,
        f"note: merges came after updates {every + 1:,}, {2 * every + 1:,}, ..., one later than here",
    )
    if old["training.optimization.lr_warmup_steps"] > every:
        yield NOTE, "note: no merge came before the warm-up's end"


def _maml(old: OldConfig) -> Iterator[Piece]:
    yield "probability", old["smlmt.hybrid_ratio"]
    yield "ways", old["smlmt.n_way"]
    yield "shots", old["smlmt.k_shot"]
    yield "inner_steps", old["smlmt.inner_steps"]
    yield "inner_lr", old["smlmt.inner_lr"]
    yield "head_layers", old["smlmt.classifier_head.num_layers"]
    yield "head_width", old["smlmt.classifier_head.hidden_dim"]
    if old["smlmt.classifier_head.init_method"] == "xavier":
        yield "head_init", "xavier"
    yield "outside_labels", "first_class"
    yield "shots_per", "row"
    yield "support_gradients", "added"
    yield "branch_per", "micro_batch"
    yield NOTE, _MAML_FAULTS
    yield (
        NOTE,
        "smlmt.classifier_head.num_layers: it counted the last linear layer, as head_layers does",
    )
