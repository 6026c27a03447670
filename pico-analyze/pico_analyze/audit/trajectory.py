"""The path of the weights from step to step: steps that are bit-identical, and steps out of line.

Tensors are read one by one, with at most three steps of one in memory, so that memory does not grow
with the model or the run.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, pairwise
from pathlib import Path

import torch
from pico_contract.codec import TensorFile
from pico_contract.errors import DamagedError
from pico_contract.names import low_rank_part

ASIDE = 3.0
"""A step lies aside if it is this many times farther from both neighbours than they are apart."""
JUMP = 10.0
"""A move is a jump if it is this many times longer than up to two moves on either side.

Moves over fewer steps are first stretched to the same number of steps.
"""
LEAST = 0.05
"""Moves shorter than this share of the tensor's norm are never reported."""

Fault = tuple[str, int, str]
Digests = dict[int, dict[str, bytes]]


def walk(
    paths: Mapping[int, Path],
    still: set[int],
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Fault]:
    """Yield (check, step, sentence) for each fault of the weights in `paths` (step -> file).

    `still` are updates that leave the weights unchanged: steps with only such updates between them
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
    for step, sentences in sorted(odd.items()):
        # One sentence a step: it describes the first tensor and counts the others.
        name, sentence = next(iter(sentences.items()))
        share = f"{len(sentences)} of {len(digests[step])} tensors"
        yield "discontinuity", step, f"{share} are out of line: {name} {sentence}"


def duplicates(digests: Digests, still: set[int]) -> Iterator[tuple[int, int]]:
    """Yield (first, later) steps whose common tensors are all bit-identical.

    A later step is yielded once, with the first step that it equals.
    """
    repeated: set[int] = set()
    for (first, earlier), (step, later) in combinations(digests.items(), 2):
        if step in repeated or not _are_equal(earlier, later):
            continue
        # Without an update between them, equal weights are correct.
        updates = range(first + 1, step + 1)
        if not still.issuperset(updates):
            repeated.add(step)
            yield first, step


def _are_equal(one: Mapping[str, bytes], other: Mapping[str, bytes]) -> bool:
    """Whether two steps have tensors in common, and all of these are equal."""
    common = one.keys() & other.keys()
    return bool(common) and all(one[name] == other[name] for name in common)


class Moves:
    """The distances of one tensor between steps; steps must be added in ascending order."""

    def __init__(self) -> None:
        self.broken: list[int] = []
        self._last: list[torch.Tensor] = []  # of the last two steps
        self._steps: list[int] = []
        self._norms: list[float] = []
        self._near: list[float] = []  # from each step to the next
        self._over: list[float] = []  # from each step to the next but one

    def add(self, step: int, tensor: torch.Tensor) -> bytes:
        """Measure the tensor of a step, and return the sha256 of its bytes."""
        digest = _sha256(tensor)
        values = tensor.float()
        norm = float(torch.linalg.vector_norm(values))
        if not math.isfinite(norm):
            # The step is a finding already: its neighbours are compared with each other instead.
            self.broken.append(step)
            return digest
        distances = [_distance(values, earlier) for earlier in self._last]
        self._near += distances[-1:]
        self._over += distances[:-1]
        self._steps.append(step)
        self._norms.append(norm)
        self._last = [*self._last[-1:], values]
        return digest

    def odd(self) -> dict[int, str]:
        """Describe each step that lies aside of its neighbours, or that a jump leads to."""
        sentences = dict(self._aside())
        # A step aside is left out here: the ways to it and back would hide jumps around it.
        kept = [index for index, step in enumerate(self._steps) if step not in sentences]
        ends = list(pairwise(kept))
        moves = [self._move(start, end) for start, end in ends]
        spans = [self._steps[end] - self._steps[start] for start, end in ends]
        for index, (start, end) in enumerate(ends):
            around = _moves_around(index, moves, spans)
            if len(around) < 2:
                continue
            move, longest = moves[index], max(around)
            if move > JUMP * longest and move > LEAST * self._size(start, end):
                sentences[self._steps[end]] = (
                    f"moves by {self._share(move, start)} of its norm from step {self._steps[start]}, "
                    f"{_times(move, longest)} the moves around it"
                )
        return sentences

    def _aside(self) -> Iterator[tuple[int, str]]:
        """Yield (step, sentence) for each step that is far from two neighbours close together."""
        for index, step in enumerate(self._steps[1:-1], start=1):
            apart = self._over[index - 1]
            away = min(self._near[index - 1], self._near[index])
            size = self._size(index - 1, index, index + 1)
            if away > ASIDE * apart and away > LEAST * size:
                yield step, self._sentence_aside(index, away, apart)

    def _sentence_aside(self, index: int, away: float, apart: float) -> str:
        before, after = self._steps[index - 1], self._steps[index + 1]
        distance = f"{self._share(away, index - 1)} of its norm"
        gap = self._share(apart, index - 1)
        return f"is {distance} away from steps {before} and {after}, which are {gap} apart"

    def _move(self, start: int, end: int) -> float:
        """Return the distance of two steps that are neighbours or have one step between them."""
        if end - start > 2:
            return (
                math.nan
            )  # several steps in a row lie aside: the move across them is not judged
        return self._near[start] if end - start == 1 else self._over[start]

    def _size(self, *indices: int) -> float:
        return max(self._norms[index] for index in indices)

    def _share(self, distance: float, index: int) -> str:
        return f"{distance / self._norms[index]:.2g}" if self._norms[index] else "all"


def _sha256(tensor: torch.Tensor) -> bytes:
    flat = tensor.reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).digest()


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(one - other))


def _moves_around(index: int, moves: Sequence[float], spans: Sequence[int]) -> list[float]:
    """Collect up to two known moves on either side, stretched to the span of the move between."""
    stretched = []
    for other in range(max(index - 2, 0), min(index + 3, len(moves))):
        if other != index and not math.isnan(moves[other]):
            stretched.append(moves[other] * max(1.0, spans[index] / spans[other]))
    return stretched


def _times(move: float, others: float) -> str:
    return f"{move / others:.0f} times" if others else "without"
