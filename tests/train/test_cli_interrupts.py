"""A signal at any moment of a command is one line and an exit code; the whole is `python benchmarks/interrupts.py`."""

from __future__ import annotations

import importlib
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow  # half a minute and more for the whole file

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PROGRAM = """
import os, signal, sys, time
from pico_contract.interrupts import Interrupted, Program, unfinished
sys.argv = ["prog", "data", "prepare"]
ADVICE = {"": "run it again", "data prepare": "nothing was left: run it again"}
signal_oneself = lambda number=signal.SIGINT: os.kill(os.getpid(), number)
"""


def ended(body: str, tmp_path: Path, **modules: str) -> tuple[int, str]:
    """Exit code and stderr of a program whose interface is the function `main` of `body`."""
    for name, text in modules.items():
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "prog.py").write_text(f"{PROGRAM}\n{body}\nProgram('prog', ADVICE).run(lambda: main)\n")
    done = subprocess.run(
        [sys.executable, "prog.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    return done.returncode, done.stderr


LINE = "prog: interrupted; nothing was left: run it again\n"
RAISE = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(0.2)\n"
SWALLOWS = """
import time
try:
    import signals_itself
except BaseException:
    pass
time.sleep(9)
"""
CASES = {
    "while it works": ("def main():\n    signal_oneself()\n    time.sleep(9)", 130, LINE),
    "SIGTERM": (
        "def main():\n    signal_oneself(signal.SIGTERM)\n    time.sleep(9)",
        143,
        LINE.replace("interrupted", "stopped by SIGTERM"),
    ),
    "SIGHUP": (
        "def main():\n    signal_oneself(signal.SIGHUP)\n    time.sleep(9)",
        129,
        LINE.replace("interrupted", "stopped by SIGHUP"),
    ),
    "in an import": ("def main():\n    import signals_itself", 130, LINE),
    "in an import that swallows": ("def main():\n    import swallows", 130, LINE),
    "in an import, while something is unfinished": (
        (
            "def main():\n    with unfinished():\n        try:\n            import signals_itself\n"
            "            time.sleep(9)\n"
            "        finally:\n            sys.stderr.write('unwound\\n')"
        ),
        130,
        f"unwound\n{LINE}",
    ),
    "in a finalizer": (
        (
            "class A:\n    def __del__(self):\n        signal_oneself()\n        time.sleep(0.2)\n"
            "def main():\n    A()\n    time.sleep(9)"
        ),
        130,
        LINE,
    ),
    "turned into another error": (
        (
            "def main():\n    try:\n        signal_oneself()\n        time.sleep(9)\n"
            "    except BaseException:\n        raise ValueError('of a library')"
        ),
        130,
        LINE,
    ),
    "twice": (
        (
            "def main():\n    try:\n        signal_oneself()\n        time.sleep(9)\n"
            "    finally:\n        signal_oneself()\n        time.sleep(9)"
        ),
        130,
        LINE,
    ),
    "after the end": (
        (
            "import atexit\nclass Late:\n    def __del__(self, kill=os.kill, pid=os.getpid()):\n        kill(pid, 2)\n"
            "late = Late()\ndef main():\n    atexit.register(signal_oneself)\n    sys.stderr.write('done\\n')"
        ),
        0,
        "done\n",
    ),
    "never": ("def main():\n    sys.exit(2)", 2, ""),
    "ignored, as under nohup": (
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\ndef main():\n    signal_oneself(signal.SIGHUP)\n    sys.exit(0)",
        0,
        "",
    ),
    "in a forked child": (
        (
            "def main():\n    pid = os.fork()\n    if pid == 0:\n        signal_oneself()\n        time.sleep(9)\n"
            "    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130"
        ),
        0,
        "",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_signal_is_one_line_and_a_code_whenever_it_comes(tmp_path: Path, case: str) -> None:
    body, code, message = CASES[case]
    modules = {"signals_itself": RAISE, "swallows": SWALLOWS}
    assert ended(body, tmp_path, **modules) == (code, message)


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return importlib.import_module("interrupts")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_commands_end_well_at_random_moments(harness: ModuleType, tmp_path: Path) -> None:
    """After the first 0.3 s: before them the interpreter starts, and no code of ours runs yet."""
    harness.prepare(tmp_path)
    for name in ("list", "data prepare", "run", "analyze", "export"):
        endings = harness.measure(name, tmp_path, moments=4, earliest=0.3)
        assert endings.wrong == []


def test_each_command_of_the_interfaces_has_its_advice() -> None:
    import pico_analyze.__main__
    import pico_train.__main__
    from pico_analyze.cli import app as analyze
    from pico_train.cli import app as train
    from typer.main import get_command

    for app, advice in ((train, pico_train.__main__.ADVICE), (analyze, pico_analyze.__main__.ADVICE)):
        for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
            names = [f"{name} {inner}" for inner in getattr(command, "commands", {})] or [name]
            assert set(names) <= advice.keys()
