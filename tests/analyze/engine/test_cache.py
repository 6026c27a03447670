"""Results kept by content: what is computed again, and what is not."""

from __future__ import annotations

import importlib
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from pico_analyze import measure, open_run
from pico_analyze.engine import cache as module
from pico_analyze.engine.cache import CacheWarning
from pico_analyze.engine.damage import DamagedWarning
from pico_analyze.sources.run import Run
from pico_contract import codec
from pico_contract.layout import MANIFEST, SNAPSHOT_WEIGHTS, RunLayout, observed_file

WEIGHTS = {"components": ["*_proj"], "kinds": ["weights"]}
SHARING = ["per", "stable_rank", "gini", "cka", "cka_debiased", "cosine"]  # one decomposition of a matrix serves all
OF_A_STEP = 14 + 14 + 14 + 3 * (8 + 8)  # weights, gradients, activations of val; circuits with their factors


@pytest.fixture
def decomposed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many matrices each decomposition had."""
    counts: list[int] = []
    for name in ("svdvals", "svd", "eigvalsh", "eigh"):
        original = getattr(torch.linalg, name)

        def counted(x: torch.Tensor, *args: Any, original: Any = original, **kwargs: Any) -> Any:
            counts.append(math.prod(x.shape[:-2]))
            return original(x, *args, **kwargs)

        monkeypatch.setattr(torch.linalg, name, counted)
    return counts


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def hide(layout: RunLayout, step: int) -> Callable[[], None]:
    """Take a step out of a run; the result puts it back."""
    moved = [(path, path.with_name("hidden")) for path in (layout.snapshot(step), layout.checkpoint(step))]
    moved = [(path, aside) for path, aside in moved if path.is_dir()]
    for path, aside in moved:
        path.rename(aside)
    return lambda: [aside.rename(path) for path, aside in moved] and None


def replace_weights(layout: RunLayout, step: int, factor: float) -> None:
    """Write other weights, and their hash into the manifest, as a run that was resumed would."""
    file = layout.snapshot(step) / SNAPSHOT_WEIGHTS
    codec.save_tensors(file, {name: factor * tensor for name, tensor in codec.read_tensors(file).items()})
    raw = json.loads(file.with_name(MANIFEST).read_text())
    raw["files"][file.name] = {"size": file.stat().st_size, "sha256": codec.sha256_file(file)}
    file.with_name(MANIFEST).write_text(json.dumps(raw))


@pytest.mark.parametrize("reference", ["last", "previous"])
def test_a_second_run_computes_and_reads_nothing(
    run: Run, kept: Path, monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    kinds = ["weights", "gradients", "activations", "updates"]
    first = measure(run, kinds=kinds, reference=reference, cache=kept)
    pd.testing.assert_frame_equal(first, measure(run, kinds=kinds, reference=reference), rtol=1e-12)
    monkeypatch.delattr(Run, "tensor")
    again = measure(open_run(run.layout.root), kinds=kinds, reference=reference, cache=kept)
    pd.testing.assert_frame_equal(again, first, check_exact=True)


def test_a_new_step_in_between_computes_only_itself(layout: RunLayout, kept: Path, decomposed: list[int]) -> None:
    back = hide(layout, 1)
    measure(open_run(layout.root), SHARING, cache=kept)
    back()
    decomposed.clear()
    frame = measure(open_run(layout.root), SHARING, cache=kept)
    assert sum(decomposed) == OF_A_STEP + 14  # and train gradients
    pd.testing.assert_frame_equal(frame, measure(open_run(layout.root), SHARING), rtol=1e-12)


def test_a_new_last_step_has_similarities_taken_to_it(layout: RunLayout, kept: Path, decomposed: list[int]) -> None:
    back = hide(layout, 2)
    before = measure(open_run(layout.root), SHARING, cache=kept)
    back()
    decomposed.clear()
    after = measure(open_run(layout.root), SHARING, cache=kept)
    assert sum(decomposed) == OF_A_STEP
    assert set(before["reference_step"].dropna()) == {0, 1} - {0}
    assert set(after.loc[after["metric"] == "cka", "reference_step"]) == {2}
    pd.testing.assert_frame_equal(after, measure(open_run(layout.root), SHARING), rtol=1e-12)


def test_another_metric_or_reference_computes_only_that(run: Run, kept: Path, decomposed: list[int]) -> None:
    measure(run, ["per", "cka"], cache=kept)
    decomposed.clear()
    measure(run, ["cka", "max_abs"], cache=kept, reference="first")
    assert decomposed == []
    measure(run, ["per", "stable_rank"], **WEIGHTS, cache=kept)
    assert sum(decomposed) == 3 * 14


def test_changed_bytes_are_measured_again_and_those_alone(layout: RunLayout, kept: Path, decomposed: list[int]) -> None:
    before = measure(open_run(layout.root), ["spectral_norm"], **WEIGHTS, cache=kept)
    replace_weights(layout, 1, 2.0)
    decomposed.clear()
    after = measure(open_run(layout.root), ["spectral_norm"], **WEIGHTS, cache=kept)
    assert sum(decomposed) == 14
    ratio = (after["value"] / before["value"]).groupby(after["step"]).mean()
    assert ratio.to_dict() == pytest.approx({0: 1, 1: 2, 2: 1})


def test_a_circuit_of_activations_depends_on_the_weights_too(layout: RunLayout, kept: Path) -> None:
    def circuits() -> pd.DataFrame:
        return measure(open_run(layout.root), ["spectral_norm"], ["ov_circuit"], kinds=["activations"], cache=kept)

    before = circuits()
    replace_weights(layout, 1, 2.0)
    ratio = (circuits()["value"] / before["value"]).groupby(before["step"]).mean()
    assert ratio.to_dict() == pytest.approx({0: 1, 1: 2, 2: 1})


KILLED = """
import os, signal, sys
from pathlib import Path
from pico_analyze import measure, open_run
def at_3(done, all_):
    if done == 3:
        os.kill(os.getpid(), signal.SIGKILL)
