"""Which step the name of a folder or revision says, by kind of name; and names that say none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pico_analyze import open_source
from pico_analyze.sources.model_series import step_of
from pico_analyze.sources.step_names import read_name, steps_by_name, unit_note
from pico_contract import codec
from pico_contract.errors import UserError

BILLION = 10**9


@pytest.mark.parametrize(
    ("name", "step", "tokens"),
    [
        ("step1000", 1000, None),
        ("STEP-3", 3, None),
        ("000500", 500, None),
        ("pythia-70m-step64", 64, None),
        ("checkpoint-500", 500, None),
        ("iter_0001000", 1000, None),
        ("global_step1000", 1000, None),
        ("ep0-ba2000-rank0", 2000, None),
        ("run-000500", 500, None),
        # suffixes
        ("step_20k", 20_000, None),
        ("step_2000k", 2_000_000, None),
        ("step_1.5M", 1_500_000, None),
        ("tokens-500M", BILLION // 2, BILLION // 2),
        ("tokens-1.5B", 3 * BILLION // 2, 3 * BILLION // 2),
        ("10B_tokens", 10 * BILLION, 10 * BILLION),
        # series that people have
        ("step20000-tokens84B", 20_000, 84 * BILLION),
        ("stage1-step1907359-tokens4001B", 1_907_359, 4001 * BILLION),
        ("stage2-ingredient1-step1000-tokens5B", 1000, 5 * BILLION),
        ("step69369-seed-default", 69_369, None),
        ("step-125000", 125_000, None),
        ("stage1-step-40000", 40_000, None),
        ("multiberts-seed_0-step_20k", 20_000, None),
        ("ckpt_357", 357, None),
        # Lightning
        ("step=100-v1", 100, None),
        ("epoch=3-step=500.ckpt", 500, None),
        ("epoch=3-step=500-val_loss=2.31.ckpt", 500, None),
        # beside a date
        ("2024-04-30_step100", 100, None),
    ],
)
def test_a_name_says_its_step_and_its_tokens(name: str, step: int, tokens: int | None) -> None:
    found = read_name(name)
    assert found is not None
    assert (found.step, found.tokens) == (step, tokens)


@pytest.mark.parametrize(
    "name",
    [
        *("2024-04-30", "20240430", "step_2024-04-30", "2024_04_30T10-30"),
        *("a" * 40, "1" * 40, "0123456789abcdef0123456789abcdef01234567"),
        *("pico-decoder-tiny-1", "run-3", "seed-1", "version_0", "llama-7b", "SmolLM2-135M", "chck_100M"),
        *("main", "final", "step", "step1e5", "step_1,000", "checkpoint_1_1000", "stepping5", "v1"),
    ],
)
def test_dates_hashes_sizes_and_numbers_of_seeds_are_no_steps(name: str) -> None:
    assert step_of(name) is None


@pytest.mark.parametrize(
    ("name", "step"), [(str(2**63 - 1), 2**63 - 1), (str(2**63), None), (f"step{2**63}", None), ("step99999999T", None)]
)
def test_a_number_beyond_a_table_is_refused(name: str, step: int | None) -> None:
    if step is not None:
        assert step_of(name) == step
        return
    with pytest.raises(UserError, match=r"beyond the largest that a table holds, 2\^63 - 1"):
        step_of(name)


def test_a_step_that_is_not_an_integer_is_refused() -> None:
    with pytest.raises(UserError, match=r"says step 1\.2345k, which is not an integer"):
        step_of("step1.2345k")


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["step1", "step01"], '"step1" and "step01" both give step 1'),
        (["step1", "tokens-1B"], '"step1" counts updates and "tokens-1B" counts tokens, which are not one series'),
        (["step1", "ckpt_2"], "counts saved checkpoints, which are not one series"),
        (["step9-seed-default", "step9-seed-large"], 'pattern such as "step*-seed-default"'),
        (["stage1-step5-tokens1B", "stage2-step5-tokens1B"], 'pattern such as "stage1-step*-tokens*"'),
        (["step5", "step10-merged"], '("no other part" and "merged")'),
        (["2024-01-01", "2024-01-02"], "is a date, which says no step"),
        (["a" * 40], "is a commit hash, which says no step"),
    ],
)
def test_names_that_are_not_one_series_are_refused_with_the_remedy(names: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        steps_by_name(names)
    assert sentence in str(error.value)


def test_epochs_values_and_versions_do_not_tell_series_apart() -> None:
    names = ["epoch=0-step=100-val_loss=3.10.ckpt", "epoch=1-step=200-val_loss=2.90-v1.ckpt"]
    assert list(steps_by_name(names)) == [100, 200]


@pytest.mark.parametrize(
    ("name", "said"), [("ckpt_357", "saved checkpoints"), ("tokens-1B", "tokens"), ("epoch_3", "epochs")]
)
def test_what_is_counted_instead_of_updates_is_said(name: str, said: str) -> None:
    assert unit_note(steps_by_name([name]).values()) == [
        f'"{name}" counts {said}: the column step holds {said}, not updates'
    ]
    assert unit_note(steps_by_name(["step3"]).values()) == []


def write(folder: Path) -> Path:
    folder.mkdir(parents=True)
    codec.save_tensors(folder / "model.safetensors", {"h.0.mlp.fc.weight": torch.eye(3)})
    return folder


@pytest.mark.parametrize("name", ["pico-decoder-tiny-1", "SmolLM2-135M", "2024-04-30", "a" * 40])
def test_one_model_without_a_step_is_step_0_of_a_series_of_one(tmp_path: Path, name: str) -> None:
    for given in (write(tmp_path / name), [tmp_path / name]):
        series = open_source(given)
        assert (series.name, list(series.steps)) == (name, [0])
        assert "whose name says no step: it is step 0" in series.notes[0]  # type: ignore[attr-defined]


def test_steps_by_tokens_are_ascending_and_fill_the_column(tmp_path: Path) -> None:
    for name in ("tokens-2B", "tokens-500M", "tokens-1B"):
        write(tmp_path / "m" / name)
    series = open_source(tmp_path / "m")
    assert list(series.steps) == [BILLION // 2, BILLION, 2 * BILLION]
    assert [series.tokens(step) for step in series.steps] == list(series.steps)
