"""What is measured: plain modules and circuits, chosen by name, as units of matrices of one
step."""

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
"""Circuits that are measured, beside the matrices of the layers, where no components are asked
for."""
_NO_MATRIX = re.compile(r"\w*norm\w*|ln_?\w*|\w*bias\w*", re.IGNORECASE)
"""Last part of the names of vectors: gains of norms, biases."""
_ORDER = (  # of a layer, as the forward pass goes
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


_PROJECTIONS = {
    "ov": ("v_proj", "o_proj"),
    "qk": ("q_proj", "k_proj"),
    "mlp": ("up_proj", "down_proj"),
}
"""What circuits are made of, by the first part of their names; those of low-rank factors are not
among them."""


@dataclass(frozen=True)
class ComponentKey:
    """Which thing a row of the table is about."""

    component: str
    layer: int | None
    head: int | None
    module: str


@dataclass(frozen=True)
class MeasuredUnit:
    """What is loaded and measured together, at every step: one module, one layer's circuit (of all
    heads), or one component of all layers."""

    circuit: str | None  # a name in CIRCUITS; None for plain modules
    module: str
    keys: tuple[ComponentKey, ...]

    def load(self, source: Source, step: int, kind: str, split: str | None) -> list[Matrix]:
        """One matrix for each key; UserError where the step lacks what it needs."""
        if self.circuit is None:
            return [source.tensor(step, kind, key.module, split) for key in self.keys]
        load = CIRCUITS[self.circuit].load
        assert load is not None, f"{self.circuit} is of a window, not of a step"
        return load(source, self.module, step, kind, split)

    def change(self, source: Source, start: int, step: int) -> Change:
        """What it changed by over a window, where `is_of_window`; UserError where either end lacks
        what it needs."""
        over = None if self.circuit is None else CIRCUITS[self.circuit].over
        assert over is not None, f"{self.module} changes by the difference of two steps"
        return over(source, self.module, start, step)

    @property
    def is_of_window(self) -> bool:
        """Whether an update of it depends on the steps within the window, and not on its two ends
        alone."""
        return self.circuit is not None and CIRCUITS[self.circuit].over is not None

    @property
    def spans_layers(self) -> bool:
        """Whether its keys are of different layers, to be compared with one another."""
        return self.circuit is None and len(self.keys) > 1

    def effective_weights(self, kind: str) -> list[str]:
        """The modules whose effective weights it is made of, which are merged from a base where
        they are low-rank."""
        if kind not in ("weights", UPDATES):
            return []
        if self.circuit is None:
            return [key.module for key in self.keys]
        return [
            f"{self.module}.{part}" for part in _PROJECTIONS.get(self.circuit.partition("_")[0], ())
        ]

    def reads(self, kind: str) -> tuple[str, ...]:
        """The stored kinds that a measurement of `kind` depends on."""
        stored = "weights" if kind == UPDATES else kind
        return (stored,) if self.circuit is None else tuple(dict.fromkeys(("weights", stored)))


def plan_units(
    components: Sequence[str] | None, kind: str, modules: Iterable[str], model: Mapping[str, Any]
) -> list[MeasuredUnit]:
    """The units of `kind` that `components` choose, in model order; by default every matrix of the
    layers and `DEFAULT_CIRCUITS`.

    A component is a glob over `modules`, or a name of `CIRCUITS`: of every layer, or behind a glob
    over what its modules lie in, as `layers.0.self_attn.ov_circuit` and
    `layers.0.self_attn.q_proj.lora_update`.

    Keys name the stack of layers where two stacks of the model share a component:
    `encoder.self_attn.q_proj`.
    """
    modules = sorted(modules, key=_sort_key)
    circuits: dict[str, list[str]] = {}
    chosen = set(layer_matrices(modules)) if components is None else set()
    prefixes = names.stack_prefixes(modules)
    for component in DEFAULT_CIRCUITS if components is None else components:
        circuit, where = parse_circuit(component)
        if circuit is None:
            chosen.update(matching_modules(component, modules, prefixes))
        else:
            circuits.setdefault(circuit, []).append(where)
    units = [_module_unit(name, prefixes) for name in modules if name in chosen]
    for circuit, places in circuits.items():
        owners, _ = available(circuit, kind, modules, model)
        there = {owner for where in places for owner in matching_modules(where, owners, prefixes)}
        units += _circuit_units(
            circuit, [owner for owner in owners if owner in there], owners, model, prefixes
        )
    return units


def layer_matrices(modules: Iterable[str]) -> list[str]:
    """The matrices of the layers, without norms, biases and factors; of a model without layers all
    of `modules`."""
    modules = list(modules)
    inside = [name for name in modules if names.parse(name).layer is not None]
    return [name for name in inside if _is_matrix(name)] or modules


def _is_matrix(module: str) -> bool:
    is_factor = names.low_rank_part(f"{module}.weight") is not None
    return not is_factor and _NO_MATRIX.fullmatch(module.rpartition(".")[2]) is None


def available(
    circuit: str, kind: str, modules: Sequence[str], model: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """The modules that have a circuit, and a sentence for each reason why others that should have
    it do not."""
    made = CIRCUITS[circuit]
    if kind not in made.kinds:
        return [], []
    owners = made.owners(modules, kind)
    if not made.heads:
        return list(owners), [] if owners else [_nowhere(made)]
    lacking = {
        owner: reason
        for owner, layout in owners.items()
        if (reason := _lacks(owner, layout, model))
    }
    strange = [] if kind == "activations" else unrecognised(modules, owners)
    reasons = [
        *lacking.values(),
        *(f"the layout of {component_of(name)} is not known" for name in strange),
    ]
    if not owners and not strange:
        reasons = [_nowhere(made)]
    return [owner for owner in owners if owner not in lacking], list(dict.fromkeys(reasons))


def omitted_circuits(
    circuits: Iterable[str], modules: Mapping[str, Sequence[str]], model: Mapping[str, Any]
) -> list[str]:
    """A sentence for each of `circuits` that some attention or MLP of the model should have and has
    not, and why.

    Args:
        modules: kind -> those of which it is there.
    """
    found = []
    for circuit in dict.fromkeys(circuits):
        made = CIRCUITS[circuit]
        kind = next((kind for kind in modules if kind in made.kinds), None)
        if made.known and kind is not None:
            reasons = available(circuit, kind, modules[kind], model)[1]
            found += [f"{circuit} is left out: {reason}" for reason in reasons]
    return found


def _nowhere(circuit: Circuit) -> str:
    return f"no module has the projections that it is made of ({' and '.join(circuit.roles)})"


def _lacks(owner: str, layout: Layout | None, model: Mapping[str, Any]) -> str | None:
    """Why an attention has no circuits, None where it has them."""
    if (
        layout is not None
        and layout.is_fused("value")
        and division_of(model, owner, layout) is None
    ):
        fused = f"{component_of(owner)}.{layout.names['value']}".removeprefix(".")
        return f"query, key and value are one matrix ({fused}), and no model_type in config.json says how it is divided"
    if heads_of(model, owner) is None:
        of = component_of(owner) or "the layers"
        return f"config.json does not give the number of heads of {of} (num_attention_heads)"
    return None


def parse_circuit(component: str) -> tuple[str | None, str]:
    """The circuit that a component names and the glob over what it lies in; None for a glob over
    modules."""
    where, _, name = component.rpartition(".")
    return (name, where or "*") if name in CIRCUITS else (None, component)


def across_layers(units: Iterable[MeasuredUnit]) -> list[MeasuredUnit]:
    """A unit for each component that several layers have as a plain module, its keys layer by
    layer.

    Heads of one layer are not those of another: circuits are left out.
    """
    by_component: dict[str, list[ComponentKey]] = {}
    for unit in units:
        if unit.circuit is None and unit.keys[0].layer is not None:
            by_component.setdefault(unit.keys[0].component, []).append(unit.keys[0])
    return [
        MeasuredUnit(None, f"*.{name}", tuple(keys))
        for name, keys in by_component.items()
        if len(keys) > 1
    ]


def _sort_key(module: str) -> tuple[float, int, str]:
    """Sorts modules layer by layer, those outside the layers last."""
    name = names.parse(module)
    inside = next(
        (i for i, known in enumerate(_ORDER) if f"{name.component}.".startswith(f"{known}.")),
        len(_ORDER),
    )
    return math.inf if name.layer is None else name.layer, inside, module


def matching_modules(
    pattern: str, modules: Iterable[str], prefixes: Mapping[str, str] | None = None
) -> list[str]:
    """Modules whose names fit a glob, or whose components in the table do; [] where none does."""
    return [
        name
        for name in modules
        if names.fits(pattern, name)
        or (prefixes and fnmatchcase(component_of(name, prefixes), pattern))
    ]


def check_components(components: Sequence[str], modules: Sequence[str]) -> None:
    """Raise UserError for a component that is neither a circuit nor a pattern that fits one of
    `modules`."""
    prefixes = names.stack_prefixes(modules)
    for component in components:
        circuit, where = parse_circuit(component)
        owners = (
            modules if circuit is None else list(CIRCUITS[circuit].owners(modules, "activations"))
        )
        if matching_modules(where, owners, prefixes) or (where == "*" and circuit is not None):
            continue
        if circuit is None and nearest(component, CIRCUITS):
            raise UserError(
                f'there is no component "{component}"{did_you_mean(component, CIRCUITS)}'
            )
        names.match(where, owners)


def _module_unit(name: str, prefixes: Mapping[str, str]) -> MeasuredUnit:
    return MeasuredUnit(
        None,
        name,
        (ComponentKey(component_of(name, prefixes), names.parse(name).layer, None, name),),
    )


def _circuit_units(
    circuit: str,
    chosen: list[str],
    owners: list[str],
    model: Mapping[str, Any],
    prefixes: Mapping[str, str],
) -> list[MeasuredUnit]:
    """A circuit of each module in `chosen`, named behind what it lies in where `owners` lie in
    several places."""
    made = CIRCUITS[circuit]
    of_several = made.of_projection or len({component_of(owner, prefixes) for owner in owners}) > 1
    units = []
    for owner in chosen:
        component = (
            f"{component_of(owner, prefixes)}.{circuit}".removeprefix(".")
            if of_several
            else circuit
        )
        layer, heads = names.parse(f"{owner}.weight").layer, heads_of(model, owner)
        numbers = range(heads.queries) if made.heads == "each" and heads else [None]
        units.append(
            MeasuredUnit(
                circuit,
                owner,
                tuple(ComponentKey(component, layer, head, owner) for head in numbers),
            )
        )
    return units


def component_of(module: str, prefixes: Mapping[str, str] | None = None) -> str:
    """The component of a module, behind what tells its stack apart; "" for a layer itself.

    Args:
        prefixes: `names.stack_prefixes` of the model's modules.
    """
    found = names.parse(f"{module}.weight")
    parts = (
        (prefixes or {}).get(found.stack, ""),
        found.component.removesuffix("weight").removesuffix("."),
    )
    return ".".join(part for part in parts if part)