measure(open_run(sys.argv[1]), components=["*_proj"], kinds=["weights"], cache=Path(sys.argv[2]), progress=at_3)
"""


def test_an_analysis_that_was_killed_continues(layout: RunLayout, kept: Path, decomposed: list[int]) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, layout.root, kept], check=False, capture_output=True)
    assert killed.returncode == -9
    frame = measure(open_run(layout.root), **WEIGHTS, cache=kept)
    assert sum(decomposed) == (14 - 3) * 3
    pd.testing.assert_frame_equal(frame, measure(open_run(layout.root), **WEIGHTS), rtol=1e-12)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: text[:400] + text[400:].replace("1", "2"),  # numbers, behind the first line
        lambda text: text + text,
        lambda text: "[]",
        lambda text: "not JSON\n" + text,
        lambda text: text.partition("\n")[0] + "\n[1]",
    ],
)
def test_a_damaged_file_is_warned_about_and_computed_again(
    run: Run, kept: Path, decomposed: list[int], damage: Callable[[str], str]
) -> None:
    first = measure(run, **WEIGHTS, cache=kept)
    file = kept / "weights model.layers.0.mlp.up_proj.jsonl"
    file.write_text(damage(file.read_text()))
    decomposed.clear()
    with pytest.warns(CacheWarning, match=r"up_proj\.jsonl is damaged"):
        again = measure(run, **WEIGHTS, cache=kept)
    assert sum(decomposed) == 3
    pd.testing.assert_frame_equal(again, first, check_exact=True)
    decomposed.clear()
    measure(run, **WEIGHTS, cache=kept)
    assert decomposed == []


def test_bytes_that_are_no_text_are_computed_again(run: Run, kept: Path) -> None:
    first = measure(run, **WEIGHTS, cache=kept)
    for file in kept.iterdir():
        file.write_bytes(b"\xff\xfe")
    with pytest.warns(CacheWarning):
        pd.testing.assert_frame_equal(measure(run, **WEIGHTS, cache=kept), first, check_exact=True)


def test_results_of_other_code_are_not_used(
    run: Run, kept: Path, decomposed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure(run, **WEIGHTS, cache=kept)
    monkeypatch.setattr(module, "_code", lambda: "another version")
    decomposed.clear()
    with pytest.warns(CacheWarning, match="of another version of pico-analyze or torch: computed again") as caught:
        measure(run, **WEIGHTS, cache=kept)
    assert len({str(one.message) for one in caught}) == 1, "one sentence for all files"
    assert sum(decomposed) == 14 * 3
    measure(run, **WEIGHTS, cache=kept)
    assert sum(decomposed) == 14 * 3


def test_a_users_metric_is_kept_until_its_file_changes(
    run: Run, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file, seen = tmp_path / "metrics_of_a_user.py", []
    for source, count in (("len(x)", 1), ("len(x)", 0), ("2 * len(x)", 1)):
        file.write_text(f"calls = []\ndef size(x):\n    calls.append(1)\n    return {source}\n")
        importlib.invalidate_caches()
        sys.modules.pop(file.stem, None)
        frame = measure(
            run, [f"{file.stem}:size"], ["layers.0.self_attn.v_proj"], steps=[1], kinds=["weights"], cache=kept
        )
        assert len(sys.modules[file.stem].calls) == count
        seen.append(frame["value"].tolist())
    assert seen == [[8.0], [8.0], [16.0]]


def test_a_function_without_a_file_of_its_own_is_measured_each_time(run: Run, kept: Path) -> None:
    for factor in (1, 2):

        def scaled(x: torch.Tensor, factor: int = factor) -> float:
            return factor * float(x.abs().max())

        frame = measure(run, [scaled, "max_abs"], **WEIGHTS, cache=kept)
        value = frame.pivot(index=["module", "step"], columns="metric", values="value")
        assert (value["scaled"] == factor * value["max_abs"]).all()


def test_what_could_not_be_read_is_tried_again(layout: RunLayout, kept: Path) -> None:
    file = layout.snapshot(2) / observed_file("val", "activations")
    whole = file.read_bytes()
    file.write_bytes(b"\xff" * len(whole))
    for _ in range(2):
        with pytest.warns(DamagedWarning, match="step 2"):
            frame = measure(open_run(layout.root), ["cka", "per"], ["v_proj"], kinds=["activations"], cache=kept)
        similar = frame[frame["metric"] == "cka"]
        assert set(similar["status"]) == {"damaged"}
    file.write_bytes(whole)
    frame = measure(open_run(layout.root), ["cka", "per"], ["v_proj"], kinds=["activations"], cache=kept)
    assert set(frame["status"]) == {"ok"}


class Bare:
    """A user's own source: what the engine asks for, and nothing else."""

    name, model, steps, damaged = "bare", {"hidden_size": 8}, [0, 5], {}

    def tokens(self, step: int) -> None:
        return None

    def splits(self, step: int, kind: str) -> list[None]:
        return [None] if kind == "weights" else []

    def modules(self, step: int, kind: str, split: str | None = None) -> list[str]:
        return ["layer"]

    def tensor(self, step: int, kind: str, module: str, split: str | None = None) -> torch.Tensor:
        return torch.full((8, 4), float(step))


