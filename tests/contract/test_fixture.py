"""The frozen directories of format version 1 open for ever (make_fixture.py says where they come from)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pico_analyze import open_run
from pico_contract import codec
from pico_contract.layout import SCALARS, DataLayout, RunLayout
from pico_contract.schema import (
    CheckpointManifest,
    DataManifest,
    DirectoryManifest,
    EvaluationManifest,
    RunManifest,
    SnapshotManifest,
    StateManifest,
)
from pico_train.checkpoint.load import load_checkpoint, newest_intact
from pico_train.data.order import RowOrder
from pico_train.data.packed import PackedData

FIXTURES = Path(__file__).parent / "fixtures"
RUN, DATA = RunLayout(FIXTURES / "run_v1"), DataLayout(FIXTURES / "data_v1")
FINGERPRINT = "bddd862319c73916f92a9b885bd9353d8015cd58820c0e6026ac7398ba92d22b"
SUMS = FIXTURES / "SHA256SUMS"
SAFETENSORS = sorted(RUN.root.rglob("*.safetensors"))

SEALED = [
    *((RUN.checkpoint(step), CheckpointManifest) for step in (0, 2)),
    *((RUN.state(step), StateManifest) for step in (0, 2)),
    *((RUN.snapshot(step), SnapshotManifest) for step in (0, 1, 2)),
]


def test_not_one_byte_has_changed_and_no_file_came_or_went() -> None:
    """C3.9: what must open for ever is frozen."""
    frozen = {name: digest for digest, name in map(str.split, SUMS.read_text().splitlines())}
    files = [path for path in FIXTURES.rglob("*") if path.is_file() and path != SUMS]
    assert {path.relative_to(FIXTURES).as_posix(): codec.sha256_file(path) for path in files} == frozen


def test_no_trace_of_the_machine_that_made_them() -> None:
    manifest = codec.read_manifest(RUN.manifest, RunManifest)
    assert [(s["host"], s["commit"]) for s in manifest.sessions] == [("example", None)]
    assert manifest.data["path"] == "data_v1"
    texts = [path.read_text() for path in FIXTURES.rglob("*") if path.suffix in {".json", ".yaml", ".jsonl"}]
    assert len(texts) > 10
    assert not [text for text in texts if any(place in text for place in ("/home/", "/tmp/", "/root/", "/Users/"))]


@pytest.mark.parametrize(("directory", "kind"), SEALED)
def test_a_sealed_directory_is_intact(directory: Path, kind: type[DirectoryManifest]) -> None:
    assert codec.verify_directory(directory, kind, hashes=True) is None
    assert codec.read_manifest(directory / "manifest.json", kind).files


def test_the_data_directory_is_intact() -> None:
    assert codec.verify_directory(DATA.root, DataManifest, hashes=True, name="data.json") is None
    manifest = PackedData.open(DATA.root).manifest
    assert manifest.fingerprint == FINGERPRINT
    assert (manifest.seq_len, manifest.vocab_size, manifest.dtype) == (8, 260, "uint16")
    assert manifest.special_tokens == {"eos": 0, "pad": 1, "mask": 2}
    assert {split: (info.rows, info.tokens, info.documents) for split, info in manifest.splits.items()} == {
        "train": (23, 207, 5),
        "validation": (23, 213, 7),
    }


def test_run_and_evaluation_say_what_they_said() -> None:
    manifest = codec.read_manifest(RUN.manifest, RunManifest)
    assert (manifest.name, manifest.status, manifest.step, manifest.total_steps) == ("run_v1", "finished", 2, 2)
    assert manifest.parameters["total"] == 5352
    path = RUN.evaluations_at(2) / "perplexity-1f4222ff.json"
    result = codec.read_manifest(path, EvaluationManifest)
    assert RUN.evaluation(2, "perplexity", result.settings) == path
    assert (result.run, result.step, result.settings["data"]) == ("run_v1", 2, FINGERPRINT)
    assert result.metrics["loss"].value == 5.552693471312523
    assert (result.metrics["loss"].unit, result.metrics["loss"].n) == ("nats/token", 32)
    rows = [json.loads(line) for line in RUN.metrics.read_text().splitlines()]
    assert [(row["step"], row["tokens"], row["loss"]) for row in rows] == [
        (1, 32, 5.532190322875977),
        (2, 64, 5.572514533996582),
    ]


@pytest.mark.parametrize("path", SAFETENSORS, ids=lambda path: path.relative_to(RUN.root).as_posix())
def test_every_tensor_reads_and_is_finite(path: Path) -> None:
    file = codec.TensorFile(path)
    for name in file.names:
        tensor = file.get(name)
        assert tuple(tensor.shape) == file.shape(name)
        assert torch.isfinite(tensor).all()


def test_what_a_snapshot_lists_is_what_its_files_hold() -> None:
    for step in (0, 1, 2):
        manifest = codec.read_manifest(RUN.snapshot(step) / "manifest.json", SnapshotManifest)
        assert manifest.observed
        for entry in manifest.observed:
            file = codec.TensorFile(RUN.snapshot(step) / entry.file)
            assert {name: list(file.shape(name)) for name in file.names} == entry.tensors
        assert manifest.absent == ({"train.gradients": "final_step"} if step == 2 else {})
        assert manifest.row_map is not None
        assert (manifest.row_map.rule, manifest.row_map.positions, manifest.row_map.probe_rows) == ("last", [7], 3)


def test_analysis_reads_steps_tensors_and_shapes() -> None:
    run = open_run(RUN.root)
    assert (run.name, run.steps, run.damaged) == ("run_v1", [0, 1, 2], {})
    assert [run.tokens(step) for step in run.steps] == [0, 32, 64]
    assert len(run.modules(1, "weights")) == 14
    assert [run.splits(step, "gradients") for step in run.steps] == [["train", "val"], ["train", "val"], ["val"]]
    shapes = {"self_attn.q_proj": (8, 8), "self_attn.v_proj": (4, 8), "mlp.up_proj": (16, 8), "mlp.down_proj": (8, 16)}
    for component, (out, width) in shapes.items():
        module = f"model.layers.1.{component}"
        assert run.tensor(1, "gradients", module, split="train").shape == (out, width)
        assert run.tensor(2, "activations", module).shape == (3, out)
        assert all(run.tensor(step, "weights", module).shape == (out, width) for step in run.steps)
    assert run.tensor(2, "weights", "lm_head").shape == (260, 8)


def test_values_are_those_that_were_written() -> None:
    run = open_run(RUN.root)
    found = [run.tensor(step, "weights", "layers.0.attention.q_proj")[0, 0].item() for step in run.steps]
    assert found == [0.012089014053344727, 0.011790947057306767, 0.011900192126631737]
    gradient = run.tensor(0, "gradients", "model.layers.1.mlp.down_proj", "train")
    assert gradient.abs().sum().item() == pytest.approx(0.023280352354049683, rel=1e-5)
    assert run.tensor(2, "activations", "model.layers.0.mlp.gate_proj")[2, 15].item() == 0.009197075851261616


def test_training_reads_the_state() -> None:
    assert newest_intact(RUN) == (2, [])
    saved = load_checkpoint(RUN, 2)
    assert saved.counters == json.loads((RUN.state(2) / SCALARS).read_text())["counters"]
    assert (saved.counters["step"], saved.counters["reads"], saved.counters["tokens"]) == (2, 2, 64)
    assert {key.rpartition(".")[2] for key in saved.optimizer} == {"exp_avg", "exp_avg_sq", "step"}
    assert {key.rpartition(".")[0] for key in saved.optimizer} == set(saved.weights)
    assert saved.optimizer["model.norm.weight.step"].item() == 2
    assert load_checkpoint(RUN, 0).optimizer == {}


@pytest.mark.parametrize("update", [1, 2])
def test_the_order_of_rows_is_what_it_was(update: int) -> None:
    """A continued run reads on where it stopped, whatever the version that began it."""
    batch = codec.read_tensors(RUN.snapshot(update - 1) / "train.batch.safetensors")
    rows = PackedData.open(DATA.root).split("train")
    order = RowOrder(n_rows=rows.n_rows, batch_size=4, fingerprint=FINGERPRINT, seed=0)
    assert np.array_equal(order.rows(update), batch["rows"].numpy())
    assert np.array_equal(rows.take(order.rows(update)), batch["tokens"].numpy())


def test_every_file_is_of_a_format_that_runs_no_code() -> None:
    """C2.5: tensors are safetensors and the rest is text or rows; no byte of a pickle among them."""
    files = [path for path in FIXTURES.rglob("*") if path.is_file() and path != SUMS]
    assert {path.suffix for path in files} == {".json", ".jsonl", ".yaml", ".safetensors", ".bin"}
    for path in files:
        beginning = path.read_bytes()[:2]
        assert beginning[:1] != b"\x80" or path.suffix in {".bin", ".safetensors"}, path
        assert beginning != b"PK", path


def test_a_run_of_which_little_is_left_opens(tmp_path: Path) -> None:
    """C2.2: a reader copes with the absence of everything but run.json and config.yaml."""
    for path in (RUN.manifest, RUN.config):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    run = open_run(tmp_path)
    assert (run.name, list(run.steps), dict(run.damaged)) == ("run_v1", [], {})
