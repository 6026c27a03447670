"""Steps read from the names of model folders and of hub revisions.

A number is a step only behind a word that says what it counts: updates (`step1000`,
`checkpoint-500`, `iter_20k`), tokens (`tokens-2B`), checkpoints (`ckpt_357`) or epochs. A name that
is one integer is also a step, and so is a last integer that is padded with zeros (`run-000500`).
Everything else says no step: a date, a commit hash, the number of a seed or the size of a model.
The suffixes k, M, B and T stand for thousands, millions, billions and trillions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import chain
from pathlib import Path

from pico_contract.errors import UserError

UPDATES, TOKENS, CHECKPOINTS, EPOCHS = "updates", "tokens", "saved checkpoints", "epochs"
_LARGEST = 2**63 - 1
_SUFFIXES = {"k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
# A number may not be followed by a letter, a digit or another number: `step_2024-05` is not step
# 2024.
_END = r"(?:(?=[-_]?tokens?(?![a-z]))|(?![a-z0-9]|[-_.:,]\d))"
_NUMBER = rf"(\d+(?:\.\d+)?)([kmbgt])?{_END}"
_WORDS = {  # unit -> patterns of a word and its number, in order of precedence
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
_DATE = re.compile(
    rf"(?<!\d)(?:19|20)\d\d[-_.](?:0[1-9]|1[0-2])[-_.][0-3]\d{_TIME}(?!\d)", _FLAGS
)
_DAY = re.compile(r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])")
_PADDED = re.compile(r"(?<=[-_])(0\d{3,})$")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# Lightning also writes the version of a repeated file and the values of the monitored metrics.
_MONITORED = r"[-_]?[a-z_]*(?:loss|acc|accuracy|ppl|perplexity)[a-z_]*=\d+(?:\.\d+)?"
_ASIDE = re.compile(rf"-v\d+(?=\.|$)|\.ckpt$|{_MONITORED}", _FLAGS)


@dataclass(frozen=True)
class StepName:
    """A name and the step that it says.

    Attributes:
        step: the number that orders the series.
        unit: the thing that this number counts.
        tokens: the training tokens, or None if the name does not say them.
        arm: the rest of the name, which is the same for all steps of one series.
        pattern: a glob that all steps of the series match.
    """

    name: str
    step: int
    unit: str
    tokens: int | None
    arm: str
    pattern: str


def read_name(name: str) -> StepName | None:
    """Read the step from the name of a folder or revision; None if the name says none.

    Raises:
        UserError: the number is not an integer, or larger than the table can hold.
    """
    if _is_integer(name):
        return StepName(name, _value(name, name, ""), UPDATES, None, "", "*")
    # Numbers in dates and in monitored values are not steps.
    rest = _ASIDE.sub("", _DATE.sub("", name))
    numbers: dict[str, int] = {}  # unit -> value, in the order of _FIELDS
    spans: list[tuple[int, int]] = []
    for unit, words in _FIELDS.items():
        by_word = [list(word.finditer(rest)) for word in words]
        matches = next(filter(None, by_word), None)
        if matches is None:
            continue
        digits, suffix = matches[-1].groups()
        numbers[unit] = _value(name, digits, suffix or "")
        spans += [match.span() for match in chain.from_iterable(by_word)]
    # A padded number counts only if no word says a step.
    padded = _PADDED.search(rest)
    if not numbers and padded is not None and not _DAY.fullmatch(padded[1]):
        numbers[UPDATES] = _value(name, padded[1], "")
        spans.append(padded.span())
    if not numbers:
        return None
    unit, step = next(iter(numbers.items()))
    return StepName(
        name,
        step,
        unit,
        tokens=numbers.get(TOKENS),
        arm=_without(rest, spans),
        pattern=_pattern(name, rest, spans),
    )


def _is_integer(name: str) -> bool:
    """Return whether a name is one integer, and neither a date nor a hash without letters."""
    if not (name.isascii() and name.isdigit()):
        return False
    return not (_HASH.fullmatch(name) or _DAY.fullmatch(name))


def _value(name: str, digits: str, suffix: str) -> int:
    """Compute the integer that digits and a suffix stand for; UserError if it is not one."""
    value = Decimal(digits) * _SUFFIXES.get(suffix.lower(), 1)
    if value != value.to_integral_value():
        raise UserError(f'"{name}" says step {digits}{suffix}, which is not an integer')
    if value > _LARGEST:
        raise UserError(
            f'"{name}" says step {digits}{suffix}, which is beyond the largest that a table holds, 2^63 - 1'
        )
    return int(value)


def _without(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """Return a text without the spans, and with one hyphen for each run of separators."""
    # NUL marks the gaps, since it cannot occur in a name.
    characters = list(text)
    for start, stop in spans:
        characters[start:stop] = "\0" * (stop - start)
    return re.sub(r"[\0\s=._-]+", "-", "".join(characters)).strip("-")


def _pattern(name: str, rest: str, spans: list[tuple[int, int]]) -> str:
    """Return the name with a star for each number, and around it if `rest` lacks parts of it."""
    pattern, position = "", 0
    for start, stop in sorted(spans):
        if start >= position:  # spans of different words may overlap
            number = re.sub(r"\d.*", "*", rest[start:stop])
            pattern += rest[position:start] + number
            position = stop
    pattern += rest[position:]
    if rest != name:
        pattern = f"*{pattern}*"
    return re.sub(r"\*+", "*", pattern)


def steps_by_name(named: Iterable[str]) -> dict[int, StepName]:
    """Read the steps of one series, ascending.

    Args:
        named: names, or paths, whose last part is read.

    Raises:
        UserError: a name that says no step, names that count different things or belong to
            different arms, or two that give the same step.
    """
    steps: dict[int, StepName] = {}
    first: StepName | None = None
    for path in named:
        step_name = read_name(Path(path).name)
        if step_name is None:
            raise UserError(no_step_in(path))
        # All names are compared with the first, whose pattern errors then suggest.
        first = first or step_name
        _check_same_series(first, step_name)
        step = step_name.step
        if step in steps:
            raise UserError(
                f'"{steps[step].name}" and "{path}" both give step {step}: leave one of them out'
            )
        steps[step] = replace(step_name, name=path)
    return dict(sorted(steps.items()))


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
    if _HASH.fullmatch(name):
        why = "is a commit hash, which says no step"
    elif _DATE.search(name) or _DAY.fullmatch(name):
        why = "is a date, which says no step"
    else:
        why = "says no step"
    return f'"{path}" {why}: the name of a folder or revision should hold one, as in step1000 or tokens-2B'


def unit_note(names: Iterable[StepName]) -> list[str]:
    """Return a note on the series if its numbers count something other than updates, or none."""
    first = next(iter(names), None)
    if first is None or first.unit == UPDATES:
        return []
    return [
        f'"{Path(first.name).name}" counts {first.unit}: the column step holds {first.unit}, not updates'
    ]
