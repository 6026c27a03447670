"""What is measured: plain modules and circuits, as matrices of one step.

Shapes: D hidden_size, H query heads, G key-value heads, hd head_dim, P rows of activations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pico_contract import names
from pico_contract.errors import UserError, did_you_mean, nearest

from pico_analyze.linalg import Matrix, Product
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


@dataclass(frozen=True)
class Key:
    """Which thing a row of the table is about."""

    component: str
    layer: int | None
    head: int | None
    module: str


@dataclass(frozen=True)
class Unit:
    """What is loaded and measured together, at every step: one module, or one layer's circuit of all heads."""

    circuit: str | None  # a name in CIRCUITS; None for a plain module
    module: str
    keys: tuple[Key, ...]

    def load(self, source: Source, step: int, kind: str, split: str | None) -> list[Matrix]:
        """One matrix for each key; UserError where the step lacks what it needs."""
        if self.circuit is None:
            return [source.tensor(step, kind, self.module, split)]
        return CIRCUITS[self.circuit].load(source, self, step, kind, split)


@dataclass(frozen=True)
class Circuit:
    """A component made of several modules of one layer."""

    kinds: tuple[str, ...]
    anchor: str  # the module within a layer whose presence says that the circuit can be had
    load: Callable[[Source, Unit, int, str, str | None], list[Matrix]]


def plan(components: Sequence[str], kind: str, modules: Iterable[str], model: Mapping[str, Any]) -> list[Unit]:
    """The units of `kind` that `components` (names of `CIRCUITS`, or globs over `modules`) choose, in model order."""
    modules = sorted(modules, key=_place)
    circuits = dict.fromkeys(component for component in components if component in CIRCUITS)
    chosen = {name for component in components if component not in CIRCUITS for name in fitting(component, modules)}
    plain = [_module_unit(name) for name in modules if name in chosen]
    return plain + [unit for circuit in circuits for unit in _circuit_units(circuit, kind, modules, model)]


def _place(module: str) -> tuple[float, int, str]:
    """Sorts modules layer by layer, those outside the layers last."""
    name = names.parse(module)
    inside = _ORDER.index(name.component) if name.component in _ORDER else len(_ORDER)
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
        if component in CIRCUITS or fitting(component, modules):
            continue
        if nearest(component, CIRCUITS):
            raise UserError(f'there is no component "{component}"{did_you_mean(component, CIRCUITS)}')
        names.match(component, modules)


def _module_unit(name: str) -> Unit:
    parsed = names.parse(name)
    return Unit(None, name, (Key(parsed.component, parsed.layer, None, name),))


def _circuit_units(circuit: str, kind: str, modules: list[str], model: Mapping[str, Any]) -> list[Unit]:
    if kind not in CIRCUITS[circuit].kinds:
        return []
    ending = f".{CIRCUITS[circuit].anchor}"
    owners = [name.removesuffix(ending) for name in modules if name.endswith(ending)]
    heads = range(model["num_attention_heads"])
    return [
        Unit(circuit, owner, tuple(Key(circuit, names.parse(owner).layer, head, owner) for head in heads))
        for owner in owners
    ]


def ov_circuit(source: Source, unit: Unit, step: int, kind: str, split: str | None) -> list[Matrix]:
    """OV_h = O[:, h] @ V[kv(h)], (D, D) of rank at most hd, or its output v_out[:, kv(h)] @ O[:, h]^T, (P, D), by head.

    Row-vector convention: x @ OV_h^T is what head h writes to the residual stream where it attends to x alone. With
    grouped queries head h reads key-value head kv(h) = h // (H / G).
    Source: Elhage et al. 2021, "A mathematical framework for transformer circuits".
    """
    output = source.tensor(step, "weights", f"{unit.module}.o_proj")  # (D, H * hd)
    heads = source.model["num_attention_heads"]
    group = heads // source.model.get("num_key_value_heads", heads)
    head_dim = output.shape[1] // heads
    by_head = output.split(head_dim, dim=1)  # H of (D, hd)
    if kind == "weights":
        value = source.tensor(step, "weights", f"{unit.module}.v_proj").split(head_dim, dim=0)  # G of (hd, D)
        return [Product(by_head[h], value[h // group]) for h in range(heads)]
    states = source.tensor(step, kind, f"{unit.module}.v_proj", split).split(head_dim, dim=1)  # G of (P, hd)
    return [Product(states[h // group], by_head[h].T) for h in range(heads)]


CIRCUITS: dict[str, Circuit] = {
    "ov_circuit": Circuit(("weights", "activations"), "v_proj", ov_circuit),
}
