"""Modules of the earlier decoder, and how its substrings of module names become patterns of
ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pico_contract import names

LINEAR = (
    "attention.q_proj",
    "attention.k_proj",
    "attention.v_proj",
    "attention.o_proj",
    "swiglu.w_0",
    "swiglu.w_1",
    "swiglu.w_2",
)
"""Linear modules of a layer."""
NORMS = ("attention_norm", "swiglu_norm")
OUTSIDE = ("embedding_proj", "output_norm", "de_embedding_proj")
"""Modules outside the layers."""


def earlier_modules(layers: int) -> list[str]:
    """Every module with a weight of an earlier decoder of that many layers, by its earlier name."""
    inside = [
        f"layers.{layer}.{component}" for layer in range(layers) for component in (*LINEAR, *NORMS)
    ]
    return [*inside, *OUTSIDE]


def linear_modules(layers: int) -> list[str]:
    """Those of `earlier_modules` that are linear layers."""
    chosen = (*LINEAR, "de_embedding_proj")
    return [
        module
        for module in earlier_modules(layers)
        if module.endswith(chosen) and module != "embedding_proj"
    ]


def chosen_patterns(fits: Callable[[str], bool], modules: Iterable[str], layers: int) -> list[str]:
    """Our patterns for exactly those of `modules` (earlier names) that `fits` takes.

    A component that is taken in every layer becomes one pattern (`self_attn.v_proj`); others are
    named one by one.
    """
    taken = [names.canonical(module) for module in modules if fits(module)]
    everywhere = [
        component for component in (*LINEAR, *NORMS) if _count(component, taken) == layers
    ]
    patterns = [_component(component) for component in everywhere]
    single = [name for name in taken if names.parse(name).component not in patterns]
    return [*patterns, *single]


def _component(earlier: str) -> str:
    return names.parse(f"layers.0.{earlier}").component


def _count(earlier: str, taken: list[str]) -> int:
    return sum(names.parse(name).component == _component(earlier) for name in taken)
