"""Configurations of pico-analyze 1.x in our terms: recognised by their shape, measured as parts of
one analysis.

A file of 1.x lists metrics, each with components of its own: a kind of data, module suffixes and
layers. What has no equivalent here is said key by key; what cannot be had at all is an error.
docs/legacy_numbers.md says which numbers are those that 1.x printed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from pico_contract import names
from pico_contract.errors import UserError
from pydantic import BaseModel, ConfigDict, Field


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LegacyComponent(_Section):
    """What a metric of 1.x was computed of."""

    component_name: Literal["simple", "ov_circuit"]
    data_type: Literal["weights", "gradients", "activations"]
    layer_suffixes: Any
    layers: list[int] = Field(min_length=1)


class LegacyMetric(_Section):
    """One entry of the list of metrics."""

    metric_name: Literal["cka", "condition_number", "gini", "hoyer", "norm", "per", "pwcca"]
    data_split: Literal["train", "val"]
    components: list[LegacyComponent] = Field(min_length=1)
    norm_type: Literal["frobenius", "inf", "nuclear"] | None = None
    target_checkpoint: int | None = None


class LegacyWandb(_Section):
    """Where 1.x sent its results."""

    entity: str | None = None
    project: str | None = None


class LegacyMonitoring(_Section):
    """Where 1.x wrote its results."""

    output_dir: str | None = None
    save_to_wandb: bool = False
    wandb: LegacyWandb = LegacyWandb()


class LegacyConfig(_Section):
    """A whole file; `steps` has our own form of a range, or is a list."""

    analysis_name: str | None = None
    metrics: list[LegacyMetric] = Field(min_length=1)
    steps: Any
    monitoring: LegacyMonitoring = LegacyMonitoring()


_NORMS = {"frobenius": "frobenius_norm", "inf": "max_abs", "nuclear": "nuclear_norm"}
_PAIRS = ("cka", "pwcca")
_CIRCUIT_OF = {
    "weights": "ov_circuit",
    "activations": "ov_circuit",
    "gradients": "ov_induced_change",
}
_SUFFIXES = {"output_layer": "self_attn.o_proj", "value_layer": "self_attn.v_proj"}
_SIGNS = ("analysis_name", "monitoring")
_SIGNS_OF_METRIC = ("metric_name", "components", "data_split")


class _Asked(NamedTuple):
    """What several metrics can be measured of together."""

    components: tuple[str, ...]
    kind: str
    split: str | None
    reference: int | None


def is_legacy(raw: Mapping[str, Any]) -> bool:
    """Whether a YAML mapping is a file of 1.x: ours has neither these keys nor metrics that are
    mappings."""
    metrics = raw.get("metrics")
    of_metrics = (
        [set(metric) for metric in metrics if isinstance(metric, dict)]
        if isinstance(metrics, list)
        else []
    )
    return any(key in raw for key in _SIGNS) or any(
        not keys.isdisjoint(_SIGNS_OF_METRIC) for keys in of_metrics
    )


def converted(
    raw: Mapping[str, Any], file: str, stem: str, note: Callable[[str], None]
) -> dict[str, Any]:
    """The keys of our configuration, without `run`, which 1.x took from the command line.

    Args:
        file: for messages.
        stem: of the file, the name of an analysis that has none.
        note: called with a sentence for each thing that is not quite what it was.

    Raises:
        ValidationError: an unknown key or a wrong type.
        UserError: a combination that cannot be measured.
    """
    legacy = LegacyConfig.model_validate(raw)
    asked: dict[_Asked, dict[str, None]] = {}
    for place, metric in enumerate(legacy.metrics):
        for what in _asked(metric, f"{file}: metrics.{place}"):
            asked.setdefault(what, {})[_name(metric, f"{file}: metrics.{place}")] = None
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", legacy.analysis_name or stem).strip(".-_") or "default"
    for sentence in dict.fromkeys((*_of_metrics(legacy), *_of_file(legacy, name))):
        note(f"{file}: {sentence}")
    return {
        "name": name,
        "steps": {"among": legacy.steps} if isinstance(legacy.steps, list) else legacy.steps,
        "form_circuits": True,
        "parts": [_part(what, list(metrics)) for what, metrics in asked.items()],
    }


def _part(what: _Asked, metrics: list[str]) -> dict[str, Any]:
    part: dict[str, Any] = {
        "metrics": metrics,
        "components": list(what.components),
        "kinds": [what.kind],
    }
    part |= {} if what.split is None else {"splits": [what.split]}
    return part | ({} if what.reference is None else {"reference": what.reference})


def _asked(metric: LegacyMetric, where: str) -> Iterator[_Asked]:
    """What one entry asks for, kind by kind; weights are of no split."""
    for kind in dict.fromkeys(component.data_type for component in metric.components):
        chosen: list[str] = []
        for place, component in enumerate(metric.components):
            if metric.metric_name in _PAIRS and component.data_type != "activations":
                what = f"{metric.metric_name} compares activations, not {component.data_type}"
                raise UserError(f"{where}.components.{place}: {what}")
            if component.data_type == kind:
                chosen += _components(component, f"{where}.components.{place}")
        split = None if kind == "weights" else metric.data_split
        yield _Asked(tuple(dict.fromkeys(chosen)), kind, split, metric.target_checkpoint)


def _components(component: LegacyComponent, where: str) -> list[str]:
    """Names of ours: of a module in each layer, or of the circuit by head and of all heads side by
    side."""
    suffixes = component.layer_suffixes
    if component.component_name == "simple":
        if not isinstance(suffixes, str):
            raise UserError(f'{where}: layer_suffixes of "simple" should be the name of one module')
        return [names.canonical(f"layers.{layer}.{suffixes}") for layer in component.layers]
    given = (
        {key: names.canonical(str(suffix)) for key, suffix in suffixes.items()}
        if isinstance(suffixes, dict)
        else {}
    )
    if given != _SUFFIXES:
        raise UserError(
            f"{where}: ov_circuit has output_layer attention.o_proj and value_layer attention.v_proj alone"
        )
    circuit = _CIRCUIT_OF[component.data_type]
    owners = [f"model.layers.{layer}.self_attn" for layer in component.layers]
    return [f"{owner}.{name}" for name in (circuit, f"{circuit}_joined") for owner in owners]


def _name(metric: LegacyMetric, where: str) -> str:
    """Our name of a metric; UserError where a parameter is missing, or is given to a metric that
    has none."""
    for key, of in (("norm_type", ("norm",)), ("target_checkpoint", _PAIRS)):
        if (getattr(metric, key) is None) == (metric.metric_name in of):
            what = f'needs the key "{key}"' if metric.metric_name in of else f'has no key "{key}"'
            raise UserError(f"{where}: {metric.metric_name} {what}")
    return metric.metric_name if metric.norm_type is None else _NORMS[metric.norm_type]


def _of_metrics(legacy: LegacyConfig) -> Iterator[str]:
    """Where names or numbers in the table differ from those of 1.x."""
    for metric in legacy.metrics:
        if metric.norm_type is not None:
            yield f"norm_type: the norm {metric.norm_type} is called {_NORMS[metric.norm_type]}"
        if metric.metric_name == "pwcca":
            yield "pwcca: the weights are those of Morcos et al. 2018; those of 1.x were others (up to 5% apart)"
        kinds = {one.data_type for one in metric.components if one.component_name == "ov_circuit"}
        if "weights" in kinds:
            yield "ov_circuit: of weights it is O V, which maps the residual stream to itself; 1.x took V O"
        if "gradients" in kinds:
            yield "ov_circuit: of gradients it is called ov_induced_change"
        if kinds:
            yield "ov_circuit: all heads side by side are called _joined"
        if kinds and metric.metric_name == "condition_number":
            yield "condition_number: circuits have a low rank and none, where 1.x divided by a rounding error"


def _of_file(legacy: LegacyConfig, name: str) -> Iterator[str]:
    """What of the rest has no equivalent, key by key."""
    if name != legacy.analysis_name:
        yield f'analysis_name: the analysis is called "{name}"'
    if isinstance(legacy.steps, dict) and _overshoots(legacy.steps):
        yield f"steps: none beyond {legacy.steps['end']}; 1.x went on to the next one"
    if legacy.monitoring.output_dir is not None:
        yield "monitoring.output_dir: has no effect; results lie in the paths printed at the end, with out=DIR in DIR"
    if legacy.monitoring.save_to_wandb:
        yield "monitoring.save_to_wandb: has no effect; nothing is sent to Weights & Biases"


def _overshoots(steps: Mapping[str, Any]) -> bool:
    start, end, step = (steps.get(key) for key in ("start", "end", "step"))
    whole = isinstance(start, int) and isinstance(end, int) and isinstance(step, int) and step > 0
    return whole and (end - start) % step != 0  # type: ignore[operator]
