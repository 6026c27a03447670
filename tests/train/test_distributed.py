"""Several processes train what one does: the same rows, the same gradients, the same files, on CPU with gloo."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pico_contract import codec
from pico_contract.layout import RunLayout
from pico_contract.schema import CheckpointManifest, RunManifest, SnapshotManifest
from pico_train import train
from pico_train.config import to_yaml
from pico_train.log.metrics import read_metrics
from pico_train.run import RunConfig

from ..support.launching import Launch, launcher

pytestmark = pytest.mark.slow  # each start of a process imports torch anew

Tiny = Callable[..., RunConfig]
ROOT = Path(__file__).resolve().parents[2]

METHOD = '''
import os
import signal

from pico_contract import codec
from pico_train.method.plain import Plain


def full(stage, path):
    raise OSError(28, "No space left on device", str(path))


class Told(Plain):
    """Does what TOLD says, such as "stop 1 5": process 1 is asked to stop, or fails, or finds its disk full, in update
    5."""

    def begin_step(self, step):
        what, rank, at = os.environ.get("TOLD", "nothing -1 -1").split()
        if (os.environ.get("RANK", "0"), step) == (rank, int(at)):
            if what == "stop":
                os.kill(os.getpid(), signal.SIGTERM)
            if what == "fail":
                raise RuntimeError("the first error of all")
            if what == "fill":
                codec.on_stage = full
        return super().begin_step(step)
'''


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    """Run the command in so many processes, as torchrun starts them."""
    (tmp_path / "told.py").write_text(METHOD)
    monkeypatch.syspath_prepend(tmp_path)
    return launcher(tmp_path)


def told(tiny: Tiny, name: str, **changes: Any) -> RunConfig:
    return tiny(name=name, **{"method.name": "told:Told", **changes})


def truth(layout: RunLayout) -> list[dict[str, Any]]:
    return [{**row, "tokens_per_second": None, "mfu": None} for row in read_metrics(layout.metrics)]


def assert_same_up_to_reduction_order(found: RunLayout, expected: RunLayout) -> None:
    """Rows and tokens equal, losses within 1e-6, gradients within 1e-6 of their largest entry at the first update and
    1e-4 later, for Adam's normalised updates carry a last digit of the gradient into the weights."""
    for row, other in zip(truth(found), truth(expected), strict=True):
        assert (row["step"], row["tokens"], row["order_hash"]) == (other["step"], other["tokens"], other["order_hash"])
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5 if row["step"] > 1 else 1e-6)
    steps = codec.intact_steps(expected.snapshots, SnapshotManifest, hashes=True)
    assert codec.intact_steps(found.snapshots, SnapshotManifest, hashes=True) == steps
    checkpoints = codec.intact_steps(expected.checkpoints, CheckpointManifest, hashes=True)
    assert set(checkpoints) <= set(codec.intact_steps(found.checkpoints, CheckpointManifest, hashes=True))
    for step in steps:
        assert_close_files(found.snapshot(step), expected.snapshot(step), 1e-6 if step == 0 else 1e-4)
    last = checkpoints[-1]
    assert_close_files(found.checkpoint(last), expected.checkpoint(last), 1e-4)


def assert_close_files(found: Path, expected: Path, share: float) -> None:
    names = sorted(path.name for path in expected.iterdir())
    assert sorted(path.name for path in found.iterdir()) == names
    for name in (name for name in names if name.endswith(".safetensors")):
        ours, theirs = codec.read_tensors(found / name), codec.read_tensors(expected / name)
        assert list(ours) == list(theirs)
        for key, tensor in theirs.items():
            assert_close(ours[key], tensor, share, f"{found}: {name}: {key}")


def assert_close(found: torch.Tensor, expected: torch.Tensor, share: float, what: str) -> None:
    assert found.dtype == expected.dtype, what
    difference = (found.double() - expected.double()).abs().max() if expected.numel() else 0.0
    assert difference <= share * (expected.double().abs().max() if expected.numel() else 0.0), what


