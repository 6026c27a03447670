"""The audit of runs that training wrote: each kind of damage is named with its file, and nothing is claimed unread."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pico_analyze.audit.checks import audit
from pico_analyze.audit.findings import Audit
from pico_analyze.commands import audit_run
from pico_contract import codec
from pico_contract.layout import MODEL_WEIGHTS, RunLayout
from pico_contract.schema import DataManifest, FileEntry

pytestmark = pytest.mark.slow  # half a minute and more for the whole file

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> RunLayout:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        made: RunLayout = importlib.import_module("tiny_run").make_run(tmp_path_factory.mktemp("tiny"), steps=4)
    return made


@pytest.fixture
def run(tiny_run: RunLayout, tmp_path: Path) -> RunLayout:
    """A finished run of four updates, with its data directory, of this test's own."""
    shutil.copytree(tiny_run.root.parent.parent, tmp_path / "copy")
    layout = RunLayout(tmp_path / "copy" / "runs" / "tiny")
    rewrite(layout, data=lambda data: data | {"path": str(tmp_path / "copy" / "data")})
    return layout


def rewrite(layout: RunLayout, **changes: Callable[[Any], Any]) -> None:
    """Change keys of run.json and state its digest anew, as training would."""
    from pico_contract import codec
    from pico_contract.schema import RunManifest

    manifest = codec.read_manifest(layout.manifest, RunManifest)
    for key, change in changes.items():
        setattr(manifest, key, change(getattr(manifest, key)))
    layout.manifest.write_text(manifest.to_json())


def named(layout: RunLayout) -> list[Path]:
    return [finding.path for finding in audit(layout.root).findings]


def test_a_run_of_training_is_sound_and_covered_to_the_last_file(run: RunLayout) -> None:
    found = audit(run.root)
    assert (found.findings, found.uncovered) == ([], {})
    inside = {path for path in run.root.rglob("*") if path.is_file()}
    assert inside < found.compared
    lines, sound = audit_run(run.root, True, lambda line: None)
    assert sound
    assert lines[-1].startswith("sound: 6 checkpoints and snapshots, 2 evaluations; of ")
    assert lines[-1].endswith(" files every byte was compared with a recorded sha256")


def rows(layout: RunLayout) -> list[str]:
    return layout.metrics.read_text().splitlines(keepends=True)


LOG: dict[str, Callable[[list[str]], list[str]]] = {
    "lost its beginning": lambda lines: lines[2:],
    "lost its first row": lambda lines: lines[1:],
    "lost its middle": lambda lines: lines[:1] + lines[3:],
    "lost its end": lambda lines: lines[:-1],
    "has a row twice": lambda lines: lines[:2] + lines[1:],
    "has rows in another order": lambda lines: [lines[1], lines[0], *lines[2:]],
    "is empty": lambda lines: [],
    "has a row more": lambda lines: [*lines, lines[-1].replace('"step": 4', '"step": 5')],
    "has another loss": lambda lines: [lines[0].replace('"loss": ', '"loss": 1'), *lines[1:]],
    "has another rate": lambda lines: [*lines[:3], lines[3].replace('"lr": 0', '"lr": 1')],
    "lacks a key": lambda lines: [*lines[:3], lines[3].replace('"tokens"', '"tokenz"')],
    "has another space": lambda lines: [lines[0].replace(": ", ":  ", 1), *lines[1:]],
}


@pytest.mark.parametrize("kind", LOG)
def test_a_log_that_was_altered_is_named(run: RunLayout, kind: str) -> None:
    changed = "".join(LOG[kind](rows(run)))
    assert changed != run.metrics.read_text()
    run.metrics.write_text(changed)
    assert run.metrics in named(run)


def test_the_order_of_rows_is_computed_anew(run: RunLayout) -> None:
    rewrite(run, seeds=lambda seeds: seeds | {"data": 1})
    found = audit(run.root).findings
    assert [(one.path, one.sentence) for one in found] == [
        (run.metrics, "the order_hash of step 1 is not that of the rows that data, seed and batch size give")
    ]


def data_file(layout: RunLayout) -> Path:
    return layout.root.parent.parent / "data" / "train.rows.bin"


