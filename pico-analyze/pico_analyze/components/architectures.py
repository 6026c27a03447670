"""The names of the projections of attention and MLP by family of models, and of fused matrices.

Shapes: D hidden_size, H query heads, G key-value heads, hd head_dim, I intermediate_size. Matrices
are those of linear layers: query (H * hd, D), key and value (G * hd, D), output (D, H * hd), up
(I, D), down (D, I). To support another family, add the names of its projections and, if they are
fused, how they are divided.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch

from pico_analyze.sources.model_config import Heads, stack_of

Role = Literal["query", "key", "value", "output", "up", "down"]


class Layout(NamedTuple):
    """The names of the matrices of one attention or MLP, each below the module that owns them.

    A name that several roles share is a fused matrix. `half`, 0 or 1, is the half of the MLP's
    fused matrix to which no nonlinearity is applied.
    """

    names: Mapping[Role, str]
    half: int | None = None

    def is_fused(self, role: Role) -> bool:
        """Whether the matrix of `role` contains those of other roles too."""
        return list(self.names.values()).count(self.names[role]) > 1


def _separate(query: str, key: str, value: str, output: str) -> Layout:
    return Layout({"query": query, "key": key, "value": value, "output": output})


def _fused(name: str, output: str) -> Layout:
    return _separate(name, name, name, output)


def _mlp(up: str, down: str, half: int | None = None) -> Layout:
    return Layout({"up": up, "down": down}, half)


ATTENTIONS = (
    _separate("q_proj", "k_proj", "v_proj", "o_proj"),  # Llama, Mistral, Qwen, Gemma, OLMo, ...
    _separate(
        "q_proj", "k_proj", "v_proj", "out_proj"
    ),  # OPT, GPT-J, GPT-Neo, BART, Whisper, CLIP
    _separate("q_proj", "k_proj", "v_proj", "dense"),  # Phi
    _separate("self.query", "self.key", "self.value", "output.dense"),  # BERT, RoBERTa
    _separate("attention.query", "attention.key", "attention.value", "output.dense"),  # ViT
    _separate("self.query_proj", "self.key_proj", "self.value_proj", "output.dense"),  # DeBERTa
    _separate("query", "key", "value", "dense"),  # ALBERT
    _separate("q_lin", "k_lin", "v_lin", "out_lin"),  # DistilBERT, XLM
    _separate("query_proj", "key_proj", "value_proj", "out_proj"),  # ProphetNet
    _separate("q", "k", "v", "o"),  # T5
    _separate("wq", "wk", "wv", "wo"),  # Llama as Meta stores it
    _separate("Wq", "Wk", "Wv", "dense"),  # CTRL
    _fused("c_attn", "c_proj"),  # GPT-2, GPT-BigCode, Qwen 1
    _fused("query_key_value", "dense"),  # GPT-NeoX, BLOOM, Falcon, Persimmon, ChatGLM
    _fused("qkv_proj", "o_proj"),  # Phi-3
    _fused("qkv_proj", "out_proj"),  # CodeGen, OpenELM
    _fused("Wqkv", "out_proj"),  # MPT, DBRX
    _fused("Wqkv", "Wo"),  # ModernBERT
    _fused("wqkv", "wo"),  # InternLM2
    _fused("W_pack", "o_proj"),  # Baichuan
    _fused("att_proj", "attn_out"),  # hf_olmo
    _fused("in_proj_weight", "out_proj"),  # torch.nn.MultiheadAttention, OpenCLIP
    _fused("qkv", "proj"),  # timm, vision towers of Qwen-VL
)
MLPS = (
    _mlp("up_proj", "down_proj"),
    _mlp("fc1", "fc2"),  # OPT, Phi, BART, CLIP
    _mlp("fc_in", "fc_out"),  # GPT-J, CodeGen
    _mlp("c_fc", "c_proj"),  # GPT-2, GPT-Neo
    _mlp("w3", "w2"),  # Mixtral; w1 is the gate
    _mlp("w1", "c_proj"),  # Qwen 1; w2 is the gate
    _mlp("wi_1", "wo"),  # T5 1.1; wi_0 is the gate
    _mlp("wi", "wo"),  # T5
    _mlp("lin1", "lin2"),  # DistilBERT
    _mlp("intermediate.dense", "output.dense"),  # BERT
    _mlp("dense_h_to_4h", "dense_4h_to_h", half=1),  # GPT-NeoX, BLOOM, Falcon; fused in ChatGLM
    _mlp("gate_up_proj", "down_proj", half=1),  # Phi-3: [gate; up]
    _mlp("ff_proj", "ff_out", half=0),  # hf_olmo: [up; gate]
    _mlp("Wi", "Wo", half=1),  # ModernBERT: [input of the nonlinearity; factor]
)


class Division(NamedTuple):
    """The division of the rows of a fused projection into equal `blocks`.

    Each block has an equal share of every role, in `order`.
    """

    blocks: int | Literal["groups"]
    order: tuple[Role, Role, Role] = ("query", "key", "value")


_STACKED = Division(1)
_BY_GROUP = Division("groups")  # with one head a group: by head
_BY_NAME = {
    **dict.fromkeys(("Wqkv", "W_pack", "att_proj", "in_proj_weight", "qkv"), _STACKED),
}
"""Divisions by the name of the fused matrix, where no family uses the name otherwise."""
_BY_MODEL_TYPE = {
    **dict.fromkeys(
        ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "qwen"), _STACKED
    ),
    **dict.fromkeys(("phi3", "phi3small", "phi4mm", "openelm", "chatglm"), _STACKED),
    **dict.fromkeys(
        ("gpt_neox", "gpt_neox_japanese", "bloom", "persimmon", "gpt_bigcode", "internlm2"),
        _BY_GROUP,
    ),
    **dict.fromkeys(("falcon", "RefinedWeb", "RefinedWebModel"), _BY_GROUP),
    "codegen": Division(
        4, ("query", "value", "key")
    ),  # four blocks, from training on four devices
}
_BY_PATH = {"gpt_neox": _BY_GROUP}
"""Divisions by a part of the module's name, for models whose configuration names no family."""
TRANSPOSED = ("c_attn", "c_fc")
"""Names of fused or widening matrices that GPT-2 stores as (in, out).

All other matrices of the same attention or MLP are then stored in this way too.
"""
_TRANSPOSING = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_LIKE_A_PROJECTION = re.compile(
    r"\w*qkv\w*|query_key_value|v_proj|value|c_attn|att_proj|w_pack|in_proj_weight|kv_[ab]_proj\w*",
    re.IGNORECASE,
)
"""Names by which a projection of attention is recognised if no layout fits it."""
_NORM = re.compile(r"(?:^|\.)((?:q|k|query|key|qk)_?(?:layer_?)?(?:norm|ln))\b")


