"""Sentences on what differs between arms, and within one, beyond seeds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from pico_analyze.compare.arms import Arm
from pico_analyze.compare.run_facts import UNKNOWN, RunFacts

# Of packages, data and code: twelve digits tell two apart.
_HASH = re.compile(r"[0-9a-f]{32,}")
# Characters of a value in a sentence.
_LONGEST = 60
# Keys that change what is observed of a run, and not the run.
_OBSERVATION = "snapshot."
# A status that is not recorded says nothing against a run.
_DONE = ("finished", "")
_START = ("init_from", "parent")


def mixed_keys(arm: Arm) -> list[str]:
    """List the keys of the configuration that keep runs of an arm from being seeds of one thing.

    The observation may differ, and so may the pretrained models that all of them begin from, each
    with its own seed.
    """
    return [key for key in _varying_keys(arm) if not _is_harmless(arm, key)]


def confounds(arms: Sequence[Arm]) -> list[str]:
    """List sentences on differences within arms, between arms, and in how the runs were made."""
    # The order is that of weight: a mixture makes all that follows void.
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
    elif all(run.configured for run in facts):
        yield (
            f'"{arm.name}" and "{baseline.name}" have one configuration, as far as it is recorded: a difference '
            "between them is one of seeds."
        )


def _unread(arms: Sequence[Arm]) -> Iterator[str]:
    """Name runs of unknown configuration, so that silence is not taken for agreement."""
    facts = [run for arm in arms for run in arm.facts]
    for run in facts:
        if run.problem:
            yield f"{run.problem}: what {run.name} differs in is known in part."
    silent = [run.name for run in facts if not run.configured and not run.problem]
    if silent:
        yield (
            f"No configuration is recorded of {_listing(silent)}: in what the runs differ beyond their geometry cannot "
            "be checked."
        )


def _unfinished(arms: Sequence[Arm]) -> Iterator[str]:
    for arm in arms:
        stopped = [run for run in arm.facts if run.status not in _DONE]
        if stopped:
            names = _listing(
                [f"{run.name} ({run.status} at step {run.step})" for run in stopped]
            )
            yield (
                f'{len(stopped)} of {len(arm.runs)} runs of "{arm.name}" did not finish: {names}. What they '
                "share with the others is compared; that they stopped is an outcome too."
            )


def _equal_amounts(arms: Sequence[Arm]) -> Iterator[str]:
    """Say whether arms have equally many parameters, and read equally many tokens.

    Tokens are those of the last step that all runs share.
    """
    parameters = {arm.name: {run.parameters for run in arm.facts} for arm in arms}
    yield from _equality("parameters", parameters)
    last = _last_shared_step(arms)
    if last is not None:
        tokens = {arm.name: {run.tokens(last) for run in arm.runs} for arm in arms}
        yield from _equality(f"tokens read at step {last}", tokens)


def _last_shared_step(arms: Sequence[Arm]) -> int | None:
    steps = [set(run.steps) for arm in arms for run in arm.runs]
    return max(set.intersection(*steps), default=None)


def _equality(quantity: str, by_arm: dict[str, set[int | None]]) -> Iterator[str]:
    """Compare the counts of all arms, if every run records its count."""
    known: dict[str, list[int]] = {}
    for name, recorded in by_arm.items():
        known[name] = sorted(count for count in recorded if count is not None)
        if None in recorded:
            return
    distinct = {count for counts in known.values() for count in counts}
    if len(distinct) == 1:
        (count,) = distinct
        yield f"Equal {quantity}: {count:,}."
        return
    parts = []
    for name, counts in known.items():
        numbers = _listing([f"{count:,}" for count in counts])
        parts.append(f"{name}: {numbers}")
    yield f"Unequal {quantity} ({'; '.join(parts)})."


def _listed_within(arm: Arm) -> Iterator[str]:
    harmless = [key for key in _varying_keys(arm) if _is_harmless(arm, key)]
    surrounding = [key for key in _surrounding_keys(arm.facts) if _varies(arm.facts, key)]
    keys = harmless + surrounding
    if keys:
        yield f'Runs of "{arm.name}" differ in {_by_run(arm.facts, keys)}.'


def _surroundings(baseline: Arm, arm: Arm) -> Iterator[str]:
    recorded = _surrounding_keys([*baseline.facts, *arm.facts])
    keys = [key for key in recorded if _differs(baseline, arm, key)]
    if keys:
        words = _in_words(baseline, arm, keys)
        yield f'"{arm.name}" was trained in another environment than "{baseline.name}": {words}.'


def _uncommitted(arms: Sequence[Arm]) -> Iterator[str]:
    facts = [run for arm in arms for run in arm.facts]
    changed = [
        run.name for run in facts if run.value("dirty") not in (None, False, "", UNKNOWN)
    ]
    if changed:
        yield f"The code of {_listing(changed)} is in no commit: its working tree had changes."


def _is_harmless(arm: Arm, key: str) -> bool:
    all_pretrained = all(run.parent is not None for run in arm.facts)
    return (key in _START and all_pretrained) or key.startswith(_OBSERVATION)


def _varying_keys(arm: Arm) -> list[str]:
    """List the keys of the configuration in which runs of an arm differ."""
    return [key for key in _configuration_keys(arm.facts) if _varies(arm.facts, key)]


def _configuration_keys(facts: Sequence[RunFacts]) -> list[str]:
    return list(dict.fromkeys(key for run in facts for key in run.configuration))


def _surrounding_keys(facts: Sequence[RunFacts]) -> list[str]:
    return list(dict.fromkeys(key for run in facts for key in run.surroundings))


def _varies(facts: Sequence[RunFacts], key: str) -> bool:
    return len(_distinct(facts, key)) > 1


def _differs(baseline: Arm, arm: Arm, key: str) -> bool:
    # A value that is not recorded is not a difference.
    before, after = _distinct(baseline.facts, key), _distinct(arm.facts, key)
    return bool(before and after) and sorted(before) != sorted(after)


def _distinct(facts: Sequence[RunFacts], key: str) -> list[str]:
    """List the values of a key in words, each once; skip runs that do not record it."""
    values = [run.value(key) for run in facts]
    return list(dict.fromkeys(_exactly(value) for value in values if value is not UNKNOWN))


def _in_words(baseline: Arm, arm: Arm, keys: Sequence[str]) -> str:
    parts = []
    for key in keys:
        before = " and ".join(_short(text) for text in _distinct(baseline.facts, key))
        after = " and ".join(_short(text) for text in _distinct(arm.facts, key))
        parts.append(f"{key} ({after} instead of {before})")
    return _listing(parts)


def _by_run(facts: Sequence[RunFacts], keys: Sequence[str]) -> str:
    return _listing([f"{key} ({_values_by_run(facts, key)})" for key in keys])


def _values_by_run(facts: Sequence[RunFacts], key: str) -> str:
    words = []
    for run in facts:
        value = run.value(key)
        if value is not UNKNOWN:
            words.append(f"{run.name}: {_short(_exactly(value))}")
    return "; ".join(words)


def _exactly(value: Any) -> str:
    """Write a value of a configuration so that different values give different words."""
    if value is None:
        return "not set"
    # A tuple holds the values of sessions that differ.
    if isinstance(value, tuple):
        return ", then ".join(_exactly(session) for session in value)
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _short(text: str) -> str:
    text = _HASH.sub(lambda match: match[0][:12], text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _listing(words: Sequence[str]) -> str:
    return ", ".join(words)
