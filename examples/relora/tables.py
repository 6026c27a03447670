"""Conclusions from the tables of results.py, as Markdown.

Each value of an arm is compared with the baseline's value for the same seed. Both runs then share initial weights and
rows, so the scatter between seeds cancels. All statistics are those of `pico_analyze.statistics`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from pico_analyze import statistics

BASELINE, DEFINED = "full", "relora"
PRIMARY = "validation loss, nats"
"""The outcome that was decided on beforehand: the only one with verdicts."""
ROUNDING = 1e-12


@dataclass(frozen=True)
class Contrast:
    """An arm less the baseline, paired by seed."""

    differences: np.ndarray  # (seeds,)

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(self.differences.mean())

    @property
    def interval(self) -> tuple[float, float] | None:
        """Unadjusted 95% interval by Student's t over pairs, None for one seed."""
        found = self._student
        return None if found is None else (float(found.low[0]), float(found.high[0]))

    @property
    def p(self) -> float | None:
        """Two-sided p-value of a difference of 0, not adjusted; None for one seed."""
        found = self._student
        return None if found is None else float(found.p[0])

    @property
    def detectable(self) -> float | None:
        """The true difference that so many seeds with this scatter find four times in five; None for one seed."""
        seeds = len(self.differences)
        if seeds < 2:
            return None
        return statistics.detectable_effect(seeds) * float(self.differences.std(ddof=1))

    @property
    def is_constant(self) -> bool:
        """Whether the difference is the same for every seed, to rounding."""
        return bool(np.ptp(self.differences) <= ROUNDING * max(np.abs(self.differences).max(), 1))

    @property
    def _student(self) -> statistics.Interval | None:
        together = self.differences[None]
        return None if len(self.differences) < 2 else statistics.student_pairs(np.zeros_like(together), together)


def contrast(values: pd.DataFrame, arm: str, baseline: str = BASELINE) -> Contrast | None:
    """Pair two arms of a table (columns arm, seed, value) by seed; None if they share no seed."""
    wide = values.pivot_table(index="seed", columns="arm", values="value")
    if not {arm, baseline} <= set(wide.columns):
        return None
    both = wide[[arm, baseline]].dropna()
    return Contrast((both[arm] - both[baseline]).to_numpy()) if len(both) else None


def outcomes(found: pd.DataFrame, dynamic: pd.DataFrame, last: int) -> Iterator[tuple[str, pd.DataFrame]]:
    """(name, table with arm, width, seed, value) of each compared outcome, at the last step."""
    at_last = found[found["step"] == last]
    for metric, name in (
        ("perplexity/loss", PRIMARY),
        ("perplexity/perplexity", "validation perplexity"),
        ("blimp/accuracy", "minimal pairs, accuracy"),
    ):
        some = at_last[at_last["metric"] == metric]
        if len(some):
            yield name, some
    here = dynamic[dynamic["step"] == last]
    for kind in ("weights", "updates"):
        for metric in ("per", "effective_condition_number", "numerical_rank"):
            some = here[(here["kind"] == kind) & (here["metric"] == metric) & (here["component"] != "ov_circuit")]
            mean = some.groupby(["arm", "width", "seed"], as_index=False)["value"].mean()
            yield f"{metric} of {kind}, mean over modules", mean


def summary(
    found: pd.DataFrame, dynamic: pd.DataFrame, cost: pd.DataFrame, says: Mapping[str, str], last: int
) -> Iterator[str]:
    """Lines of Markdown: a table for each outcome, with verdicts for the one decided on beforehand alone."""
    for name, table in outcomes(found, dynamic, last):
        yield f"### {name}\n"
        yield from (primary_table if name == PRIMARY else outcome_table)(table, list(says))
        yield ""
    yield f"### {PRIMARY}, by step\n"
    yield from step_table(found, list(says))
    yield "\n### cost\n"
    yield "| width | arm | runs | parameters that train | optimizer, kB | tokens | seconds of updates |"
    yield "|---|---|---|---|---|---|---|"
    for (width, arm), some in cost.groupby(["width", "arm"], sort=False):
        mean = some.mean(numeric_only=True)
        yield (
            f"| {width} | {arm} | {len(some)} | {mean.trained:,.0f} | {mean.optimizer_bytes / 1e3:,.0f} |"
            f" {mean.tokens:,.0f} | {mean.seconds:,.0f} |"
        )
    yield f"\nCode: {', '.join(sorted({str(commit)[:12] for commit in cost['commit']}))}"


