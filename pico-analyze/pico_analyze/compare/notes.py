"""What a reader must know before believing a difference between arms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pico_analyze import statistics
from pico_analyze.compare.arms import Arm, ArmValues, IndependentRuns, pair, values_of
from pico_analyze.compare.confounds import confounds
from pico_analyze.compare.differences import compared
from pico_analyze.plot.data import display_name
from pico_analyze.statistics import Pairing

UNADJUSTED = (
    "Intervals are of one number each and are not adjusted for how many there are; all come from the same runs, so "
    "they tend to err together. Decide on a metric, a component and a step beforehand, or repeat on new seeds what is "
    "found here."
)
_UNEQUAL_SCATTER = 2.0
_ROUNDING = 1e-12
_METRIC = ["kind", "split", "metric"]


def notes(arms: Sequence[Arm], differences: pd.DataFrame) -> list[str]:
    """List what a reader must know before believing a difference, most important first."""
    values = [values_of(arm) for arm in arms]
    baseline, others = values[0], values[1:]
    return [
        *confounds(arms),
        *(sentence for one in values for sentence in _not_independent(one)),
        *(sentence for other in others for sentence in _same_runs(baseline, other)),
        *(sentence for one in values for sentence in _shared_seeds(one)),
        *(sentence for other in others for sentence in _inference(baseline, other, differences)),
        *(sentence for one in values for sentence in _outliers_of_arm(one)),
        *([UNADJUSTED] if (differences["status"] == "ok").any() else []),
        *_unshared(arms, differences),
    ]


def _not_independent(values: ArmValues) -> Iterator[str]:
    for unit in values.units:
        if len(unit.runs) > 1:
            names = _listing([values.arm.runs[run].name for run in unit.runs])
            yield f'{names} of "{values.arm.name}" {_why(values.arm, unit)}: they count as one run.'


def _why(arm: Arm, unit: IndependentRuns) -> str:
    bits = ", and their numbers are identical to the last bit" if unit.identical else ""
    first = arm.facts[unit.runs[0]]
    if unit.why == "parent":
        model = Path(str(first.parent)).name
        return f"began from one pretrained model ({model}){bits}; seeds of fine-tuning are not independent runs"
    if unit.why == "seeds":
        seeds = ", ".join(f"{name} {seed}" for name, seed in first.seeds.items())
        return f"have the same seeds ({seeds}){bits}"
    return "have numbers that are identical to the last bit"


def _same_runs(baseline: ArmValues, arm: ArmValues) -> Iterator[str]:
    """Name runs of two arms that are one: copies under two names have no difference by
    construction."""
    frames = [one.cells[one.telling.to_numpy()] for one in (baseline, arm)]
    telling = pd.concat(frames, axis=1, join="inner").to_numpy(dtype=float)
    count = len(baseline.units)
    for i in range(count):
        for j in range(len(arm.units)):
            if len(telling) and np.array_equal(
                telling[:, i], telling[:, count + j], equal_nan=True
            ):
                yield (
                    f'{baseline.name(i)} of "{baseline.arm.name}" and {arm.name(j)} of "{arm.arm.name}" have numbers '
                    "that are identical to the last bit: they look like one run."
                )


def _shared_seeds(values: ArmValues) -> Iterator[str]:
    """Say which seed all runs of an arm share: the interval then is of the others alone."""
    facts = [values.arm.facts[unit.runs[0]] for unit in values.units]
    if len(facts) < 2 or not all(one.seeds for one in facts):
        return
    relevant = [name for name in facts[0].seeds if name != "method" or values.arm.draws]
    shared = [name for name in relevant if len({one.seeds.get(name) for one in facts}) == 1]
    if shared:
        names = _listing([f"seed.{name}" for name in shared])
        yield f'All runs of "{values.arm.name}" have the same {names}: intervals are of the other seeds alone.'


def _inference(baseline: ArmValues, arm: ArmValues, differences: pd.DataFrame) -> Iterator[str]:
    """Say how the interval of one arm's difference was computed and what it can find."""
    rows = differences[differences["arm"] == arm.arm.name]
    pairing = pair(baseline, arm)
    runs = min(rows["baseline_runs"].iloc[0], rows["arm_runs"].iloc[0])
    if runs > 1 or pairing.pairs:
        yield _pairing(baseline, arm, pairing)
    if rows["status"].eq("mixed").any():
        return
    if runs < 2:
        yield (
            f'"{arm.arm.name}" less "{baseline.arm.name}": with one run no interval is claimed, since a difference may '
            "be one of seeds. Train each arm with at least three seeds."
        )
        return
    yield _sensitivity(arm, baseline, runs, bool(pairing.pairs))
    both = pd.concat([baseline.cells, arm.cells], axis=1, join="inner")
    x, y = compared(both, len(baseline.units), pairing)
    yield from _unequal_scatter(baseline, arm, x, y)
    if pairing.pairs:
        names = [f"{baseline.name(i)} and {arm.name(j)}" for i, j in pairing.pairs]
        where = f'of the differences of "{arm.arm.name}" from "{baseline.arm.name}"'
        yield from _outliers(y - x, both.index, [f"the pair {name}" for name in names], where)
    yield from _without_width(arm, rows)
    yield from _marks(arm, rows)


