"""What the finished runs of a setting say, as four tables in CSV, and what may be concluded from them.

Values of an arm are compared with the baseline's of the same seed: weights, rows and everything else are then the same,
and what the seeds have in common goes out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pico_analyze import measure, open_run
from pico_contract import codec
from pico_contract.layout import OPTIMIZER, SCALARS, RunLayout
from pico_contract.schema import RunManifest
from pico_train.commands import evaluate_run
from pico_train.evaluate.results import told
from pico_train.report import read_metrics
from plan import Planned
from scipy import stats

METRICS = ["per", "condition_number", "effective_condition_number", "numerical_rank", "frobenius_norm"]
COMPONENTS = ["v_proj", "o_proj", "down_proj", "ov_circuit"]
BASELINE, DEFINED = "full", "relora"
LEVEL, POWER = 0.95, 0.8
SMOOTHED = 20
"""Updates over which a curve of the training loss is averaged."""


def finished(runs: Sequence[Planned]) -> list[Planned]:
    """Those that have come to their end."""
    return [run for run in runs if _status(run.config.layout) == "finished"]


def _status(layout: RunLayout) -> str | None:
    return codec.read_manifest(layout.manifest, RunManifest).status if layout.manifest.is_file() else None


def minimal_pairs(runs: Sequence[Planned], pairs: Path) -> None:
    """Evaluate the last step of `runs` on BLiMP's JSON lines in `pairs`; what was measured before is read back."""
    for run in runs:
        said = evaluate_run(run.config.layout.root, None, ["blimp"], [f"evaluate.blimp.path={pairs}"])
        print(f"{run.config.name}, {said}", flush=True)


def losses(runs: Sequence[Planned]) -> pd.DataFrame:
    """Mean training loss of each stretch of `SMOOTHED` updates, nats a token."""
    return pd.concat([_losses(run) for run in runs], ignore_index=True)


def _losses(run: Planned) -> pd.DataFrame:
    rows = pd.DataFrame(read_metrics(run.config.layout.metrics))
    stretch = (rows["step"] - 1) // SMOOTHED
    mean = rows.groupby(stretch).agg(step=("step", "max"), loss=("loss", "mean")).reset_index(drop=True)
    return _about(run, mean)


def evaluations(runs: Sequence[Planned]) -> pd.DataFrame:
    """Every number that evaluation found, by step: `metric` is task/name."""
    rows = [
        _about(run, pd.DataFrame([{"step": step, "metric": name, "value": value} for name, value in found.items()]))
        for run in runs
        for step in codec.listed_steps(run.config.layout.evaluations)
        if (found := told(run.config.layout, step))
    ]
    return pd.concat(rows, ignore_index=True)


def dynamics(runs: Sequence[Planned]) -> pd.DataFrame:
    """METRICS of the effective weights and of their updates over the window from the observed step before, by layer;
    of circuits the mean over heads. Null where the status is not ok."""
    return pd.concat([_about(run, _dynamics(run)) for run in runs], ignore_index=True)


def _dynamics(run: Planned) -> pd.DataFrame:
    layout = run.config.layout
    table = measure(
        open_run(layout.root),
        METRICS,
        COMPONENTS,
        kinds=["weights", "updates"],
        cache=layout.root / "analysis" / "study" / "cache",
    )
    by = ["step", "kind", "component", "layer", "metric"]
    return table.groupby(by, observed=True, as_index=False)["value"].mean()


def costs(runs: Sequence[Planned]) -> pd.DataFrame:
    """What a run trained and took: parameters that train, bytes of the optimizer, tokens, seconds of its updates."""
    return pd.DataFrame(_cost(run) for run in runs)


def _cost(run: Planned) -> dict[str, Any]:
    layout, rows = run.config.layout, read_metrics(run.config.layout.metrics)
    state = codec.TensorFile(layout.state(run.config.train.steps) / OPTIMIZER)
    sizes = {name: math.prod(state.shape(name)) for name in state.names}
    each = rows[0]["tokens"]
    return {
        **_names(run),
        "trained": sum(size for name, size in sizes.items() if name.endswith(".exp_avg")),
        "optimizer_bytes": 4 * sum(sizes.values()),
        "tokens": rows[-1]["tokens"],
        "seconds": sum(each / row["tokens_per_second"] for row in rows),
        "commit": codec.read_manifest(layout.manifest, RunManifest).sessions[-1]["commit"],
    }


