"""Circuits: components made of several matrices of one step, as products that are kept as their factors.

Shapes: D hidden_size, I intermediate_size, H query heads, G key-value heads, hd head_dim, P rows of activations.
Projections are stored (out, in). With grouped queries head h uses key-value head kv(h) = h // (H / G).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pico_contract.errors import DamagedError

from pico_analyze.linalg import Matrix, Product
from pico_analyze.low_rank import Change, cumulative_lora_update, lora_update
from pico_analyze.sources import Source

UPDATES = "updates"
"""The kind W(t2) - W(t1): the difference of the weights, or of a circuit's, over a window of steps."""


@dataclass(frozen=True)
class Circuit:
    """A component made of several matrices of what it lies in: of a layer's attention or MLP, or of one projection.

    Of kind updates it is the difference of what `load` gives at the two ends, or what `over` gives of the window.
    """

    kinds: tuple[str, ...]
    anchor: str  # what must lie within its place for the circuit to be had there
    load: Callable[[Source, str, int, str, str | None], list[Matrix]] | None
    heads: Literal["each", "joined"] | None = "each"  # None where it is not made of heads
    over: Callable[[Source, str, int, int], Change] | None = None
    of_projection: bool = False  # several in a layer, each named behind its projection


def ov_circuit(source: Source, module: str, step: int, kind: str, split: str | None) -> list[Matrix]:
    """OV_h = O[:, h] @ V[kv(h)], (D, D) of rank at most hd, or its output v_out[:, kv(h)] @ O[:, h]^T, (P, D), by head.

    Row-vector convention: x @ OV_h^T is what head h writes to the residual stream where it attends to x alone.
    Source: Elhage et al. 2021, "A mathematical framework for transformer circuits".
    """
    output = source.tensor(step, "weights", f"{module}.o_proj")  # (D, H * hd)
    states = source.tensor(step, kind, f"{module}.v_proj", split)
    if kind == "weights":
        return [Product(o, v) for o, v in zip(*_output_and_value(source, output, states), strict=True)]
    columns, states_by_head = _output_and_value(source, output, states.T)  # H of (D, hd), H of (hd, P)
    return [Product(v.T, o.T) for o, v in zip(columns, states_by_head, strict=True)]


def ov_induced_change(source: Source, module: str, step: int, kind: str, split: str | None) -> list[Matrix]:
    """dO[:, h] @ V[kv(h)] + O[:, h] @ dV[kv(h)], (D, D) of rank at most 2 hd, by head; d are gradients of weights.

    The first-order change of OV_h that one step of gradient descent induces is this times minus the learning rate: for
    O - a dO and V - a dV the circuit changes by -a (dO V + O dV) + a^2 dO dV. It is not the gradient of the loss with
    respect to OV_h, which gradients of the two factors do not determine; pico-analyze 1.x called a similar product so
    (`ov_circuit` of gradients).
    """
    o, v = f"{module}.o_proj", f"{module}.v_proj"
    weights = [source.tensor(step, "weights", name) for name in (o, v)]
    gradients = [source.tensor(step, kind, name, split) for name in (o, v)]
    heads = zip(*_output_and_value(source, *weights), *_output_and_value(source, *gradients), strict=True)
    return [Product.sum_of(Product(d_o, v), Product(o, d_v)) for o, v, d_o, d_v in heads]