def sessions(layout: RunLayout) -> list[Mapping[str, Any]]:
    return codec.read_manifest(layout.manifest, RunManifest).sessions


def test_two_processes_give_the_run_of_one(tiny: Tiny, launch: Launch) -> None:
    one = tiny(name="one")
    train(one, quiet=True)
    two = tiny(name="two", **{"train.micro_batch": 2})
    done = launch(two, 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished at step 10") == 1
    assert_same_up_to_reduction_order(two.layout, one.layout)
    assert [(s["processes"], s["micro_batch"]) for s in sessions(two.layout)] == [(2, 2)]


def test_four_processes_and_three_that_share_unevenly(tiny: Tiny, launch: Launch) -> None:
    one = tiny(name="one")
    train(one, quiet=True)
    four = tiny(name="four")
    assert launch(four, 4).returncode == 0
    assert_same_up_to_reduction_order(four.layout, one.layout)
    done = launch(tiny(name="three"), 3)
    assert "train.batch_size (8) cannot be shared out among 3 processes" in done.stderr
    kinds = 'snapshot.kinds=["train.microbatch_gradients"]'
    refused = launch(tiny(name="apart"), 2, kinds, "train.micro_batch=2")
    assert "train.microbatch_gradients, which is observed in one process alone, not in 2" in refused.stderr
    assert sorted(path.name for path in four.runs_dir.iterdir()) == ["four", "one"]


def test_a_run_goes_from_one_to_two_to_one_process_across_two_interruptions(tiny: Tiny, launch: Launch) -> None:
    """Also where the second process alone is asked to stop."""
    whole = told(tiny, "whole")
    assert launch(whole, 1).returncode == 0
    parts = told(tiny, "parts")
    assert launch(parts, 1, told="stop 0 3").returncode == 75
    stopped = launch(parts, 2, told="stop 1 6")
    assert "stopped at step 6" in stopped.stdout
    assert codec.intact_steps(parts.layout.checkpoints, CheckpointManifest)[-1] == 6
    assert launch(parts, 1).returncode == 0
    assert [session["processes"] for session in sessions(parts.layout)] == [1, 2, 1]
    assert [session["from_step"] for session in sessions(parts.layout)] == [0, 3, 6]
    assert_same_up_to_reduction_order(parts.layout, whole.layout)


def test_one_that_fails_ends_all_with_its_error(tiny: Tiny, launch: Launch) -> None:
    config = told(tiny, "failing")
    failed = launch(config, 2, told="fail 1 6")
    assert failed.returncode != 0
    assert "RuntimeError: the first error of all" in failed.stderr
    assert failed.stderr.count("Traceback") <= 2  # of the process that failed, and of torchrun
    manifest = json.loads(config.layout.manifest.read_text())
    assert (manifest["status"], manifest["step"]) == ("failed", 4)
    assert launch(config, 2).returncode == 0


def test_a_full_disk_of_the_one_that_writes_ends_all(tiny: Tiny, launch: Launch) -> None:
    config = told(tiny, "full")
    failed = launch(config, 2, told="fill 0 6")
    assert failed.returncode != 0
    assert "No space left on device" in failed.stderr
    assert failed.stderr.count("Traceback") <= 1  # torchrun's
    manifest = json.loads(config.layout.manifest.read_text())
    # The checkpoint of step 4 is being written, or is there already, as the disk fills in update 6.
    saved = codec.intact_steps(config.layout.checkpoints, CheckpointManifest)
    assert (manifest["status"], manifest["step"]) == ("failed", saved[-1])
    assert saved in ([0], [0, 4])
    assert launch(config, 1).returncode == 0


def test_an_evaluation_without_a_row_for_each_process_ends(
    tiny: Tiny, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row for two processes, and a task that cannot be measured: the others wait for the first, and go on."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = tiny(name="few", **{"evaluate.perplexity.rows": 1, "evaluate.paloma.path": "hub:no-one/paloma"})
    done = launch(config, 2)
    assert done.returncode == 0, done.stderr
    for step in (4, 8, 10):
        assert done.stdout.count(f"step {step}: paloma is left out, for it cannot be measured: the hub data set") == 1
        assert [path.name.partition("-")[0] for path in config.layout.evaluations_at(step).iterdir()] == ["perplexity"]


def test_a_second_start_of_several_processes_is_kept_out(tiny: Tiny, launch: Launch) -> None:
    config = tiny(name="held")
    train(config, quiet=True)
    lock = {"pid": os.getpid(), "host": socket.gethostname(), "token": "x", "heartbeat": time.time()}
    config.layout.lock.write_text(json.dumps(lock))
    refused = launch(config, 2)
    assert refused.returncode != 0
    assert refused.stderr.count("is being written by process") == 1
    assert "PeerError" not in refused.stderr


SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_NTASKS=2 SLURM_NNODES=1 "$@" & tasks+=($!); done
worst=0
for task in "${tasks[@]}"; do wait "$task"; code=$?; ((code > worst)) && worst=$code; done
exit "$worst"
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then echo localhost; else echo "$@" >> requeued; fi
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The job script of the examples, with stand-ins for the two of Slurm's commands that it calls."""
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    path = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {"PATH": path, "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "here"}

    def submit(config: Path, told: str) -> subprocess.CompletedProcess[str]:
        script = ROOT / "examples" / "cluster" / "slurm.sh"
        given = os.environ | env | ({"TOLD": told} if told else {})
        command = ["bash", str(script), str(config)]
        return subprocess.run(command, cwd=tmp_path, env=given, capture_output=True, text=True, timeout=120)

    return submit


def test_the_job_script_queues_itself_again_until_the_run_is_finished(
    tiny: Tiny, launch: Launch, slurm: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    config = told(tiny, "job")
    (tmp_path / "job.yaml").write_text(to_yaml(config))
    first = slurm(tmp_path / "job.yaml", "stop 1 5")
    assert (first.returncode, first.stdout.count("queued again")) == (0, 1), first.stderr
    assert (tmp_path / "requeued").read_text().startswith("requeue ")
    assert slurm(tmp_path / "job.yaml", "").returncode == 0
    assert [session["processes"] for session in sessions(config.layout)] == [2, 2]
    assert codec.read_manifest(config.layout.manifest, RunManifest).status == "finished"
    (tmp_path / "wrong.yaml").write_text(to_yaml(config) + "trian: {}\n")
    assert slurm(tmp_path / "wrong.yaml", "").returncode == 2
    assert not list(tmp_path.glob("*.progress"))


def test_the_job_script_stops_requeueing_where_nothing_gets_further(
    tiny: Tiny, slurm: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start stops in good order without having saved anything: the second finds no newer step, and gives up."""
    config = tiny(name="job")
    (tmp_path / "job.yaml").write_text(to_yaml(config))
    (tmp_path / "bin" / "srun").write_text("#!/usr/bin/env bash\nexit 75\n")
    monkeypatch.setenv("MAX_IDLE", "1")
    assert slurm(tmp_path / "job.yaml", "").stdout.count("queued again") == 1
    stopped = slurm(tmp_path / "job.yaml", "")
    assert stopped.returncode == 1
    assert "step -1 is still the newest after 1 requeues" in stopped.stdout


def test_the_script_for_one_node_starts_every_process(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(name="node")
    (tmp_path / "node.yaml").write_text(to_yaml(config))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PROCESSES": "2", "OMP_NUM_THREADS": "1"}
    command = ["bash", str(ROOT / "examples" / "cluster" / "one_node.sh"), str(tmp_path / "node.yaml")]
    subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True, timeout=120)
    assert [session["processes"] for session in sessions(config.layout)] == [2]
