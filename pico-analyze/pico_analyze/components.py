"""What is measured: plain modules and circuits, as matrices of one step.

Shapes: D hidden_size, I intermediate_size, H query heads, G key-value heads, hd head_dim, P rows of activations.
Projections are stored (out, in). With grouped queries head h uses key-value head kv(h) = h // (H / G).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pico_contract import names
from pico_contract.errors import DamagedError, UserError, did_you_mean, nearest

from pico_analyze.linalg import Matrix, Product
from pico_analyze.sources import Source

UPDATES = "updates"
"""The kind W(t2) - W(t1): the difference of the weights, or of a circuit's, over a window of steps."""

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
    """What is loaded and measured together, at every step: one module, one layer's circuit (of all heads), or one
    component of all layers."""

    circuit: str | None  # a name in CIRCUITS; None for plain modules
    module: str
    keys: tuple[Key, ...]

    def load(self, source: Source, step: int, kind: str, split: str | None) -> list[Matrix]:
        """One matrix for each key; UserError where the step lacks what it needs."""
        if self.circuit is None:
            return [source.tensor(step, kind, key.module, split) for key in self.keys]
        return CIRCUITS[self.circuit].load(source, self, step, kind, split)

    @property
    def spans_layers(self) -> bool:
        """Whether its keys are of different layers, to be compared with one another."""
        return self.circuit is None and len(self.keys) > 1

    def reads(self, kind: str) -> tuple[str, ...]:
        """The stored kinds that a measurement of `kind` depends on."""
        stored = "weights" if kind == UPDATES else kind
        return (stored,) if self.circuit is None else tuple(dict.fromkeys(("weights", stored)))


@dataclass(frozen=True)
class Circuit:
    """A component made of several modules of one layer."""

    kinds: tuple[str, ...]
    anchor: str  # the module within a layer whose presence says that the circuit can be had
    load: Callable[[Source, Unit, int, str, str | None], list[Matrix]]
    heads: Literal["each", "joined"] | None = "each"  # None where it is not made of heads


