"""What a figure shows: which rows of the measurement table, and in which words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pico_contract.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

OUTSIDE = -1  # stands for the layer of a module outside the layers
_WIDE = 50.0  # values that differ by more than this factor get a logarithmic axis or colours
# Units of what lies within [0, 1]: always linear.
_BOUNDED = ("similarity", "fraction of full rank", "index", "share of entries", "share of columns")

OVERVIEW = (("weights", "per"), ("activations", "cka_debiased"), ("gradients", "frobenius_norm"))
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
    """What a figure shows: one metric of one kind and split of one run; `rows` are those of the
    table.

    `between` is what the numbers are compared between where each has several references: "steps" or
    "layers".
    """

    rows: pd.DataFrame
    metric: str
    kind: str
    split: str | None
    between: str | None = None

    @property
    def quantity(self) -> str:
        """The metric's name and unit, for an axis."""
        unit = unit_of(self.rows)
        return f"{display_name(self.metric)} ({unit})" if unit else display_name(self.metric)

    @property
    def object(self) -> str:
        """What was measured, for a title."""
        return f"{self.kind}{f' ({self.split})' if self.split else ''}{self._compared}"

    @property
    def _compared(self) -> str:
        if self.between:
            return f", between {self.between}"
        pairs = self.rows.loc[self.rows["reference_step"].notna()]
        steps = pairs["reference_step"].unique()
        if not len(steps):
            return ""
        moving = (
            "the same step"
            if (pairs["reference_step"] == pairs["step"]).all()
            else "the step before"
        )
        where = f"step {steps[0]}" if len(steps) == 1 else moving
        others = list(pairs["reference_run"].dropna().unique()) if "reference_run" in pairs else []
        of = "".join(f" of run {other}" for other in others if other != pairs["run"].iloc[0])
        return f", {'since' if self.kind == 'updates' else 'to'} {where}{of}"

    @property
    def stem(self) -> str:
        """Name of a figure's file without its ending."""
        parts = [self.kind, self.split, self.metric.replace(":", ".")]
        return "_".join(part for part in parts if part)


def plot_data(frame: pd.DataFrame, metric: str, kind: str, split: str | None = None) -> PlotData:
    """The rows of one metric of one kind and split; `split` may be left out where the table holds
    one only.

    Raises:
        UserError: the table has no such rows, or they are of several splits, runs, runs compared
            with, or variants.
    """
    rows = frame[(frame["metric"] == metric) & (frame["kind"] == kind)]
    if split is not None:
        rows = rows[rows["split"] == split]
    if rows.empty:
        there = {f"{m} of {k}" for m, k in zip(frame["metric"], frame["kind"], strict=True)}
        of = kind if split is None else f"{kind} of split {split}"
        raise UserError(
            f"the table has no {metric} of {of}{did_you_mean(f'{metric} of {kind}', there)}"
        )
    for column in ("split", "run", "reference_run", "variant"):
        values = sorted(map(str, rows[column].dropna().unique()))
        if len(values) > 1:
            raise UserError(
                f"the table has {metric} of {kind} for several {column}s ({', '.join(values)}): choose one"
            )
    return PlotData(rows, metric, kind, next(iter(rows["split"].dropna()), None), between(rows))


def between(rows: pd.DataFrame) -> str | None:
    """Of one metric, kind and split: "layers" or "steps" where a number is compared with several,
    else None.

    Raises:
        UserError: some are compared with other layers, some with other steps.
    """
    compared = rows[rows["reference_module"].notna()]
    across = compared["reference_module"] != compared["module"]
    if across.any() and not across.all():
        raise UserError(
            f"the table has {rows['metric'].iloc[0]} between steps and between layers: choose one"
        )
    if across.any():
        return "layers"
    references = compared.groupby(["module", "head", "step"], dropna=False)[
        "reference_step"
    ].nunique()
    return "steps" if (references > 1).any() else None


def all_plot_data(frame: pd.DataFrame, metrics: Sequence[str] | None = None) -> list[PlotData]:
    """Each of `metrics` of each kind and split in the table; by default what `OVERVIEW` names, of
    the probe (val).

    Raises:
        UserError: the table lacks one of `metrics` altogether.
    """
    available = frame[["kind", "metric"]].drop_duplicates().itertuples(index=False, name=None)
    pairs = [pair for pair in available if metrics is None or pair[1] in metrics]
    if metrics is None:
        pairs = [pair for pair in OVERVIEW if pair in pairs]
    for metric in metrics or ():
        if metric not in {found for _, found in pairs}:
            raise UserError(
                f'the table has no metric "{metric}"{did_you_mean(metric, set(frame["metric"]))}'
            )
    found = []
    for kind, metric in pairs:
        splits = sorted(frame.loc[frame["kind"] == kind, "split"].dropna().unique()) or [None]
        kept = (
            splits if metrics is not None else splits[-1:]
        )  # val, or train where nothing else was observed
        found += [plot_data(frame, metric, kind, split) for split in kept]
    return found


def unit_of(rows: pd.DataFrame) -> str:
    """The unit of a metric's rows, to be written beside its name; "" where it is a plain number."""
    unit = str(next(iter(rows["unit"].dropna()), ""))
    return "" if unit == "1" else unit


def display_name(metric: str) -> str:
    """The metric's name in words, for a title: `effective_rank` is effective rank."""
    return _NAMES.get(metric) or metric.rpartition(":")[2].replace("_", " ")


def heads_of(table: pd.DataFrame) -> str:
    """How many heads a panel is the mean of, for its title."""
    heads = table["head"].nunique() if "head" in table else 0
    return f", {heads} heads" if heads else ""


def layers_of(rows: pd.DataFrame) -> list[int]:
    """The layers in `rows`, ascending."""
    return sorted(int(layer) for layer in rows["layer"].dropna().unique())


def by_layer(table: pd.DataFrame) -> pd.DataFrame:
    """Layer x step; the mean over what else there is (heads, modules), null where one of them is.
    Outside: -1."""
    keys = [table["layer"].astype("Int64").fillna(OUTSIDE).rename("layer"), table["step"]]
    return (
        table["value"].groupby(keys).apply(lambda values: values.mean(skipna=False)).unstack("step")
    )


def is_wide(table: pd.DataFrame, values: pd.DataFrame) -> bool:
    """Whether values call for a logarithmic axis: positive, unbounded, and far apart."""
    found = values.stack()
    bounded = table["unit"].isin(_BOUNDED).any()
    return bool(not bounded and found.min() > 0 and found.max() > _WIDE * found.min())