def ranks(run: Planned) -> pd.DataFrame:
    """The rank of every module from each restart on that changed one."""
    scalars = run.config.layout.state(run.config.train.steps) / SCALARS
    history = json.loads(scalars.read_text(encoding="utf-8"))["method"]["ranks"]
    return pd.DataFrame(
        [{"step": step, "module": module, "rank": rank} for step, found in history for module, rank in found.items()]
    )


def _about(run: Planned, table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(**_names(run))


def _names(run: Planned) -> dict[str, Any]:
    return {"arm": run.arm, "width": run.width, "seed": run.seed}


@dataclass(frozen=True)
class Contrast:
    """An arm less the baseline, paired by seed."""

    differences: np.ndarray  # (seeds,)

    @property
    def mean(self) -> float:
        """Of the seeds."""
        return float(self.differences.mean())

    @property
    def half_width(self) -> float | None:
        """Of the interval by Student's t at LEVEL, None of one seed."""
        n = len(self.differences)
        return None if n < 2 else float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * self._error

    @property
    def detectable(self) -> float | None:
        """The smallest difference that so many seeds with this scatter find with probability POWER, to first order:
        (t_(1 + LEVEL) / 2 + t_POWER) s / sqrt(n) (Cohen 1988, section 2.4); None of one seed."""
        n = len(self.differences)
        quantiles = sum(float(stats.t.ppf(p, n - 1)) for p in ((1 + LEVEL) / 2, POWER)) if n > 1 else 0.0
        return None if n < 2 else quantiles * self._error

    @property
    def verdict(self) -> str:
        """What the interval allows to say."""
        if self.half_width is None:
            return "no verdict (one seed)"
        if not self.differences.any():
            return "equal"
        if abs(self.mean) <= self.half_width:
            return f"undecided (detectable: {self.detectable:.3g})"
        return "higher" if self.mean > 0 else "lower"

    @property
    def _error(self) -> float:
        return float(self.differences.std(ddof=1)) / math.sqrt(len(self.differences))


def contrast(values: pd.DataFrame, arm: str, baseline: str = BASELINE) -> Contrast | None:
    """Of a table with columns arm, seed, value; None where the two share no seed."""
    wide = values.pivot_table(index="seed", columns="arm", values="value")
    if not {arm, baseline} <= set(wide.columns):
        return None
    both = wide[[arm, baseline]].dropna()
    return Contrast((both[arm] - both[baseline]).to_numpy()) if len(both) else None


def outcomes(found: pd.DataFrame, dynamic: pd.DataFrame, last: int) -> Iterator[tuple[str, pd.DataFrame]]:
    """(name, table with arm, width, seed, value) of everything that is compared, at the last step."""
    at_last = found[found["step"] == last]
    for metric, name in (
        ("perplexity/loss", "validation loss, nats"),
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
    """Lines of Markdown: a table for each outcome, with a verdict for each arm that has one."""
    for name, table in outcomes(found, dynamic, last):
        yield f"### {name}\n"
        yield "| width | arm | seeds | mean | less full rank: mean, interval, verdict | less ReLoRA |"
        yield "|---|---|---|---|---|---|"
        for width, some in table.groupby("width"):
            yield from (_line(int(width), some, arm) for arm in says if arm in set(some["arm"]))
        yield ""
    yield "### cost\n"
    yield "| width | arm | runs | parameters that train | optimizer, kB | tokens | seconds of updates |"
    yield "|---|---|---|---|---|---|---|"
    for (width, arm), some in cost.groupby(["width", "arm"], sort=False):
        mean = some.mean(numeric_only=True)
        yield (
            f"| {width} | {arm} | {len(some)} | {mean.trained:,.0f} | {mean.optimizer_bytes / 1e3:,.0f} |"
            f" {mean.tokens:,.0f} | {mean.seconds:,.0f} |"
        )
    yield f"\nCode: {', '.join(sorted({str(commit)[:12] for commit in cost['commit']}))}"


def _line(width: int, table: pd.DataFrame, arm: str) -> str:
    own = table[table["arm"] == arm]["value"]
    against = [_told(contrast(table, arm, other)) if arm != other else "" for other in (BASELINE, DEFINED)]
    return (
        f"| {width} | {arm} | {len(own)} | {own.mean():.4g} | {against[0]} | {against[1] if arm != BASELINE else ''} |"
    )


def _told(found: Contrast | None) -> str:
    if found is None:
        return ""
    half = found.half_width
    interval = "" if half is None else f" ({found.mean - half:+.3g} to {found.mean + half:+.3g})"
    return f"{found.mean:+.3g}{interval}, {found.verdict}"
