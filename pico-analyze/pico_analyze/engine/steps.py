"""Which steps are measured, a list or a range over those that were observed, and what each is
compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pico_contract.errors import UserError, did_you_mean

Steps = Sequence[int] | Mapping[str, Any] | None
_KEYS = ("start", "end", "step", "among")
REFERENCES = ("first", "last", "previous", "all", "same")
"""What a reference is called beside its number; "same" is of another run, "previous" and "all" of
the run itself."""


def choose_steps(steps: Steps, known: Sequence[int]) -> tuple[int, ...]:
    """The steps that are asked for, ascending; every one must be among `known`, except those that a
    range skips over.

    {start: 0, end: 100, step: 30} is 0, 30, 60, 90; missing keys are the first step, the last, and
    every known one. {among: [0, 10, 20]} are those of the list that are known.
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
    start, end = steps.get("start", 0), steps.get("end", max(known, default=0))
    stride, among = steps.get("step"), steps.get("among", known)
    if stride is not None and stride < 1:
        raise UserError(f"steps: step should be at least 1 but is {stride}")
    wanted = [
        k
        for k in among
        if k in known and start <= k <= end and (stride is None or (k - start) % stride == 0)
    ]
    if not wanted:
        raise UserError(f"no observed step lies in {dict(steps)}; the run has {_listed(known)}")
    return tuple(sorted(set(wanted)))


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps[:8])) + (f", ... {steps[-1]}" if len(steps) > 8 else "")


def choose_base(
    what: str, base: str | int, at: Sequence[int], available: Sequence[int], observed: Sequence[int]
) -> dict[int, int]:
    """Step of `at` -> the step that it is compared with: "first" or "last" of `available`, "previous"
    (the nearest before it in `available`), or a number among `observed`. A step that has none is left
    out.

    Args:
        what: the argument that `base` was given as, for messages.
        held: the steps that hold what is compared, ascending.
    """
    if isinstance(base, bool) or (
        not isinstance(base, int) and base not in ("first", "last", "previous")
    ):
        raise UserError(f'{what} should be "first", "last", "previous" or a step but is "{base}"')
    if base == "previous":
        before = {step: [k for k in available if k < step][-1:] for step in at}
        return {step: found[0] for step, found in before.items() if found}
    if not isinstance(base, int):
        return (
            dict.fromkeys(at, available[0] if base == "first" else available[-1])
            if available
            else {}
        )
    if base not in observed:
        near = min(observed, key=lambda k: abs(k - int(base)))
        raise UserError(f"the {what} step {base} is not in the run; the nearest is {near}")
    return dict.fromkeys(at, base)
