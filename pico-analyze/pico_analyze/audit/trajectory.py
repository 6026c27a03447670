"""The path of the weights from step to step: steps that are bit-identical, and steps out of line
with the others.

Tensor by tensor, three steps of one at a time, so that memory does not grow with the model or the
run.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import combinations, pairwise
from pathlib import Path

import torch
from pico_contract.codec import TensorFile
from pico_contract.errors import DamagedError
from pico_contract.names import low_rank_part

ASIDE = 3.0
"""A step lies aside when it is this many times farther from both neighbours than they are from each
other."""
JUMP = 10.0
"""A move is a jump when it is this many times longer than the longest of up to two moves on either
side, where moves over fewer steps count as if they had gone on at their pace."""
LEAST = 0.05
"""Moves shorter than this share of the tensor's norm are never reported."""

Fault = tuple[str, int, str]
Digests = dict[int, dict[str, bytes]]


def walk(
    paths: Mapping[int, Path], still: set[int], progress: Callable[[int, int], None] | None = None
) -> Iterator[Fault]:
    """(check, step, sentence) of what is wrong with the weights in `paths` (step -> file).

    `still` are updates that leave the weights as they are: steps with only such ones between them
    may be equal. Of low-rank modules the effective weights alone count: base and factors are merged
    and reset by design.
    """
    files: dict[int, TensorFile] = {}
    for step, path in sorted(paths.items()):
        try:
            files[step] = TensorFile(path)
        except DamagedError as error:
            yield "damage", step, str(error).removeprefix(str(path)).lstrip()
    stored = dict.fromkeys(name for file in files.values() for name in file.names)
    names = [name for name in stored if low_rank_part(name) is None]
    digests: Digests = {step: {} for step in files}
    odd: dict[int, dict[str, str]] = defaultdict(dict)
    for done, name in enumerate(names, start=1):
        moves = Moves()
        for step, file in files.items():
            if name in file.names:
                try:
                    digests[step][name] = moves.add(step, file.get(name))
                except DamagedError as error:
                    yield "damage", step, str(error)
        for step in moves.broken:
            yield "damage", step, f"{name} holds NaN or infinity"
        for step, sentence in moves.odd().items():
            odd[step][name] = sentence
        if progress:
            progress(done, len(names))
    for first, step in duplicates(digests, still):
        yield "duplicate", step, f"its weights are bit-identical to those of step {first}"
    for step, found in sorted(odd.items()):
        name, sentence = next(iter(found.items()))
        yield (
            "discontinuity",
            step,
            f"{len(found)} of {len(digests[step])} tensors are out of line: {name} {sentence}",
        )


def duplicates(digests: Digests, still: set[int]) -> Iterator[tuple[int, int]]:
    """(first, later) steps whose common tensors are all bit-identical; a later step once, with the
    first it equals."""
    found: set[int] = set()
    for (first, one), (step, other) in combinations(digests.items(), 2):
        common = one.keys() & other.keys()
        if step in found or not common or any(one[name] != other[name] for name in common):
            continue
        if not set(range(first + 1, step + 1)) <= still:
            found.add(step)
            yield first, step


class Moves:
    """How far one tensor moves between the steps that hold it; steps must be added in ascending
    order."""

    def __init__(self) -> None:
        self.broken: list[int] = []
        self._last: list[tuple[int, torch.Tensor]] = []
        self._steps: list[int] = []
        self._norms: list[float] = []
        self._near: list[float] = []  # from each step to the next
        self._over: list[float] = []  # from each step to the next but one

    def add(self, step: int, tensor: torch.Tensor) -> bytes:
        """Note the tensor of a step; the sha256 of its bytes."""
        digest = hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().data).digest()
        values = tensor.float()
        norm = float(torch.linalg.vector_norm(values))
        if not math.isfinite(norm):
            self.broken.append(step)
            return digest
        far = [float(torch.linalg.vector_norm(values - earlier)) for _, earlier in self._last]
        self._near += far[-1:]
        self._over += far[:-1]
        self._steps.append(step)
        self._norms.append(norm)
        self._last = [*self._last[-1:], (step, values)]
        return digest

    def odd(self) -> dict[int, str]:
        """Steps that lie aside of their neighbours, or that a jump leads to, with a sentence."""
        found = dict(self._aside())
        kept = [place for place, step in enumerate(self._steps) if step not in found]
        moves = [self._move(start, end) for start, end in pairwise(kept)]
        for place, (start, end) in enumerate(pairwise(kept)):
            gap, move = self._steps[end] - self._steps[start], moves[place]
            around = [
                moves[other]
                * max(1.0, gap / (self._steps[kept[other + 1]] - self._steps[kept[other]]))
                for other in range(max(place - 2, 0), min(place + 3, len(moves)))
                if other != place and not math.isnan(moves[other])
            ]
            if (
                len(around) >= 2
                and move > JUMP * max(around)
                and move > LEAST * self._size((start, end))
            ):
                found[self._steps[end]] = (
                    f"moves by {self._share(move, start)} of its norm from step {self._steps[start]}, "
                    f"{_times(move, max(around))} the moves around it"
                )
        return found

    def _aside(self) -> Iterator[tuple[int, str]]:
        for place in range(1, len(self._steps) - 1):
            before, after, past = self._near[place - 1], self._near[place], self._over[place - 1]
            nearer = min(before, after)
            if nearer > ASIDE * past and nearer > LEAST * self._size((place - 1, place, place + 1)):
                either = f"{self._steps[place - 1]} and {self._steps[place + 1]}"
                away, apart = self._share(nearer, place - 1), self._share(past, place - 1)
                yield (
                    self._steps[place],
                    f"is {away} of its norm away from steps {either}, which are {apart} apart",
                )

    def _move(self, start: int, end: int) -> float:
        """Between two steps that are neighbours, or have one step that lies aside between them."""
        if end - start > 2:
            return math.nan  # several in a row lie aside: nothing is said of the move across them
        return self._near[start] if end - start == 1 else self._over[start]

    def _size(self, places: Iterable[int]) -> float:
        return max(self._norms[place] for place in places)

    def _share(self, distance: float, place: int) -> str:
        return f"{distance / self._norms[place]:.2g}" if self._norms[place] else "all"


def _times(move: float, others: float) -> str:
    return f"{move / others:.0f} times" if others else "without"
