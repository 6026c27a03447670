"""Choose modules and circuits by name, as units of matrices that are measured together."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from pico_contract import names
from pico_contract.errors import UserError, did_you_mean, nearest

from pico_analyze.components.architectures import Layout, division_of, unrecognised
from pico_analyze.components.circuits import CIRCUITS, UPDATES, Circuit
from pico_analyze.components.low_rank import Change
from pico_analyze.linalg.matrix import Matrix
from pico_analyze.sources.base import Source
from pico_analyze.sources.model_config import heads_of

DEFAULT_CIRCUITS = ("ov_circuit", "lora_update")
"""Circuits that are measured by default, beside the matrices of the layers."""
_NO_MATRIX = re.compile(r"\w*norm\w*|ln_?\w*|\w*bias\w*", re.IGNORECASE)
"""Last part of the names of vectors: gains of norms, biases."""
_ORDER = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
"""The modules of a layer in the order of the forward pass."""
_PROJECTIONS = {
    "ov": ("v_proj", "o_proj"),
    "qk": ("q_proj", "k_proj"),
    "mlp": ("up_proj", "down_proj"),
}
"""The projections of a circuit by the first part of its name, except for low-rank updates."""


@dataclass(frozen=True)
class ComponentKey:
    """The matrix that a row of the table is about: a module, or one head of a circuit."""

    component: str
    layer: int | None
    head: int | None
    module: str


@dataclass(frozen=True)
class MeasuredUnit:
    """Matrices that are loaded and measured together at every step.

    A unit is one module, one layer's circuit (of all heads), or one component of all layers.
    """

    circuit: str | None  # a name in CIRCUITS; None for plain modules
    module: str
    keys: tuple[ComponentKey, ...]

    def load(self, source: Source, step: int, kind: str, split: str | None) -> list[Matrix]:
        """Load one matrix for each key; UserError if the step lacks one."""
        if self.circuit is None:
            return [source.tensor(step, kind, key.module, split) for key in self.keys]
        load = CIRCUITS[self.circuit].load
        assert load is not None, f"{self.circuit} is of a window, not of a step"
        return load(source, self.module, step, kind, split)

    def change(self, source: Source, start: int, step: int) -> Change:
        """Load the change over a window if `is_of_window`; UserError if either end lacks it."""
        over = None if self.circuit is None else CIRCUITS[self.circuit].over
        assert over is not None, f"{self.module} changes by the difference of two steps"
        return over(source, self.module, start, step)

    @property
    def is_of_window(self) -> bool:
        """Whether an update depends on the steps within the window, not on its two ends alone."""
        return self.circuit is not None and CIRCUITS[self.circuit].over is not None

    @property
    def spans_layers(self) -> bool:
        """Whether the keys are different layers, to be compared with one another."""
        return self.circuit is None and len(self.keys) > 1

    def effective_weights(self, kind: str) -> list[str]:
        """List the modules whose effective weights are read; low-rank ones are merged for this."""
        if kind not in ("weights", UPDATES):
            return []
        if self.circuit is None:
            return [key.module for key in self.keys]
        family = self.circuit.partition("_")[0]
        return [f"{self.module}.{name}" for name in _PROJECTIONS.get(family, ())]

    def reads(self, kind: str) -> tuple[str, ...]:
        """List the stored kinds that a measurement of `kind` depends on."""
        stored = "weights" if kind == UPDATES else kind
        return (stored,) if self.circuit is None else tuple(dict.fromkeys(("weights", stored)))


def plan_units(
    components: Sequence[str] | None,
    kind: str,
    modules: Iterable[str],
    model: Mapping[str, Any],
) -> list[MeasuredUnit]:
    """Choose units of `kind` by their components, in the order of the model.

    The default is every matrix of the layers and `DEFAULT_CIRCUITS`. A component is a glob over
    `modules`, or a name of `CIRCUITS`. A circuit alone means that of every layer; behind a glob, as
    in `layers.0.self_attn.ov_circuit` and `layers.0.self_attn.q_proj.lora_update`, that of the
    modules that match.

    Keys name the stack of layers if two stacks of the model share a component:
    `encoder.self_attn.q_proj`.
    """
    # Sources list modules in any order; rows of the table follow the forward pass.
    modules = sorted(modules, key=_sort_key)
    prefixes = names.stack_prefixes(modules)
    chosen = set(layer_matrices(modules)) if components is None else set()
    circuits: dict[str, list[str]] = {}
    for component in DEFAULT_CIRCUITS if components is None else components:
        circuit, where = parse_circuit(component)
        if circuit is None:
            chosen.update(matching_modules(component, modules, prefixes))
        else:
            circuits.setdefault(circuit, []).append(where)
    units = [_module_unit(name, prefixes) for name in modules if name in chosen]
    for circuit, patterns in circuits.items():
        owners, _ = available(circuit, kind, modules, model)
        matching: set[str] = set()
        for pattern in patterns:
            matching.update(matching_modules(pattern, owners, prefixes))
        chosen_owners = [owner for owner in owners if owner in matching]
        units += _circuit_units(circuit, chosen_owners, owners, model, prefixes)
    return units


def layer_matrices(modules: Iterable[str]) -> list[str]:
    """List the matrices of the layers, or all modules of a model without layers.

    Norms, biases and low-rank factors are not among them.
    """
    modules = list(modules)
    inside = [name for name in modules if names.parse(name).layer is not None]
    return [name for name in inside if _is_matrix(name)] or modules


def _is_matrix(module: str) -> bool:
    is_factor = names.low_rank_part(f"{module}.weight") is not None
    return not is_factor and _NO_MATRIX.fullmatch(module.rpartition(".")[2]) is None


def available(
    circuit: str, kind: str, modules: Sequence[str], model: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """Return the modules that have a circuit, and the reasons why others lack it."""
    definition = CIRCUITS[circuit]
    if kind not in definition.kinds:
        return [], []
    owners = definition.owners(modules, kind)
    if not definition.heads:
        return list(owners), [] if owners else [_nowhere(definition)]
    having, reasons = [], []
    for owner, layout in owners.items():
        reason = _lacks(owner, layout, model)
        if reason is None:
            having.append(owner)
        else:
            reasons.append(reason)
    # Activations are those of chosen modules, so a projection without partners is normal.
    unknown = [] if kind == "activations" else unrecognised(modules, owners)
    reasons += [f"the layout of {component_of(name)} is not known" for name in unknown]
    if not owners and not unknown:
        reasons = [_nowhere(definition)]
    return having, list(dict.fromkeys(reasons))


def omitted_circuits(
    circuits: Iterable[str], modules: Mapping[str, Sequence[str]], model: Mapping[str, Any]
) -> list[str]:
    """Say of each circuit that some attention or MLP of the model lacks, and why.

    Args:
        modules: kind -> the modules that store it.
    """
    sentences = []
    for circuit in dict.fromkeys(circuits):
        definition = CIRCUITS[circuit]
        kinds = [kind for kind in modules if kind in definition.kinds]
        if definition.known and kinds:
            _, reasons = available(circuit, kinds[0], modules[kinds[0]], model)
            sentences += [f"{circuit} is left out: {reason}" for reason in reasons]
    return sentences


def _nowhere(circuit: Circuit) -> str:
    return f"no module has the projections that it is made of ({' and '.join(circuit.roles)})"


def _lacks(owner: str, layout: Layout | None, model: Mapping[str, Any]) -> str | None:
    """Say why an attention has no circuits; None if it has them."""
    is_fused = layout is not None and layout.is_fused("value")
    if layout is not None and is_fused and division_of(model, owner, layout) is None:
        fused = f"{component_of(owner)}.{layout.names['value']}".removeprefix(".")
        return f"query, key and value are one matrix ({fused}), and no model_type in config.json says how it is divided"
    if heads_of(model, owner) is None:
        component = component_of(owner) or "the layers"
        return f"config.json does not give the number of heads of {component} (num_attention_heads)"
    return None


def parse_circuit(component: str) -> tuple[str | None, str]:
    """Split a component into the circuit that it names and a glob over the circuit's owners.

    The circuit is None if the component is a glob over modules.
    """
    where, _, name = component.rpartition(".")
    return (name, where or "*") if name in CIRCUITS else (None, component)


def across_layers(units: Iterable[MeasuredUnit]) -> list[MeasuredUnit]:
    """Join each component that several layers have as a plain module into one unit.

    Its keys are the layers in order. Circuits are left out, since heads do not correspond across
    layers.
    """
    by_component: dict[str, list[ComponentKey]] = {}
    for unit in units:
        if unit.circuit is None and unit.keys[0].layer is not None:
            by_component.setdefault(unit.keys[0].component, []).append(unit.keys[0])
    several = {name: keys for name, keys in by_component.items() if len(keys) > 1}
    return [MeasuredUnit(None, f"*.{name}", tuple(keys)) for name, keys in several.items()]


def _sort_key(module: str) -> tuple[float, int, str]:
    """Sort modules layer by layer, those outside the layers last."""
    name = names.parse(module)
    layer = math.inf if name.layer is None else name.layer
    position = len(_ORDER)
    for i, known in enumerate(_ORDER):
        if f"{name.component}.".startswith(f"{known}."):
            position = i
            break
    return layer, position, module


def matching_modules(
    pattern: str, modules: Iterable[str], prefixes: Mapping[str, str] | None = None
) -> list[str]:
    """List the modules whose names, or whose components in the table, match a glob."""

    def matches(name: str) -> bool:
        if names.fits(pattern, name):
            return True
        return bool(prefixes) and fnmatchcase(component_of(name, prefixes), pattern)

    return [name for name in modules if matches(name)]


def check_components(components: Sequence[str], modules: Sequence[str]) -> None:
    """Raise UserError for a component that is neither a circuit nor matches one of `modules`."""
    prefixes = names.stack_prefixes(modules)
    for component in components:
        circuit, pattern = parse_circuit(component)
        if circuit is not None and pattern == "*":
            continue  # a circuit that the model lacks is reported with the reason
        candidates = modules
        if circuit is not None:
            candidates = list(CIRCUITS[circuit].owners(modules, "activations"))
        if matching_modules(pattern, candidates, prefixes):
            continue
        if circuit is None and nearest(component, CIRCUITS):
            near = did_you_mean(component, CIRCUITS)
            raise UserError(f'there is no component "{component}"{near}')
        names.match(pattern, candidates)  # raises, naming the nearest module


def _module_unit(name: str, prefixes: Mapping[str, str]) -> MeasuredUnit:
    key = ComponentKey(component_of(name, prefixes), names.parse(name).layer, None, name)
    return MeasuredUnit(None, name, (key,))


def _circuit_units(
    circuit: str,
    chosen: list[str],
    owners: list[str],
    model: Mapping[str, Any],
    prefixes: Mapping[str, str],
) -> list[MeasuredUnit]:
    """Make a unit of the circuit of each module in `chosen`.

    If layers have several such owners, components name the owner too: `self_attn.ov_circuit`.
    """
    definition = CIRCUITS[circuit]
    owner_components = {component_of(owner, prefixes) for owner in owners}
    names_owner = definition.of_projection or len(owner_components) > 1
    units = []
    for owner in chosen:
        component = circuit
        if names_owner:
            component = f"{component_of(owner, prefixes)}.{circuit}".removeprefix(".")
        layer = names.parse(f"{owner}.weight").layer
        heads = heads_of(model, owner)
        numbers: Iterable[int | None] = [None]
        if definition.heads == "each" and heads:
            numbers = range(heads.queries)
        keys = tuple(ComponentKey(component, layer, head, owner) for head in numbers)
        units.append(MeasuredUnit(circuit, owner, keys))
    return units


def component_of(module: str, prefixes: Mapping[str, str] | None = None) -> str:
    """Name the component of a module, after the prefix of its stack; "" for a layer itself.

    Args:
        prefixes: `names.stack_prefixes` of the model's modules.
    """
    name = names.parse(f"{module}.weight")
    prefix = (prefixes or {}).get(name.stack, "")
    component = name.component.removesuffix("weight").removesuffix(".")
    return ".".join(part for part in (prefix, component) if part)
