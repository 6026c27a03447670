"""The audit: a sound run gives no finding, and each fault one that names the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pico_analyze.audit.checks import audit, expected_steps
from pico_contract import codec
from pico_contract.errors import UserError
from pico_contract.layout import MANIFEST, MODEL_WEIGHTS, SNAPSHOT_WEIGHTS, RunLayout
from pico_contract.schema import EvaluationManifest, Measurement, StateManifest

BEYOND = "has a row of step 41, though the run has 40 steps"
EARLY = {0, 1, 2, 4, 8, 16, 32, 64}


def log(layout: RunLayout, rows: list[dict[str, Any]]) -> None:
    layout.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))


def row(step: int, **other: Any) -> dict[str, Any]:
    return {"step": step, "tokens": 100 * step, "loss": 3.0, "lr": 0.001} | other


def seal_again(directory: Path, **keys: Any) -> None:
    """Make the manifest agree with the files, as if they had been saved so."""
    raw = json.loads((directory / MANIFEST).read_text()) | keys
    raw.pop("digest", None)
    for name in raw["files"]:
        path = directory / name
        raw["files"][name] = {"size": path.stat().st_size, "sha256": codec.sha256_file(path)}
    (directory / MANIFEST).write_text(json.dumps(raw))


def evaluation(layout: RunLayout, step: int = 2, **keys: Any) -> Path:
    settings = {"rows": 5}
    values: dict[str, Any] = {"run": "synthetic", "step": step, "task": "perplexity", "settings": settings}
    manifest = EvaluationManifest(**values | keys, metrics={"loss": Measurement(value=3.0, unit="nats/token", n=7)})
    path = layout.evaluation(step, "perplexity", settings)
    codec.write_text(path, manifest.to_json())
    return path


@pytest.fixture
def sound(layout: RunLayout) -> RunLayout:
    """A run of three observed steps with nothing wrong in it."""
    log(layout, [row(1), row(2)])
    evaluation(layout)
    layout.config.write_text("name: synthetic\n")
    raw = json.loads(layout.manifest.read_text())
    layout.manifest.write_text(json.dumps(raw | {"name": "synthetic", "digest": ""}))
    return layout


@pytest.fixture
def findings(sound: RunLayout) -> Callable[..., list[tuple[str, Path, str]]]:
    def of(**how: bool) -> list[tuple[str, Path, str]]:
        return [(one.check, one.path, one.sentence) for one in audit(sound.root, **how).findings]

    return of


Findings = Callable[..., list[tuple[str, Path, str]]]


@pytest.mark.parametrize("hashes", [True, False])
def test_a_sound_run_has_no_findings(sound: RunLayout, hashes: bool) -> None:
    found = audit(sound.root, hashes)
    assert (found.findings, found.directories, found.evaluations) == ([], 4, 1)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        audit(tmp_path)


def test_every_damaged_file_of_a_directory_is_named(sound: RunLayout, findings: Findings) -> None:
    snapshot = sound.snapshot(1)
    (snapshot / "val.gradients.safetensors").unlink()
    with (snapshot / SNAPSHOT_WEIGHTS).open("ab") as file:
        file.write(b"!")
    size = (snapshot / SNAPSHOT_WEIGHTS).stat().st_size
    assert set(findings()) == {
        ("damage", snapshot / "val.gradients.safetensors", "is missing"),
        ("damage", snapshot / SNAPSHOT_WEIGHTS, f"has {size} bytes where its manifest says {size - 1}"),
    }


def test_one_altered_byte_is_found_by_its_hash(sound: RunLayout, findings: Findings) -> None:
    path = sound.checkpoint(2) / MODEL_WEIGHTS
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert ("damage", path, "does not have the sha256 that its manifest says: its bytes were altered") in findings()
    assert findings(hashes=False) == []


def test_a_manifest_that_is_missing_not_json_or_newer_is_named(sound: RunLayout, findings: Findings) -> None:
    zero, one, two = (sound.snapshot(step) / MANIFEST for step in range(3))
    zero.unlink()
    one.write_text("{")
    two.write_text(json.dumps(json.loads(two.read_text()) | {"format_version": 99}))
    by_path = {path: (check, sentence) for check, path, sentence in findings()}
    assert by_path[zero] == ("damage", "does not exist")
    assert by_path[one][1].startswith("is not valid JSON")
    assert by_path[two][1].startswith("has format_version 99")


def test_state_has_a_manifest_of_its_own(sound: RunLayout, findings: Findings) -> None:
    with codec.publish(sound.state(2)) as draft:
        (draft / "scalars.json").write_text("{}")
        codec.seal(draft, StateManifest(step=2))
    assert findings() == []
    (sound.state(2) / "scalars.json").write_text("[]")
    assert [(check, path) for check, path, _ in findings()] == [("damage", sound.state(2) / "scalars.json")]
    assert findings(hashes=False) == []


def test_a_directory_under_the_name_of_another_step_or_from_another_run(sound: RunLayout, findings: Findings) -> None:
    seal_again(sound.snapshot(0), step=1)
    seal_again(sound.snapshot(1), run="other")
    assert findings(hashes=False) == [
        ("damage", sound.snapshot(0) / MANIFEST, "is of step 1: the directory was renamed or copied from another"),
        ("damage", sound.snapshot(1) / MANIFEST, 'is of the run "other"'),
    ]


def test_evaluations_that_do_not_parse_or_are_of_another_place(sound: RunLayout, findings: Findings) -> None:
    path = evaluation(sound, settings={"rows": 6})
    ((check, found, sentence),) = findings()
    assert (check, found) == ("damage", path)
    assert sentence.endswith("it was altered or renamed")
    evaluation(sound, step=1, run="other")
    assert findings()[0][2] == 'is of step 1 of the run "other"'
    path.write_text('{"format": "pico-evaluation"')
    assert findings()[1][2].startswith("is not valid JSON")


def test_a_checkpoint_that_something_refers_to(sound: RunLayout, findings: Findings) -> None:
    shutil.rmtree(sound.checkpoint(2))
    assert findings() == [
        ("missing", sound.checkpoint(2), "run.json says that this step was saved"),
        ("missing", sound.checkpoint(2), "the snapshot of the step refers to it for its weights"),
    ]


def test_a_kind_that_a_manifest_neither_names_nor_explains(sound: RunLayout, findings: Findings) -> None:
    seal_again(sound.snapshot(2), absent={})
    expected = ("missing", sound.snapshot(2) / MANIFEST, "names no train.gradients, which other steps have")
    assert findings() == [expected]


def test_a_step_that_was_not_observed(sound: RunLayout, findings: Findings) -> None:
    shutil.rmtree(sound.snapshot(0))
    assert findings() == [("missing", sound.snapshot(0), "was not observed, though the steps around it were")]


@pytest.mark.parametrize(
    ("observed", "newest", "total", "missing"),
    [
        (EARLY | {100, 200, 300, 400, 500}, 500, 500, set()),
        (EARLY | {100, 200, 400, 500}, 500, 500, {300}),
        (EARLY | {100, 200, 300, 400, 450}, 450, 450, set()),
        (EARLY - {4} | {100, 200, 300}, 300, 500, {4}),
        (EARLY | {100, 200, 300}, 400, 500, {400}),
        ({0, 64, 128, 192, 320}, 320, 400, {256}),
        ({1, 2, 4, 8, 64, 192, 128, 256, 320}, 320, 400, {0, 16, 32}),
        ({0, 1, 2, 4, 8}, 8, 10_000, set()),
        ({0, 1, 2, 4}, 5, 5, {5}),
        ({0, 143, 500, 1000}, 1000, 1000, set()),
        ({0, 10, 30, 70, 110}, 110, 200, set()),
        ({0}, 40, 100, set()),
        (set(), 40, 100, set()),
    ],
)
def test_steps_that_a_regular_schedule_calls_for(
    observed: set[int], newest: int, total: int, missing: set[int]
) -> None:
    assert expected_steps(observed, newest, total) - observed == missing


@pytest.mark.parametrize(
    ("rows", "sentences"),
    [
        ([row(1), row(1), row(2)], ["step 1 follows step 1: rows repeat or go back"]),
        ([row(1), row(2), row(1), row(2)], ["step 1 follows step 2: rows repeat or go back"]),
        ([row(1), row(2), row(5), row(6)], ["nothing between step 2 and step 5, with 1 in between as usual"]),
        ([row(10), row(20), row(30), row(35)], []),
        ([row(1), row(2, tokens=50)], ["tokens fall from 100 at step 1 to 50 at 2"]),
        ([row(1), row(2, loss=float("nan"))], ["the loss of step 2 is nan"]),
        ([row(1)], ["ends at step 1, though the run is at step 2"]),
        ([row(5), row(6), row(7)], ["begins at step 5, though rows are 1 apart: its beginning is missing"]),
        ([row(38), row(41)], ["begins at step 38, though rows are 3 apart: its beginning is missing", BEYOND]),
        ([], ["holds no row, though the run is at step 2"]),
    ],
)
def test_the_log(sound: RunLayout, findings: Findings, rows: list[dict[str, Any]], sentences: list[str]) -> None:
    log(sound, rows)
    sound.manifest.write_text(json.dumps(json.loads(sound.manifest.read_text()) | {"total_steps": 40}))
    assert findings() == [("log", sound.metrics, sentence) for sentence in sentences]


def test_a_log_that_is_cut_or_missing(sound: RunLayout, findings: Findings) -> None:
    with sound.metrics.open("a") as file:
        file.write('{"step": 3, "tok')
    assert findings() == [("log", sound.metrics, "line 3 is not a row with a step")]
    sound.metrics.unlink()
    assert findings() == [("log", sound.metrics, "is missing, though the run is at step 2")]


def test_a_step_that_is_a_copy_of_another(sound: RunLayout, findings: Findings) -> None:
    shutil.rmtree(sound.snapshot(1))
    shutil.copytree(sound.snapshot(0), sound.snapshot(1))
    seal_again(sound.snapshot(1), step=1)
    files = ("val.gradients", "val.activations", "train.gradients")
    weights = ("duplicate", sound.snapshot(1) / SNAPSHOT_WEIGHTS, "its weights are bit-identical to those of step 0")
    assert set(findings()) == {weights} | {
        ("duplicate", sound.snapshot(1) / f"{file}.safetensors", "is bit-identical to that of step 0") for file in files
    }
    assert weights not in findings(hashes=False)
    log(sound, [row(1, lr=0.0), row(2)])
    assert weights not in findings()


def test_weights_that_are_not_finite(
    sound: RunLayout, findings: Findings, rewrite: Callable[[Path, Callable[[torch.Tensor], torch.Tensor]], None]
) -> None:
    rewrite(sound.snapshot(1) / SNAPSHOT_WEIGHTS, lambda tensor: tensor.fill_(float("nan")))
    seal_again(sound.snapshot(1))
    found = findings()
    assert {path for _, path, _ in found} == {sound.snapshot(1) / SNAPSHOT_WEIGHTS}
    assert found[0][2] == "model.layers.0.mlp.down_proj.weight holds NaN or infinity"


def test_a_step_of_another_run_is_out_of_line(
    sound: RunLayout, findings: Findings, rewrite: Callable[[Path, Callable[[torch.Tensor], torch.Tensor]], None]
) -> None:
    first = codec.read_tensors(sound.snapshot(0) / SNAPSHOT_WEIGHTS)
    codec.save_tensors(sound.checkpoint(2) / MODEL_WEIGHTS, {name: 1.01 * tensor for name, tensor in first.items()})
    seal_again(sound.checkpoint(2))
    ((check, path, sentence),) = findings()
    assert (check, path) == ("discontinuity", sound.snapshot(1) / SNAPSHOT_WEIGHTS)
    assert sentence.startswith("14 of 14 tensors are out of line: model.layers.0.")