def test_a_source_that_cannot_tell_its_bytes_apart_keeps_nothing(kept: Path) -> None:
    frame = measure(Bare(), ["max_abs"], ["layer"], cache=kept)
    assert frame["value"].tolist() == [0.0, 5.0]
    assert not kept.exists()


def test_a_run_elsewhere_and_under_another_name_finds_its_results(
    run: Run, kept: Path, tmp_path: Path, decomposed: list[int]
) -> None:
    measure(run, **WEIGHTS, cache=kept)
    decomposed.clear()
    moved = run.layout.root.rename(tmp_path / "moved")
    manifest = RunLayout(moved).manifest
    manifest.write_text(manifest.read_text().replace('"small"', '"moved"'))
    frame = measure(open_run(moved), **WEIGHTS, cache=kept)
    assert decomposed == []
    assert set(frame["run"]) == {"moved"}


def test_runs_of_different_sizes_in_one_process_keep_their_own_numbers(
    tmp_path: Path, make_shape: Any, new_run: Callable[..., Run]
) -> None:
    """Row 11 of science.md: pico-analyze 1.x kept components by layer and step, whatever the model's size."""
    found, kept = {}, tmp_path / "kept"
    for width in (16, 24):
        run = new_run(make_shape(width=width))
        found[width] = measure(run, ["frobenius_norm"], ["v_proj", "ov_circuit"], kinds=["weights"], cache=kept)
        shutil.rmtree(run.layout.root)
    for width in (24, 16):
        again = measure(
            new_run(make_shape(width=width)), ["frobenius_norm"], ["v_proj", "ov_circuit"], kinds=["weights"]
        )
        pd.testing.assert_frame_equal(again, found[width])
        assert set(again.loc[again["component"] == "ov_circuit", "n"]) == {width}
        shutil.rmtree(tmp_path / "new")
