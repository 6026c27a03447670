"""Runs in several processes, as torchrun starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from pico_train.config import to_yaml
from pico_train.run import RunConfig

Launch = Callable[..., subprocess.CompletedProcess[str]]


def launcher(folder: Path) -> Launch:
    """What runs the command in so many processes, in `folder`, whose modules it can import."""

    def start(config: RunConfig, processes: int, *overrides: str, told: str = "") -> subprocess.CompletedProcess[str]:
        path = folder / f"{config.name}.yaml"
        path.write_text(to_yaml(config))
        torchrun = ["torch.distributed.run", f"--nproc-per-node={processes}", "--standalone", "-m"]
        command = [sys.executable, "-m", *(torchrun if processes > 1 else []), "pico_train", "run", str(path)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", **({"TOLD": told} if told else {})}
        env.pop("PYTEST_CURRENT_TEST", None)
        return subprocess.run([*command, *overrides], cwd=folder, env=env, capture_output=True, text=True, timeout=240)

    return start
