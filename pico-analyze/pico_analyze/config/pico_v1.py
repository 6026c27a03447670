"""The conversion of configurations of pico-analyze 1.x, which become parts of one analysis.

A file of 1.x lists metrics, each with its components: a kind of data, module suffixes and layers.
Each key without an equivalent gives a note; a combination that cannot be measured is an error.
docs/legacy_numbers.md says which numbers equal those that 1.x printed.
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
    """The modules or circuits that a metric of 1.x was computed from."""

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
    """The Weights & Biases project to which 1.x sent its results."""

    entity: str | None = None
    project: str | None = None


class LegacyMonitoring(_Section):
    """The directory and services to which 1.x wrote its results."""

    output_dir: str | None = None
    save_to_wandb: bool = False
    wandb: LegacyWandb = LegacyWandb()


class LegacyConfig(_Section):
    """A whole file; `steps` is a range of the same form as here, or a list."""

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


class _Scope(NamedTuple):
    """The components, kind, split and reference that several metrics can share in one part."""

    components: tuple[str, ...]
    kind: str
    split: str | None
    reference: int | None


def is_legacy(raw: Mapping[str, Any]) -> bool:
    """Whether a YAML mapping is a file of 1.x, by keys that a file of today cannot have."""
    if any(key in raw for key in _SIGNS):
        return True
    metrics = raw.get("metrics")
    if not isinstance(metrics, list):
        return False
    # Today metrics are names; in 1.x they were mappings.
    mappings = [metric for metric in metrics if isinstance(metric, dict)]
    return any(key in metric for metric in mappings for key in _SIGNS_OF_METRIC)


def converted(
    raw: Mapping[str, Any], file: str, stem: str, note: Callable[[str], None]
) -> dict[str, Any]:
    """Convert to the keys of today, without `run`, which 1.x took from the command line.

    Args:
        raw: the content of the file.
        file: its path, for messages.
        stem: its stem, the name of an analysis that states none.
        note: called with a sentence for each difference to 1.x.

    Raises:
        ValidationError: an unknown key or a wrong type.
        UserError: a combination that cannot be measured.
    """
    legacy = LegacyConfig.model_validate(raw)
    # Metrics with the same scope are measured together, as one part.
    metrics_of: dict[_Scope, dict[str, None]] = {}
    for index, metric in enumerate(legacy.metrics):
        where = f"{file}: metrics.{index}"
        for scope in _scopes(metric, where):
            metrics_of.setdefault(scope, {})[_name(metric, where)] = None
    name = _analysis_name(legacy.analysis_name or stem)
    for sentence in dict.fromkeys((*_notes_on_metrics(legacy), *_notes_on_file(legacy, name))):
        note(f"{file}: {sentence}")
    steps = legacy.steps
    return {
        "name": name,
        "steps": {"among": steps} if isinstance(steps, list) else steps,
        "dense_circuits": True,
        "parts": [_part(scope, list(metrics)) for scope, metrics in metrics_of.items()],
    }


def _analysis_name(text: str) -> str:
    """Replace the characters that the name of an analysis cannot have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-_") or "default"


def _part(scope: _Scope, metrics: list[str]) -> dict[str, Any]:
    part: dict[str, Any] = {
        "metrics": metrics,
        "components": list(scope.components),
        "kinds": [scope.kind],
    }
    if scope.split is not None:
        part["splits"] = [scope.split]
    if scope.reference is not None:
        part["reference"] = scope.reference
    return part


def _scopes(metric: LegacyMetric, where: str) -> Iterator[_Scope]:
    """Yield a scope for each kind of one entry; weights have no split."""
    for kind in dict.fromkeys(component.data_type for component in metric.components):
        names_of_kind: dict[str, None] = {}
        for index, component in enumerate(metric.components):
            place = f"{where}.components.{index}"
            _check_kind(metric, component, place)
            if component.data_type == kind:
                names_of_kind |= dict.fromkeys(_components(component, place))
        split = None if kind == "weights" else metric.data_split
        yield _Scope(tuple(names_of_kind), kind, split, metric.target_checkpoint)


def _check_kind(metric: LegacyMetric, component: LegacyComponent, where: str) -> None:
    """Refuse a similarity of anything but activations."""
    if metric.metric_name in _PAIRS and component.data_type != "activations":
        problem = f"{metric.metric_name} compares activations, not {component.data_type}"
        raise UserError(f"{where}: {problem}")


def _components(component: LegacyComponent, where: str) -> list[str]:
    """Name a module in each layer, or in each layer the circuit of each head and of all heads."""
    suffixes = component.layer_suffixes
    if component.component_name == "simple":
        if not isinstance(suffixes, str):
            raise UserError(
                f'{where}: layer_suffixes of "simple" should be the name of one module'
            )
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
    """Return the name of a metric today.

    Raises:
        UserError: a parameter is missing, or is given to a metric that has none.
    """
    for key, users in (("norm_type", ("norm",)), ("target_checkpoint", _PAIRS)):
        is_needed = metric.metric_name in users
        is_given = getattr(metric, key) is not None
        if is_needed and not is_given:
            raise UserError(f'{where}: {metric.metric_name} needs the key "{key}"')
        if is_given and not is_needed:
            raise UserError(f'{where}: {metric.metric_name} has no key "{key}"')
    return metric.metric_name if metric.norm_type is None else _NORMS[metric.norm_type]


def _notes_on_metrics(legacy: LegacyConfig) -> Iterator[str]:
    """Say which names or numbers in the table differ from those of 1.x."""
    for metric in legacy.metrics:
        if metric.norm_type is not None:
            yield f"norm_type: the norm {metric.norm_type} is called {_NORMS[metric.norm_type]}"
        if metric.metric_name == "pwcca":
            yield "pwcca: the weights are those of Morcos et al. 2018; those of 1.x were others (up to 5% apart)"
        circuits = [
            entry for entry in metric.components if entry.component_name == "ov_circuit"
        ]
        kinds = {circuit.data_type for circuit in circuits}
        if "weights" in kinds:
            yield "ov_circuit: of weights it is O V, which maps the residual stream to itself; 1.x took V O"
        if "gradients" in kinds:
            yield "ov_circuit: of gradients it is called ov_induced_change"
        if kinds:
            yield "ov_circuit: all heads side by side are called _joined"
        if kinds and metric.metric_name == "condition_number":
            yield "condition_number: circuits have a low rank and none, where 1.x divided by a rounding error"


def _notes_on_file(legacy: LegacyConfig, name: str) -> Iterator[str]:
    """Say which other keys have no equivalent or another effect."""
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
    whole = (
        isinstance(start, int) and isinstance(end, int) and isinstance(step, int) and step > 0
    )
    return whole and (end - start) % step != 0  # type: ignore[operator]
