"""Statistics over runs: intervals, pairing by seeds, many numbers at once, power, counts.

All are pure functions of numpy arrays. Arrays are (cells, runs), with one row for each number
compared. A run (a seed) is the unit: cells are never counted as observations.
"""

from __future__ import annotations

from pico_analyze.statistics.counts import wilson
from pico_analyze.statistics.effect_size import hedges_g
from pico_analyze.statistics.intervals import (
    LEAST_BOOTSTRAP_RUNS,
    LEVEL,
    Interval,
    bootstrap,
    student_pairs,
    welch,
)
from pico_analyze.statistics.multiple import MaxT, holm, least_p, max_t
from pico_analyze.statistics.outliers import ALPHA_OUTLIER, outlier_p, scatter_ratio
from pico_analyze.statistics.pairing import Pairing, choose_pairs
from pico_analyze.statistics.power import POWER, detectable_effect, power, runs_needed

__all__ = [
    "ALPHA_OUTLIER",
    "LEAST_BOOTSTRAP_RUNS",
    "LEVEL",
    "POWER",
    "Interval",
    "MaxT",
    "Pairing",
    "bootstrap",
    "choose_pairs",
    "detectable_effect",
    "hedges_g",
    "holm",
    "least_p",
    "max_t",
    "outlier_p",
    "power",
    "runs_needed",
    "scatter_ratio",
    "student_pairs",
    "welch",
    "wilson",
]
