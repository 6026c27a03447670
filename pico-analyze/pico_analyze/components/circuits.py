"""Circuits: components made of several matrices of one step, as products that are kept as their
factors.

Shapes: D hidden_size, I intermediate_size, H query heads, G key-value heads, hd head_dim, P rows of
activations. Projections are (out, in), read by `pico_analyze.components.projections`, which also
divides those that a family stores as one matrix. With grouped queries head h uses key-value head
kv(h) = h // (H / G).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from pico_contract.errors import DamagedError

from pico_analyze.components.architectures import ATTENTIONS, MLPS, Layout, Role, layouts
from pico_analyze.components.low_rank import Change, cumulative_lora_update, lora_update
from pico_analyze.components.projections import Attention, attention_at, mlp_at
from pico_analyze.linalg.matrix import FactoredMatrix, Matrix
from pico_analyze.sources.base import Source

UPDATES = "updates"
"""The kind W(t2) - W(t1): the difference of the weights, or of a circuit's, over a window of
steps."""


@dataclass(frozen=True)
class Circuit:
    """A component made of several matrices of what it lies in: of a layer's attention or MLP, or of
    one projection.

    Of kind updates it is the difference of what `load` gives at the two ends, or what `over` gives
    of the window.
    """

    kinds: tuple[str, ...]
    known: tuple[Layout, ...]  # layouts of what it lies in; () for low-rank projections
    roles: tuple[
        Role, ...
    ]  # the projections that it is made of, that first whose activations it can be made of
    load: Callable[[Source, str, int, str, str | None], list[Matrix]] | None
    heads: Literal["each", "joined"] | None = "each"  # None where it is not made of heads
    over: Callable[[Source, str, int, int], Change] | None = None
    of_projection: bool = False  # several in a layer, each named behind its projection

    def owners(self, modules: Iterable[str], kind: str) -> dict[str, Layout | None]:
        """The modules that have the circuit, such as `model.layers.0.self_attn`, with the layout of
        what lies in them.

        Args:
            modules: those of which `kind` is there. Activations of the first role are enough:
                weights give the rest.
        """
        if not self.known:
            ending = ".lora_B"
            return {name.removesuffix(ending): None for name in modules if name.endswith(ending)}
        return dict(
            layouts(modules, self.known, self.roles[:1] if kind == "activations" else self.roles)
        )


def ov_circuit(
    source: Source, module: str, step: int, kind: str, split: str | None
) -> list[Matrix]:
    """OV_h = O[:, h] @ V[kv(h)], (D, D) of rank at most hd, or its output v_out[:, kv(h)] @ O[:,
    h]^T, (P, D), by head.

    Row-vector convention: x @ OV_h^T is what head h writes to the residual stream where it attends
    to x alone. Source: Elhage et al. 2021, "A mathematical framework for transformer circuits".
    """
    attention = attention_at(source, module, step, OV)
    output = attention.rows("output", "weights")  # (D, H * hd)
    states = attention.rows("value", kind, split)  # (G * hd, D), or of activations (G * hd, P)
    heads = zip(*_output_and_value(attention, output, states), strict=True)
    if kind == "weights":
        return [FactoredMatrix(o, v) for o, v in heads]
    return [FactoredMatrix(v.T, o.T) for o, v in heads]


def ov_induced_change(
    source: Source, module: str, step: int, kind: str, split: str | None
) -> list[Matrix]:
    """dO[:, h] @ V[kv(h)] + O[:, h] @ dV[kv(h)], (D, D) of rank at most 2 hd, by head; d are
    gradients of weights.

    The first-order change of OV_h that one step of gradient descent induces is this times minus the
    learning rate: for O - a dO and V - a dV the circuit changes by -a (dO V + O dV) + a^2 dO dV. It
    is not the gradient of the loss with respect to OV_h, which gradients of the two factors do not
    determine; pico-analyze 1.x called a similar product so (`ov_circuit` of gradients).
    """
    attention = attention_at(source, module, step, OV)
    weights = [attention.rows(role, "weights") for role in ("output", "value")]
    gradients = [attention.rows(role, kind, split) for role in ("output", "value")]
    of_both = (
        _output_and_value(attention, output, value) for output, value in (weights, gradients)
    )
    heads = zip(*chain(*of_both), strict=True)
    return [
        FactoredMatrix.sum_of(FactoredMatrix(d_o, v), FactoredMatrix(o, d_v))
        for o, v, d_o, d_v in heads
    ]


def ov_circuit_joined(
    source: Source, module: str, step: int, kind: str, split: str | None
) -> list[Matrix]:
    """`ov_circuit` of all heads, one beside the other: (D, H * D), or of activations (P, H * D),
    one matrix a layer.

    Activations are v_out (P, G * hd) @ R (G * hd, H * D), block g of R the O[:, h]^T of the heads h
    that share key-value head g; weights are O (D, H * hd) @ R (H * hd, H * D), block h of R being
    V[kv(h)].

    One rarely wants it: a model sums what its heads write and never lays it side by side. Its rank
    and similarities are those of all heads together, ruled by the heads that write most, and R has
    H times the columns of one head's factor. It is what pico-analyze 1.x printed beside the heads.
    """
    products = [
        one
        for one in ov_circuit(source, module, step, kind, split)
        if isinstance(one, FactoredMatrix)
    ]
    shared = (
        len(products) if kind == "weights" else attention_at(source, module, step, OV).heads.groups
    )
    return [_side_by_side(products, len(products) // shared)]


def ov_induced_change_joined(
    source: Source, module: str, step: int, kind: str, split: str | None
) -> list[Matrix]:
    """`ov_induced_change` of all heads, one beside the other: (D, H * D) with factors (D, 2 H *
    hd), (2 H * hd, H * D).

    As rarely wanted as `ov_circuit_joined`.
    """
    changes = ov_induced_change(source, module, step, kind, split)
    return [_side_by_side([one for one in changes if isinstance(one, FactoredMatrix)], 1)]


def _side_by_side(products: Sequence[FactoredMatrix], group: int) -> FactoredMatrix:
    """[A_0 B_0, A_1 B_1, ...], (m, H * n), where each `group` of products in turn has one A."""
    wide = [
        torch.cat([p.right for p in products[at : at + group]], dim=1)
        for at in range(0, len(products), group)
    ]
    return FactoredMatrix(
        torch.cat([product.left for product in products[::group]], dim=1), torch.block_diag(*wide)
    )


def qk_circuit(
    source: Source, module: str, step: int, kind: str, split: str | None
) -> list[Matrix]:
    """QK_h = Q[h]^T @ K[kv(h)], (D, D) of rank at most hd, by head.

    x_i @ QK_h @ x_j^T is sqrt(hd) times the score with which position i attends to position j,
    before the softmax, in a model without position embeddings within attention. In ours rotary
    embeddings lie between the two: the score is that of Q[h]^T @ R(j - i) @ K[kv(h)] with R a
    rotation by the distance, so that QK_h is the circuit at distance 0. Source: Elhage et al. 2021,
    "A mathematical framework for transformer circuits".
    """
    attention = attention_at(source, module, step, QK)
    query, key = (
        attention.rows("query", kind),
        attention.rows("key", kind),
    )  # (H * hd, D), (G * hd, D)
    group = _group(attention, query.shape[0], key.shape[0])
    head_dim = query.shape[0] // attention.heads.queries
    keys = key.split(head_dim)
    return [FactoredMatrix(q.T, keys[h // group]) for h, q in enumerate(query.split(head_dim))]


def mlp_path(source: Source, module: str, step: int, kind: str, split: str | None) -> list[Matrix]:
    """down @ up, (D, D): what the MLP does to the residual stream where every gate passes 1.

    The MLP itself is x -> down (silu(gate x) * up x), so this is its path with the nonlinearity
    left out. Source: Elhage et al. 2021, "A mathematical framework for transformer circuits"
    (virtual weights).
    """
    up, down = mlp_at(source, module, step, kind)
    return [FactoredMatrix(down, up)]


def _group(attention: Attention, queries: int, keys: int) -> int:
    """How many query heads share a key-value head; `queries` and `keys` are the widths of all heads
    of either.

    Raises:
        DamagedError: the model's configuration speaks of other widths.
    """
    heads, groups = attention.heads
    if queries % heads or heads % groups or keys * heads != queries * groups:
        what, name = f"{heads} heads and {groups} key-value heads", attention.source.name
        raise DamagedError(
            f"the configuration of {name} has {what}, its matrices are {queries} and {keys} wide"
        )
    return heads // groups


def _output_and_value(
    attention: Attention, output: torch.Tensor, value: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Of (D, H * hd) and (G * hd, any): O[:, h], H of (D, hd), and V[kv(h)], H of (hd, any)."""
    group, heads = _group(attention, output.shape[1], value.shape[0]), attention.heads.queries
    head_dim = output.shape[1] // heads
    values = value.split(head_dim)
    return list(output.split(head_dim, dim=1)), [values[h // group] for h in range(heads)]


OV: tuple[Role, ...] = ("value", "output")
QK: tuple[Role, ...] = ("key", "query")
CIRCUITS: dict[str, Circuit] = {
    "ov_circuit": Circuit(("weights", UPDATES, "activations"), ATTENTIONS, OV, ov_circuit),
    "ov_induced_change": Circuit(("gradients",), ATTENTIONS, OV, ov_induced_change),
    "ov_circuit_joined": Circuit(
        ("weights", UPDATES, "activations"), ATTENTIONS, OV, ov_circuit_joined, "joined"
    ),
    "ov_induced_change_joined": Circuit(
        ("gradients",), ATTENTIONS, OV, ov_induced_change_joined, "joined"
    ),
    "qk_circuit": Circuit(("weights", UPDATES), ATTENTIONS, QK, qk_circuit),
    "mlp_path": Circuit(("weights", UPDATES), MLPS, ("up", "down"), mlp_path, None),
    "lora_update": Circuit(("weights",), (), (), lora_update, None, of_projection=True),
    "cumulative_lora_update": Circuit(
        (UPDATES,), (), (), None, None, over=cumulative_lora_update, of_projection=True
    ),
}
