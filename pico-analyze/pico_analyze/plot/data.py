"""The data of a figure: rows of the measurement table, and the words for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pico_contract.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

OUTSIDE = -1
"""Stands for the layer of a module outside the layers."""
_WIDE = 50.0  # values that differ by more than this factor get a logarithmic axis or colours
# Values in these units lie within [0, 1]: their axes are always linear.
_BOUNDED = (
    "similarity",
    "fraction of full rank",
    "index",
    "share of entries",
    "share of columns",
)

OVERVIEW = (
    ("weights", "per"),
    ("activations", "cka_debiased"),
    ("gradients", "frobenius_norm"),
)
"""(kind, metric) of the figures that are drawn if no metrics are named."""
# Metrics whose display name is not their name with spaces.
_NAMES = {
    "per": "PER",
    "gini": "Gini",
    "hoyer": "Hoyer",
    "cka": "linear CKA",
    "cka_debiased": "debiased CKA",
    "cka_rbf": "RBF CKA",
    "svcca": "SVCCA",
    "pwcca": "PWCCA",
    "procrustes": "Procrustes",
    "mutual_knn": "mutual kNN",
    "heavy_tail_exponent": "heavy-tail exponent",
    "heavy_tail_ks": "heavy-tail KS",
    "heavy_tail_count": "heavy-tail count",
    "near_zero_share": "near-zero share",
    "frobenius_norm": "Frobenius norm",
}


@dataclass(frozen=True)
class PlotData:
    """One metric of one kind and split of one run, as a figure shows it.

    Attributes:
        rows: those of the measurement table.
        metric: its name in the table.
        kind: weights, gradients, activations or updates.
        split: train or val; None if the kind has none.
        between: "steps" or "layers" if each number has several references, else None.
    """

    rows: pd.DataFrame
    metric: str
    kind: str
    split: str | None
    between: str | None = None

    @property
    def quantity(self) -> str:
        """Name the metric and its unit, for an axis."""
        unit = unit_of(self.rows)
        return f"{display_name(self.metric)} ({unit})" if unit else display_name(self.metric)

    @property
    def object(self) -> str:
        """Name what was measured, for a title."""
        split = f" ({self.split})" if self.split else ""
        return f"{self.kind}{split}{self._compared}"

    @property
    def _compared(self) -> str:
        """Name the references of the numbers, for a title; "" if they have none."""
        if self.between:
            return f", between {self.between}"
        pairs = self.rows.loc[self.rows["reference_step"].notna()]
        steps = pairs["reference_step"].unique()
        if not len(steps):
            return ""
        if len(steps) == 1:
            reference = f"step {steps[0]}"
        elif (pairs["reference_step"] == pairs["step"]).all():
            reference = "the same step"
        else:
            reference = "the step before"
        preposition = "since" if self.kind == "updates" else "to"
        return f", {preposition} {reference}{_other_runs(pairs)}"

    @property
    def stem(self) -> str:
        """The name of a figure's file without its form and ending."""
        parts = [self.kind, self.split, self.metric.replace(":", ".")]
        return "_".join(part for part in parts if part)


def _other_runs(pairs: pd.DataFrame) -> str:
    """Name the runs that the rows are compared with, unless it is their own run."""
    if "reference_run" not in pairs:
        return ""
    run = pairs["run"].iloc[0]
    names = pairs["reference_run"].dropna().unique()
    return "".join(f" of run {name}" for name in names if name != run)


def plot_data(
    frame: pd.DataFrame, metric: str, kind: str, split: str | None = None
) -> PlotData:
    """Select the rows of one metric of one kind and split.

    `split` may be left out if the table holds one only.

    Raises:
        UserError: the table has no such rows, or they are of several splits, runs, runs compared
            with, or variants.
    """
    rows = rows_of(frame, metric, kind, split)
    if rows.empty:
        raise _no_rows(frame, metric, kind, split)
    for column in ("split", "run", "reference_run", "variant"):
        # Several of them would be drawn as one line that jumps.
        _check_single(rows, column, f"{metric} of {kind}")
    known_split = next(iter(rows["split"].dropna()), None)
    return PlotData(rows, metric, kind, known_split, between(rows))


def rows_of(frame: pd.DataFrame, metric: str, kind: str, split: str | None) -> pd.DataFrame:
    """Select the rows of a metric of a kind and of one split, or of all."""
    rows = frame[(frame["metric"] == metric) & (frame["kind"] == kind)]
    return rows if split is None else rows[rows["split"] == split]


def _check_single(rows: pd.DataFrame, column: str, name: str) -> None:
    values = sorted(map(str, rows[column].dropna().unique()))
    if len(values) > 1:
        listed = ", ".join(values)
        raise UserError(f"the table has {name} for several {column}s ({listed}): choose one")


