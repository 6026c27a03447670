"""File names in manifests are plain, links are not followed, and a manifest knows when its own text was altered."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pico_contract import codec
from pico_contract.errors import DamagedError
from pico_contract.files import irregularity, is_plain_name, read_regular, read_regular_text
from pico_contract.layout import MANIFEST, RunLayout
from pico_contract.schema import CheckpointManifest, SnapshotManifest, has_own_digest

ODD = ["", ".", "..", "../x", "a/b", "/etc/passwd", "a\\b", "C:x", "a\0", "./a"]


@pytest.mark.parametrize("name", ODD)
def test_a_name_that_leads_elsewhere_is_not_plain(name: str) -> None:
    assert not is_plain_name(name)


@pytest.mark.parametrize("name", ["model.safetensors", "..a", "a b", "\u4e2d.json", ".hidden", "-rf", "ab:c"])
def test_a_name_of_the_same_directory_is_plain(name: str) -> None:
    assert is_plain_name(name)


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    """An intact checkpoint of one file."""
    with codec.publish(RunLayout(tmp_path / "run").checkpoint(3)) as draft:
        (draft / "model.safetensors").write_text("weights")
        codec.seal(draft, CheckpointManifest(run="run", step=3, tokens=30))
    return RunLayout(tmp_path / "run").checkpoint(3)


def damaged(directory: Path) -> str:
    assert codec.verify_directory(directory, CheckpointManifest, hashes=True) == codec.verify_directory(
        directory, CheckpointManifest
    )
    return str(codec.verify_directory(directory, CheckpointManifest, hashes=True))


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("place", ["files", "observed"])
def test_a_manifest_with_such_a_name_is_damaged(sealed: Path, name: str, place: str) -> None:
    """C3.2: such a name is refused wherever a manifest has names."""
    raw = json.loads((sealed / MANIFEST).read_text())
    entry = {"split": "val", "kind": "gradients", "dtype": "float32", "tensors": {}}
    kind: type[Any] = CheckpointManifest
    if place == "files":
        raw["files"][name] = raw["files"]["model.safetensors"]
    else:
        kind = SnapshotManifest
        raw |= {"format": "pico-snapshot", "weights": "snapshot", "modules": [], "observed": [{"file": name, **entry}]}
    with pytest.raises(DamagedError) as caught:
        kind.from_json(json.dumps(raw), sealed / MANIFEST)
    assert str(caught.value).startswith(f"{sealed / MANIFEST}: {place} names {name!r}")


PUT: dict[str, Callable[[Path, Path], Any]] = {
    "a link to a file with the same bytes": lambda path, copy: path.symlink_to(copy),
    "a link that dangles": lambda path, copy: path.symlink_to("/nowhere"),
    "a link to itself": lambda path, copy: path.symlink_to(path.name),
    "a directory": lambda path, copy: path.mkdir(),
    "a pipe": lambda path, copy: os.mkfifo(path),
}


@pytest.mark.parametrize("kind", PUT)
@pytest.mark.parametrize("file", ["model.safetensors", MANIFEST])
def test_what_is_no_regular_file_is_damage_and_is_not_read(sealed: Path, tmp_path: Path, kind: str, file: str) -> None:
    """C3.4: a link is not followed, whatever it leads to."""
    path, copy = sealed / file, tmp_path / "copy"
    copy.write_bytes(path.read_bytes())
    path.unlink()
    PUT[kind](path, copy)
    expected = f"{path} is a link" if "link" in kind else f"{path} is {kind} and not a file"
    assert damaged(sealed).startswith(expected)
    for read in (read_regular, read_regular_text):
        with pytest.raises(DamagedError, match="is a"):
            read(path)
    assert irregularity(path) is not None


def test_a_link_that_takes_the_place_of_a_checked_file_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, link = tmp_path / "secret", tmp_path / "link"
    secret.write_text("mine")
    link.symlink_to(secret)
    monkeypatch.setattr("pico_contract.files.irregularity", lambda path: None)  # as if it had been a file until now
    with pytest.raises(DamagedError, match="cannot be read"):
        read_regular(link)


def test_the_directory_of_a_step_is_no_link_but_that_of_the_run_may_be(sealed: Path, tmp_path: Path) -> None:
    """C3.3: the run may lie behind a link, its parts may not."""
    (tmp_path / "linked").symlink_to(tmp_path / "run")
    through = RunLayout(tmp_path / "linked").checkpoint(3)
    assert codec.verify_directory(through, CheckpointManifest, hashes=True) is None
    sealed.rename(tmp_path / "step_00000003")
    sealed.symlink_to(tmp_path / "step_00000003")
    assert "is a link" in damaged(sealed)


def test_every_altered_byte_of_a_manifest_is_seen_with_hashes(sealed: Path) -> None:
    """C3.1: its own digest is compared."""
    whole = (sealed / MANIFEST).read_bytes()
    for at in range(len(whole)):
        (sealed / MANIFEST).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        problem = codec.verify_directory(sealed, CheckpointManifest, hashes=True)
        text = (sealed / MANIFEST).read_bytes().decode(errors="replace")
        # A byte of the key itself leaves a manifest of an earlier version, which the audit refuses in a newer run.
        assert problem is not None or '"digest"' not in text, at


def test_the_digest_is_that_of_the_text_without_it(sealed: Path) -> None:
    text = (sealed / MANIFEST).read_text()
    digest = json.loads(text)["digest"]
    assert has_own_digest(text, digest)
    assert not has_own_digest(text + "\n", digest)
    assert not has_own_digest(text, "0" * 64)
    assert not has_own_digest(text.replace('"run"', '"\ud800"'), digest)


def test_a_manifest_of_an_earlier_version_states_no_digest_and_is_intact(sealed: Path) -> None:
    raw = json.loads((sealed / MANIFEST).read_text())
    del raw["digest"]
    (sealed / MANIFEST).write_text(json.dumps(raw))
    assert codec.verify_directory(sealed, CheckpointManifest, hashes=True) is None


@pytest.mark.parametrize("text", ['{"a":' * 100_000, "1" * 5000, '{"format": "pico-checkpoint", "step": ' + "9" * 5000])
def test_json_that_breaks_a_parser_is_damage(text: str) -> None:
    with pytest.raises(DamagedError, match="is not valid JSON"):
        CheckpointManifest.from_json(text, Path("manifest.json"))
