"""The step that the name of a model folder or of a hub revision says.

A number counts only behind a word that says what it counts: updates (`step1000`, `checkpoint-500`,
`iter_20k`), tokens (`tokens-2B`), checkpoints (`ckpt_357`) or epochs. A whole name that is one
integer is a step as well, and so is a last integer that is padded with zeros (`run-000500`).
Everything else says no step: a date, a commit hash, the number of a seed or the size of a model.
Suffixes k, M, B and T stand for thousands, millions, billions and trillions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from pico_contract.errors import UserError

UPDATES, TOKENS, CHECKPOINTS, EPOCHS = "updates", "tokens", "saved checkpoints", "epochs"
_LARGEST = 2**63 - 1
_SUFFIXES = {"k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
# A number ends where neither a letter, nor a digit, nor another number follows: `step_2024-05` says
# no step 2024.
_END = r"(?:(?=[-_]?tokens?(?![a-z]))|(?![a-z0-9]|[-_.:,]\d))"
_NUMBER = rf"(\d+(?:\.\d+)?)([kmbgt])?{_END}"
_WORDS = {  # unit -> what stands before its number; of several the first counts
    UPDATES: (
        rf"steps?[-_=]*{_NUMBER}",
        rf"(?:iterations?|iters?|updates?|checkpoint|(?<![a-z])batch|(?<![a-z])ba)[-_=]*{_NUMBER}",
    ),
    TOKENS: (
        rf"tokens?[-_=]*{_NUMBER}",
        r"(?<![a-z\d.])(\d+(?:\.\d+)?)([kmbgt])?[-_]?tokens?(?![a-z])",
    ),
    CHECKPOINTS: (rf"ckpt[-_=]*{_NUMBER}",),
    EPOCHS: (rf"(?:epochs?|(?<![a-z])ep)[-_=]*{_NUMBER}",),
}
_FLAGS = re.IGNORECASE | re.ASCII
_FIELDS = {unit: [re.compile(word, _FLAGS) for word in words] for unit, words in _WORDS.items()}
_TIME = r"(?:[t_ -]\d\d[-:.]?\d\d(?:[-:.]?\d\d)?)?"
_DATE = re.compile(rf"(?<!\d)(?:19|20)\d\d[-_.](?:0[1-9]|1[0-2])[-_.][0-3]\d{_TIME}(?!\d)", _FLAGS)
_DAY = re.compile(r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])")
_PADDED = re.compile(r"(?<=[-_])(0\d{3,})$")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# What Lightning writes beside the step: the version of a repeated file, and the values of what it
# monitors.
_MONITORED = r"[-_]?[a-z_]*(?:loss|acc|accuracy|ppl|perplexity)[a-z_]*=\d+(?:\.\d+)?"
_ASIDE = re.compile(rf"-v\d+(?=\.|$)|\.ckpt$|{_MONITORED}", _FLAGS)


@dataclass(frozen=True)
class StepName:
    """What a name says.

    Attributes:
        step: the number that orders the series.
        unit: what that number counts.
        tokens: training tokens, or None if the name does not say them.
        arm: the rest of the name, which is the same for all steps of one series.
        pattern: a glob that all steps of the series fit.
    """

    name: str
    step: int
    unit: str
    tokens: int | None
    arm: str
    pattern: str


def read_name(name: str) -> StepName | None:
    """Read the step from the name of a folder or revision; None if it says none.

    Raises:
        UserError: the number is not an integer, or larger than the table can hold.
    """
    if name.isascii() and name.isdigit() and not (_HASH.fullmatch(name) or _DAY.fullmatch(name)):
        return StepName(name, _value(name, name, ""), UPDATES, None, "", "*")
    rest = _ASIDE.sub("", _DATE.sub("", name))
    numbers, spans = {}, []
    for unit, words in _FIELDS.items():
        by_word = [list(word.finditer(rest)) for word in words]
        match = next((found[-1] for found in by_word if found), None)
        if match is not None:
            numbers[unit] = _value(name, match[1], match[2] or "")
            spans += [one.span() for found in by_word for one in found]
    if not numbers and (padded := _PADDED.search(rest)) and not _DAY.fullmatch(padded[1]):
        numbers[UPDATES] = _value(name, padded[1], "")
        spans.append(padded.span())
    counted = next((unit for unit in _FIELDS if unit in numbers), None)
    if counted is None:
        return None
    return StepName(
        name,
        numbers[counted],
        counted,
        numbers.get(TOKENS),
        _without(rest, spans),
        _pattern(name, rest, spans),
    )


def _value(name: str, digits: str, suffix: str) -> int:
    value = Decimal(digits) * _SUFFIXES.get(suffix.lower(), 1)
    if value != value.to_integral_value():
        raise UserError(f'"{name}" says step {digits}{suffix}, which is not an integer')
    if value > _LARGEST:
        raise UserError(
            f'"{name}" says step {digits}{suffix}, which is beyond the largest that a table holds, 2^63 - 1'
        )
    return int(value)


def _without(text: str, spans: Iterable[tuple[int, int]]) -> str:
    kept = "".join(
        "\0" if any(start <= i < stop for start, stop in spans) else c for i, c in enumerate(text)
    )
    return re.sub(r"[\0\s=._-]+", "-", kept).strip("-")


def _pattern(name: str, rest: str, spans: list[tuple[int, int]]) -> str:
    """The name with a star for each number that was read, and around it if parts of it were left
    aside."""
    pieces, place = [], 0
    for start, stop in sorted(spans):
        if start >= place:
            pieces += [rest[place:start], re.sub(r"\d.*", "*", rest[start:stop])]
            place = stop
    pattern = "".join([*pieces, rest[place:]])
    return re.sub(r"\*+", "*", pattern if rest == name else f"*{pattern}*")


def steps_by_name(named: Iterable[str]) -> dict[int, StepName]:
    """The steps of one series, ascending; the names may be paths, of which the last part is read.

    Raises:
        UserError: a name that says no step, names that count different things or are of different
            arms, or two that give the same step.
    """
    found: dict[int, StepName] = {}
    first: StepName | None = None
    for path in named:
        one = read_name(Path(path).name)
        if one is None:
            raise UserError(no_step_in(path))
        first = first or one
        _check_same_series(first, one)
        if one.step in found:
            raise UserError(
                f'"{found[one.step].name}" and "{path}" both give step {one.step}: leave one of them out'
            )
        found[one.step] = StepName(path, one.step, one.unit, one.tokens, one.arm, one.pattern)
    return dict(sorted(found.items()))


def _check_same_series(first: StepName, other: StepName) -> None:
    if first.unit != other.unit:
        raise UserError(
            f'"{first.name}" counts {first.unit} and "{other.name}" counts {other.unit}, which are not one series: '
            f'choose one kind of name with a pattern such as "{first.pattern}"'
        )
    if first.arm != other.arm:
        raise UserError(
            f'"{first.name}" and "{other.name}" are steps of different series ("{first.arm or "no other part"}" and '
            f'"{other.arm or "no other part"}"): choose one with a pattern such as "{first.pattern}"'
        )


def no_step_in(path: str) -> str:
    """Explain in one sentence why a name says no step, and how to name a folder that does."""
    name = Path(path).name
    why = "says no step"
    if _HASH.fullmatch(name):
        why = "is a commit hash, which says no step"
    elif _DATE.search(name) or _DAY.fullmatch(name):
        why = "is a date, which says no step"
    return f'"{path}" {why}: the name of a folder or revision should hold one, as in step1000 or tokens-2B'


def unit_note(names: Iterable[StepName]) -> list[str]:
    """A sentence if the numbers of a series count something else than updates."""
    first = next(iter(names), None)
    if first is None or first.unit == UPDATES:
        return []
    return [
        f'"{Path(first.name).name}" counts {first.unit}: the column step holds {first.unit}, not updates'
    ]