HARM: dict[str, Callable[[Path], Any]] = {
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "gone": Path.unlink,
    "a directory": lambda path: [path.unlink(), path.mkdir()],
    "a pipe": lambda path: [path.unlink(), os.mkfifo(path)],
    "a link": lambda path: [shutil.move(path, path.with_name("aside")), path.symlink_to("aside")],
    "a dangling link": lambda path: [path.unlink(), path.symlink_to("/nowhere")],
}
FILES: dict[str, Callable[[RunLayout], Path]] = {
    "config.yaml": lambda layout: layout.config,
    "probe": lambda layout: layout.probe,
    "metrics": lambda layout: layout.metrics,
    "model": lambda layout: layout.checkpoint(2) / MODEL_WEIGHTS,
    "manifest": lambda layout: layout.checkpoint(4) / "manifest.json",
    "state": lambda layout: layout.state(4) / "manifest.json",
    "data": data_file,
    "data.json": lambda layout: data_file(layout).with_name("data.json"),
}


@pytest.mark.parametrize("kind", HARM)
@pytest.mark.parametrize("file", FILES)
def test_damage_of_every_kind_of_file_is_named(run: RunLayout, file: str, kind: str) -> None:
    path = FILES[file](run)
    HARM[kind](path)
    result = audit(run.root)
    if file == "data.json" and not path.is_file():
        assert path.parent in result.uncovered
    else:
        assert path in [finding.path for finding in result.findings]


def test_data_of_another_place_or_kind_are_said_not_to_be_covered(run: RunLayout, tmp_path: Path) -> None:
    shutil.rmtree(data_file(run).parent)
    assert audit(run.root).uncovered[data_file(run).parent] == "the data directory is not here"
    assert audit(run.root).findings == []


def test_what_nothing_records_is_named_as_not_covered(run: RunLayout) -> None:
    analysis = run.analysis("default").root
    for path in (run.root / "notes.txt", run.logs / "observers.jsonl", analysis / "table.csv", analysis / "code.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    assert audit(run.root).uncovered == {
        run.root / "notes.txt": "which no manifest lists",
        run.logs: "1 file, whose digests nothing records",
        analysis.parent: "2 files, derived from the rest",
    }


def test_a_manifest_without_its_digest_is_named_in_a_run_that_records_them(run: RunLayout) -> None:
    for path in (run.manifest, run.snapshot(2) / "manifest.json", next(run.evaluations_at(2).glob("*.json"))):
        raw = json.loads(path.read_text())
        del raw["digest"]
        path.write_text(json.dumps(raw, indent=2))
        assert path in named(run)


def test_an_earlier_run_is_sound_and_says_what_no_digest_covers() -> None:
    fixture = RunLayout(Path(__file__).parents[1] / "contract" / "fixtures" / "run_v1")
    found: Audit = audit(fixture.root)
    assert found.findings == []
    assert found.uncovered[fixture.config] == "run.json records no digest of it"
    assert found.uncovered[fixture.metrics] == "no checkpoint recorded its digest (earlier versions did not)"
    assert found.uncovered[fixture.manifest] == "the version that wrote it recorded no digest"
    assert fixture.probe in found.uncovered


def test_flipped_bytes_are_named(run: RunLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    flips = list(importlib.import_module("flipped_bytes").flips(run, seed=1, every=400))
    assert len(flips) > 100
    assert [(path, at) for _, path, at, found in flips if not found] == []


def test_rows_that_were_altered_and_sealed_again_have_another_fingerprint(run: RunLayout) -> None:
    """Every hash of data.json is right, and yet the rows are not those that the run was trained on."""
    rows = data_file(run)
    ids = np.fromfile(rows, dtype="<u2")
    ids[::-1].tofile(rows)
    path = rows.with_name("data.json")
    manifest = codec.read_manifest(path, DataManifest)
    manifest.files[rows.name] = FileEntry(rows.stat().st_size, codec.sha256_file(rows))
    for info in manifest.splits.values():
        info.blocks = []
    codec.write_text(path, manifest.to_json())
    found = audit(run.root)
    assert [finding.path for finding in found.findings] == [path]
    assert "another fingerprint" in found.findings[0].sentence
