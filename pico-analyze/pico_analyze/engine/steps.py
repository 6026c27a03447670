"""Choose the steps to be measured, and the step that each is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pico_contract.errors import UserError, did_you_mean

Steps = Sequence[int] | Mapping[str, Any] | None
_KEYS = ("start", "end", "step", "among")
REFERENCES = ("first", "last", "previous", "all", "same")
"""Names of references; "same" is a step of another run, "previous" and "all" are of the run."""


def choose_steps(steps: Steps, known: Sequence[int]) -> tuple[int, ...]:
    """Resolve the steps that are asked for, ascending.

    The range {start: 0, end: 100, step: 30} is 0, 30, 60, 90, as far as they are `known`; missing
    keys stand for the first step, the last, and every known one. {among: [0, 10, 20]} is those of
    the list that are known. Every step of a list itself must be known.
    """
    if steps is None:
        return tuple(known)
    if isinstance(steps, Mapping):
        for key in steps:
            if key not in _KEYS:
                raise UserError(f'steps: unknown key "{key}"{did_you_mean(key, _KEYS)}')
        return _range(steps, known)
    for step in steps:
        if step not in known:
            near = min(known, key=lambda k: abs(k - step), default=None)
            raise UserError(f"the run has no step {step}; the nearest is {near}")
    return tuple(sorted(set(steps)))


def _range(steps: Mapping[str, Any], known: Sequence[int]) -> tuple[int, ...]:
    start = steps.get("start", 0)
    end = steps.get("end", max(known, default=0))
    stride = steps.get("step")
    if stride is not None and stride < 1:
        raise UserError(f"steps: step should be at least 1 but is {stride}")
    wanted = []
    for step in steps.get("among", known):
        is_in_range = step in known and start <= step <= end
        is_on_stride = stride is None or (step - start) % stride == 0
        if is_in_range and is_on_stride:
            wanted.append(step)
    if not wanted:
        raise UserError(f"no observed step lies in {dict(steps)}; the run has {_listed(known)}")
    return tuple(sorted(set(wanted)))


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps[:8])) + (f", ... {steps[-1]}" if len(steps) > 8 else "")


def choose_base(
    what: str,
    base: str | int,
    steps: Sequence[int],
    available: Sequence[int],
    observed: Sequence[int],
) -> dict[int, int]:
    """Map each of `steps` to the step that it is compared with; those without one are left out.

    Args:
        what: the argument that `base` was given as, for messages.
        base: "first" or "last" of `available`, "previous" (the nearest before each in `available`), or a
            number among `observed`.
        held: the steps that store what is compared, ascending.
    """
    if isinstance(base, int) and not isinstance(base, bool):
        if base not in observed:
            near = min(observed, key=lambda step: abs(step - base))
            raise UserError(f"the {what} step {base} is not in the run; the nearest is {near}")
        return dict.fromkeys(steps, base)
    if base not in ("first", "last", "previous"):
        raise UserError(
            f'{what} should be "first", "last", "previous" or a step but is "{base}"'
        )
    if not available:
        return {}  # nothing to compare with, which is no mistake of the request
    if base == "first":
        return dict.fromkeys(steps, available[0])
    if base == "last":
        return dict.fromkeys(steps, available[-1])
    previous = {}
    for step in steps:
        earlier = [known for known in available if known < step]
        if earlier:
            previous[step] = earlier[-1]
    return previous
