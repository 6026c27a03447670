"""On a file system of limited size that really fills: what was saved stays, and the run goes on when there is room."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pico_contract import codec
from pico_train import train
from pico_train.config import to_yaml
from pico_train.run import RunConfig

Tiny = Callable[..., RunConfig]

# On a file system of 8 MB, filled to the last byte at one moment: the next write of the named kind finds no room.
FILL = """
import sys
from pathlib import Path
from pico_train import train
from pico_train.config import load
from pico_train.log.metrics import MetricsFile
from pico_train.run import RunConfig
from pico_train.observe.observed import Snapshot
from pico_train.trainer import loop, session

base, disk = Path(sys.argv[1]), Path(sys.argv[2])
filler = disk / "filler"

def fill():
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass

def filling(act, when):
    def first_fill(*args, **options):
        if when(*args) and not filler.exists():
            fill()
        return act(*args, **options)
    return first_fill

places = {
    "checkpoints": (session, "save_checkpoint", lambda layout, saved, *rest: saved.counters["step"] == 16),
    "snapshots": (Snapshot, "write", lambda snapshot: snapshot.manifest.step == 16),
    "evaluations": (loop, "evaluate", lambda subject, config, place, *rest: place.step == 16),
    "metrics.jsonl": (MetricsFile, "append", lambda metrics, row: row["step"] == 17),
}
for where, (owner, name, when) in places.items():
    config = load(RunConfig, base, [f"runs_dir={disk}", f"name={where.split('.')[0]}"])
    original = getattr(owner, name)
    setattr(owner, name, filling(original, when))
    try:
        train(config, quiet=True)
        print(where, "was never full")
    except OSError as error:
        print(where, error.errno, Path(error.filename).relative_to(config.layout.root), flush=True)
    setattr(owner, name, original)
    filler.unlink()
    print(train(config, quiet=True).status, flush=True)
    import shutil
    from pico_contract import codec
    print((config.layout.checkpoint(24) / "model.safetensors").stat().st_size,
          codec.sha256_file(config.layout.checkpoint(24) / "model.safetensors"),
          len(config.layout.metrics.read_text().splitlines()), flush=True)
    shutil.rmtree(config.layout.root)
"""


def limited(command: list[str], mount: Path) -> subprocess.CompletedProcess[str]:
    """Run `command` where `mount` is a file system of 8 MB, which ends with it."""
    inside = f'mount -t tmpfs -o size=8m none "{mount}" && exec "$@"'
    wrapped = ["unshare", "--map-root-user", "--mount", "sh", "-c", inside, "sh", *command]
    return subprocess.run(wrapped, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_on_a_file_system_that_really_is_full(tiny: Tiny, tmp_path: Path) -> None:
    mount = tmp_path / "disk"
    mount.mkdir()
    if shutil.which("unshare") is None or limited(["true"], mount).returncode != 0:
        pytest.skip("a file system of limited size cannot be mounted here")
    config = tiny(name="whole", **{"train.steps": 24, "checkpoint.every": 8, "snapshot.every": 8, "evaluate.every": 8})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    done = limited([sys.executable, "-c", FILL, str(tmp_path / "config.yaml"), str(mount)], mount)
    assert done.returncode == 0, done.stderr
    train(config, quiet=True)
    model = config.layout.checkpoint(24) / "model.safetensors"
    end = ["finished", f"{model.stat().st_size} {codec.sha256_file(model)} 24"]
    lines = done.stdout.splitlines()
    assert [lines[i + 1 : i + 3] for i in range(0, 12, 3)] == [end] * 4
    assert [line.split()[:2] for line in lines[::3]] == [
        [where, str(errno.ENOSPC)] for where in ("checkpoints", "snapshots", "evaluations", "metrics.jsonl")
    ]
    # Training goes on beside the writing of directories: whichever writes next on a full disk says so.
    named = {Path(line.split()[2]).parts[0] for line in lines[::3]}
    assert named <= {"checkpoints", "snapshots", "evaluations", "metrics.jsonl"}


@pytest.mark.slow
def test_the_command_says_what_was_full_and_that_it_can_be_run_again(tiny: Tiny, tmp_path: Path) -> None:
    mount = tmp_path / "disk"
    mount.mkdir()
    if shutil.which("unshare") is None or limited(["true"], mount).returncode != 0:
        pytest.skip("a file system of limited size cannot be mounted here")
    config = tiny(**{"train.steps": 200, "checkpoint.every": 5, "disk.check": "off", "runs_dir": str(mount)})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    command = [sys.executable, "-m", "pico_train", "run", str(tmp_path / "config.yaml")]
    done = limited(command, mount)
    assert done.returncode == 1
    (said,) = done.stderr.splitlines()
    assert said.startswith("pico-train: [Errno 28] No space left on device (")
    assert f"'{mount / 'tiny'}" in said
    assert said.endswith("what was saved before stays: mend the cause and run the same command again")
    refused = limited([*command, "disk.check=refuse"], mount)
    assert refused.returncode == 2
    assert "are free on its disk" in refused.stderr