def plan(components: Sequence[str], kind: str, modules: Iterable[str], model: Mapping[str, Any]) -> list[Unit]:
    """The units of `kind` that `components` choose, in model order.

    A component is a glob over `modules`, or a name of `CIRCUITS`: of every layer, or behind a glob over what its
    modules lie in, as `layers.0.self_attn.ov_circuit`.
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
    if ("weights" if kind == UPDATES else kind) not in CIRCUITS[circuit].kinds:
        return []
    if heads and "num_attention_heads" not in model:
        return []  # a foreign model without a configuration
    numbers = range(model["num_attention_heads"]) if heads == "each" else [None]
    return [
        Unit(circuit, owner, tuple(Key(circuit, names.parse(owner).layer, head, owner) for head in numbers))
        for owner in owners
    ]


def ov_circuit(source: Source, unit: Unit, step: int, kind: str, split: str | None) -> list[Matrix]:
    """OV_h = O[:, h] @ V[kv(h)], (D, D) of rank at most hd, or its output v_out[:, kv(h)] @ O[:, h]^T, (P, D), by head.

    Row-vector convention: x @ OV_h^T is what head h writes to the residual stream where it attends to x alone.
    Source: Elhage et al. 2021, "A mathematical framework for transformer circuits".
    """
    output = source.tensor(step, "weights", f"{unit.module}.o_proj")  # (D, H * hd)
    states = source.tensor(step, kind, f"{unit.module}.v_proj", split)
    if kind == "weights":
        return [Product(o, v) for o, v in zip(*_output_and_value(source, output, states), strict=True)]
    columns, states_by_head = _output_and_value(source, output, states.T)  # H of (D, hd), H of (hd, P)
    return [Product(v.T, o.T) for o, v in zip(columns, states_by_head, strict=True)]


def ov_induced_change(source: Source, unit: Unit, step: int, kind: str, split: str | None) -> list[Matrix]:
    """dO[:, h] @ V[kv(h)] + O[:, h] @ dV[kv(h)], (D, D) of rank at most 2 hd, by head; d are gradients of weights.

    The first-order change of OV_h that one step of gradient descent induces is this times minus the learning rate: for
    O - a dO and V - a dV the circuit changes by -a (dO V + O dV) + a^2 dO dV. It is not the gradient of the loss with
    respect to OV_h, which gradients of the two factors do not determine; pico-analyze 1.x called a similar product so
    (`ov_circuit` of gradients).
    """
    o, v = f"{unit.module}.o_proj", f"{unit.module}.v_proj"
    weights = [source.tensor(step, "weights", module) for module in (o, v)]
    gradients = [source.tensor(step, kind, module, split) for module in (o, v)]
    heads = zip(*_output_and_value(source, *weights), *_output_and_value(source, *gradients), strict=True)
    return [Product(torch.cat([d_o, o], dim=1), torch.cat([v, d_v])) for o, v, d_o, d_v in heads]


def ov_circuit_joined(source: Source, unit: Unit, step: int, kind: str, split: str | None) -> list[Matrix]:
    """`ov_circuit` of all heads, one beside the other: (D, H * D), or of activations (P, H * D), one matrix a layer.

    Activations are v_out (P, G * hd) @ R (G * hd, H * D), block g of R the O[:, h]^T of the heads h that share
    key-value head g; weights are O (D, H * hd) @ R (H * hd, H * D), block h of R being V[kv(h)].

    One rarely wants it: a model sums what its heads write and never lays it side by side. Its rank and similarities
    are those of all heads together, ruled by the heads that write most, and R has H times the columns of one head's
    factor. It is what pico-analyze 1.x printed beside the heads.
    """
    products = [one for one in ov_circuit(source, unit, step, kind, split) if isinstance(one, Product)]
    shared = source.model.get("num_key_value_heads", len(products)) if kind == "activations" else len(products)
    return [_side_by_side(products, len(products) // shared)]


def ov_induced_change_joined(source: Source, unit: Unit, step: int, kind: str, split: str | None) -> list[Matrix]:
    """`ov_induced_change` of all heads, one beside the other: (D, H * D) with factors (D, 2 H * hd), (2 H * hd, H * D).

    As rarely wanted as `ov_circuit_joined`.
    """
    changes = ov_induced_change(source, unit, step, kind, split)
    return [_side_by_side([one for one in changes if isinstance(one, Product)], 1)]


def _side_by_side(products: Sequence[Product], group: int) -> Product:
    """[A_0 B_0, A_1 B_1, ...], (m, H * n), where each `group` of products in turn has one A."""
    wide = [torch.cat([p.right for p in products[at : at + group]], dim=1) for at in range(0, len(products), group)]
    return Product(torch.cat([product.left for product in products[::group]], dim=1), torch.block_diag(*wide))


def qk_circuit(source: Source, unit: Unit, step: int, kind: str, split: str | None) -> list[Matrix]:
    """QK_h = Q[h]^T @ K[kv(h)], (D, D) of rank at most hd, by head.

    x_i @ QK_h @ x_j^T is sqrt(hd) times the score with which position i attends to position j, before the softmax, in
    a model without position embeddings within attention. In ours rotary embeddings lie between the two: the score is
    that of Q[h]^T @ R(j - i) @ K[kv(h)] with R a rotation by the distance, so that QK_h is the circuit at distance 0.
    Source: Elhage et al. 2021, "A mathematical framework for transformer circuits".
    """
    query = source.tensor(step, kind, f"{unit.module}.q_proj")  # (H * hd, D)
    key = source.tensor(step, kind, f"{unit.module}.k_proj")  # (G * hd, D)
    heads, group = _heads(source, query.shape[0], key.shape[0])
    head_dim = query.shape[0] // heads
    by_head, keys = query.split(head_dim), key.split(head_dim)
    return [Product(by_head[h].T, keys[h // group]) for h in range(heads)]


def mlp_path(source: Source, unit: Unit, step: int, kind: str, split: str | None) -> list[Matrix]:
    """down @ up, (D, D): what the MLP does to the residual stream where every gate passes 1.

    The MLP itself is x -> down (silu(gate x) * up x), so this is its path with the nonlinearity left out.
    Source: Elhage et al. 2021, "A mathematical framework for transformer circuits" (virtual weights).
    """
    down = source.tensor(step, kind, f"{unit.module}.down_proj")  # (D, I)
    return [Product(down, source.tensor(step, kind, f"{unit.module}.up_proj"))]  # (I, D)


def _heads(source: Source, queries: int, keys: int) -> tuple[int, int]:
    """H, and how many query heads share a key-value head; `queries` and `keys` are the widths of all heads of either.

    Raises:
        DamagedError: the model's configuration speaks of other widths.
    """
    heads = source.model["num_attention_heads"]
    groups = source.model.get("num_key_value_heads", heads)
    if queries % heads or heads % groups or keys * heads != queries * groups:
        what = f"{heads} heads and {groups} key-value heads"
        raise DamagedError(f"the configuration of {source.name} has {what}, its matrices are {queries} and {keys} wide")
    return heads, heads // groups


def _output_and_value(
    source: Source, output: torch.Tensor, value: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Of (D, H * hd) and (G * hd, any): O[:, h], H of (D, hd), and V[kv(h)], H of (hd, any)."""
    heads, group = _heads(source, output.shape[1], value.shape[0])
    head_dim = output.shape[1] // heads
    values = value.split(head_dim)
    return list(output.split(head_dim, dim=1)), [values[h // group] for h in range(heads)]


CIRCUITS: dict[str, Circuit] = {
    "ov_circuit": Circuit(("weights", "activations"), "v_proj", ov_circuit),
    "ov_induced_change": Circuit(("gradients",), "v_proj", ov_induced_change),
    "ov_circuit_joined": Circuit(("weights", "activations"), "v_proj", ov_circuit_joined, "joined"),
    "ov_induced_change_joined": Circuit(("gradients",), "v_proj", ov_induced_change_joined, "joined"),
    "qk_circuit": Circuit(("weights",), "k_proj", qk_circuit),
    "mlp_path": Circuit(("weights",), "up_proj", mlp_path, None),
}
