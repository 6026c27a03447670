"""Processes of their own, for what a test cannot survive."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def script() -> Callable[..., str]:
    """Run Python source, which may import the test modules of this directory; returns what it printed."""

    def run(source: str, *arguments: str | Path) -> str:
        search = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": search}
        command = [sys.executable, "-c", source, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run
