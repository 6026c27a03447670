"""Sentences on what differs between arms, and within one, beyond seeds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from pico_analyze.compare.arms import Arm
from pico_analyze.compare.run_facts import UNKNOWN, RunFacts

_HASH = re.compile(r"[0-9a-f]{32,}")
_LONGEST = 60
_OBSERVATION = "snapshot."
"""Keys that change what is observed of a run, and not the run."""
_DONE = ("finished", "")
_START = ("init_from", "parent")


def mixed_keys(arm: Arm) -> list[str]:
    """List the keys of the configuration in which runs of one arm differ, so that they are not
    seeds of one thing.

    What is observed may differ, and so may the pretrained models that all of them begin from, each
    with its own seed.
    """
    return [
        key
        for key in _configuration_keys(arm.facts)
        if _varies(arm.facts, key) and not _is_harmless(arm, key)
    ]


def confounds(arms: Sequence[Arm]) -> list[str]:
    """Say what differs within an arm, then between arms, then what follows and on what the runs
    were made."""
    baseline, others = arms[0], arms[1:]
    return [
        *(sentence for arm in arms for sentence in _mixture(arm)),
        *(sentence for arm in others for sentence in _between(baseline, arm)),
        *_unread(arms),
        *_unfinished(arms),
        *_equal_amounts(arms),
        *(sentence for arm in arms for sentence in _listed_within(arm)),
        *(sentence for arm in others for sentence in _surroundings(baseline, arm)),
        *_uncommitted(arms),
    ]


def _mixture(arm: Arm) -> Iterator[str]:
    keys = mixed_keys(arm)
    if keys:
        yield (
            f'WARNING: "{arm.name}" mixes configurations: its runs differ in {_by_run(arm.facts, keys)}. They are not '
            "seeds of one configuration, so no interval over them is given: name them as arms of their own."
        )


def _between(baseline: Arm, arm: Arm) -> Iterator[str]:
    facts = [*baseline.facts, *arm.facts]
    differing = [key for key in _configuration_keys(facts) if _differs(baseline, arm, key)]
    if differing:
        yield f'"{arm.name}" differs from "{baseline.name}" in {_in_words(baseline, arm, differing)}.'
    elif all(one.configured for one in facts):
        yield (
            f'"{arm.name}" and "{baseline.name}" have one configuration, as far as it is recorded: a difference '
            "between them is one of seeds."
        )


def _unread(arms: Sequence[Arm]) -> Iterator[str]:
    """Say of which runs the configuration is unknown, so that silence is not taken for
    agreement."""
    facts = [one for arm in arms for one in arm.facts]
    for one in facts:
        if one.problem:
            yield f"{one.problem}: what {one.name} differs in is known in part."
    silent = [one.name for one in facts if not one.configured and not one.problem]
    if silent:
        yield (
            f"No configuration is recorded of {_listing(silent)}: in what the runs differ beyond their geometry cannot "
            "be checked."
        )


def _unfinished(arms: Sequence[Arm]) -> Iterator[str]:
    for arm in arms:
        early = [
            f"{one.name} ({one.status} at step {one.step})"
            for one in arm.facts
            if one.status not in _DONE
        ]
        if early:
            yield (
                f'{len(early)} of {len(arm.runs)} runs of "{arm.name}" did not finish: {_listing(early)}. What they '
                "share with the others is compared; that they stopped is an outcome too."
            )


def _equal_amounts(arms: Sequence[Arm]) -> Iterator[str]:
    """Say whether arms have as many parameters, and have read as many tokens at the last step that
    all share."""
    counts = {arm.name: {one.parameters for one in arm.facts} for arm in arms}
    yield from _equality("parameters", counts)
    shared = sorted(set.intersection(*(set(run.steps) for arm in arms for run in arm.runs)))
    if shared:
        tokens = {arm.name: {run.tokens(shared[-1]) for run in arm.runs} for arm in arms}
        yield from _equality(f"tokens read at step {shared[-1]}", tokens)


def _equality(quantity: str, by_arm: dict[str, set[int | None]]) -> Iterator[str]:
    known = {name: sorted(n for n in values if n is not None) for name, values in by_arm.items()}
    if any(None in values for values in by_arm.values()):
        return
    distinct = sorted({n for values in known.values() for n in values})
    if len(distinct) == 1:
        yield f"Equal {quantity}: {distinct[0]:,}."
        return
    words = "; ".join(
        f"{name}: {_listing([f'{n:,}' for n in values])}" for name, values in known.items()
    )
    yield f"Unequal {quantity} ({words})."


def _listed_within(arm: Arm) -> Iterator[str]:
    harmless = [
        key
        for key in _configuration_keys(arm.facts)
        if _varies(arm.facts, key) and _is_harmless(arm, key)
    ]
    keys = [*harmless, *(key for key in _surrounding_keys(arm.facts) if _varies(arm.facts, key))]
    if keys:
        yield f'Runs of "{arm.name}" differ in {_by_run(arm.facts, keys)}.'


def _surroundings(baseline: Arm, arm: Arm) -> Iterator[str]:
    keys = [
        key
        for key in _surrounding_keys([*baseline.facts, *arm.facts])
        if _differs(baseline, arm, key)
    ]
    if keys:
        words = _in_words(baseline, arm, keys)
        yield f'"{arm.name}" was trained in another environment than "{baseline.name}": {words}.'


def _uncommitted(arms: Sequence[Arm]) -> Iterator[str]:
    dirty = [
        one.name
        for arm in arms
        for one in arm.facts
        if one.value("dirty") not in (None, False, "", UNKNOWN)
    ]
    if dirty:
        yield f"The code of {_listing(dirty)} is in no commit: its working tree had changes."


def _is_harmless(arm: Arm, key: str) -> bool:
    started = key in _START and all(one.parent is not None for one in arm.facts)
    return started or key.startswith(_OBSERVATION)


def _configuration_keys(facts: Sequence[RunFacts]) -> list[str]:
    return list(dict.fromkeys(key for one in facts for key in one.configuration))


def _surrounding_keys(facts: Sequence[RunFacts]) -> list[str]:
    return list(dict.fromkeys(key for one in facts for key in one.surroundings))


def _varies(facts: Sequence[RunFacts], key: str) -> bool:
    return len(_distinct(facts, key)) > 1


def _differs(baseline: Arm, arm: Arm, key: str) -> bool:
    ours, theirs = _distinct(baseline.facts, key), _distinct(arm.facts, key)
    return bool(ours and theirs) and sorted(ours) != sorted(theirs)


def _distinct(facts: Sequence[RunFacts], key: str) -> list[str]:
    """List the values of a key in words, each once; what a run does not record is no value."""
    values = [one.value(key) for one in facts]
    return list(dict.fromkeys(_exactly(value) for value in values if value is not UNKNOWN))


def _in_words(baseline: Arm, arm: Arm, keys: Sequence[str]) -> str:
    parts = []
    for key in keys:
        theirs, ours = (
            " and ".join(_short(text) for text in _distinct(one.facts, key))
            for one in (arm, baseline)
        )
        parts.append(f"{key} ({theirs} instead of {ours})")
    return ", ".join(parts)


def _by_run(facts: Sequence[RunFacts], keys: Sequence[str]) -> str:
    parts = []
    for key in keys:
        known = [(one.name, one.value(key)) for one in facts if one.value(key) is not UNKNOWN]
        parts.append(
            f"{key} ({'; '.join(f'{name}: {_short(_exactly(value))}' for name, value in known)})"
        )
    return ", ".join(parts)


def _exactly(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, tuple):
        return ", then ".join(_exactly(one) for one in value)
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _short(text: str) -> str:
    text = _HASH.sub(lambda found: found[0][:12], text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _listing(words: Sequence[str]) -> str:
    return ", ".join(words)
