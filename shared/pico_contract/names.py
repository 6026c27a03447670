"""Module names: Hugging Face Llama's, what each one is, the aliases of earlier Pico code, and
pattern matching."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from pico_contract.errors import UserError, nearest

_WRAPPERS = re.compile(
    r"^(?:(?:_forward_module|_orig_mod|module|pico_decoder)\.)+|(?<=\.)_orig_mod\."
)
_OF_EARLIER_CODE = re.compile(
    r"(?:layers\.|embedding_proj\b|de_embedding_proj\b|output_norm\b|attention|swiglu)"
)
_GLOB = re.compile(r"[*?\[]")
_EARLIER = (
    (re.compile(r"\battention_norm\b"), "input_layernorm"),
    (re.compile(r"\bswiglu_norm\b"), "post_attention_layernorm"),
    (re.compile(r"\battention\.(?=[qkvo]_proj|[*?\[])"), "self_attn."),
    (re.compile(r"\bswiglu\.(?=[*?\[])"), "mlp."),
    (re.compile(r"\bswiglu\.w_0\b"), "mlp.gate_proj"),
    (re.compile(r"\bswiglu\.w_1\b"), "mlp.up_proj"),
    (re.compile(r"\bswiglu\.w_2\b"), "mlp.down_proj"),
    (re.compile(r"^embedding_proj\b"), "model.embed_tokens"),
    (re.compile(r"^de_embedding_proj\b"), "lm_head"),
    (re.compile(r"^output_norm\b"), "model.norm"),
    (re.compile(r"^layers\."), "model.layers."),
)
_LAYER = re.compile(
    r"^((?:[^.]+\.)*?(?:\w*layers?|\w*blocks?|\w*layer_groups|h))\.(\d+)\.(.+)$"
)
"""The name before the number of a layer, the number, and the name within the layer."""
_KINDS = {
    "self_attn": "attention",
    "mlp": "mlp",
    "input_layernorm": "norm",
    "post_attention_layernorm": "norm",
    "model.norm": "norm",
    "model.embed_tokens": "embedding",
    "lm_head": "head",
}
_LOW_RANK = re.compile(
    r"(?P<module>.+)\.(?:(?P<part>lora_A|lora_B|base|merged_A|merged_B)\.weight|(?P<scalar>lora_scale|lora_gain))"
)


@dataclass(frozen=True)
class ModuleName:
    """The parts of a module's name.

    Attributes:
        layer: number of its layer, None outside the layers.
        kind: one of attention, mlp, norm, embedding, head, other.
        component: the name within its layer, such as `self_attn.q_proj`.
        stack: the name before the number of its layer, such as `model.layers`; empty outside the
            layers.
    """

    name: str
    layer: int | None
    kind: str
    component: str
    stack: str = ""


def canonical(name: str) -> str:
    """Return the Hugging Face name for `name`, which may be a wrapped name or one of earlier Pico
    code.

    `_forward_module.layers.0.swiglu.w_2` -> `model.layers.0.mlp.down_proj`; a name already in use
    is unchanged. Works on glob patterns as well, since only whole name parts are replaced. Names of
    other families that share a part with earlier Pico code (`transformer.h.0.attn.attention.q_proj`
    of GPT-Neo) are unchanged.
    """
    name = _WRAPPERS.sub("", name)
    if not (_OF_EARLIER_CODE.match(name) or _GLOB.search(name)):
        return name
    for pattern, replacement in _EARLIER:
        name = pattern.sub(replacement, name)
    return name


def parse(name: str) -> ModuleName:
    """Split a module (or parameter) name into layer, kind and component; aliases are accepted.

    The layer is the first number that follows a part such as `layers`, `layer`, `block`,
    `resblocks` or `h`: in `encoder.block.2.layer.0.SelfAttention.q` it is 2, and `layer.0` is part
    of the component.
    """
    name = canonical(name)
    match = _LAYER.match(name)
    if match is None:
        return ModuleName(name, None, _kind_of(name), name)
    stack, layer, component = match.groups()
    return ModuleName(name, int(layer), _kind_of(component), component, stack)


def _kind_of(component: str) -> str:
    for part, kind in _KINDS.items():
        if f"{component}.".startswith(f"{part}."):
            return kind
    return "other"


def stack_prefixes(modules: Iterable[str]) -> dict[str, str]:
    """Find a prefix for each stack of layers that shares a component with another: stack -> prefix.

    {`model.encoder.layers`: `encoder`, `model.decoder.layers`: `decoder`} for the modules of BART;
    a stack that shares no component with another, as that of a decoder-only model, is not in it.
    """
    stacks_of: dict[str, set[str]] = {}
    for module in map(parse, modules):
        if module.layer is not None:
            stacks_of.setdefault(module.component, set()).add(module.stack)
    shared = [stacks for stacks in stacks_of.values() if len(stacks) > 1]
    stacks = sorted(set().union(*shared))
    return {stack: _distinguishing(stack, stacks) for stack in stacks}


def _distinguishing(stack: str, stacks: Sequence[str]) -> str:
    """Return the parts of `stack` behind those that all `stacks` begin with, as many as no other
    has."""
    parts = stack.split(".")
    rivals = [other.split(".") for other in stacks if other != stack]
    shared = [_count_shared(parts, rival) for rival in rivals]
    common = min(*shared, len(parts) - 1)
    end = min(max(shared) + 1, len(parts))
    # A number says nothing without the word before it.
    start = common - 1 if parts[common].isdigit() else common
    return ".".join(parts[start:end])


def _count_shared(parts: Sequence[str], rival: Sequence[str]) -> int:
    """Count the parts that two names have in common at their beginning."""
    pairs = zip(parts, rival, strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def lora_A(module: str) -> str:
    """Name the tensor (r, in) of a low-rank module that reads its input: the update is scale * B @
    A."""
    return f"{module}.lora_A.weight"


def lora_B(module: str) -> str:
    """Name the tensor (out, r) of a low-rank module that writes its output; zero when a cycle
    begins."""
    return f"{module}.lora_B.weight"


def lora_scale(module: str) -> str:
    """Name the tensor (1,) that holds the factor of B @ A."""
    return f"{module}.lora_scale"


def lora_gain(module: str) -> str:
    """Name the parameter (1,) from which a trainable scale is made; only its gradients are
    stored."""
    return f"{module}.lora_gain"


def base(module: str) -> str:
    """Name the tensor (out, in) to which a low-rank module adds its update."""
    return f"{module}.base.weight"


def merged_A(module: str) -> str:
    """Name the tensor (r, in) of the cycle that a restart ended; only at the step of the
    restart."""
    return f"{module}.merged_A.weight"


def merged_B(module: str) -> str:
    """Name the tensor (out, r) of the cycle that a restart ended, scale included; only at the step
    of the restart."""
    return f"{module}.merged_B.weight"


def low_rank_part(tensor: str) -> tuple[str, str] | None:
    """Split the name of a tensor that only low-rank modules have into module and part; None for any
    other.

    `model.layers.0.mlp.up_proj.lora_A.weight` -> (`model.layers.0.mlp.up_proj`, `lora_A`).
    """
    match = _LOW_RANK.fullmatch(tensor)
    return (match["module"], match["part"] or match["scalar"]) if match else None


def match(patterns: str | Sequence[str], names: Iterable[str]) -> list[str]:
    """Choose the `names` that fit any of the glob `patterns`, in their order.

    A pattern is compared with the whole name and with its endings at a dot, so `v_proj`,
    `self_attn.v_proj` and `model.layers.*.self_attn.v_proj` all work; `*` crosses dots. Aliases of
    earlier Pico code are accepted.

    Raises:
        UserError: a pattern fits nothing; the sentence names it and the nearest names.
    """
    names = list(names)
    chosen: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        hits = [name for name in names if fits(pattern, name)]
        if not hits:
            raise UserError(_nothing_fits(pattern, names))
        chosen.update(hits)
    return [name for name in names if name in chosen]


def fits(pattern: str, name: str) -> bool:
    """Whether a glob pattern fits `name`, as in `match`."""
    endings = _endings(canonical(name))
    # Both spellings, since `attention.*` is a name of other families as well as an alias.
    spellings = {pattern, canonical(pattern)}
    return any(
        fnmatch.fnmatchcase(ending, spelling) for ending in endings for spelling in spellings
    )


def _endings(name: str) -> list[str]:
    """List the endings of a name at its dots, itself included."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _nothing_fits(pattern: str, names: list[str]) -> str:
    endings: set[str] = set()
    for name in names:
        endings.update(_endings(name))
    near = nearest(canonical(pattern), endings, limit=3) or sorted(names)[:3]
    listed = ", ".join(near) or "(there are none)"
    return f'the pattern "{pattern}" matches no module; the nearest names are: {listed}'
