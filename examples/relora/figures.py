"""Figures of the study: PNG files, the same colours for the same arms everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
COLOURS = {
    "full": "#000000",
    "relora": "#0072B2",
    "relora_published": "#D55E00",
    "fault_merge": "#E69F00",
    "fault_init": "#CC79A7",
    "fault_reset": "#8C564B",
    "adaptive": "#009E73",
    "hybrid": "#56B4E9",
}
LABELS = {
    "full": "full rank",
    "relora": "ReLoRA",
    "relora_published": "ReLoRA, all three faults",
    "fault_merge": "fault: merge without its scale",
    "fault_init": "fault: both factors zero",
    "fault_reset": "fault: independent pruning",
    "adaptive": "adaptive rank",
    "hybrid": "hybrid rank",
}
PUBLISHED = {"base": ("#000000", "-"), "relora": ("#D55E00", "-")}
STYLE = {"font.size": 9, "axes.titlesize": 9, "axes.grid": True, "grid.alpha": 0.3, "legend.frameon": False}


def _figure(rows: int, columns: int, title: str) -> tuple[Figure, np.ndarray]:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * columns, 2.7 * rows + 1.0), dpi=110, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        figure.suptitle(title, fontsize=11)
    return figure, axes


def _save(figure: Figure, axes: np.ndarray, path: Path) -> Path:
    handles = {label: h for ax in axes.flat for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=axes.shape[1] + axes.shape[0] // 3,
        fontsize=8,
        frameon=False,
    )
    figure.savefig(path, metadata={"Software": None})
    return path


def _curves(ax: Axes, table: pd.DataFrame, value: str = "value") -> None:
    """The mean over seeds of each arm by step, and a band from the least to the greatest."""
    for arm, colour in COLOURS.items():
        some = table[table["arm"] == arm].groupby("step")[value]
        if not len(some):
            continue
        mean, low, high = some.mean(), some.min(), some.max()
        ax.plot(mean.index, mean, color=colour, label=LABELS[arm], linewidth=1.3)
        ax.fill_between(mean.index, low, high, color=colour, alpha=0.15, linewidth=0)
    ax.set_xlabel("step")


def loss_curves(losses: pd.DataFrame, evaluations: pd.DataFrame, path: Path) -> Path:
    """Training loss above, validation loss below, a column for each width."""
    widths = sorted(losses["width"].unique())
    figure, axes = _figure(2, len(widths), "Loss by arm: mean over seeds, bands from the least to the greatest seed")
    validation = evaluations[evaluations["metric"] == "perplexity/loss"]
    for column, width in enumerate(widths):
        train = losses[(losses["width"] == width) & (losses["step"] >= 100)]
        _curves(axes[0, column], train, "loss")
        axes[0, column].set_title(f"training, width {width}")
        held_out = validation[(validation["width"] == width) & (validation["step"] > 0)]
        _curves(axes[1, column], held_out)
        axes[1, column].set_title(f"validation, width {width}")
    for ax in axes.flat:
        ax.set_ylabel("nats a token")
    return _save(figure, axes, path)


def dynamics_curves(dynamics: pd.DataFrame, path: Path) -> Path:
    """PER and effective condition number of weights and of updates over one window, mean over layers and modules."""
    widths = sorted(dynamics["width"].unique())
    plain = dynamics[dynamics["component"] != "ov_circuit"]
    panels = [(metric, kind) for kind in ("weights", "updates") for metric in ("per", "effective_condition_number")]
    names = {"per": "PER", "effective_condition_number": "effective CN"}
    title = "Value, output, down projections; CN: condition number; updates: W(t) - W(step before)"
    figure, axes = _figure(len(panels), len(widths), title)
    for row, (metric, kind) in enumerate(panels):
        for column, width in enumerate(widths):
            some = plain[(plain["width"] == width) & (plain["kind"] == kind) & (plain["metric"] == metric)]
            mean = some.groupby(["arm", "seed", "step"], as_index=False)["value"].mean()
            ax = axes[row, column]
            _curves(ax, mean)
            ax.set_title(f"{names[metric]} of {kind}, width {width}")
            if metric != "per":
                ax.set_yscale("log")
    return _save(figure, axes, path)


def fault_signatures(signatures: pd.DataFrame, every: int, path: Path) -> Path:
    """Loss on fixed rows around merges, how far the low-rank modules have moved, and the size of updates."""
    panels: list[tuple[str, str, str, Callable[[Axes], None] | None]] = [
        ("loss", "fault_merge", "loss on fixed rows, nats", None),
        ("moved", "fault_init", "moved since step 0, Frobenius norm", None),
        ("first", "fault_reset", "largest move, learning rates", lambda ax: ax.set_yscale("log")),
    ]
    figure, axes = _figure(1, 3, f"Three faults of the published code beside the correct arm; restarts every {every}")
    for ax, (value, fault, label, scale) in zip(axes[0], panels, strict=True):
        _curves(ax, signatures[signatures["arm"].isin(["relora", fault]) & (signatures["step"] > 20)], value)
        for step in range(every, int(signatures["step"].max()) + 1, every):
            ax.axvline(step, color="0.5", linewidth=0.8, linestyle=":")
        ax.set_ylabel(label)
        ax.set_title(LABELS[fault])
        if scale is not None:
            scale(ax)
    return _save(figure, axes, path)


def rank_map(ranks: pd.DataFrame, width: int, path: Path) -> Path:
    """The rank of each module of the adaptive arm, restart by restart."""
    wide = ranks.pivot(index="module", columns="step", values="rank")
    wide = wide.loc[sorted(wide.index, key=lambda name: (name.split(".")[-1], name))]
    figure = Figure(figsize=(7.2, 6.4), dpi=110, layout="constrained")
    figure.suptitle(f"Adaptive rank at width {width}: rank of each module from a restart on", fontsize=11)
    ax = figure.add_subplot()
    image = ax.imshow(wide, aspect="auto", cmap="viridis")
    ax.set_xticks(range(len(wide.columns)), [str(step) for step in wide.columns])
    ax.set_yticks(range(len(wide)), [name.removeprefix("model.layers.") for name in wide.index], fontsize=6)
    ax.set_xlabel("step")
    ax.grid(False)
    figure.colorbar(image, ax=ax, label="rank")
    figure.savefig(path, metadata={"Software": None})
    return path


def published_curves(path: Path) -> Path:
    """The published study as its files and figures have it; its labels of the baselines' weights are put right, which
    are swapped between tiny and small there: the values of step 0 are those of the other width."""
    reference = pd.read_csv(HERE / "published" / "relora_reference.csv")
    dynamics = pd.read_csv(HERE / "published" / "relora_dynamics.csv")
    swapped = dynamics["quantity"].str.endswith("_weights") & dynamics["model"].str.startswith("base")
    other = {"base-tiny": "base-small", "base-small": "base-tiny"}
    dynamics.loc[swapped, "model"] = dynamics.loc[swapped, "model"].map(other)
    figure, axes = _figure(3, 2, "Published (Weiss et al. 2025): width 96 (tiny) and 384 (small), 20,000 steps")
    for column, size in enumerate(("tiny", "small")):
        for row, (value, label) in enumerate(
            (("train_loss_graph", "training loss, nats"), ("paloma_ppl", "Paloma perplexity"))
        ):
            for model, arm in ((f"baseline-{size}", "base"), (f"relora-{size}", "relora")):
                some = reference[reference["model"] == model].dropna(subset=[value])
                some = some[some["step"] >= 1000]
                axes[row, column].plot(some["step"], some[value], color=PUBLISHED[arm][0], label=_published(arm))
            axes[row, column].set_title(f"{label}, {size}")
        axes[1, column].set_yscale("log")
        for quantity, style in (("PER_updates", "-"), ("PER_weights", "--")):
            for model, arm in ((f"base-{size}", "base"), (f"relora-{size}", "relora")):
                some = dynamics[
                    (dynamics["quantity"] == quantity) & (dynamics["model"] == model) & (dynamics["component"] == "W2")
                ]
                label = f"{_published(arm)}, {quantity.split('_')[1]}"
                axes[2, column].plot(
                    some["step"], some["mean_over_12_layers"], style, color=PUBLISHED[arm][0], label=label
                )
        axes[2, column].set_title(f"PER of down projections, {size}")
    for ax in axes.flat:
        ax.set_xlabel("step")
    return _save(figure, axes, path)


def _published(arm: str) -> str:
    return "full rank (published)" if arm == "base" else "ReLoRA (published)"
