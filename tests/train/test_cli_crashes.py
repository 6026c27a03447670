"""A crash in native code, as the entry point of the command reports it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

CRASH = """
import os, threading
import pico_train.__main__ as entry

def crash():
    os.abort()

threading.Thread(target=threading.Event().wait, daemon=True).start()
entry._interface = lambda: crash
entry.main()
"""


def test_a_crash_in_native_code_prints_the_python_stack_of_every_thread() -> None:
    ended = subprocess.run([sys.executable, "-c", CRASH], capture_output=True, text=True, timeout=60)
    assert ended.returncode == -signal.SIGABRT
    assert ended.stderr.startswith("Fatal Python error: Aborted")
    current, other = ended.stderr.index("Current thread"), ended.stderr.index("\nThread 0x")
    assert "in crash" in ended.stderr[current:]
    assert "in wait" in ended.stderr[other:]


def test_a_closed_stderr_is_no_obstacle() -> None:
    command = [sys.executable, "-m", "pico_train", "--help"]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, preexec_fn=lambda: os.close(2))
    assert (ended.returncode, "Usage: pico-train" in ended.stdout) == (0, True)
