"""What the commands beside training say about a run, compared with what is on disk."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pico_contract.errors import UserError
from pico_contract.layout import RunLayout
from pico_contract.lock import RunLock
from pico_train.commands import rows_of_step, run_table
from pico_train.run import RunConfig

from ...support.sizes import bytes_of, in_bytes

Tiny = Callable[..., RunConfig]


def test_the_table_of_runs(trained: RunLayout, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for name in ("b-done", "a-died", "c-broken", "d-going"):
        shutil.copytree(trained.root, runs / name)
    for name in ("a-died", "d-going"):
        manifest = json.loads(RunLayout(runs / name).manifest.read_text())
        RunLayout(runs / name).manifest.write_text(json.dumps({**manifest, "status": "running"}))
    RunLayout(runs / "c-broken").manifest.write_text('{"format": "pico-run"')
    (runs / "not-a-run").mkdir()
    with RunLock(RunLayout(runs / "d-going").lock):
        header, *lines, note = run_table(runs)
    assert header.split() == ["run", "status", "step", "loss", "disk"]
    assert [line.split()[:2] for line in lines] == [
        ["a-died", "interrupted"],
        ["b-done", "finished"],
        ["c-broken", "damaged"],
        ["d-going", "running"],
    ]
    assert [line.split()[2] for line in (lines[0], lines[1], lines[3])] == ["10/10"] * 3
    last = json.loads(RunLayout(runs / "b-done").metrics.read_text().splitlines()[-1])
    assert lines[1].split()[3] == f"{last['loss']:.4f}"
    assert in_bytes(" ".join(lines[1].split()[4:])) == pytest.approx(bytes_of(runs / "b-done", "*.*"), rel=0.05)
    assert note.startswith(f"{runs / 'c-broken' / 'run.json'} is not valid JSON")


def test_a_holder_that_is_gone_makes_a_run_interrupted(finished: RunLayout) -> None:
    manifest = json.loads(finished.manifest.read_text())
    finished.manifest.write_text(json.dumps({**manifest, "status": "running"}))
    with RunLock(finished.lock):
        holder = json.loads(finished.lock.read_text())
    finished.lock.write_text(json.dumps({**holder, "pid": 2**22 + 1}))  # above the largest process id
    assert run_table(finished.root.parent)[1].split()[1] == "interrupted"


def test_a_session_says_which_commit_it_ran(finished: RunLayout) -> None:
    (session,) = json.loads(finished.manifest.read_text())["sessions"]
    if shutil.which("git") and (Path(__file__).parents[3] / ".git").exists():
        command = ["git", "cat-file", "-t", session["commit"]]
        kind = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout
        assert kind == "commit\n"
    else:
        assert session["commit"] is None
    assert session["packages"]["torch"] == torch.__version__


def test_no_runs_and_no_directory_are_told_apart(tmp_path: Path) -> None:
    assert run_table(tmp_path) == [f"there is no run in {tmp_path}"]
    with pytest.raises(UserError, match="there is no directory"):
        run_table(tmp_path / "nowhere")


def test_a_lock_that_cannot_be_read_costs_its_row_alone(finished: RunLayout) -> None:
    finished.lock.unlink(missing_ok=True)
    finished.lock.mkdir()
    _, row, note = run_table(finished.root.parent)
    assert row.split()[1] == "damaged"
    assert finished.lock.name in note


def test_the_rows_of_a_step_are_shown_as_trained(tiny: Tiny) -> None:
    header, *rows = list(rows_of_step(tiny(), "test.yaml", 3, 2))
    assert header.startswith("update 3 reads 8 rows: ")
    ids = [int(word) for word in header.partition(": ")[2].split()]
    shown = [line for line in rows if line.startswith("\nrow ")]
    assert [int(line.split()[1].rstrip(":")) for line in shown] == ids[:2]
    assert all(len(line.partition(": ")[2].split()) == 17 for line in shown)
    with pytest.raises(UserError, match="--step is 11, but the run has 10 steps"):
        list(rows_of_step(tiny(), "test.yaml", 11, 2))
