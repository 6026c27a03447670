"""`--help` answers at once, and importing any module changes nothing around it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "tokenizers",
    "pandas",
    "matplotlib",
    "pyarrow",
    "scipy",
    "jinja2",
}
HELP = """
import json, sys, time
from {package}.cli import main
sys.argv = {argv}
try:
    main()
except SystemExit as end:
    assert end.code == 0, end.code
cpu = time.process_time()
print(json.dumps({{"cpu": cpu, "modules": sorted(set(m.split(".")[0] for m in sys.modules))}}))
"""
COMMANDS = {
    "pico_train": ["", "run", "check", "list", "evaluate", "generate", "data", "data prepare", "data show"],
    "pico_analyze": ["", "run", "plot", "report", "compare", "audit", "inspect", "metrics"],
}
CASES = [(package, command) for package, commands in COMMANDS.items() for command in commands]


def fresh(code: str, cwd: Path) -> str:
    """What `code` prints last, in a process of its own, warnings as errors."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def helped(package: str, command: str, cwd: Path) -> tuple[str, dict[str, object]]:
    argv = [package.replace("_", "-"), *command.split(), "--help"]
    *text, measured = fresh(HELP.format(package=package, argv=argv), cwd).splitlines()
    return "\n".join(text), json.loads(measured)


@pytest.mark.parametrize(("package", "command"), CASES, ids=[f"{p} {c}".strip() for p, c in CASES])
def test_help_of_every_command_loads_nothing_heavy(package: str, command: str, tmp_path: Path) -> None:
    text, measured = helped(package, command, tmp_path)
    assert f"Usage: {package.replace('_', '-')}{' ' if command else ''}{command}" in text
    assert HEAVY & set(measured["modules"]) == set()


@pytest.mark.parametrize("package", COMMANDS)
def test_help_takes_under_half_a_second(package: str, tmp_path: Path) -> None:
    """Processor time of the fastest of three, so that a loaded machine does not decide."""
    assert min(float(helped(package, "", tmp_path)[1]["cpu"]) for _ in range(3)) < 0.5


SIDE_EFFECTS = """
import importlib, json, logging, os, pkgutil, signal, sys, threading, warnings
import accelerate, matplotlib, numpy, pandas, pydantic, pyarrow, safetensors.torch, scipy.stats, tokenizers, torch
import typer, yaml
import matplotlib.pyplot, rich.progress  # what theirs do on import is not ours


def state():
    return {
        "environment": dict(os.environ),
        "working directory": os.getcwd(),
        "files": sorted(os.listdir()),
        "search path": list(sys.path),
        "handlers": [repr(handler) for handler in logging.root.handlers],
        "level": logging.root.level,
        "loggers": {n: [repr(h) for h in getattr(x, "handlers", [])] for n, x in logging.root.manager.loggerDict.items()
                    if n.startswith("pico")},
        "warnings": [repr(f) for f in warnings.filters],
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "signals": [repr(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        "hooks": [repr(sys.excepthook), repr(threading.excepthook)],
        "default dtype": repr(torch.get_default_dtype()),
        "default device": repr(torch.get_default_device()),
        "threads of torch": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
        "generator": torch.random.get_rng_state().tolist(),
        "generator of numpy": repr(numpy.random.get_state()),
        "accelerators touched": torch.cuda.is_initialized(),
        "matplotlib": {key: repr(value) for key, value in matplotlib.rcParams.items()},
    }


before = state()
seen = []
for root in ("pico_contract", "pico_train", "pico_analyze"):
    package = importlib.import_module(root)
    seen.append(root)
    for found in pkgutil.walk_packages(package.__path__, f"{root}."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
            seen.append(found.name)
after = state()
print(json.dumps([seen, [key for key in before if before[key] != after[key]]]))
"""


def test_importing_every_module_changes_nothing(tmp_path: Path, modules: list) -> None:
    environment = {**os.environ, "MPLCONFIGDIR": str(tmp_path / "matplotlib")}
    (tmp_path / "here").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SIDE_EFFECTS],
        capture_output=True,
        text=True,
        cwd=tmp_path / "here",
        env=environment,
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    seen, changed = json.loads(done.stdout)
    assert set(seen) == {module.name for module in modules if not module.name.endswith("__main__")}
    assert changed == []
