"""How the processes of a run end: in good order whatever the load, and not by waiting for ever for one that hangs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pico_train.run import RunConfig

from ..support.launching import Launch, launcher

pytestmark = pytest.mark.slow  # each start of a process imports torch anew

Tiny = Callable[..., RunConfig]

METHOD = '''
import atexit
import os
import sys
import time
from pathlib import Path

from pico_train.method.plain import Plain


def report_threads():
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    left = sorted(name for name in names if "gloo" in name)
    print(f"process {os.environ['RANK']} leaves {left}", file=sys.stderr, flush=True)


if "RANK" in os.environ:
    atexit.register(report_threads)


class Hanging(Plain):
    """Does what TOLD says: "hang RANK STEP" sleeps in that process, "fail RANK STEP" raises there."""

    def begin_step(self, step):
        what, rank, at = os.environ.get("TOLD", "nothing -1 -1").split()
        if (os.environ.get("RANK"), step) == (rank, int(at)):
            if what == "fail":
                raise RuntimeError("the first error of all")
            time.sleep(60)
        return super().begin_step(step)
'''


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    (tmp_path / "hanging.py").write_text(METHOD)
    monkeypatch.syspath_prepend(tmp_path)
    return launcher(tmp_path)


def hanging(tiny: Tiny, name: str, **changes: Any) -> RunConfig:
    return tiny(name=name, **{"method.name": "hanging:Hanging", **changes})


def test_no_thread_of_the_exchange_outlives_a_run(tiny: Tiny, launch: Launch) -> None:
    """A thread of torch's process group that is left when the interpreter ends may abort the process (SIGABRT)."""
    done = launch(hanging(tiny, "ends", **{"train.steps": 4}), 2)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("leaves []") == 2, done.stderr


def test_no_thread_of_the_exchange_outlives_a_failure(tiny: Tiny, launch: Launch) -> None:
    done = launch(hanging(tiny, "fails", **{"train.steps": 4}), 2, told="fail 0 2")
    assert done.returncode == 1
    assert "the first error of all" in done.stderr
    assert "terminate called" not in done.stderr
    assert "leaves ['gloo" not in done.stderr, done.stderr


def test_a_process_that_hangs_ends_the_run_in_the_time_given(tiny: Tiny, launch: Launch) -> None:
    done = launch(hanging(tiny, "hangs", **{"train.timeout_minutes": 0.05}), 2, told="hang 1 3")
    assert done.returncode == 1
    assert "train.timeout_minutes" in done.stderr, done.stderr
