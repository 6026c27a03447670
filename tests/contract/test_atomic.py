"""Directories and files appear whole or not at all, and what was there before is not lost."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pico_contract import codec
from pico_contract.schema import CheckpointManifest, StateManifest

Script = Callable[..., str]

STAGES = ["temporary_created", "file_written", "before_rename", "old_set_aside", "after_rename"]
NAME = "step_00000001"


def publish(final: Path, value: float) -> None:
    """A checkpoint filled with `value`, with a sealed directory inside."""
    with codec.publish(final) as draft:
        codec.save_tensors(draft / "model.safetensors", {"a": torch.full((64,), value)})
        state = draft / "state"
        state.mkdir()
        codec.save_tensors(state / "optimizer.safetensors", {"m": torch.full((8,), value)})
        codec.seal(state, StateManifest(step=int(value)))
        codec.write_text(draft / "config.json", f'{{"value": {value}}}')
        codec.seal(draft, CheckpointManifest(run="r", step=1, tokens=0))


def value_of(final: Path) -> float:
    """What `publish` filled the intact directory `final` with."""
    assert codec.verify_directory(final, CheckpointManifest, hashes=True) is None
    assert codec.verify_directory(final / "state", StateManifest, hashes=True) is None
    values = {codec.TensorFile(path).get(name)[0].item() for path, name in tensors_of(final).items()}
    assert len(values) == 1
    return values.pop()


def tensors_of(final: Path) -> dict[Path, str]:
    return {final / "model.safetensors": "a", final / "state" / "optimizer.safetensors": "m"}


def entries(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# One process that forks a child for each case, so that torch is imported once.
KILLED = """
import os, signal, sys
from pathlib import Path
from pico_contract import codec
from test_atomic import NAME, STAGES, publish

for stage in STAGES:
    for case in ("new", "replacing"):
        final = Path(sys.argv[1]) / case / stage / NAME
        if case == "replacing":
            publish(final, 1.0)
        if os.fork() == 0:
            codec.on_stage = lambda name, path: os.kill(os.getpid(), signal.SIGKILL) if name == stage else None
            publish(final, 2.0)
            os._exit(0)
        print(case, stage, os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.fixture(scope="module")
def killed(script: Script, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[tuple[str, str], int]]:
    """(directory of the cases, exit code of each)."""
    root = tmp_path_factory.mktemp("killed")
    lines = [line.split() for line in script(KILLED, root).splitlines()]
    return root, {(case, stage): int(code) for case, stage, code in lines}


@pytest.mark.parametrize("case", ["new", "replacing"])
@pytest.mark.parametrize("stage", STAGES)
def test_sigkill_leaves_the_old_or_the_new_one_whole(
    killed: tuple[Path, dict[tuple[str, str], int]], stage: str, case: str
) -> None:
    root, codes = killed
    parent = root / case / stage
    reached = (case, stage) != ("new", "old_set_aside")
    assert codes[case, stage] == (-signal.SIGKILL if reached else 0)
    before_recovery = codec.intact_steps(parent, CheckpointManifest, hashes=True)
    codec.remove_leftovers(parent)
    if stage == "after_rename" or not reached:
        assert (before_recovery, value_of(parent / NAME)) == ([1], 2.0)
    elif case == "new":
        assert (before_recovery, entries(parent)) == ([], [])
    else:
        assert before_recovery == ([] if stage == "old_set_aside" else [1])
        assert value_of(parent / NAME) == 1.0
    publish(parent / NAME, 3.0)
    assert value_of(parent / NAME) == 3.0
    assert entries(parent) == [NAME]


@pytest.mark.parametrize("stage", STAGES[:-1])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, error: type[BaseException]
) -> None:
    def fail(name: str, path: Path) -> None:
        if name == stage:
            raise error

    publish(tmp_path / NAME, 1.0)
    monkeypatch.setattr(codec, "on_stage", fail)
    with pytest.raises(error):
        publish(tmp_path / NAME, 2.0)
    assert value_of(tmp_path / NAME) == 1.0
    assert entries(tmp_path) == [NAME]


@pytest.mark.parametrize("there", ["mine", "mine/deep"])
def test_what_is_not_to_be_replaced_stays_though_it_appeared_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str
) -> None:
    """A file, or a directory that holds one."""

    def appear(stage: str, final: Path) -> None:
        if stage == "before_rename":
            (tmp_path / there).parent.mkdir(exist_ok=True)
            (tmp_path / there).write_text("mine")

    monkeypatch.setattr(codec, "on_stage", appear)
    draft = codec.publish(tmp_path / "mine", replace=False)
    (draft.__enter__() / "a.json").write_text("{}")
    with pytest.raises(OSError, match="mine"):
        draft.__exit__(None, None, None)
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["mine"]


