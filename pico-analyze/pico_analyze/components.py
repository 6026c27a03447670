"""What is measured: plain modules and circuits, chosen by name, as units of matrices of one step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pico_contract import names
from pico_contract.errors import UserError, did_you_mean, nearest

from pico_analyze.circuits import CIRCUITS, UPDATES
from pico_analyze.linalg import Matrix
from pico_analyze.low_rank import Change
from pico_analyze.sources import Source

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


_PROJECTIONS = {"ov": ("v_proj", "o_proj"), "qk": ("q_proj", "k_proj"), "mlp": ("up_proj", "down_proj")}
"""What circuits are made of, by the first part of their names; those of low-rank factors are not among them."""


@dataclass(frozen=True)
class Key:
    """Which thing a row of the table is about."""

    component: str
    layer: int | None
    head: int | None
    module: str


@dataclass(frozen=True)
class Unit:
    """What is loaded and measured together, at every step: one module, one layer's circuit (of all heads), or one
    component of all layers."""

    circuit: str | None  # a name in CIRCUITS; None for plain modules
    module: str
    keys: tuple[Key, ...]

    def load(self, source: Source, step: int, kind: str, split: str | None) -> list[Matrix]:
        """One matrix for each key; UserError where the step lacks what it needs."""
        if self.circuit is None:
            return [source.tensor(step, kind, key.module, split) for key in self.keys]
        load = CIRCUITS[self.circuit].load
        assert load is not None, f"{self.circuit} is of a window, not of a step"
        return load(source, self.module, step, kind, split)

    def change(self, source: Source, start: int, step: int) -> Change:
        """What it changed by over a window, where `is_of_window`; UserError where either end lacks what it needs."""
        over = None if self.circuit is None else CIRCUITS[self.circuit].over
        assert over is not None, f"{self.module} changes by the difference of two steps"
        return over(source, self.module, start, step)

    @property
    def is_of_window(self) -> bool:
        """Whether an update of it depends on the steps within the window, and not on its two ends alone."""
        return self.circuit is not None and CIRCUITS[self.circuit].over is not None

    @property
    def spans_layers(self) -> bool:
        """Whether its keys are of different layers, to be compared with one another."""
        return self.circuit is None and len(self.keys) > 1

    def effective_weights(self, kind: str) -> list[str]:
        """The modules whose effective weights it is made of, which are merged from a base where they are low-rank."""
        if kind not in ("weights", UPDATES):
            return []
        if self.circuit is None:
            return [key.module for key in self.keys]
        return [f"{self.module}.{part}" for part in _PROJECTIONS.get(self.circuit.partition("_")[0], ())]

    def reads(self, kind: str) -> tuple[str, ...]:
        """The stored kinds that a measurement of `kind` depends on."""
        stored = "weights" if kind == UPDATES else kind
        return (stored,) if self.circuit is None else tuple(dict.fromkeys(("weights", stored)))


def plan(components: Sequence[str], kind: str, modules: Iterable[str], model: Mapping[str, Any]) -> list[Unit]:
    """The units of `kind` that `components` choose, in model order.

    A component is a glob over `modules`, or a name of `CIRCUITS`: of every layer, or behind a glob over what its
    modules lie in, as `layers.0.self_attn.ov_circuit` and `layers.0.self_attn.q_proj.lora_update`.
    """
    modules = sorted(modules, key=_place)
    circuits: dict[str, list[str]] = {}
    chosen: set[str] = set()
    for component in components:
        circuit, where = circuit_of(component)
        if circuit is None:
            chosen.update(fitting(component, modules))
        else:
            circuits.setdefault(circuit, []).append(where)
    units = [_module_unit(name) for name in modules if name in chosen]
    for circuit, places in circuits.items():
        owners = _owners(circuit, modules)
        there = {owner for where in places for owner in fitting(where, owners)}
        units += _circuit_units(circuit, kind, [owner for owner in owners if owner in there], model)
    return units


def circuit_of(component: str) -> tuple[str | None, str]:
    """The circuit that a component names and the glob over what it lies in; None for a glob over modules."""
    where, _, name = component.rpartition(".")
    return (name, where or "*") if name in CIRCUITS else (None, component)


def _owners(circuit: str, modules: Iterable[str]) -> list[str]:
    """What of a model has the circuit, such as `model.layers.0.self_attn`."""
    ending = f".{CIRCUITS[circuit].anchor}"
    return [name.removesuffix(ending) for name in modules if name.endswith(ending)]


def across_layers(units: Iterable[Unit]) -> list[Unit]:
    """A unit for each component that several layers have as a plain module, its keys layer by layer.

    Heads of one layer are not those of another: circuits are left out.
    """
    by_component: dict[str, list[Key]] = {}
    for unit in units:
        if unit.circuit is None and unit.keys[0].layer is not None:
            by_component.setdefault(unit.keys[0].component, []).append(unit.keys[0])
    return [Unit(None, f"*.{name}", tuple(keys)) for name, keys in by_component.items() if len(keys) > 1]


def _place(module: str) -> tuple[float, int, str]:
    """Sorts modules layer by layer, those outside the layers last."""
    name = names.parse(module)
    inside = next((i for i, known in enumerate(_ORDER) if f"{name.component}.".startswith(f"{known}.")), len(_ORDER))
    return math.inf if name.layer is None else name.layer, inside, module


def fitting(pattern: str, modules: Iterable[str]) -> list[str]:
    """Modules that fit a glob, [] where none does."""
    try:
        return names.match(pattern, modules)
    except UserError:
        return []


def check(components: Sequence[str], modules: Sequence[str]) -> None:
    """Raise UserError for a component that is neither a circuit nor a pattern that fits one of `modules`."""
    for component in components:
        circuit, where = circuit_of(component)
        if circuit is not None and where != "*":
            names.match(where, _owners(circuit, modules))
        if circuit is not None or fitting(component, modules):
            continue
        if nearest(component, CIRCUITS):
            raise UserError(f'there is no component "{component}"{did_you_mean(component, CIRCUITS)}')
        names.match(component, modules)


def _module_unit(name: str) -> Unit:
    parsed = names.parse(name)
    return Unit(None, name, (Key(parsed.component, parsed.layer, None, name),))


def _circuit_units(circuit: str, kind: str, owners: list[str], model: Mapping[str, Any]) -> list[Unit]:
    heads = CIRCUITS[circuit].heads
    if kind not in CIRCUITS[circuit].kinds:
        return []
    if heads and "num_attention_heads" not in model:
        return []  # a foreign model without a configuration
    numbers = range(model["num_attention_heads"]) if heads == "each" else [None]
    return [
        Unit(
            circuit,
            owner,
            tuple(Key(_called(circuit, owner), names.parse(owner).layer, head, owner) for head in numbers),
        )
        for owner in owners
    ]


def _called(circuit: str, owner: str) -> str:
    """The component: of what several projections of a layer have, behind the projection."""
    return f"{names.parse(owner).component}.{circuit}" if CIRCUITS[circuit].of_projection else circuit
