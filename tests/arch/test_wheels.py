"""The three distributions work as wheels, without this repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

FOLDERS = ("shared", "pico-train", "pico-analyze")
PACKAGES = ("pico_contract", "pico_train", "pico_analyze")


def run(*command: str | Path, **environment: str) -> str:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PIP_"))}
    done = subprocess.run(command, capture_output=True, text=True, env={**kept, **environment}, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheels of the three distributions, built from copies: a build writes beside its sources."""
    place = tmp_path_factory.mktemp("wheels")
    out = place / "dist"
    ignored = shutil.ignore_patterns("*.egg-info", "build", "__pycache__")
    for folder in FOLDERS:
        shutil.copytree(root / folder, place / folder, ignore=ignored)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", out)
    run(sys.executable, "-m", "pip", "wheel", *options, *(place / folder for folder in FOLDERS))
    return out


@pytest.fixture(scope="module")
def installed(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that holds the three wheels and nothing else."""
    environment = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    if shutil.which("git"):
        run("git", "init", "--quiet", environment)
        theirs = (
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@b",
            "commit",
            "--quiet",
            "--allow-empty",
            "--message",
            "theirs",
        )
        run("git", "-C", environment, *theirs)
    pip = (sys.executable, "-m", "pip", "--python", environment / "bin" / "python")
    options = ("--quiet", "--no-index", "--find-links", wheels, "--no-deps")
    run(*pip, "install", *options, "pico-contract", "pico-train", "pico-analyze")
    return environment


def third_party() -> dict[str, str]:
    """The libraries of this environment. Ours are installed editable in it, by a hook that a search path ignores."""
    return {"PYTHONPATH": sysconfig.get_paths()["purelib"]}


@pytest.mark.slow
def test_a_wheel_holds_its_package_and_nothing_else(wheels: Path) -> None:
    found = {wheel.name.split("-")[0]: zipfile.ZipFile(wheel).namelist() for wheel in wheels.glob("*.whl")}
    assert set(found) == set(PACKAGES)
    for package, names in found.items():
        assert {name.split("/")[0].split("-")[0] for name in names} == {package}
        assert f"{package}/py.typed" in names
        assert not [name for name in names if name.endswith((".pyc", ".bin", ".safetensors"))]


@pytest.mark.slow
def test_the_modules_come_from_the_wheels_and_the_commands_answer(installed: Path) -> None:
    python = installed / "bin" / "python"
    code = f"import {', '.join(PACKAGES)}; print(*(m.__file__ for m in ({', '.join(PACKAGES)})), sep='\\n')"
    files = run(python, "-c", code, **third_party()).splitlines()
    assert len(files) == 3
    assert all(Path(file).is_relative_to(installed) for file in files), files
    assert "Usage: pico-train" in run(installed / "bin" / "pico-train", "--help", **third_party())
    assert "Usage: pico-train" in run(python, "-m", "pico_train", "--help", **third_party())
    listed = run(installed / "bin" / "pico-analyze", "metrics", **third_party())
    assert any(line.split()[:1] == ["per"] for line in listed.splitlines())


@pytest.mark.slow
def test_a_run_is_trained_and_inspected_from_the_wheels(installed: Path, tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(
        f"name: tiny\nruns_dir: {tmp_path / 'runs'}\ndata: {{path: {tmp_path / 'data'}}}\n"
        "model: {vocab_size: 280, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2,"
        " num_attention_heads: 4, num_key_value_heads: 2, max_position_embeddings: 32}\n"
        "train: {steps: 4, batch_size: 4, device: cpu}\nsnapshot: {every: 2, probe_rows: 4}\n"
    )
    (tmp_path / "words.txt").write_text(
        ";".join("the king and the queen speak of war and love " * 3 for _ in range(40))
    )
    train = installed / "bin" / "pico-train"
    settings = (
        f"source.path={tmp_path / 'words.txt'}",
        f"out={tmp_path / 'data'}",
        "seq_len=16",
        "tokenizer.vocab_size=280",
    )
    run(train, "data", "prepare", *settings, "validation_fraction=0.3", "source.separator=;", **third_party())
    assert "finished at step 4" in run(train, "run", config, **third_party())
    (session,) = json.loads((tmp_path / "runs" / "tiny" / "run.json").read_text())["sessions"]
    assert session["commit"] is None, "the repository around an installation says nothing about this code"
    assert "finished" in run(train, "list", tmp_path / "runs", **third_party())
    assert "q_proj" in run(installed / "bin" / "pico-analyze", "inspect", tmp_path / "runs" / "tiny", **third_party())