def test_a_directory_that_was_not_sealed_does_not_appear(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="was not sealed"), codec.publish(tmp_path / NAME) as draft:
        (draft / "model.safetensors").write_bytes(b"")
    assert entries(tmp_path) == []


# The limit on a file's size stands for a full disk: the write that crosses it fails, the others do not.
FULL = """
import os, resource, sys
from pathlib import Path
import torch
from pico_contract import codec
from test_atomic import NAME, publish

root = Path(sys.argv[1])
writes = {
    NAME: lambda path: publish(path, 2.0),
    "run.json": lambda path: codec.write_text(path, "x" * 200_000),
    "probe.safetensors": lambda path: codec.write_tensors(path, {"a": torch.zeros(50_000)}),
}
for limit in (100, 400):
    for name, write in writes.items():
        if os.fork() == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                write(root / name)
            except OSError as error:
                print(limit, name, error, flush=True)
            os._exit(0)
        os.wait()
"""


def test_a_full_disk_is_an_oserror_and_leaves_the_old_ones(tmp_path: Path, script: Script) -> None:
    publish(tmp_path / NAME, 1.0)
    codec.write_text(tmp_path / "run.json", "{}")
    codec.write_tensors(tmp_path / "probe.safetensors", {"a": torch.ones(3)})
    said = script(FULL, tmp_path).splitlines()
    assert [line.split()[:2] for line in said] == [
        [limit, name] for limit in ("100", "400") for name in (NAME, "run.json", "probe.safetensors")
    ]
    assert all("File too large" in line for line in said)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / NAME).iterdir()}
    assert sizes["model.safetensors"] < 400 < sizes["manifest.json"]  # so the manifest is what fails the second time
    assert value_of(tmp_path / NAME) == 1.0
    assert (tmp_path / "run.json").read_text() == "{}"
    assert codec.read_tensors(tmp_path / "probe.safetensors")["a"].tolist() == [1.0, 1.0, 1.0]
    assert entries(tmp_path) == ["probe.safetensors", "run.json", NAME]


def test_all_is_flushed_before_the_rename_and_the_parent_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    unflushed: list[Path] = []
    flush = os.fsync

    def note(descriptor: int) -> None:
        flushed.append(os.fstat(descriptor).st_ino)
        flush(descriptor)

    def look(stage: str, final: Path) -> None:
        if stage == "before_rename":
            (draft,) = tmp_path.iterdir()
            unflushed.extend(path for path in [draft, *draft.rglob("*")] if path.stat().st_ino not in flushed)
            flushed.clear()
        if stage == "after_rename":
            assert flushed == [tmp_path.stat().st_ino]

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(codec, "on_stage", look)
    publish(tmp_path / NAME, 1.0)
    assert unflushed == []
    assert flushed == [tmp_path.stat().st_ino]


def test_a_file_that_could_not_be_written_is_named_and_the_old_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    codec.write_text(path, "old")

    def fill_the_disk() -> None:
        with codec.replacing(path) as draft:
            draft.write_text("new")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r"No space left on device.*table\.csv"):
        fill_the_disk()
    assert (path.read_text(), entries(tmp_path)) == ("old", ["table.csv"])


def test_leftovers_are_removed_and_what_was_set_aside_comes_back(tmp_path: Path) -> None:
    """C5.2: a directory that was set aside gets its name back first."""
    for name in (NAME, f".old-{NAME}-0a", ".old-step_00000002-0b", ".tmp-step_00000002-0b", ".tmp-step_00000003-0c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "which").write_text(name)
    for name in (".tmp-run.json-0d", ".tmpn0crcK", "run.json", ".hidden"):
        (tmp_path / name).write_text(name)
    codec.remove_leftovers(tmp_path)
    assert entries(tmp_path) == [".hidden", "run.json", NAME, "step_00000002"]
    assert (tmp_path / NAME / "which").read_text() == NAME
    assert (tmp_path / "step_00000002" / "which").read_text() == ".old-step_00000002-0b"
    codec.remove_leftovers(tmp_path / "nothing")


@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_tensors_are_as_readable_as_the_umask_says(tmp_path: Path, umask: int, expected: int) -> None:
    before = os.umask(umask)
    try:
        publish(tmp_path / NAME, 1.0)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / NAME).rglob("*") if path.is_file()}
    assert set(modes.values()) == {expected}, modes
