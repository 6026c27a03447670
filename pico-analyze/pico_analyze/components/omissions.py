"""What an analysis does not measure of a model, said in sentences: matrices, tensors of experts,
circuits."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence

from pico_contract.errors import UserError
from pico_contract.names import parse

from pico_analyze.components.architectures import query_key_norms
from pico_analyze.components.select import (
    DEFAULT_CIRCUITS,
    layer_matrices,
    omitted_circuits,
    parse_circuit,
)
from pico_analyze.sources.base import Source


def omissions(source: Source, components: Sequence[str] | None) -> list[str]:
    """What a measurement of weights leaves out where `components` are chosen, by default where
    nothing is."""
    modules, tensors = _last(source)
    circuits = [name for name, _ in map(parse_circuit, components or DEFAULT_CIRCUITS) if name]
    found = (
        omitted_circuits(circuits, {"weights": modules}, source.model) if components is None else []
    )
    if components is None:
        found = [*_outside(modules), *_not_matrices(tensors), *found]
    return found + ([caveat] if "qk_circuit" in circuits and (caveat := norms_of(tensors)) else [])


class OmittedWarning(UserWarning):
    """A circuit was asked for that some part of the model does not have; the rest was measured."""


def report_omissions(
    run: Source, components: Sequence[str] | None, modules: Mapping[str, Sequence[str]], empty: bool
) -> None:
    """Warn of circuits that `components` name and that the model lacks.

    Args:
        modules: kind -> those of which it is there.
        empty: whether nothing else is measured.

    Raises:
        UserError: nothing else is measured.
    """
    circuits = [circuit for circuit, _ in map(parse_circuit, components or ()) if circuit]
    sentences = omitted_circuits(circuits, modules, run.model)
    if empty and sentences:
        raise UserError(f'nothing to measure in run "{run.name}": {"; ".join(sentences)}')
    for sentence in sentences:
        warnings.warn(sentence, OmittedWarning, stacklevel=5)


def coverage_lines(source: Source) -> list[str]:
    """Which circuits the weights of a source have, which not and why, and what is no matrix: lines
    of `inspect`."""
    modules, tensors = _last(source)
    if not modules:
        return []
    wanted = ("ov_circuit", "qk_circuit", "mlp_path")
    lacking = omitted_circuits(wanted, {"weights": modules}, source.model)
    has = [
        name for name in wanted if not any(sentence.startswith(f"{name} ") for sentence in lacking)
    ]
    caveat = norms_of(tensors) if "qk_circuit" in has else None
    lines = [f"circuits of weights: {', '.join(has)}"] if has else []
    return [*lines, *lacking, *([caveat] if caveat else []), *_not_matrices(tensors)]


def norms_of(tensors: Iterable[str]) -> str | None:
    """A sentence on what QK circuits are of a model that normalises queries and keys; None of any
    other."""
    norms = query_key_norms(tensors)
    if not norms:
        return None
    return (
        f"qk_circuit is not the score: this model normalises queries and keys ({', '.join(norms)}) before it compares "
        "them, and gains and norms are not part of the circuit"
    )


def _last(source: Source) -> tuple[list[str], Mapping[str, tuple[int, ...]]]:
    """The modules of the last step that holds weights, and its tensors with their shapes, as far as
    they are known."""
    steps = [step for step in source.steps if source.splits(step, "weights")]
    if not steps:
        return [], {}
    modules = source.modules(steps[-1], "weights")
    tensors = getattr(source, "tensors", None)
    return modules, tensors(steps[-1]) if tensors else dict.fromkeys(modules, ())


def _outside(modules: Sequence[str]) -> list[str]:
    """The matrices that the default leaves out, those of several layers under one name."""
    measured = set(layer_matrices(modules))
    others = [name for name in modules if name not in measured and _is_offered(name)]
    names = list(dict.fromkeys(parse(name).component for name in others))
    if not names:
        return []
    return [
        f"by default only matrices of the layers are measured; choose others by components: {', '.join(names)}"
    ]


def _is_offered(module: str) -> bool:
    return not module.endswith("norm") and parse(module).kind != "norm" and ".lora_" not in module


def _not_matrices(tensors: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The tensors of the layers with more than two dimensions, such as those of all experts of a
    layer in one."""
    found = {
        parse(name).component: shape for name, shape in tensors.items() if _is_stack(name, shape)
    }
    if not found:
        return []
    names = ", ".join(f"{name} {shape}" for name, shape in found.items())
    return [f"tensors that hold several matrices are not measured: {names}"]


def _is_stack(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) > 2 and min(shape) > 1 and parse(name).layer is not None
