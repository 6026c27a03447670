"""The command line as a process: exit codes, signals, locks, and what a terminal or a pipe sees."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pico_train.cli import main

LONG = {"train": {"steps": 100_000, "batch_size": 8, "device": "cpu", "threads": 1}, "schedule": {"warmup_steps": 0}}
QUIET = {"snapshot": {"every": 0}, "checkpoint": {"every": 0}, "evaluate": {"every": 0, "perplexity": {"rows": 2}}}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def place(raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with tiny.yaml in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    raw["runs_dir"] = "runs"
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(raw))
    (tmp_path / "long.yaml").write_text(yaml.safe_dump({**raw, **LONG, **QUIET}))
    return tmp_path


@pytest.fixture
def command(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """(exit code, stdout, stderr) of `pico-train ...`, in this process."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pico-train", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        return int(str(caught.value.code)), *capsys.readouterr()

    return run


@pytest.fixture
def started(place: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a process in the working directory; what still runs at the end is killed."""
    children: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pico_train", *arguments]
        pipe = subprocess.PIPE
        children.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=place))
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.communicate()


def test_a_life_in_commands(command: Run, place: Path) -> None:
    code, out, err = command("run", "tiny.yaml", "log.console_every=5")
    assert (code, err) == (0, "")
    assert re.search(r"^step 5/10  loss \d\.\d{4}  [\d,]+ tokens/s  \d:\d\d:\d\d left$", out, re.M)
    assert re.search(r"^step 8: perplexity: loss \d", out, re.M)
    assert out.endswith("finished at step 10\n")
    assert command("run", "tiny.yaml") == (0, "runs/tiny is finished (step 10); there is nothing to do\n", "")
    assert command("list")[1].splitlines()[1].startswith("tiny  finished  10/10")
    assert command("check", "runs/tiny")[1].startswith("parameters   total ")
    text = command("generate", "runs/tiny", "--prompt", "the king", "--tokens", "8", "--seed", "3")
    assert (text[0], text[1][:8], text[2]) == (0, "the king", "")
    assert command("generate", "runs/tiny", "--prompt", "the king", "--tokens", "8", "--seed", "3") == text
    assert command("evaluate", "runs/tiny", "--step", "4", "--tasks", "perplexity")[1].startswith("step 4: perplexity:")
    assert command("data", "show", "runs/tiny", "--step", "2", "--rows", "1")[1].startswith("update 2 reads 8 rows: ")


def test_a_run_is_the_directory_that_is_named(command: Run, place: Path) -> None:
    """Moved, it is continued where it lies now; renamed, it is another run's directory."""
    assert command("run", "tiny.yaml")[0] == 0
    (place / "elsewhere").mkdir()
    (place / "runs" / "tiny").rename(place / "elsewhere" / "tiny")
    assert command("run", "elsewhere/tiny")[1].endswith("there is nothing to do\n")
    assert not (place / "runs" / "tiny").exists()
    (place / "elsewhere" / "tiny").rename(place / "elsewhere" / "other")
    code, _, err = command("run", "elsewhere/other")
    assert (code, err.count("\n")) == (2, 1)
    assert 'elsewhere/other holds the run "tiny": rename the directory' in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("list", "nowhere"), "there is no directory nowhere"),
        (("check", "tny.yaml"), 'there is no configuration file tny.yaml; did you mean "tiny.yaml"?'),
        (("evaluate", "runs/tiny"), "runs/tiny is not a run directory"),
        (("generate", "."), "is not a run directory (it has no run.json)"),
        (("data", "show", "tiny.yaml", "--step", "11"), "--step is 11, but the run has 10 steps"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(command: Run, arguments: tuple[str, ...], sentence: str) -> None:
    code, out, err = command(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("pico-train: ")
    assert sentence in err


def test_a_reader_that_goes_away_does_not_end_the_run(started: Callable[..., subprocess.Popen[str]]) -> None:
    process = started("run", "tiny.yaml", "log.console_every=1")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (0, "")


def test_a_checkpoint_of_another_run_is_not_continued(command: Run, place: Path) -> None:
    assert command("run", "tiny.yaml", "name=other", "seed.init=1")[0] == 0
    copied = place / "runs" / "tiny" / "checkpoints" / "step_00000010"
    assert command("run", "tiny.yaml")[0] == 0
    shutil.rmtree(copied)
    shutil.copytree(place / "runs" / "other" / "checkpoints" / "step_00000010", copied)
    manifest = place / "runs" / "tiny" / "run.json"
    manifest.write_text(manifest.read_text().replace('"finished"', '"running"'))
    code, _, err = command("run", "tiny.yaml")
    assert (code, err.count("\n")) == (2, 1)
    assert 'step_00000010 is a checkpoint of the run "other", not of "tiny": move it away' in err


@pytest.mark.parametrize("arguments", [("trian",), ("run",), ("check", "tiny.yaml", "--stpe", "3")])
def test_a_wrong_command_line_shows_its_usage_and_exits_2(command: Run, arguments: tuple[str, ...]) -> None:
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("Usage: pico-train ")


def test_a_non_finite_loss_is_one_sentence_and_exit_1(command: Run, place: Path) -> None:
    """The method lies in the working directory, as a user's own would."""
    (place / "exploding.py").write_text(
        "from pico_train.method.plain import Plain\n\n\n"
        "class Exploding(Plain):\n"
        "    def loss(self, model, batch, step):\n"
        "        total, terms, scalars = super().loss(model, batch, step)\n"
        "        return total * (float('inf') if step == 6 else 1), terms, scalars\n"
    )
    code, _, err = command("run", "tiny.yaml", "method.name=exploding:Exploding")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("pico-train: update 6: the loss is not finite (first at ")
    assert "The newest intact checkpoint is step 4; the batch and the gradient norms are in runs/tiny/logs/" in err


def test_a_failing_disk_is_one_sentence_and_exit_1(command: Run, place: Path) -> None:
    (place / "failing.py").write_text(
        "from pico_train.method.plain import Plain\n\n\n"
        "class Failing(Plain):\n"
        "    def begin_step(self, step):\n"
        "        raise OSError(5, 'Input/output error', 'somewhere')\n"
    )
    code, _, err = command("run", "tiny.yaml", "method.name=failing:Failing")
    assert code == 1
    assert err.splitlines()[-1].startswith(
        "pico-train: [Errno 5] Input/output error: 'somewhere'; what was saved before"
    )


@pytest.mark.parametrize("name", ["link", "link/below", "file"])
def test_a_place_for_runs_that_cannot_be_is_one_sentence_and_exit_2(command: Run, place: Path, name: str) -> None:
    (place / "link").symlink_to("/nowhere")
    (place / "file").write_text("")
    code, _, err = command("run", "tiny.yaml", f"runs_dir={name}")
    assert (code, err.count("\n")) == (2, 1)
    assert "/tiny cannot be made: " in err


def test_processes_that_cannot_be_joined_do_not_each_train(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = command("run", "tiny.yaml")
    assert (code, err.count("\n")) == (2, 1)
    assert "the environment says WORLD_SIZE=2 but not RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT: start several" in err


def first_line(child: subprocess.Popen[str], start: str) -> str:
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith(start):
            return line
    raise AssertionError(f'the process ended without a line that starts with "{start}"')


def test_a_running_run_speaks_at_once_keeps_others_out_and_stops_in_good_order(
    started: Callable[..., subprocess.Popen[str]], command: Run
) -> None:
    child = started("run", "long.yaml", "log.console_every=1")
    line = first_line(child, "step 3/100000 ")
    assert child.poll() is None, "a line arrives while the run goes on: it was flushed"
    assert re.fullmatch(r"step 3/100000  loss \d+\.\d{4}  [\d,]+ tokens/s  .*\d:\d\d:\d\d left\n", line)
    code, _, err = command("run", "long.yaml")
    assert code == 2
    assert err.startswith(f"pico-train: runs/tiny is being written by process {child.pid} on ")
    assert err.count("\n") == 1
    assert "running" in command("list")[1]
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (75, "")
    said = re.search(r"^received SIGTERM; stopped at step (\d+): run the same command to continue$", out, re.M)
    assert said is not None
    assert command("list")[1].splitlines()[1].startswith(f"tiny  stopped  {said[1]}/100000")
    assert command("generate", "runs/tiny", "--tokens", "4")[0] == 0


@pytest.mark.slow
def test_a_second_interrupt_ends_at_once(started: Callable[..., subprocess.Popen[str]], place: Path) -> None:
    """Two Ctrl-C within one update: the first asks to stop after it, the second does not wait."""
    (place / "sleepy.py").write_text(
        "import time\nfrom pico_train.method.plain import Plain\n\n\n"
        "class Sleepy(Plain):\n"
        "    def begin_step(self, step):\n"
        "        if step == 3:\n"
        "            print('asleep', flush=True)\n"
        "            time.sleep(120)\n"
        "        return 'language_model'\n"
    )
    child = started("run", "tiny.yaml", "method.name=sleepy:Sleepy")
    first_line(child, "asleep")
    child.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert child.poll() is None
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (
        130,
        "pico-train: interrupted; what was saved before stays: run the same command again to continue\n",
    )
    assert not (place / "runs" / "tiny" / "run.lock").exists()


def test_a_terminal_shows_a_bar_with_loss_pace_and_remaining_time(place: Path) -> None:
    """On 80 columns, as a pseudo-terminal shows it."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"}
    command = [sys.executable, "-m", "pico_train", "run", "long.yaml", "train.steps=60"]
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=place, env=environment)
    os.close(theirs)
    shown = b""
    while child.poll() is None or select.select([ours], [], [], 0)[0]:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # Linux reports the other side's end as an error
                break
    os.close(ours)
    assert child.wait(timeout=60) == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert re.search(r"train .*\d+/60 +loss \d\.\d{3} +[\d,]+ tokens/s +\d+:\d\d:\d\d", plain), plain[-2000:]
    assert "60/60" in plain
    assert "finished at step 60" in plain
    assert not re.search(r"^step \d+/60 ", plain, re.M), "the bar takes the place of plain lines"
