"""Sentences on the parts of a model that an analysis does not measure."""

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
    """Say what a measurement of weights leaves out, and what QK circuits leave out."""
    modules, tensors = _last(source)
    circuits = _circuits_among(components or DEFAULT_CIRCUITS)
    sentences: list[str] = []
    if components is None:
        lacking = omitted_circuits(circuits, {"weights": modules}, source.model)
        sentences = [*_outside(modules), *_not_matrices(tensors), *lacking]
    caveat = norms_of(tensors)
    if "qk_circuit" in circuits and caveat:
        sentences.append(caveat)
    return sentences


def _circuits_among(components: Sequence[str]) -> list[str]:
    circuits = (parse_circuit(component)[0] for component in components)
    return [circuit for circuit in circuits if circuit]


class OmittedWarning(UserWarning):
    """A warning that some part of the model lacks a circuit; the rest was measured."""


def report_omissions(
    run: Source,
    components: Sequence[str] | None,
    modules: Mapping[str, Sequence[str]],
    empty: bool,
) -> None:
    """Warn of circuits that `components` name and that the model lacks.

    Args:
        modules: kind -> the modules that store it.
        empty: whether nothing else is measured.

    Raises:
        UserError: nothing else is measured.
    """
    circuits = _circuits_among(components or ())
    sentences = omitted_circuits(circuits, modules, run.model)
    if empty and sentences:
        raise UserError(f'nothing to measure in run "{run.name}": {"; ".join(sentences)}')
    # The level is the distance to the caller of `measure`.
    for sentence in sentences:
        warnings.warn(sentence, OmittedWarning, stacklevel=4)


def coverage_lines(source: Source) -> list[str]:
    """List the circuits that the weights have and lack, and tensors that are not matrices."""
    modules, tensors = _last(source)
    if not modules:
        return []
    wanted = ("ov_circuit", "qk_circuit", "mlp_path")
    lacking = omitted_circuits(wanted, {"weights": modules}, source.model)
    # Each sentence begins with the name of the circuit that is lacking.
    lacking_names = {sentence.split(" ")[0] for sentence in lacking}
    available = [name for name in wanted if name not in lacking_names]
    lines = [f"circuits of weights: {', '.join(available)}"] if available else []
    lines += lacking
    caveat = norms_of(tensors)
    if "qk_circuit" in available and caveat:
        lines.append(caveat)
    return [*lines, *_not_matrices(tensors)]


def norms_of(tensors: Iterable[str]) -> str | None:
    """Say what QK circuits leave out if the model normalises queries and keys, else None."""
    norms = query_key_norms(tensors)
    if not norms:
        return None
    return (
        f"qk_circuit is not the score: this model normalises queries and keys ({', '.join(norms)}) before it compares "
        "them, and gains and norms are not part of the circuit"
    )


def _last(source: Source) -> tuple[list[str], Mapping[str, tuple[int, ...]]]:
    """Return the modules of the last step with weights, and the shapes of its tensors if known."""
    steps = [step for step in source.steps if source.splits(step, "weights")]
    if not steps:
        return [], {}
    modules = source.modules(steps[-1], "weights")
    tensors = getattr(source, "tensors", None)
    return modules, tensors(steps[-1]) if tensors else dict.fromkeys(modules, ())


def _outside(modules: Sequence[str]) -> list[str]:
    """Name the matrices that the default leaves out, equal ones of several layers once."""
    measured = set(layer_matrices(modules))
    others = [name for name in modules if name not in measured and _is_offered(name)]
    names = list(dict.fromkeys(parse(name).component for name in others))
    if not names:
        return []
    return [
        f"by default only matrices of the layers are measured; choose others by components: {', '.join(names)}"
    ]


def _is_offered(module: str) -> bool:
    return (
        not module.endswith("norm") and parse(module).kind != "norm" and ".lora_" not in module
    )


def _not_matrices(tensors: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Name the tensors of layers with more than two dimensions, such as those of all experts."""
    stacks = {
        parse(name).component: shape
        for name, shape in tensors.items()
        if _is_stack(name, shape)
    }
    if not stacks:
        return []
    names = ", ".join(f"{name} {shape}" for name, shape in stacks.items())
    return [f"tensors that hold several matrices are not measured: {names}"]


def _is_stack(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) > 2 and min(shape) > 1 and parse(name).layer is not None
