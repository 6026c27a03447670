"""Check intervals, marks and power by simulations with known truth, in seconds.

    python benchmarks/verdicts.py

Exit code 1 if a bound fails. Cases without a bound show what the method does where its assumptions do not hold.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from pico_analyze import statistics
from pico_analyze.statistics import Interval

EXPERIMENTS = 100_000
MAPS = 1_500
SEED = 0
ALPHA = 1 - statistics.LEVEL
Draw = Callable[[np.random.Generator, int, int], Any]


@dataclass(frozen=True)
class Result:
    """A share that was simulated, and the bounds it must lie within; None promises nothing."""

    name: str
    share: float
    bounds: tuple[float, float] | None = None

    @property
    def holds(self) -> bool:
        """Whether the share lies within its bounds."""
        return self.bounds is None or self.bounds[0] <= self.share <= self.bounds[1]


def normal(generator: np.random.Generator, cells: int, runs: int) -> Any:
    """Draw standard normal values."""
    return generator.normal(size=(cells, runs))


def skewed(generator: np.random.Generator, cells: int, runs: int) -> Any:
    """Draw log-normal values about their mean: skewness 6.2."""
    return generator.lognormal(size=(cells, runs)) - np.exp(0.5)


def coverage_of_pairs(runs: int, experiments: int = EXPERIMENTS, draw: Draw = normal) -> float:
    """Share of Student's intervals over `runs` pairs that include the true difference."""
    generator = np.random.default_rng(SEED)
    differences = draw(generator, experiments, runs)
    common = normal(generator, experiments, runs)  # what both runs of a pair share goes out
    return _covers(statistics.student_pairs(common, common + differences), 0.0)


def coverage_of_welch(n: int, m: int, scatter: float = 1.0, experiments: int = EXPERIMENTS) -> float:
    """Share of Welch's intervals that include the true difference, where the second arm has `scatter` times the sd."""
    generator = np.random.default_rng(SEED)
    x, y = normal(generator, experiments, n), scatter * normal(generator, experiments, m)
    return _covers(statistics.welch(x, y), 0.0)


def coverage_of_bootstrap(runs: int, experiments: int = 4_000) -> float:
    """Share of bootstrap intervals over `runs` pairs that include the true difference."""
    generator = np.random.default_rng(SEED)
    x, y = normal(generator, experiments, runs), normal(generator, experiments, runs)
    return _covers(statistics.bootstrap(x, y, paired=True), 0.0)


def marked_maps(n: int, m: int, paired: bool, differing: int = 0, maps: int = MAPS) -> float:
    """Share of maps of 24 cells in which max-t marks a cell without a difference; `differing` cells do differ.

    Cells share most of their variance, as layers and steps of one run do.
    """
    generator = np.random.default_rng(SEED)
    effect = np.where(np.arange(24) < differing, 5.0, 0.0)[:, None]
    marked = 0
    for _ in range(maps):
        x, y = (generator.normal(size=k) + 0.5 * normal(generator, 24, k) for k in (n, m))
        p = statistics.max_t(x, y + effect, paired).p
        marked += bool((p[differing:] <= ALPHA).any())
    return marked / maps


def simulated_power(effect: float, runs: int, paired: bool, experiments: int = EXPERIMENTS) -> float:
    """Share of intervals that leave out 0 where the true difference is `effect` standard deviations."""
    generator = np.random.default_rng(SEED + 1)
    x, y = np.zeros((experiments, runs)), normal(generator, experiments, runs) + effect
    if not paired:
        x = normal(generator, experiments, runs)
    found = statistics.student_pairs(x, y) if paired else statistics.welch(x, y)
    return float(((found.low > 0) | (found.high < 0)).mean())


