"""Sentences that a reader must know before believing a difference between arms."""

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
# Ratio of standard deviations.
_UNEQUAL_SCATTER = 2.0
# Of a mean: a narrower interval comes from equal numbers.
_ROUNDING = 1e-12
_METRIC = ["kind", "split", "metric"]


def notes(arms: Sequence[Arm], differences: pd.DataFrame) -> list[str]:
    """List what a reader must know before believing a difference, most important first."""
    values = [values_of(arm) for arm in arms]
    baseline, others = values[0], values[1:]
    sentences = confounds(arms)
    for arm in values:
        sentences += _not_independent(arm)
    for arm in others:
        sentences += _same_runs(baseline, arm)
    for arm in values:
        sentences += _shared_seeds(arm)
    for arm in others:
        sentences += _inference(baseline, arm, differences)
    for arm in values:
        sentences += _outliers_of_arm(arm)
    if (differences["status"] == "ok").any():
        sentences.append(UNADJUSTED)
    return sentences + list(_left_out(arms, differences))


def _not_independent(values: ArmValues) -> Iterator[str]:
    for unit in values.units:
        if len(unit.runs) > 1:
            names = _listing([values.arm.runs[run].name for run in unit.runs])
            yield f'{names} of "{values.arm.name}" {_why(values.arm, unit)}: they count as one run.'


def _why(arm: Arm, unit: IndependentRuns) -> str:
    """Say why several runs count as one, as the rest of a sentence about them."""
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
    """Name equal runs of two arms: copies have no difference by construction."""
    for i, j in _equal_units(baseline, arm):
        yield (
            f'{baseline.name(i)} of "{baseline.arm.name}" and {arm.name(j)} of "{arm.arm.name}" have numbers '
            "that are identical to the last bit: they look like one run."
        )


def _equal_units(baseline: ArmValues, arm: ArmValues) -> Iterator[tuple[int, int]]:
    """Yield the pairs of units that agree in all numbers of both arms that can tell runs apart."""
    frames = [values.cells[values.telling.to_numpy()] for values in (baseline, arm)]
    shared = pd.concat(frames, axis=1, join="inner").to_numpy(dtype=float)
    # Without a number in common, all units would be equal.
    if not len(shared):
        return
    columns = shared.T
    count = len(baseline.units)
    for i, x in enumerate(columns[:count]):
        for j, y in enumerate(columns[count:]):
            if np.array_equal(x, y, equal_nan=True):
                yield i, j


def _shared_seeds(values: ArmValues) -> Iterator[str]:
    """Name the seeds that all runs of an arm share, which its intervals say nothing about."""
    facts = [values.arm.facts[unit.runs[0]] for unit in values.units]
    if len(facts) < 2 or not all(run.seeds for run in facts):
        return
    shared = []
    for name in facts[0].seeds:
        is_drawn = name != "method" or values.arm.draws
        if is_drawn and len({run.seeds.get(name) for run in facts}) == 1:
            shared.append(f"seed.{name}")
    if shared:
        yield (
            f'All runs of "{values.arm.name}" have the same {_listing(shared)}: '
            "intervals are of the other seeds alone."
        )


def _inference(baseline: ArmValues, arm: ArmValues, differences: pd.DataFrame) -> Iterator[str]:
    """Say how the interval of one arm's difference was computed and what it can find."""
    rows = differences[differences["arm"] == arm.arm.name]
    pairing = pair(baseline, arm)
    runs = min(rows["baseline_runs"].iloc[0], rows["arm_runs"].iloc[0])
    if runs > 1 or pairing.pairs:
        yield _pairing(baseline, arm, pairing)
    # Without an interval there is none to explain.
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
        names = [f"the pair {baseline.name(i)} and {arm.name(j)}" for i, j in pairing.pairs]
        where = f'of the differences of "{arm.arm.name}" from "{baseline.arm.name}"'
        yield from _outliers(y - x, both.index, names, where)
    yield from _without_width(arm, rows)
    yield from _marks(arm, rows)


def _pairing(baseline: ArmValues, arm: ArmValues, pairing: Pairing) -> str:
    """Say how many runs are compared, whether they are paired, and which are left out."""
    between = f'"{arm.arm.name}" less "{baseline.arm.name}"'
    if pairing.pairs:
        count = len(pairing.pairs)
        pairs = "pair" if count == 1 else "pairs"
        sentence = f"{between}: {count} {pairs} of runs with equal seeds."
        return sentence + _unpaired(baseline, arm, pairing)
    return f"{between}: {_why_not_paired(baseline, arm, pairing)}."


