"""Circuits: components made of several matrices of one step, stored as factors of a product.

Shapes: D hidden_size, I intermediate_size, H query heads, G key-value heads, hd head_dim, P rows of
activations. Projections are (out, in), read by `pico_analyze.components.projections`, which also
divides those that a family stores as one matrix. With grouped queries head h uses key-value head
kv(h) = h // (H / G).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pico_contract.errors import DamagedError

from pico_analyze.components.architectures import ATTENTIONS, MLPS, Layout, Role, layouts
from pico_analyze.components.low_rank import Change, cumulative_lora_update, lora_update
from pico_analyze.components.projections import Attention, attention_at, mlp_at
from pico_analyze.linalg.matrix import FactoredMatrix, Matrix
from pico_analyze.sources.base import Source

UPDATES = "updates"
"""The kind W(t2) - W(t1), of the weights or of their circuits, over a window of steps."""


@dataclass(frozen=True)
class Circuit:
    """A component made of several matrices of its owner: an attention, an MLP or a projection.

    Its update is the difference of `load` at the two ends of a window, or `over` of the window.
    """

    kinds: tuple[str, ...]
    known: tuple[Layout, ...]
    """Layouts of its owners; () for low-rank projections."""
    roles: tuple[Role, ...]
    """The projections that it is made of; from activations, the first one's."""
    load: Callable[[Source, str, int, str, str | None], list[Matrix]] | None
    heads: Literal["each", "joined"] | None = "each"
    """Whether each head is a matrix, or all heads are one; None if it has no heads."""
    over: Callable[[Source, str, int, int], Change] | None = None
    of_projection: bool = False
    """Whether its owner is one of several projections of a layer, which its name then contains."""

    def owners(self, modules: Iterable[str], kind: str) -> dict[str, Layout | None]:
        """Map modules that have the circuit, such as `model.layers.0.self_attn`, to their layout.

        Args:
            modules: the modules that store `kind`.
        """
        if not self.known:
            ending = ".lora_B"
            return {
                name.removesuffix(ending): None for name in modules if name.endswith(ending)
            }
        # Activations of the first role are enough: weights provide the rest.
        roles = self.roles[:1] if kind == "activations" else self.roles
        return dict(layouts(modules, self.known, roles))


def ov_circuit(
    source: Source, module: str, step: int, kind: str, split: str | None
) -> list[Matrix]:
    """Compute OV_h = O[:, h] @ V[kv(h)], (D, D) of rank at most hd, for each head.

    From activations it is the circuit's output v_out[:, kv(h)] @ O[:, h]^T, (P, D).

    Row-vector convention: x @ OV_h^T is what head h writes to the residual stream when it attends
    to x alone. Source: Elhage et al. 2021, "A mathematical framework for transformer circuits".
    """
    attention = attention_at(source, module, step, OV)
    output = attention.rows("output", "weights")  # (D, H * hd)
    states = attention.rows("value", kind, split)  # (G * hd, D), or of activations (G * hd, P)
    outputs, values = _output_and_value(attention, output, states)
    heads = zip(outputs, values, strict=True)
    if kind == "weights":
        return [FactoredMatrix(o, v) for o, v in heads]
    # Rows of activations are stored as columns here, see `Attention.rows`.
    return [FactoredMatrix(v.T, o.T) for o, v in heads]


def ov_induced_change(
    source: Source, module: str, step: int, kind: str, split: str | None
) -> list[Matrix]:
    """Compute dO[:, h] @ V[kv(h)] + O[:, h] @ dV[kv(h)], (D, D), for each head.

    Its rank is at most 2 hd. dO and dV are gradients of the weights. The first-order change of OV_h
    that one step of gradient descent induces is this times minus the learning rate: for O - a dO
    and V - a dV the circuit changes by -a (dO V + O dV) + a^2 dO dV. It is not the gradient of the
    loss with respect to OV_h, which gradients of the two factors do not determine. In pico-analyze
    1.x a similar product was `ov_circuit` of gradients.
    """
    attention = attention_at(source, module, step, OV)
    output = attention.rows("output", "weights")
    value = attention.rows("value", "weights")
    d_output = attention.rows("output", kind, split)
    d_value = attention.rows("value", kind, split)
    outputs, values = _output_and_value(attention, output, value)
    d_outputs, d_values = _output_and_value(attention, d_output, d_value)
    heads = zip(outputs, values, d_outputs, d_values, strict=True)
    return [
        FactoredMatrix.sum_of(FactoredMatrix(d_o, v), FactoredMatrix(o, d_v))
        for o, v, d_o, d_v in heads
    ]


