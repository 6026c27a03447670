"""What is not intact is named; tensors are read one by one."""

from __future__ import annotations

import json
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pico_contract import codec
from pico_contract.errors import DamagedError
from pico_contract.layout import step_name
from pico_contract.schema import CheckpointManifest, SnapshotManifest

TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "rows": torch.tensor([3, 1, 2]),
    "step": torch.tensor(7.0),
}


def seal(directory: Path, step: int = 1) -> Path:
    with codec.publish(directory) as draft:
        codec.save_tensors(draft / "model.safetensors", TENSORS)
        codec.write_text(draft / "config.json", '{"hidden_size": 8}')
        codec.seal(draft, CheckpointManifest(run="r", step=step, tokens=0))
    return directory


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    return seal(tmp_path / step_name(1))


@pytest.fixture
def tensor_file(tmp_path: Path) -> Path:
    codec.save_tensors(tmp_path / "t.safetensors", TENSORS)
    return tmp_path / "t.safetensors"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_manifest_lists_every_file_with_size_and_sha256(sealed: Path) -> None:
    manifest = codec.read_manifest(sealed / "manifest.json", CheckpointManifest)
    files = [sealed / "config.json", sealed / "model.safetensors"]
    assert {name: (entry.size, entry.sha256) for name, entry in manifest.files.items()} == {
        path.name: (path.stat().st_size, codec.sha256_file(path)) for path in files
    }
    assert manifest.created.endswith("+00:00")
    assert codec.verify_directory(sealed, CheckpointManifest, hashes=True) is None


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "{path} has {short} bytes where its manifest says {size}"),
        (
            lambda path: path.write_bytes(path.read_bytes() + b"x"),
            "{path} has {long} bytes where its manifest says {size}",
        ),
        (lambda p: p.write_bytes(b""), "{path} has 0 bytes where its manifest says {size}"),
        (lambda p: p.unlink(), "{path} is missing"),
    ],
    ids=["truncated", "longer", "empty", "removed"],
)
@pytest.mark.parametrize("hashes", [False, True])
def test_a_file_of_another_size_is_named(
    sealed: Path, file: str, harm: Callable[[Path], object], sentence: str, hashes: bool
) -> None:
    path = sealed / file
    size = path.stat().st_size
    harm(path)
    said = codec.verify_directory(sealed, CheckpointManifest, hashes=hashes)
    assert said == sentence.format(path=path, size=size, short=size - 1, long=size + 1)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_flipped_bit_is_named_where_hashes_are_compared(sealed: Path, file: str) -> None:
    flip(sealed / file)
    assert codec.verify_directory(sealed, CheckpointManifest) is None
    said = codec.verify_directory(sealed, CheckpointManifest, hashes=True)
    assert said is not None
    assert said.startswith(f"{sealed / file} does not have the sha256 that its manifest says")


@pytest.mark.parametrize(
    "content", [None, b"", b"\xff\xfe", b"[]", b'{"format": "pico-checkpoint"', b'{"format": "pico-checkpoint"}']
)
def test_a_manifest_that_is_not_whole_is_named(sealed: Path, content: bytes | None) -> None:
    """C5.3: without a whole manifest there is no directory."""
    path = sealed / "manifest.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    said = codec.verify_directory(sealed, CheckpointManifest)
    assert said is not None
    assert str(path) in said


def test_the_manifest_of_something_else_is_damage(sealed: Path) -> None:
    said = codec.verify_directory(sealed, SnapshotManifest)
    assert said == f"{sealed / 'manifest.json'} should say format \"pico-snapshot\" but says 'pico-checkpoint'"


def test_a_directory_of_another_step_is_named(sealed: Path) -> None:
    copy = shutil.copytree(sealed, sealed.with_name(step_name(2)))
    assert codec.verify_directory(sealed, CheckpointManifest) is None
    assert codec.verify_directory(copy, CheckpointManifest) == (
        f"{copy / 'manifest.json'} is of step 1: the directory was renamed or copied from another"
    )


def test_steps_are_listed_by_number_and_only_intact_ones_are_intact(tmp_path: Path) -> None:
    """C1.2, C5.3: by number, not by name, and as if the others did not exist."""
    for step in (100_000_000, 2, 99_999_999, 0):
        seal(tmp_path / step_name(step), step)
    for name in ("step_5", "step_000000003", "best", ".tmp-step_00000004-0a"):
        (tmp_path / name).mkdir()
    (tmp_path / "step_00000006").write_text("a file")
    flip(tmp_path / step_name(0) / "model.safetensors")
    (tmp_path / step_name(2) / "config.json").unlink()
    assert codec.listed_steps(tmp_path) == [0, 2, 99_999_999, 100_000_000]
    assert codec.intact_steps(tmp_path, CheckpointManifest) == [0, 99_999_999, 100_000_000]
    assert codec.intact_steps(tmp_path, CheckpointManifest, hashes=True) == [99_999_999, 100_000_000]
    assert codec.listed_steps(tmp_path / "nothing") == []