def primary_table(table: pd.DataFrame, arms: Sequence[str]) -> Iterator[str]:
    """Each arm less full rank, with p-values adjusted by Holm over all contrasts of this table."""
    cells = list(_cells(table, arms))
    contrasts = [contrast(some, arm) if arm != BASELINE else None for _, arm, some in cells]
    tested = [one.p for one in contrasts if one is not None and one.p is not None]
    adjusted = iter(statistics.holm(tested))
    yield "| width | arm | seeds | mean | less full rank | p | p by Holm | verdict | detectable | less ReLoRA |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for (width, arm, some), against in zip(cells, contrasts, strict=True):
        p = against.p if against is not None else None
        judged = None if p is None else float(next(adjusted))
        row = [*_arm_words(width, arm, some), _difference(against), _number(p), _number(judged)]
        other = contrast(some, arm, DEFINED) if arm not in (BASELINE, DEFINED) else None
        yield _line([*row, verdict(against, judged), _detectable(against), _difference(other)])


def outcome_table(table: pd.DataFrame, arms: Sequence[str]) -> Iterator[str]:
    """Each arm less full rank and less ReLoRA, with unadjusted intervals and without verdicts."""
    yield "| width | arm | seeds | mean | less full rank | detectable | less ReLoRA | detectable |"
    yield "|---|---|---|---|---|---|---|---|"
    for width, arm, some in _cells(table, arms):
        row = _arm_words(width, arm, some)
        for other in (BASELINE, DEFINED):
            against = contrast(some, arm, other) if arm not in (BASELINE, other) else None
            row += [_difference(against), _detectable(against)]
        yield _line(row)


def step_table(found: pd.DataFrame, arms: Sequence[str]) -> Iterator[str]:
    """The mean of the primary outcome at every evaluated step, and how far it lies from full rank's."""
    yield "| width | arm | step | mean | less full rank |"
    yield "|---|---|---|---|---|"
    values = found[found["metric"] == "perplexity/loss"]
    for width, arm, some in _cells(values, arms):
        for step, here in some.groupby("step"):
            mean = here.loc[here["arm"] == arm, "value"].mean()
            against = contrast(here, arm) if arm != BASELINE else None
            yield _line([width, arm, int(step), f"{mean:.4g}", _difference(against)])


def signature_table(signatures: pd.DataFrame, every: int) -> Iterator[str]:
    """Show the effect of each fault: at the first merge, before it, and in the updates that follow merges."""
    heading = (
        "loss before and after the first merge | moved before it | largest move right after a merge, learning rates"
    )
    yield f"| arm | {heading} |"
    yield "|---|---|---|---|"
    for arm, rows in signatures.groupby("arm", sort=False):
        at = rows.set_index("step")
        following = [step for step in at.index if step > 1 and step % every == 1]
        if not following:
            yield _line([arm, "no merge within the run", "", ""])
            continue
        after = at.loc[following, "first"].max()
        before = at.loc[every - 1]
        losses = f"{before['loss']:.3f}, {at.loc[every, 'loss']:.3f}"
        yield _line([arm, losses, f"{before['moved']:.3g}", f"{after:,.1f}"])


def verdict(against: Contrast | None, adjusted: float | None) -> str:
    """State what the adjusted p-value says about the primary outcome."""
    if against is None:
        return ""
    if adjusted is None:
        return "none (one seed)"
    if adjusted > 1 - statistics.LEVEL:
        return "undecided"
    return "higher" if against.mean > 0 else "lower"


def _cells(table: pd.DataFrame, arms: Sequence[str]) -> Iterator[tuple[int, str, pd.DataFrame]]:
    """Yield each width and arm of the table with the values of all arms of that width."""
    for width, some in table.groupby("width"):
        yield from ((int(width), arm, some) for arm in arms if arm in set(some["arm"]))


def _arm_words(width: int, arm: str, table: pd.DataFrame) -> list[Any]:
    own = table[table["arm"] == arm]["value"]
    return [width, arm, len(own), f"{own.mean():.4g}"]


def _difference(against: Contrast | None) -> str:
    if against is None:
        return ""
    if against.interval is None:
        return f"{against.mean:+.3g} (one seed)"
    if against.is_constant:
        return f"{against.mean:+.3g} (the same in every pair)"
    low, high = against.interval
    return f"{against.mean:+.3g} ({low:+.3g} to {high:+.3g})"


def _detectable(against: Contrast | None) -> str:
    return "" if against is None or against.is_constant else _number(against.detectable)


def _number(value: float | None) -> str:
    return "" if value is None else f"{float(f'{value:.2g}'):g}"


def _line(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