def ov_circuit_joined(
    source: Source, module: str, step: int, kind: str, split: str | None
) -> list[Matrix]:
    """Lay `ov_circuit` of all heads side by side: (D, H * D), from activations (P, H * D).

    Activations are v_out (P, G * hd) @ R (G * hd, H * D), block g of R the O[:, h]^T of the heads h
    that share key-value head g; weights are O (D, H * hd) @ R (H * hd, H * D), block h of R being
    V[kv(h)].

    It is rarely useful: a model sums what its heads write and never lays it side by side. Its rank
    and similarities are those of all heads together, dominated by the heads that write most, and R
    has H times the columns of one head's factor. pico-analyze 1.x printed it beside the heads.
    """
    products = _products(ov_circuit(source, module, step, kind, split))
    group = 1
    if kind != "weights":
        # Heads that share a key-value head share the left factor too.
        group = len(products) // attention_at(source, module, step, OV).heads.groups
    return [_side_by_side(products, group)]


def ov_induced_change_joined(
    source: Source, module: str, step: int, kind: str, split: str | None
) -> list[Matrix]:
    """Lay `ov_induced_change` of all heads side by side: (D, H * D).

    Its factors are (D, 2 H * hd) and (2 H * hd, H * D). It is as rarely useful as
    `ov_circuit_joined`.
    """
    changes = ov_induced_change(source, module, step, kind, split)
    return [_side_by_side(_products(changes), 1)]


def _products(matrices: Sequence[Matrix]) -> list[FactoredMatrix]:
    return [matrix for matrix in matrices if isinstance(matrix, FactoredMatrix)]


def _side_by_side(products: Sequence[FactoredMatrix], group: int) -> FactoredMatrix:
    """Join products as [A_0 B_0, A_1 B_1, ...], (m, H * n); each `group` in turn shares one A."""
    blocks = []
    for start in range(0, len(products), group):
        rights = [product.right for product in products[start : start + group]]
        blocks.append(torch.cat(rights, dim=1))
    left = torch.cat([product.left for product in products[::group]], dim=1)
    return FactoredMatrix(left, torch.block_diag(*blocks))


def qk_circuit(
    source: Source, module: str, step: int, kind: str, split: str | None
) -> list[Matrix]:
    """Compute QK_h = Q[h]^T @ K[kv(h)], (D, D) of rank at most hd, for each head.

    x_i @ QK_h @ x_j^T is sqrt(hd) times the score with which position i attends to position j,
    before the softmax, in a model without position embeddings within attention. In ours rotary
    embeddings lie between the two: the score is that of Q[h]^T @ R(j - i) @ K[kv(h)] with R a
    rotation by the distance, so that QK_h is the circuit at distance 0. Source: Elhage et al. 2021,
    "A mathematical framework for transformer circuits".
    """
    attention = attention_at(source, module, step, QK)
    query = attention.rows("query", kind)  # (H * hd, D)
    key = attention.rows("key", kind)  # (G * hd, D)
    group = _group(attention, query.shape[0], key.shape[0])
    head_dim = query.shape[0] // attention.heads.queries
    keys = key.split(head_dim)
    circuits: list[Matrix] = []
    for head, q in enumerate(query.split(head_dim)):
        k = keys[head // group]
        circuits.append(FactoredMatrix(q.T, k))
    return circuits


def mlp_path(
    source: Source, module: str, step: int, kind: str, split: str | None
) -> list[Matrix]:
    """Compute down @ up, (D, D): the MLP's map of the residual stream if every gate passes 1.

    The MLP itself is x -> down (silu(gate x) * up x), so this is its path with the nonlinearity
    left out. Source: Elhage et al. 2021, "A mathematical framework for transformer circuits"
    (virtual weights).
    """
    up, down = mlp_at(source, module, step, kind)
    return [FactoredMatrix(down, up)]


def _group(attention: Attention, queries: int, keys: int) -> int:
    """Count the query heads that share a key-value head.

    Args:
        queries: the width of all query heads together.
        keys: the width of all key-value heads together.

    Raises:
        DamagedError: the model's configuration does not match these widths.
    """
    heads, groups = attention.heads
    if queries % heads or heads % groups or keys * heads != queries * groups:
        counts = f"{heads} heads and {groups} key-value heads"
        raise DamagedError(
            f"the configuration of {attention.source.name} has {counts}, its matrices are {queries} and {keys} wide"
        )
    return heads // groups


def _output_and_value(
    attention: Attention, output: torch.Tensor, value: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Cut output (D, H * hd) and value (G * hd, any) into heads.

    Returns:
        O[:, h], H of (D, hd), and V[kv(h)], H of (hd, any).
    """
    group = _group(attention, output.shape[1], value.shape[0])
    heads = attention.heads.queries
    head_dim = output.shape[1] // heads
    # With grouped queries several query heads read one key-value head.
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