def _pairing(baseline: ArmValues, arm: ArmValues, pairing: Pairing) -> str:
    left, right = (
        [one.name(i) for i in alone]
        for one, alone in zip((baseline, arm), pairing.unpaired, strict=True)
    )
    between = f'"{arm.arm.name}" less "{baseline.arm.name}"'
    if pairing.pairs:
        count = len(pairing.pairs)
        sentence = (
            f"{between}: {count} {'pair' if count == 1 else 'pairs'} of runs with equal seeds."
        )
        alone = f" Left out, since no run of the other arm has their seeds: {_listing([*left, *right])}."
        return sentence + (alone if left or right else "")
    counts = f"{len(baseline.units)} and {len(arm.units)}"
    if not all(one.seeds for values in (baseline, arm) for one in values.arm.facts):
        return f"{between}: {counts} runs, not paired, since seeds are not recorded of every run."
    return f"{between}: {counts} runs, not paired, since {pairing.matched or 'none'} have a partner of equal seeds."


def _sensitivity(arm: ArmValues, baseline: ArmValues, runs: int, paired: bool) -> str:
    """Say what so few runs can find, by the noncentral t."""
    effect = statistics.detectable_effect(runs, paired)
    of = "of the paired differences" if paired else "of an arm"
    many = f"{runs} pairs" if paired else f"{runs} runs in each arm"
    degree = (
        " Two runs leave one degree of freedom: the interval is very wide." if runs == 2 else ""
    )
    return (
        f'"{arm.arm.name}" less "{baseline.arm.name}": {many} find a true difference of {effect:.2g} standard '
        f"deviations {of} in {statistics.POWER:.0%} of experiments, a smaller one less often; an interval that "
        f"includes 0 does not show that there is no difference.{degree}"
    )


def _unequal_scatter(baseline: ArmValues, arm: ArmValues, x: Any, y: Any) -> Iterator[str]:
    ratio = statistics.scatter_ratio(x, y)
    if x.shape[1] != y.shape[1] and not 1 / _UNEQUAL_SCATTER < ratio < _UNEQUAL_SCATTER:
        yield (
            f'"{arm.arm.name}" and "{baseline.arm.name}" have unequal numbers of runs ({y.shape[1]} and {x.shape[1]}) '
            f"and unequal scatter (standard deviations {ratio:.2g} to 1): intervals of so few runs may then cover less "
            "than 95%. Train as many seeds of both."
        )


def _outliers_of_arm(values: ArmValues) -> Iterator[str]:
    names = [values.name(unit) for unit in range(len(values.units))]
    yield from _outliers(
        values.cells.to_numpy(dtype=float), values.cells.index, names, f'of "{values.arm.name}"'
    )


def _outliers(values: Any, index: pd.Index, names: Sequence[str], where: str) -> Iterator[str]:
    """Name the runs that lie far from the others in most cells of a metric."""
    if len(names) < 3:
        return
    p = pd.DataFrame(statistics.outlier_p(values), index=index)
    metrics = p.groupby(level=_METRIC, dropna=False, sort=False).median()
    unlikely = metrics < statistics.ALPHA_OUTLIER / max(len(metrics), 1)
    for run, name in enumerate(names):
        found = unlikely.index[unlikely[run]]
        if len(found):
            what = _listing(
                list(
                    dict.fromkeys(
                        f"{display_name(str(metric))} of {kind}" for kind, _, metric in found
                    )
                )
            )
            yield (
                f"{name} lies far from the other {len(names) - 1} {where} in {what}: means and intervals depend on it. "
                "Find out why before believing either; do not leave it out for its value."
            )


def _without_width(arm: ArmValues, rows: pd.DataFrame) -> Iterator[str]:
    size = rows[["baseline_mean", "arm_mean"]].abs().max(axis=1)
    count = int((rows["high"] - rows["low"] <= _ROUNDING * size).sum())
    if count:
        yield (
            f'"{arm.arm.name}": {count:,} intervals have no width, since all runs agree there to rounding; that says '
            "nothing of seeds that were not run."
        )


def _marks(arm: ArmValues, rows: pd.DataFrame) -> Iterator[str]:
    if rows["p_max_t"].isna().all():
        yield (
            f'Maps of "{arm.arm.name}" have no marks: a test that is adjusted for all cells needs 6 pairs, or 4 runs '
            "in each arm, to reach 0.05."
        )


def _unshared(arms: Sequence[Arm], differences: pd.DataFrame) -> list[str]:
    shared = sorted(int(step) for step in differences["step"].dropna().unique())
    measured = {
        int(step) for arm in arms for table in arm.tables for step in table["step"].unique()
    }
    left = sorted(measured - set(shared))
    missing = int((differences["status"] == "missing").sum())
    return [
        *(
            [f"Steps that not every run has were left out: {', '.join(map(str, left))}."]
            if left
            else []
        ),
        *(
            [f"{missing:,} differences have no value, since a run has none there."]
            if missing
            else []
        ),
    ]


def _listing(words: Sequence[str]) -> str:
    return " and ".join(words) if len(words) < 3 else f"{', '.join(words[:-1])} and {words[-1]}"
