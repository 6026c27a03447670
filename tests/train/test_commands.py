"""What the commands beside training say about a run, compared with what is on disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pico_contract.errors import DamagedError, UserError
from pico_contract.layout import RunLayout
from pico_contract.lock import RunLock
from pico_train import train
from pico_train.commands import evaluate_run, generate_text, rows_of_step, run_table
from pico_train.model.decoder import Decoder
from pico_train.run import RunConfig
from pico_train.run.estimate import estimate

Tiny = Callable[..., RunConfig]


def test_a_prompt_that_is_no_text_is_refused(finished: RunLayout) -> None:
    with pytest.raises(UserError, match="the prompt is not UTF-8"):
        generated(finished, prompt=b"\xff".decode("utf-8", "surrogateescape"))


def generated(run: RunLayout, prompt: str = "the king", **changes: object) -> str:
    settings = {"step": None, "tokens": 12, "temperature": 1.0, "top_k": None, "top_p": None, "seed": 0, **changes}
    return generate_text(run.root, prompt, **settings)


def bytes_of(directory: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in directory.rglob(pattern))


def in_bytes(size: str) -> float:
    number, unit = size.split()
    return float(number) * {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]


def estimated(config: RunConfig) -> dict[str, str]:
    return {line.split()[0]: line.partition(" ")[2].strip() for line in estimate(config, "test.yaml")}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model.tie_word_embeddings": True, "snapshot.every": 3},
        {"snapshot.modules": ["embed_tokens", "lm_head", "norm", "v_proj"], "snapshot.dtype": "bfloat16"},
        {"snapshot.positions": {"rule": "every", "k": 2}, "snapshot.probe_rows": 64, "snapshot.early": False},
        {"snapshot.kinds": ["val.activations"], "snapshot.positions": {"rule": "mean"}},
    ],
)
def test_the_estimate_of_the_disk_is_what_a_run_needs(tiny: Tiny, changes: dict[str, object]) -> None:
    """Tensor files only, less their headers: names and shapes, which weigh nothing in a model of real size."""
    config = tiny(**changes, **{"model.hidden_size": 128, "model.vocab_size": 512, "train.steps": 8})
    said = estimated(config)
    train(config, quiet=True)
    layout = config.layout
    for kind, directory in (("checkpoints", layout.checkpoints), ("snapshots", layout.snapshots)):
        count, _, disk = said[kind].partition(" of ")
        assert int(count) == len(list(directory.iterdir()))
        assert in_bytes(disk.rpartition(" = ")[2]) == pytest.approx(bytes_of(directory, "*.safetensors"), rel=0.04)


def test_the_estimate_counts_parameters_tokens_and_epochs(tiny: Tiny) -> None:
    config = tiny(**{"train.seq_len": 12})
    said = estimated(config)
    parameters = sum(p.numel() for p in Decoder(config.model).parameters())
    assert said["parameters"].startswith(f"total {parameters:,}, ")
    assert said["tokens"].startswith("960 in 10 steps of 8 rows of 12 (0.")
    assert said["arithmetic"].endswith("floating-point operations")
    assert in_bytes(said["memory"].split(" for ")[0]) == pytest.approx(16 * parameters, rel=1e-3)
    sizes = [
        in_bytes(said[kind].split(" of ")[1].removeprefix("up to ").split(" = ")[0])
        for kind in ("checkpoints", "snapshots")
    ]
    copies = said["memory"].split(" up to ")[1].split(" of ")[0]
    assert in_bytes(copies) == pytest.approx(sum(sizes), rel=2e-3)


def test_the_estimate_refuses_what_a_run_would_refuse_and_writes_nothing(tiny: Tiny) -> None:
    for changes in ({"init_from": "nowhere"}, {"init_from": None, "method.options": {"x": 1}}):
        config = tiny(**changes)
        with pytest.raises(UserError, match=r"^test.yaml: "):
            list(estimate(config, "test.yaml"))
    assert list(estimate(tiny(**{"method.options": {}}), "test.yaml"))
    assert not config.layout.root.exists()


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
    if shutil.which("git") and (Path(__file__).parents[2] / ".git").exists():
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


def test_generation_is_a_function_of_the_seed(finished: RunLayout) -> None:
    first = generated(finished)
    assert first.startswith("the king")
    assert generated(finished) == first
    assert len({generated(finished, seed=seed) for seed in range(4)}) > 1
    assert generated(finished, temperature=0.0, seed=1) == generated(finished, temperature=0.0, seed=2)
    assert generated(finished, top_k=1, seed=3) == generated(finished, temperature=0.0)


def test_generation_takes_the_step_that_it_is_told(finished: RunLayout) -> None:
    texts = {step: generated(finished, step=step, temperature=0.0) for step in (0, 10)}
    assert texts[0] != texts[10]
    assert generated(finished, temperature=0.0) == texts[10]


def test_an_empty_prompt_starts_after_end_of_text(finished: RunLayout) -> None:
    assert generated(finished, prompt="", temperature=0.0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tokens": 32}, r"step 10: \d+ prompt tokens and 32 new ones exceed the 32 positions"),
        ({"step": 3}, r"has no checkpoint 3; it has: 0, 4, 8, 10"),
        ({"step": -1}, r"has no checkpoint -1; it has"),
    ],
)
def test_what_cannot_be_generated_is_explained(finished: RunLayout, changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        generated(finished, **changes)


def test_a_run_without_checkpoints_and_a_directory_that_is_none(finished: RunLayout, tmp_path: Path) -> None:
    finished.checkpoints.rename(tmp_path / "away")
    with pytest.raises(UserError, match="has no checkpoint; it has: none"):
        generated(finished)
    with pytest.raises(UserError, match=r"is not a run directory \(it has no run.json\)"):
        generated(RunLayout(tmp_path))


@pytest.mark.parametrize("damage", ["flipped", "cut", "unsealed"])
def test_a_damaged_checkpoint_is_named_and_not_replaced_by_another(finished: RunLayout, damage: str) -> None:
    directory = finished.checkpoint(10)
    file = directory / ("manifest.json" if damage == "unsealed" else "model.safetensors")
    if damage == "flipped":
        raw = bytearray(file.read_bytes())
        raw[-1] ^= 1
        file.write_bytes(raw)
    elif damage == "cut":
        os.truncate(file, file.stat().st_size - 4)
    else:
        file.unlink()
    for act in (generated, lambda run: evaluate_run(run.root, None, None)):
        with pytest.raises(DamagedError, match=rf"{file.name}.*; other intact steps: 0, 4, 8$"):
            act(finished)
    assert evaluate_run(finished.root, 8, None).startswith("step 8: perplexity: loss ")


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


def test_a_pattern_of_no_decay_that_fits_nothing_is_refused_before_the_first_step(tiny: Tiny) -> None:
    with pytest.raises(UserError, match=r'"norms" matches no module'):
        estimated(tiny(**{"optimizer.no_decay": ["norms"]}))
