"""Modules of the earlier decoder, and the translation of its substrings into our patterns."""

from __future__ import annotations

from collections import Counter
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
    """List the earlier names of all modules with weights in a decoder of that many layers."""
    modules = []
    for layer in range(layers):
        modules += [f"layers.{layer}.{component}" for component in (*LINEAR, *NORMS)]
    return [*modules, *OUTSIDE]


def linear_modules(layers: int) -> list[str]:
    """List the earlier names of all linear layers."""
    modules = [name for name in earlier_modules(layers) if name.endswith(LINEAR)]
    return [*modules, "de_embedding_proj"]


def chosen_patterns(
    fits: Callable[[str], bool], modules: Iterable[str], layers: int
) -> list[str]:
    """Write patterns that choose exactly the `modules` (earlier names) that `fits` accepts.

    A component that is chosen in every layer becomes one pattern (`self_attn.v_proj`); other
    modules are named one by one.
    """
    # `fits` sees the earlier names, in which the earlier code looked for its substrings.
    chosen = [names.canonical(module) for module in modules if fits(module)]
    counts = Counter(names.parse(name).component for name in chosen)
    components = [names.parse(f"layers.0.{earlier}").component for earlier in (*LINEAR, *NORMS)]
    patterns = [component for component in components if counts[component] == layers]
    single = [name for name in chosen if names.parse(name).component not in patterns]
    return [*patterns, *single]
