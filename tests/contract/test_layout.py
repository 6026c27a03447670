"""Where things lie: pure path arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_contract import layout
from pico_contract.layout import DataLayout, RunLayout

RUN = RunLayout(Path("runs/a"))


@settings(deadline=None)
@given(st.integers(0, 10**12))
def test_a_steps_name_says_the_step(step: int) -> None:
    assert layout.parse_step(layout.step_name(step)) == step


@settings(deadline=None)
@given(st.lists(st.integers(0, 99_999_999), min_size=2))
def test_names_of_steps_sort_as_numbers_do(steps: list[int]) -> None:
    assert sorted(map(layout.step_name, steps)) == list(map(layout.step_name, sorted(steps)))


@pytest.mark.parametrize(
    "name",
    [
        *("step_1", "step_0000001", "step_000000001", "step_-0000001", "step_00000001.tmp", "xstep_00000001", ""),
        *(".tmp-step_00000001-0a", ".old-step_00000001-0a", "step_00000001\n", "step_٠٠٠٠٠٠٠١"),
    ],
)
def test_other_spellings_are_no_step(name: str) -> None:
    """C1.1, C2.3: readers ignore them."""
    assert layout.parse_step(name) is None


def test_paths_of_a_run_are_those_of_the_contract() -> None:
    paths = [
        *(RUN.manifest, RUN.lock, RUN.config, RUN.metrics, RUN.probe, RUN.reference),
        *(RUN.checkpoint(1000), RUN.state(1000), RUN.snapshot(0), RUN.failure(7)),
        RUN.evaluation(1000, "perplexity", {"rows": 5}),
        *(RUN.analysis("main").table, RUN.analysis("main").report),
    ]
    assert [path.relative_to("runs/a").as_posix() for path in paths] == [
        *("run.json", "run.lock", "config.yaml", "metrics.jsonl", "probe.safetensors", "evaluations/reference.json"),
        *("checkpoints/step_00001000", "checkpoints/step_00001000/state", "snapshots/step_00000000"),
        *("logs/failure_00000007", "evaluations/step_00001000/perplexity-de225b3a.json"),
        *("analysis/main/table.parquet", "analysis/main/report.html"),
    ]


def test_the_hash_of_settings_does_not_depend_on_their_order() -> None:
    assert layout.settings_hash({"a": 1, "b": 2}) == layout.settings_hash({"b": 2, "a": 1})
    assert layout.settings_hash({"a": 1, "b": 2}) != layout.settings_hash({"a": 1, "b": 3})


def test_paths_of_a_data_directory_are_those_of_the_contract() -> None:
    data = DataLayout(Path("d"))
    assert [p.name for p in (data.manifest, data.tokenizer, data.rows("train"), data.documents("validation"))] == [
        *("data.json", "tokenizer.json", "train.rows.bin", "validation.documents.bin")
    ]


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("kind", ["gradients", "activations"])
def test_every_observed_file_is_named_after_split_and_kind(split: str, kind: str) -> None:
    assert layout.observed_file(split, kind) == f"{split}.{kind}.safetensors"


@settings(deadline=None)
@given(st.sampled_from(["run.json", "step_00000001", "a-b.json"]), st.text("0123456789abcdef", min_size=8, max_size=8))
def test_temporary_and_replaced_names_are_leftovers_beside_the_final_one(name: str, tag: str) -> None:
    final = Path("runs") / name
    draft, old = layout.temporary(final, tag), layout.replaced(final, tag)
    assert draft.parent == old.parent == final.parent
    assert layout.is_leftover(draft)
    assert layout.is_leftover(old)
    assert not layout.is_leftover(final)
    assert layout.original_name(old) == final
    assert layout.original_name(draft) is None
    assert layout.original_name(final) is None
    assert layout.parse_step(draft.name) is None
    assert layout.parse_step(old.name) is None


def test_cut_metrics_never_take_a_name_that_is_taken(tmp_path: Path) -> None:
    run = RunLayout(tmp_path)
    assert run.cut_metrics() == run.logs / "metrics.cut-1.jsonl"
    run.logs.mkdir()
    for number in (1, 2, 10):
        (run.logs / f"metrics.cut-{number}.jsonl").touch()
    assert run.cut_metrics().name == "metrics.cut-11.jsonl"


def test_every_file_name_of_the_layout_is_in_the_specification() -> None:
    specification = (Path(__file__).parents[2] / "shared" / "CONTRACT.md").read_text(encoding="utf-8")
    constants = [v for k, v in vars(layout).items() if k.isupper() and not k.startswith("_") and isinstance(v, str)]
    assert len(constants) >= 13
    properties = [RUN.manifest, RUN.lock, RUN.config, RUN.metrics, RUN.probe, RUN.reference, layout.takeover(RUN.lock)]
    files = [*constants, *(path.name for path in properties), "train.rows.bin", "train.documents.bin", "data.json"]
    assert not [name for name in files if name not in specification]