def _no_rows(frame: pd.DataFrame, metric: str, kind: str, split: str | None) -> UserError:
    pairs = zip(frame["metric"], frame["kind"], strict=True)
    known = {f"{other} of {its_kind}" for other, its_kind in pairs}
    of_split = "" if split is None else f" of split {split}"
    hint = did_you_mean(f"{metric} of {kind}", known)
    return UserError(f"the table has no {metric} of {kind}{of_split}{hint}")


def between(rows: pd.DataFrame) -> str | None:
    """Return "layers" or "steps" if each number of a metric is compared with several, else None.

    The rows are of one metric, kind and split.

    Raises:
        UserError: some are compared with other layers, some with other steps.
    """
    compared = rows[rows["reference_module"].notna()]
    across = compared["reference_module"] != compared["module"]
    if not across.any():
        return "steps" if _has_several_references(compared) else None
    if across.all():
        return "layers"
    metric = rows["metric"].iloc[0]
    raise UserError(f"the table has {metric} between steps and between layers: choose one")


def _has_several_references(compared: pd.DataFrame) -> bool:
    # Weights have no head: a null key is a group, too.
    by_number = compared.groupby(["module", "head", "step"], dropna=False)
    counts = by_number["reference_step"].nunique()
    return bool((counts > 1).any())


def all_plot_data(frame: pd.DataFrame, metrics: Sequence[str] | None = None) -> list[PlotData]:
    """Select each of `metrics` of each kind and split in the table.

    By default they are those of `OVERVIEW`, of the last split: val, or train if nothing else was
    observed.

    Raises:
        UserError: the table lacks one of `metrics` altogether.
    """
    _check_metrics(frame, metrics or ())
    measured = frame[["kind", "metric"]].drop_duplicates()
    available = list(measured.itertuples(index=False, name=None))
    if metrics is None:
        pairs = [pair for pair in OVERVIEW if pair in available]
    else:
        pairs = [(kind, metric) for kind, metric in available if metric in metrics]
    selected = []
    for kind, metric in pairs:
        splits = _splits_of(frame, kind)
        if metrics is None:
            splits = splits[-1:]
        selected += [plot_data(frame, metric, kind, split) for split in splits]
    return selected


def _check_metrics(frame: pd.DataFrame, metrics: Sequence[str]) -> None:
    known = set(frame["metric"])
    for metric in metrics:
        if metric not in known:
            raise UserError(f'the table has no metric "{metric}"{did_you_mean(metric, known)}')


def _splits_of(frame: pd.DataFrame, kind: str) -> list[str | None]:
    splits = frame.loc[frame["kind"] == kind, "split"]
    return sorted(splits.dropna().unique()) or [None]


def unit_of(rows: pd.DataFrame) -> str:
    """Return the unit of a metric's rows; "" for a plain number."""
    unit = str(next(iter(rows["unit"].dropna()), ""))
    return "" if unit == "1" else unit


def display_name(metric: str) -> str:
    """Return a metric's name in words, for a title: `effective_rank` is effective rank."""
    return _NAMES.get(metric) or metric.rpartition(":")[2].replace("_", " ")


def heads_of(table: pd.DataFrame) -> str:
    """Say how many heads a panel averages, for its title; "" for a plain module."""
    heads = table["head"].nunique() if "head" in table else 0
    return f", {heads} heads" if heads else ""


def layers_of(rows: pd.DataFrame) -> list[int]:
    """List the layers in `rows`, ascending."""
    return sorted(int(layer) for layer in rows["layer"].dropna().unique())


def steps_of(rows: pd.DataFrame) -> list[int]:
    """List the steps in `rows`, ascending."""
    return sorted(int(step) for step in rows["step"].unique())


def by_layer(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate layer x step, the mean over heads and modules; null if one of them is.

    Modules outside the layers are in the row `OUTSIDE`.
    """
    # Grouping drops missing keys, so modules outside the layers get a number.
    layer = table["layer"].astype("Int64").fillna(OUTSIDE).rename("layer")
    groups = table["value"].groupby([layer, table["step"]])
    # A mean over the remaining heads would look like a change of the metric.
    return groups.apply(lambda values: values.mean(skipna=False)).unstack("step")


def is_wide(table: pd.DataFrame, values: pd.DataFrame) -> bool:
    """Return whether values call for a logarithmic axis: positive, unbounded, and far apart."""
    known = values.stack()
    bounded = table["unit"].isin(_BOUNDED).any()
    return bool(not bounded and known.min() > 0 and known.max() > _WIDE * known.min())