def query_key_norms(tensors: Iterable[str]) -> list[str]:
    """Name the norms of queries and keys, such as `q_norm`; [] for a model without them."""
    matches = (_NORM.search(name) for name in tensors)
    return list(dict.fromkeys(match[1] for match in matches if match))


def layouts(
    modules: Iterable[str], known: Iterable[Layout], roles: Sequence[Role]
) -> dict[str, Layout]:
    """Map each module that owns an attention or MLP to its layout, if `modules` has all `roles`.

    Args:
        known: `ATTENTIONS` or `MLPS`; the first that fits counts.
    """
    names = dict.fromkeys(modules)
    by_ending: dict[str, list[Layout]] = {}
    for layout in known:
        by_ending.setdefault(_ending(layout.names[roles[0]]), []).append(layout)
    owners: dict[str, Layout] = {}
    taken: set[str] = set()
    # Layouts of which every role exists go first: parts of names of one family are whole names of
    # another.
    for needs_every_role in (True, False):
        for module in names:
            if module in taken:
                continue
            for layout in by_ending.get(_ending(module), ()):
                owner = module.removesuffix(f".{layout.names[roles[0]]}")
                needed = layout.names if needs_every_role else roles
                projections = [f"{owner}.{layout.names[role]}" for role in needed]
                if owner != module and all(name in names for name in projections):
                    owners.setdefault(owner, layout)
                    taken.add(module)
    return {
        owner: layout
        for module in names
        for owner, layout in _owner_of(module, owners, roles[0])
    }


def _ending(name: str) -> str:
    return name.rpartition(".")[2]


def _owner_of(
    module: str, owners: Mapping[str, Layout], role: Role
) -> Iterator[tuple[str, Layout]]:
    """Yield the owner of a projection, so that owners keep the order of modules."""
    for parts in (1, 2):
        owner = module.rsplit(".", parts)[0]
        if owner in owners and f"{owner}.{owners[owner].names[role]}" == module:
            yield owner, owners[owner]


def division_of(model: Mapping[str, Any], owner: str, layout: Layout) -> Division | None:
    """Find the division of an attention's fused projection by its name, the family or its path."""
    name = layout.names["query"]
    family = stack_of(model, owner).get("model_type")
    if name == "c_attn" and family is None:
        return _STACKED  # as in GPT-2; every newer family says its name
    if name in _BY_NAME:
        return _BY_NAME[name]
    if str(family) in _BY_MODEL_TYPE:
        return _BY_MODEL_TYPE[str(family)]
    for part, division in _BY_PATH.items():
        if part in owner.split("."):
            return division
    return None


def divided(fused: torch.Tensor, division: Division, heads: Heads) -> dict[Role, torch.Tensor]:
    """Divide a fused projection ((H + 2 G) * hd, any) into the rows of each role.

    These are query (H * hd, any), key and value (G * hd, any).

    Raises:
        ValueError: the rows are not those of so many heads.
    """
    blocks = heads.groups if division.blocks == "groups" else division.blocks
    rows = fused.shape[0]
    total = heads.queries + 2 * heads.groups
    if rows % total or heads.queries % blocks or heads.groups % blocks:
        raise ValueError(
            f"{rows} rows are not those of {heads.queries} heads and {heads.groups} key-value heads"
        )
    head_dim = rows // total
    query_rows = heads.queries // blocks * head_dim
    group_rows = heads.groups // blocks * head_dim
    sizes: dict[Role, int] = {
        "query": query_rows,
        "key": group_rows,
        "value": group_rows,
    }
    by_block = fused.unflatten(0, (blocks, -1))
    parts = by_block.split([sizes[role] for role in division.order], dim=1)
    divided_rows = {}
    for role, part in zip(division.order, parts, strict=True):
        divided_rows[role] = part.flatten(0, 1)
    return divided_rows


def is_transposed(model: Mapping[str, Any], owner: str, weight: torch.Tensor) -> bool:
    """Whether a matrix with a name of `TRANSPOSED` is stored as (in, out), like GPT-2's Conv1D."""
    configuration = stack_of(model, owner)
    if "model_type" in configuration:
        return configuration["model_type"] in _TRANSPOSING
    # These matrices widen, so the smaller side is their input.
    return weight.shape[0] < weight.shape[1]


def unrecognised(modules: Iterable[str], owners: Iterable[str]) -> list[str]:
    """List modules that look like projections of an attention but belong to none of `owners`."""
    known = tuple(f"{owner}." for owner in owners)
    alike = (name for name in modules if _LIKE_A_PROJECTION.fullmatch(_ending(name)))
    return [name for name in alike if not name.startswith(known)]
