"""The results of the finished runs of a setting, as four tables in CSV."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pico_analyze import measure, open_run
from pico_contract import codec
from pico_contract.layout import OPTIMIZER, SCALARS, RunLayout
from pico_contract.schema import RunManifest
from pico_train.commands import evaluate_run
from pico_train.evaluate.results import scalars
from pico_train.log.metrics import read_metrics
from plan import Planned

METRICS = ["per", "condition_number", "effective_condition_number", "numerical_rank", "frobenius_norm"]
COMPONENTS = ["v_proj", "o_proj", "down_proj", "ov_circuit"]
SMOOTHED = 20
"""Updates over which a curve of the training loss is averaged."""


def finished(runs: Sequence[Planned]) -> list[Planned]:
    """Select the runs that are finished."""
    return [run for run in runs if _status(run.config.layout) == "finished"]


def _status(layout: RunLayout) -> str | None:
    return codec.read_manifest(layout.manifest, RunManifest).status if layout.manifest.is_file() else None


def minimal_pairs(runs: Sequence[Planned], pairs: Path) -> None:
    """Evaluate the last step of `runs` on BLiMP's JSON lines in `pairs`; existing results are reused."""
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
        if (found := scalars(run.config.layout, step))
    ]
    return pd.concat(rows, ignore_index=True)


def dynamics(runs: Sequence[Planned]) -> pd.DataFrame:
    """METRICS of the effective weights and of their updates over the window from the observed step before, by layer;
    the mean over heads for circuits. Null if the status is not ok."""
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
    """Tabulate the cost of each run: trained parameters, bytes of the optimizer, tokens, seconds of its updates."""
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
