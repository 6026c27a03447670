"""Models in other forms than plain matrices in safetensors: read by their definition, or refused with the remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pico_analyze import open_source
from pico_contract import codec
from pico_contract.errors import UserError

Q = "model.layers.0.self_attn.q_proj"


def save(folder: Path, tensors: dict[str, torch.Tensor], name: str = "model.safetensors", **files: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    codec.save_tensors(folder / name, tensors)
    for stem, content in files.items():
        (folder / f"{stem}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("pytorch_model.bin", "a pickle, which is not read since it may run code; save it as safetensors: AutoModel"),
        ("pytorch_model-00001-of-00002.bin", "a pickle"),
        ("consolidated.00.pth", "a pickle"),
        ("last.ckpt", "a pickle"),
        ("model-Q4_K_M.gguf", "GGUF"),
        ("model.onnx", "ONNX"),
        ("tf_model.h5", "from_tf=True"),
        ("flax_model.msgpack", "from_flax=True"),
    ],
)
def test_another_format_alone_is_refused_and_in_a_series_left_out_with_a_note(
    tmp_path: Path, name: str, sentence: str
) -> None:
    (tmp_path / "m" / "step10").mkdir(parents=True)
    (tmp_path / "m" / "step10" / name).write_bytes(b"x" * 2000)
    with pytest.raises(UserError) as error:
        open_source(tmp_path / "m")
    assert f"step10 has {name}" in str(error.value)
    assert sentence in str(error.value)
    save(tmp_path / "m" / "step0", {f"{Q}.weight": torch.eye(4)})
    save(tmp_path / "m" / "final", {f"{Q}.weight": torch.eye(4)})
    series = open_source(tmp_path / "m")
    assert (list(series.steps), series.damaged) == ([0], {})
    notes = series.notes  # type: ignore[attr-defined]
    assert len(notes) == 2
    assert 'final" says no step' in notes[0]
    assert f"step10 has {name}" in notes[1]


def test_safetensors_are_preferred_to_the_pickle_beside_them(tmp_path: Path) -> None:
    folder = save(tmp_path / "m" / "step0", {f"{Q}.weight": torch.eye(4)})
    torch.save({f"{Q}.weight": torch.zeros(4, 4)}, folder / "pytorch_model.bin")
    series = open_source(tmp_path / "m")
    assert torch.equal(series.tensor(0, "weights", Q), torch.eye(4))
    assert series.notes == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("kept", [(1, 2), (1,), (2,)])
def test_shards_need_no_index_and_a_missing_one_is_named(tmp_path: Path, kept: tuple[int, ...]) -> None:
    for number in kept:
        name = f"model-0000{number}-of-00002.safetensors"
        save(tmp_path / "m" / "step0", {f"h.{number}.fc.weight": torch.eye(4)}, name)
    if len(kept) == 2:
        assert open_source(tmp_path / "m").modules(0, "weights") == ["h.1.fc", "h.2.fc"]
        return
    with pytest.raises(UserError, match=rf"model-0000{3 - kept[0]}-of-00002.safetensors does not exist: 1 of 2 shards"):
        open_source(tmp_path / "m")


def test_a_pointer_of_git_lfs_is_said_to_be_one(tmp_path: Path) -> None:
    folder = tmp_path / "m" / "step0"
    folder.mkdir(parents=True)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 1000000\n"
    (folder / "model.safetensors").write_text(pointer)
    with pytest.raises(
        UserError, match="is a pointer of Git LFS and not the file itself: fetch it with `git lfs pull`"
    ):
        open_source(tmp_path / "m")


@pytest.mark.parametrize("given", ["inspect", "measure"])
def test_a_file_in_place_of_a_folder_is_said_to_be_one(tmp_path: Path, given: str) -> None:
    from pico_analyze.commands import holdings
    from pico_analyze.config import load

    file = save(tmp_path / "m", {f"{Q}.weight": torch.eye(4)}) / "model.safetensors"
    with pytest.raises(UserError, match=r"model.safetensors is a file: name the folder that it lies in"):
        holdings(file) if given == "inspect" else load(file)
