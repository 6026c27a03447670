"""Layers of several stacks of one model (encoder and decoder, text and vision) are never taken for one another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from pico_analyze import measure, open_source
from pico_analyze.compare import compare
from pico_analyze.compare.arms import Arm
from pico_analyze.engine.distributions import distributions
from pico_analyze.engine.spectra import spectra
from pico_analyze.plot import over_steps
from pico_analyze.plot.data import plot_data
from pico_analyze.plot.figures import draw_figures
from pico_contract import codec

STACKS = {
    "T5": {"encoder.block.{}.layer.0.SelfAttention.q": 4, "decoder.block.{}.layer.0.SelfAttention.q": 12},
    "BART": {"model.encoder.layers.{}.self_attn.q_proj": 4, "model.decoder.layers.{}.self_attn.q_proj": 12},
    "LLaVA": {
        "vision_tower.vision_model.encoder.layers.{}.self_attn.q_proj": 4,
        "language_model.model.layers.{}.self_attn.q_proj": 12,
    },
    "nested": {"model.vision_tower.encoder.layers.{}.self_attn.q_proj": 4, "model.layers.{}.self_attn.q_proj": 12},
}
"""Family -> the name of a projection in each stack, with its rank in every layer."""


@pytest.fixture
def models(tmp_path: Path) -> Callable[[Mapping[str, int], str], Path]:
    """`models(ranks, name)` writes two steps of three layers a stack."""

    def write(ranks: Mapping[str, int], name: str = "m") -> Path:
        for step in (1, 10):
            folder = tmp_path / name / f"step{step}"
            folder.mkdir(parents=True)
            held = {f"{module.format(i)}.weight": diagonal(rank) for module, rank in ranks.items() for i in range(3)}
            codec.save_tensors(folder / "model.safetensors", held)
        return tmp_path / name

    return write


def diagonal(rank: int) -> torch.Tensor:
    return torch.diag((torch.arange(16) < rank).float())


@pytest.mark.parametrize("family", STACKS)
def test_each_layer_of_each_stack_has_its_number(family: str, models: Callable[..., Path]) -> None:
    ranks = STACKS[family]
    table = measure(open_source(models(ranks)), ["effective_rank"])
    assert not table.duplicated(["component", "layer", "step"]).any()
    for pattern, rank in ranks.items():
        for layer in range(3):
            rows = table[table["module"] == pattern.format(layer)]
            assert rows["layer"].tolist() == [layer, layer]
            assert rows["value"].tolist() == pytest.approx([rank, rank])
    assert table.groupby("component")["value"].nunique().max() == 1
    assert table["component"].nunique() == 2


@pytest.mark.parametrize("family", STACKS)
def test_no_figure_and_no_comparison_averages_over_stacks(family: str, models: Callable[..., Path]) -> None:
    arms = []
    for name in ("a", "b"):
        source = open_source(models(STACKS[family], name))
        arms.append(Arm(name, [source], [measure(source, ["effective_rank", "per"])]))
    differences = compare(arms, ["effective_rank"])
    assert sorted(differences["baseline_mean"].round(6).unique()) == [4, 12]
    table = arms[0].tables[0]
    assert heights(over_steps.lines(plot_data(table, "effective_rank", "weights"))) == [4, 12]
    assert heights(over_steps.overview(table)) == [0.25, 0.75]
    for one in draw_figures(table, ["effective_rank"], heads=False):
        assert isinstance(one.figure, Figure)


def heights(figure: Figure) -> list[float]:
    """Every value that a line of the figure has."""
    lines = [line for axes in figure.axes for line in axes.get_lines() if line.get_marker() == "o"]
    return sorted({round(float(y), 6) for line in lines for y in line.get_ydata()})


def test_the_overview_names_the_stacks(models: Callable[..., Path]) -> None:
    legend = over_steps.overview(measure(open_source(models(STACKS["BART"])), ["per"])).axes[0].get_legend()
    assert legend is not None
    assert sorted(text.get_text() for text in legend.get_texts()) == ["decoder", "encoder"]
    single = {name: rank for name, rank in STACKS["BART"].items() if "decoder" in name}
    assert over_steps.overview(measure(open_source(models(single, "one")), ["per"])).axes[0].get_legend() is None


def test_spectra_and_distributions_name_the_stack(models: Callable[..., Path]) -> None:
    source = open_source(models(STACKS["BART"]))
    for frame in (spectra(source), distributions(source)):
        assert isinstance(frame, pd.DataFrame)
        assert set(frame["component"]) == {"encoder.self_attn.q_proj", "decoder.self_attn.q_proj"}


@pytest.mark.parametrize(
    ("pattern", "sides"),
    [
        ("encoder.self_attn.q_proj", {"encoder"}),
        ("decoder.self_attn.*", {"decoder"}),
        ("model.decoder.layers.1.*", {"decoder"}),
        ("q_proj", {"encoder", "decoder"}),
    ],
)
def test_components_are_chosen_by_the_names_of_the_table_as_well(
    pattern: str, sides: set[str], models: Callable[..., Path]
) -> None:
    table = measure(open_source(models(STACKS["BART"])), ["per"], [pattern])
    assert {component.split(".")[0] for component in table["component"]} == sides


def test_across_layers_compares_layers_of_one_stack(models: Callable[..., Path]) -> None:
    table = measure(open_source(models(STACKS["BART"])), ["cosine"], steps=[1], reference="layers")
    sides = table[["module", "reference_module"]].map(lambda name: name.split(".")[1])
    assert (sides["module"] == sides["reference_module"]).all()
    assert set(sides["module"]) == {"encoder", "decoder"}
