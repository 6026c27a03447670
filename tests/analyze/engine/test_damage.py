"""What was read is what is hashed: altered bytes have status `damaged`, are said, and never kept as the good ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from pico_analyze import measure, open_run, open_source
from pico_analyze.engine.damage import DamagedWarning
from pico_analyze.report.glossary import meaning
from pico_analyze.sources import Source
from pico_contract import codec
from pico_contract.layout import MODEL_WEIGHTS, SNAPSHOT_WEIGHTS, RunLayout, observed_file

Q = "model.layers.0.self_attn.q_proj"
ASKED = {"metrics": ["frobenius_norm"], "components": ["q_proj"]}
FILES: dict[str, Callable[[RunLayout], Path]] = {
    "weights": lambda layout: layout.snapshot(1) / SNAPSHOT_WEIGHTS,
    "activations": lambda layout: layout.snapshot(1) / observed_file("val", "activations"),
    "gradients": lambda layout: layout.snapshot(1) / observed_file("val", "gradients"),
}


def flip(path: Path, place: int = -5) -> None:
    """Alter one byte, the size and the time as before."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[place] ^= 0x40
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def measured(source: Source, cache: Path, kind: str) -> pd.DataFrame:
    frame = measure(source, ["frobenius_norm", "per"], ["q_proj"], kinds=[kind], splits=["val"], cache=cache)
    return frame[frame["metric"] == "frobenius_norm"].set_index(["step", "layer"])


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("warm", [False, True], ids=["first", "after a good one"])
def test_a_flipped_byte_costs_the_rows_that_need_the_file(
    layout: RunLayout, tmp_path: Path, kind: str, warm: bool
) -> None:
    good = measured(open_run(layout.root), tmp_path / "good", kind)
    cache = tmp_path / ("good" if warm else "other")
    flip(FILES[kind](layout))
    if warm:  # the hash that the manifest says is that of what was measured
        shutil.rmtree(cache)
    for _ in range(2):
        with pytest.warns(DamagedWarning, match=r"step 1 .*does not have the sha256 that its manifest says"):
            found = measured(open_run(layout.root), cache, kind)
        assert set(found.loc[1, "status"]) == {"damaged"}
        assert found.loc[1, "value"].isna().all()
        assert found.drop(1, level="step")["value"].equals(good.drop(1, level="step")["value"])
    flip(FILES[kind](layout))
    assert measured(open_run(layout.root), cache, kind)["value"].equals(good["value"])


def test_a_flipped_byte_of_a_header_loses_no_row(layout: RunLayout) -> None:
    path = layout.snapshot(1) / SNAPSHOT_WEIGHTS
    flip(path, path.read_bytes().index(b"0.self_attn.q_proj"))  # the name of a module becomes another
    with pytest.warns(DamagedWarning, match="sha256"):
        frame = measure(open_run(layout.root), **ASKED, kinds=["weights"])
    assert frame[frame["module"] == Q].set_index("step")["status"].to_dict() == {0: "ok", 1: "damaged", 2: "ok"}
    assert set(frame.loc[frame["step"] == 1, "status"]) == {"damaged"}


def test_updates_and_pairs_that_need_the_file_are_damaged(layout: RunLayout) -> None:
    for name in (SNAPSHOT_WEIGHTS, observed_file("val", "activations")):
        flip(layout.snapshot(1) / name)
    with pytest.warns(DamagedWarning):
        updates = measure(open_run(layout.root), ["frobenius_norm"], ["q_proj"], kinds=["updates"], window=1)
    assert updates.groupby("step")["status"].unique().apply(list).to_dict() == {2: ["damaged"]}
    with pytest.warns(DamagedWarning):
        pairs = measure(open_run(layout.root), ["cka"], ["q_proj"], kinds=["activations"], reference="all")
    found = pairs.groupby(["step", "reference_step"])["status"].unique().apply(list).to_dict()
    assert found == {(1, 0): ["damaged"], (2, 0): ["ok"], (2, 1): ["damaged"]}


def test_a_checkpoint_is_compared_with_its_manifest_too(layout: RunLayout) -> None:
    flip(layout.checkpoint(2) / MODEL_WEIGHTS)
    with pytest.warns(DamagedWarning, match="step 2"):
        frame = measure(open_run(layout.root), **ASKED, kinds=["weights"])
    assert set(frame.loc[frame["step"] == 2, "status"]) == {"damaged"}


def test_a_step_whose_directory_is_not_intact_is_damaged_and_what_was_never_there_is_missing(layout: RunLayout) -> None:
    (layout.snapshot(1) / observed_file("val", "gradients")).unlink()
    with pytest.warns(DamagedWarning, match="is missing"):
        frame = measure(open_run(layout.root), **ASKED, steps=[1, 2], kinds=["gradients"])
    status = frame.groupby(["split", "step"])["status"].unique().apply(list).to_dict()
    assert status[("val", 1)] == status[("train", 1)] == ["damaged"]
    assert status[("val", 2)] == ["ok"]
    assert status[("train", 2)] == ["missing"]


def write(folder: Path, factor: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    codec.save_tensors(folder / "model.safetensors", {f"{Q}.weight": factor * torch.eye(16)})
    os.utime(folder / "model.safetensors", (0, 0))


def norms(source: Source, cache: Path) -> list[float]:
    return measure(source, ["spectral_norm"], cache=cache)["value"].tolist()


def test_a_model_of_the_same_size_and_time_is_measured_anew(tmp_path: Path) -> None:
    write(tmp_path / "m" / "step0", 1.0)
    assert norms(open_source(tmp_path / "m"), tmp_path / "cache") == [1.0]
    shutil.rmtree(tmp_path / "m")
    write(tmp_path / "m" / "step0", 100.0)
    assert norms(open_source(tmp_path / "m"), tmp_path / "cache") == [100.0]


def test_a_run_of_pico_train_1_of_the_same_size_and_time_is_measured_anew(tmp_path: Path) -> None:
    file = tmp_path / "r" / "checkpoints" / "step_1" / "learning_dynamics" / "val_weights.pt"
    file.parent.mkdir(parents=True)
    for factor in (1.0, 100.0):
        torch.save({"layers.0.attention.q_proj": factor * torch.eye(4)}, file)
        os.utime(file, (0, 0))
        assert norms(open_source(tmp_path / "r"), tmp_path / "cache") == [factor]


def test_a_file_that_is_replaced_between_hashing_and_reading_is_not_measured(tmp_path: Path) -> None:
    write(tmp_path / "m" / "step0", 1.0)
    series = open_source(tmp_path / "m")
    series.fingerprint(0, "weights")  # type: ignore[attr-defined]
    write(tmp_path / "m" / "step0", 100.0)
    with pytest.warns(DamagedWarning, match="was altered while it was being measured"):
        frame = measure(series, ["spectral_norm"])
    assert frame["status"].tolist() == ["damaged"]


def test_copies_under_other_paths_are_not_measured_twice(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name / "step0", 1.0)
    assert len({open_source(tmp_path / name).fingerprint(0, "weights") for name in "ab"}) == 1  # type: ignore[attr-defined]


def test_the_report_says_what_the_status_means() -> None:
    assert "bytes are not those that were written" in meaning("damaged")