def _why_not_paired(baseline: ArmValues, arm: ArmValues, pairing: Pairing) -> str:
    runs = f"{len(baseline.units)} and {len(arm.units)} runs, not paired, since"
    facts = [*baseline.arm.facts, *arm.arm.facts]
    if not all(run.seeds for run in facts):
        return f"{runs} seeds are not recorded of every run"
    return f"{runs} {pairing.matched or 'none'} have a partner of equal seeds"


def _unpaired(baseline: ArmValues, arm: ArmValues, pairing: Pairing) -> str:
    in_baseline, in_arm = pairing.unpaired
    names = [baseline.name(unit) for unit in in_baseline] + [arm.name(unit) for unit in in_arm]
    if not names:
        return ""
    return f" Left out, since no run of the other arm has their seeds: {_listing(names)}."


def _sensitivity(arm: ArmValues, baseline: ArmValues, runs: int, paired: bool) -> str:
    """Say what so few runs can find, by the noncentral t."""
    effect = statistics.detectable_effect(runs, paired)
    spread = "of the paired differences" if paired else "of an arm"
    count = f"{runs} pairs" if paired else f"{runs} runs in each arm"
    warning = ""
    if runs == 2:
        warning = " Two runs leave one degree of freedom: the interval is very wide."
    return (
        f'"{arm.arm.name}" less "{baseline.arm.name}": {count} find a true difference of {effect:.2g} standard '
        f"deviations {spread} in {statistics.POWER:.0%} of experiments, a smaller one less often; an interval that "
        f"includes 0 does not show that there is no difference.{warning}"
    )


def _unequal_scatter(baseline: ArmValues, arm: ArmValues, x: Any, y: Any) -> Iterator[str]:
    # With equally many runs, unequal scatter does little harm to either interval.
    ratio = statistics.scatter_ratio(x, y)
    if x.shape[1] != y.shape[1] and not 1 / _UNEQUAL_SCATTER < ratio < _UNEQUAL_SCATTER:
        yield (
            f'"{arm.arm.name}" and "{baseline.arm.name}" have unequal numbers of runs ({y.shape[1]} and {x.shape[1]}) '
            f"and unequal scatter (standard deviations {ratio:.2g} to 1): intervals of so few runs may then cover less "
            "than 95%. Train as many seeds of both."
        )


def _outliers_of_arm(values: ArmValues) -> Iterator[str]:
    names = [values.name(unit) for unit in range(len(values.units))]
    numbers = values.cells.to_numpy(dtype=float)
    yield from _outliers(numbers, values.cells.index, names, f'of "{values.arm.name}"')


def _outliers(values: Any, index: pd.Index, names: Sequence[str], where: str) -> Iterator[str]:
    """Name the runs that lie far from the others in most cells of a metric."""
    if len(names) < 3:
        return
    p = pd.DataFrame(statistics.outlier_p(values), index=index)
    by_metric = p.groupby(level=_METRIC, dropna=False, sort=False).median()
    # Bonferroni: each metric is a chance to look odd.
    unlikely = by_metric < statistics.ALPHA_OUTLIER / max(len(by_metric), 1)
    for run, name in enumerate(names):
        metrics = unlikely.index[unlikely[run]]
        if len(metrics):
            # Splits of one metric have the same words.
            words = dict.fromkeys(
                f"{display_name(str(metric))} of {kind}" for kind, _, metric in metrics
            )
            yield (
                f"{name} lies far from the other {len(names) - 1} {where} in {_listing(list(words))}: means and "
                "intervals depend on it. Find out why before believing either; do not leave it out for its value."
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


def _left_out(arms: Sequence[Arm], differences: pd.DataFrame) -> Iterator[str]:
    """Name the steps that not every run has, and count the differences without a value."""
    measured: set[int] = set()
    for arm in arms:
        for table in arm.tables:
            measured.update(table["step"].unique())
    left_out = sorted(measured - set(differences["step"].dropna()))
    if left_out:
        steps = ", ".join(map(str, left_out))
        yield f"Steps that not every run has were left out: {steps}."
    missing = int((differences["status"] == "missing").sum())
    if missing:
        yield f"{missing:,} differences have no value, since a run has none there."


def _listing(words: Sequence[str]) -> str:
    return " and ".join(words) if len(words) < 3 else f"{', '.join(words[:-1])} and {words[-1]}"