def test_tensors_come_back_as_they_were(tensor_file: Path) -> None:
    found = codec.read_tensors(tensor_file)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    file = codec.TensorFile(tensor_file)
    assert (file.shape("a"), file.dtype("b")) == ((3, 4), "BF16")


def test_views_and_no_tensors_at_all_can_be_saved(tmp_path: Path) -> None:
    codec.save_tensors(tmp_path / "t.safetensors", {"t": TENSORS["a"].T, "part": TENSORS["a"][1:]})
    assert codec.read_tensors(tmp_path / "t.safetensors")["t"].tolist() == TENSORS["a"].T.tolist()
    codec.write_tensors(tmp_path / "none.safetensors", {})
    assert codec.TensorFile(tmp_path / "none.safetensors").names == []


def test_what_was_read_can_be_changed_without_changing_the_file(tensor_file: Path) -> None:
    file = codec.TensorFile(tensor_file)
    file.get("a").zero_()
    assert torch.equal(file.get("a"), TENSORS["a"])


def test_a_tensor_that_is_not_there_is_named_with_its_file(tensor_file: Path) -> None:
    with pytest.raises(DamagedError, match=r't\.safetensors has no tensor "c"'):
        codec.TensorFile(tensor_file).get("c")


@pytest.mark.parametrize("missing", [1, 3, 40])
def test_a_truncated_file_is_named_with_both_sizes(tensor_file: Path, missing: int) -> None:
    content = tensor_file.read_bytes()
    tensor_file.write_bytes(content[:-missing])
    with pytest.raises(DamagedError) as caught:
        codec.TensorFile(tensor_file)
    size = len(content)
    assert str(caught.value) == f"{tensor_file} has {size - missing} bytes where its header says {size}"


def test_a_longer_file_is_named_with_both_sizes(tensor_file: Path) -> None:
    size = tensor_file.stat().st_size
    tensor_file.write_bytes(tensor_file.read_bytes() + b"more")
    with pytest.raises(DamagedError, match=f"has {size + 4} bytes where its header says {size}"):
        codec.TensorFile(tensor_file)


@pytest.mark.parametrize("kept", [0, 4, 8, 50])
def test_a_file_cut_within_its_header_is_named(tensor_file: Path, kept: int) -> None:
    tensor_file.write_bytes(tensor_file.read_bytes()[:kept])
    with pytest.raises(DamagedError) as caught:
        codec.TensorFile(tensor_file)
    assert str(tensor_file) in str(caught.value)
    assert f"({kept} bytes in all)" in str(caught.value)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match=r"none\.safetensors does not exist"):
        codec.TensorFile(tmp_path / "none.safetensors")


@pytest.mark.parametrize("bit", [0x01, 0x08, 0x80])
def test_no_damage_to_a_header_gives_another_error(tensor_file: Path, bit: int) -> None:
    """Every byte of the header in turn: the file reads, or the sentence names it."""
    content = tensor_file.read_bytes()
    sentences = []
    for position in range(8 + int.from_bytes(content[:8], "little")):
        damaged = bytearray(content)
        damaged[position] ^= bit
        tensor_file.write_bytes(damaged)
        try:
            codec.read_tensors(tensor_file)
        except DamagedError as error:
            sentences.append(str(error))
    assert len(sentences) > 100
    assert not [sentence for sentence in sentences if str(tensor_file) not in sentence]


def test_reading_one_tensor_does_not_read_the_others(tmp_path: Path) -> None:
    """A sparse file of 8 GiB, of which 12 bytes are asked for."""
    path, big = tmp_path / "big.safetensors", 8 << 30
    header = {
        "big": {"dtype": "U8", "shape": [big], "data_offsets": [0, big]},
        "small": {"dtype": "F32", "shape": [3], "data_offsets": [big, big + 12]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        handle.seek(big, 1)
        handle.write(torch.tensor([1.0, 2.0, 3.0]).numpy().tobytes())
    before = peak_bytes()
    file = codec.TensorFile(path)
    assert (file.names, file.shape("big")) == (["big", "small"], (big,))
    assert file.get("small").tolist() == [1.0, 2.0, 3.0]
    assert peak_bytes() - before < 64 << 20


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
