"""Verdicts on a directory: one sentence for each way in which it is not what its manifest says."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pico_contract.files import LINKED, MISSING
from pico_contract.layout import MANIFEST, RunLayout
from pico_contract.schema import CheckpointManifest, FileEntry, StateManifest
from pico_contract.verify import (
    ALTERED,
    LINKED_STEP,
    altered_since,
    damaged_files,
    file_damage,
    intact_steps,
    listed_steps,
    of_other_step,
    read_manifest,
    verify_directory,
    without_path,
)

FROZEN = RunLayout(Path(__file__).parent / "fixtures" / "run_v1")


@pytest.fixture
def run(tmp_path: Path) -> RunLayout:
    return RunLayout(Path(shutil.copytree(FROZEN.root, tmp_path / "run")))


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_an_intact_directory_has_no_verdict(run: RunLayout) -> None:
    for hashes in (False, True):
        assert verify_directory(run.checkpoint(2), CheckpointManifest, hashes=hashes) is None
        assert verify_directory(run.state(2), StateManifest, hashes=hashes) is None
    assert intact_steps(run.checkpoints, CheckpointManifest, hashes=True) == [0, 2]


def test_the_first_file_at_fault_is_named_and_every_one_can_be_had(run: RunLayout) -> None:
    """C5.3: a directory is damaged as a whole, and says which file makes it so."""
    directory = run.checkpoint(2)
    config, weights = directory / "config.json", directory / "model.safetensors"
    flip(config)
    weights.unlink()
    manifest = read_manifest(directory / MANIFEST, CheckpointManifest)
    assert verify_directory(directory, CheckpointManifest, hashes=True) == f"{config} {ALTERED}"
    assert verify_directory(directory, CheckpointManifest) == f"{weights} {MISSING}"
    assert dict(damaged_files(directory, manifest, hashes=True)) == {config: ALTERED, weights: MISSING}
    assert dict(damaged_files(directory, manifest, hashes=False)) == {weights: MISSING}
    assert intact_steps(run.checkpoints, CheckpointManifest) == [0]
    assert listed_steps(run.checkpoints) == [0, 2]


def test_a_directory_under_the_name_of_another_step_is_not_that_step(run: RunLayout) -> None:
    run.checkpoint(2).rename(run.checkpoint(3))
    expected = f"{run.checkpoint(3) / MANIFEST} {of_other_step(2)}"
    assert verify_directory(run.checkpoint(3), CheckpointManifest) == expected


def test_a_step_that_is_a_link_is_damage_though_its_files_are_right(run: RunLayout) -> None:
    """C3.3: nothing outside a run counts as a part of it."""
    run.checkpoint(5).symlink_to(run.checkpoint(2))
    assert verify_directory(run.checkpoint(5), CheckpointManifest) == f"{run.checkpoint(5)} {LINKED_STEP}"


def test_a_file_is_compared_with_its_entry(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_damage(path, FileEntry(3, sha256), hashes=True) is None
    assert file_damage(path, FileEntry(4, sha256), hashes=False) == "has 3 bytes where its manifest says 4"
    assert file_damage(path, FileEntry(3, "0" * 64), hashes=False) is None
    assert file_damage(path, FileEntry(3, "0" * 64), hashes=True) == ALTERED == altered_since("its manifest")
    link = tmp_path / "link"
    link.symlink_to(path)
    assert file_damage(link, FileEntry(3, sha256), hashes=True) == LINKED


def test_what_is_not_there_has_no_steps(tmp_path: Path) -> None:
    assert listed_steps(tmp_path / "none") == intact_steps(tmp_path / "none", CheckpointManifest) == []


@pytest.mark.parametrize(
    ("sentence", "rest"), [("a/b is gone", "is gone"), ("a/b: step lacks", "step lacks"), ("a/b, row 3", "row 3")]
)
def test_a_sentence_can_be_had_without_the_path_that_it_begins_with(sentence: str, rest: str) -> None:
    assert without_path(sentence, Path("a/b")) == rest
    assert without_path("other", Path("a/b")) == "other"