def ov_circuit_joined(source: Source, module: str, step: int, kind: str, split: str | None) -> list[Matrix]:
    """`ov_circuit` of all heads, one beside the other: (D, H * D), or of activations (P, H * D), one matrix a layer.

    Activations are v_out (P, G * hd) @ R (G * hd, H * D), block g of R the O[:, h]^T of the heads h that share
    key-value head g; weights are O (D, H * hd) @ R (H * hd, H * D), block h of R being V[kv(h)].

    One rarely wants it: a model sums what its heads write and never lays it side by side. Its rank and similarities
    are those of all heads together, ruled by the heads that write most, and R has H times the columns of one head's
    factor. It is what pico-analyze 1.x printed beside the heads.
    """
    products = [one for one in ov_circuit(source, module, step, kind, split) if isinstance(one, Product)]
    shared = source.model.get("num_key_value_heads", len(products)) if kind == "activations" else len(products)
    return [_side_by_side(products, len(products) // shared)]


def ov_induced_change_joined(source: Source, module: str, step: int, kind: str, split: str | None) -> list[Matrix]:
    """`ov_induced_change` of all heads, one beside the other: (D, H * D) with factors (D, 2 H * hd), (2 H * hd, H * D).

    As rarely wanted as `ov_circuit_joined`.
    """
    changes = ov_induced_change(source, module, step, kind, split)
    return [_side_by_side([one for one in changes if isinstance(one, Product)], 1)]


def _side_by_side(products: Sequence[Product], group: int) -> Product:
    """[A_0 B_0, A_1 B_1, ...], (m, H * n), where each `group` of products in turn has one A."""
    wide = [torch.cat([p.right for p in products[at : at + group]], dim=1) for at in range(0, len(products), group)]
    return Product(torch.cat([product.left for product in products[::group]], dim=1), torch.block_diag(*wide))


def qk_circuit(source: Source, module: str, step: int, kind: str, split: str | None) -> list[Matrix]:
    """QK_h = Q[h]^T @ K[kv(h)], (D, D) of rank at most hd, by head.

    x_i @ QK_h @ x_j^T is sqrt(hd) times the score with which position i attends to position j, before the softmax, in
    a model without position embeddings within attention. In ours rotary embeddings lie between the two: the score is
    that of Q[h]^T @ R(j - i) @ K[kv(h)] with R a rotation by the distance, so that QK_h is the circuit at distance 0.
    Source: Elhage et al. 2021, "A mathematical framework for transformer circuits".
    """
    query = source.tensor(step, kind, f"{module}.q_proj")  # (H * hd, D)
    key = source.tensor(step, kind, f"{module}.k_proj")  # (G * hd, D)
    heads, group = _heads(source, query.shape[0], key.shape[0])
    head_dim = query.shape[0] // heads
    by_head, keys = query.split(head_dim), key.split(head_dim)
    return [Product(by_head[h].T, keys[h // group]) for h in range(heads)]


def mlp_path(source: Source, module: str, step: int, kind: str, split: str | None) -> list[Matrix]:
    """down @ up, (D, D): what the MLP does to the residual stream where every gate passes 1.

    The MLP itself is x -> down (silu(gate x) * up x), so this is its path with the nonlinearity left out.
    Source: Elhage et al. 2021, "A mathematical framework for transformer circuits" (virtual weights).
    """
    down = source.tensor(step, kind, f"{module}.down_proj")  # (D, I)
    return [Product(down, source.tensor(step, kind, f"{module}.up_proj"))]  # (I, D)


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
    "ov_circuit": Circuit(("weights", UPDATES, "activations"), "v_proj", ov_circuit),
    "ov_induced_change": Circuit(("gradients",), "v_proj", ov_induced_change),
    "ov_circuit_joined": Circuit(("weights", UPDATES, "activations"), "v_proj", ov_circuit_joined, "joined"),
    "ov_induced_change_joined": Circuit(("gradients",), "v_proj", ov_induced_change_joined, "joined"),
    "qk_circuit": Circuit(("weights", UPDATES), "k_proj", qk_circuit),
    "mlp_path": Circuit(("weights", UPDATES), "up_proj", mlp_path, None),
    "lora_update": Circuit(("weights",), "lora_B", lora_update, None, of_projection=True),
    "cumulative_lora_update": Circuit(
        (UPDATES,), "lora_B", None, None, over=cumulative_lora_update, of_projection=True
    ),
}