def false_rejections(tests: int, experiments: int = EXPERIMENTS) -> float:
    """Share of experiments in which Holm rejects any of `tests` hypotheses, all of them true."""
    p = np.random.default_rng(SEED).uniform(size=(experiments // 20, tests))
    return float(np.mean([(statistics.holm(row) <= ALPHA).any() for row in p]))


def coverage_of_wilson(trials: int, share: float, experiments: int = EXPERIMENTS) -> float:
    """Share of Wilson's intervals that include the true share."""
    counts = np.random.default_rng(SEED).binomial(trials, share, size=experiments)
    found = {int(k): statistics.wilson(int(k), trials) for k in np.unique(counts)}
    return float(np.mean([found[int(k)][0] <= share <= found[int(k)][1] for k in counts]))


def results() -> Iterator[Result]:
    """Run every simulation."""
    yield from _coverages()
    yield from _without_promise()
    yield from _false_marks()
    yield from _powers()


def _coverages() -> Iterator[Result]:
    for runs in (2, 3, 5, 10):
        yield Result(f"coverage, Student, {runs} pairs", coverage_of_pairs(runs), (0.945, 0.955))
    for runs in (2, 3, 5, 10):
        for scatter in (1, 3):
            name = f"coverage, Welch, {runs} and {runs} runs, scatter 1 to {scatter}"
            yield Result(name, coverage_of_welch(runs, runs, scatter), (0.945, 0.985))


def _without_promise() -> Iterator[Result]:
    for n, m, scatter in ((3, 10, 1), (10, 3, 3), (3, 10, 3), (2, 10, 1), (10, 2, 5)):
        name = f"coverage, Welch, {n} and {m} runs, scatter 1 to {scatter}"
        yield Result(name, coverage_of_welch(n, m, scatter))
    for runs in (3, 5, 10, 30):
        yield Result(f"coverage, Student, {runs} pairs, log-normal", coverage_of_pairs(runs, draw=skewed))
    yield Result("coverage, bootstrap, 10 pairs", coverage_of_bootstrap(10))
    yield Result("coverage, Wilson, 100 trials, share 0.1", coverage_of_wilson(100, 0.1))


def _false_marks() -> Iterator[Result]:
    for n, m, paired in ((6, 6, True), (10, 10, True), (4, 4, False), (4, 6, False)):
        for differing in (0, 8):
            kind = "pairs" if paired else "runs"
            name = f"maps with a false mark, max-t, {n} and {m} {kind}, {differing} of 24 cells differ"
            yield Result(name, marked_maps(n, m, paired, differing), (0, _at_most(ALPHA, MAPS)))
    yield Result("any false rejection, Holm, 4 tests", false_rejections(4), (0, _at_most(ALPHA, EXPERIMENTS // 20)))


def _powers() -> Iterator[Result]:
    for effect, paired in ((3.0, True), (1.0, True), (0.5, True), (2.0, False), (1.0, False)):
        runs = statistics.runs_needed(effect, paired)
        for count in (runs - 1, runs):
            computed = statistics.power(effect, count, paired)
            kind = "pairs" if paired else "runs an arm"
            name = f"power, {effect:g} sd, {count} {kind}, computed {computed:.3f}"
            yield Result(name, simulated_power(effect, count, paired), (computed - 0.01, computed + 0.01))
        enough = statistics.power(effect, runs, paired) >= statistics.POWER > statistics.power(effect, runs - 1, paired)
        yield Result(f"power, {effect:g} sd: {runs} is the least number for 80%", float(enough), (1, 1))


def _covers(interval: Interval, truth: float) -> float:
    return float(((interval.low <= truth) & (truth <= interval.high)).mean())


def _at_most(share: float, experiments: int) -> float:
    """Return the largest simulated share whose Wilson interval still includes `share`."""
    counts = np.arange(int(share * experiments), experiments)
    return next((k - 1) / experiments for k in counts if statistics.wilson(int(k), experiments)[0] > share)


def main() -> int:
    """Print every result; 1 if a bound fails."""
    failed = 0
    for result in results():
        bounds = "" if result.bounds is None else f"{result.bounds[0]:.3f} to {result.bounds[1]:.3f}"
        verdict = "no bound" if result.bounds is None else "ok" if result.holds else "FAILS"
        failed += not result.holds
        print(f"{result.name:<72} {result.share:7.4f}  {bounds:<15} {verdict}", flush=True)
    print(f"{failed} bounds fail" if failed else "all bounds hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
