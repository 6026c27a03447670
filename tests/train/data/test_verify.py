"""A data directory whose bytes were altered: found when a run begins, when a row is taken, and by `verify_data`."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pico_contract import data_directory
from pico_contract.data_directory import BlockDigests, verify_data
from pico_contract.errors import DamagedError, UserError
from pico_contract.layout import DataLayout
from pico_train import train
from pico_train.commands import evaluate_run
from pico_train.commands.data import describe_data, verify_all
from pico_train.data import packed
from pico_train.data.packed import PackedData
from pico_train.run import RunConfig


@pytest.fixture
def data(data_dir: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(data_dir, tmp_path / "copy"))


def rows_of(data: Path, split: str = "train") -> np.memmap:
    return np.memmap(DataLayout(data).rows(split), "<u2", "r+")


def reverse(data: Path) -> None:
    rows = rows_of(data)
    rows[:] = rows[::-1].copy()


def large_ids(data: Path) -> None:
    rows_of(data)[20] = 60_000  # row 1 of 17 ids


def one_bit(data: Path) -> None:
    rows_of(data, "validation")[-1] ^= 1


def swap_tokenizer_bytes(data: Path) -> None:
    path = DataLayout(data).tokenizer
    path.write_bytes(path.read_bytes()[::-1])


def documents_back(data: Path) -> None:
    offsets = np.memmap(DataLayout(data).documents("train"), "<i8", "r+")
    offsets[1] = -offsets[1]


def resealed(data: Path) -> None:
    """Rows reversed, and data.json made to agree, but for the fingerprint."""
    reverse(data)
    layout = DataLayout(data)
    raw = json.loads(layout.manifest.read_text())
    raw["files"]["train.rows.bin"]["sha256"] = hashlib.sha256(layout.rows("train").read_bytes()).hexdigest()
    raw.pop("digest", None)
    layout.manifest.write_text(json.dumps(raw))


def cut(data: Path) -> None:
    path = DataLayout(data).rows("train")
    path.write_bytes(path.read_bytes()[:-1])


def gone(data: Path) -> None:
    DataLayout(data).documents("validation").unlink()


def bad_tail(data: Path) -> None:
    layout = DataLayout(data)
    raw = json.loads(layout.manifest.read_text())
    raw["splits"]["train"]["tail"] = "xyz"
    raw.pop("digest", None)
    layout.manifest.write_text(json.dumps(raw))


DAMAGE: dict[Callable[[Path], None], str] = {
    reverse: r"train\.rows\.bin does not have the sha256 that its manifest says",
    large_ids: r"train\.rows\.bin, row 1 holds the id 60000, outside the vocabulary of 280",
    one_bit: r"validation\.rows\.bin does not have the sha256",
    swap_tokenizer_bytes: r"tokenizer\.json does not have the sha256",
    documents_back: r"train\.documents\.bin holds offsets of documents that do not ascend",
    resealed: r"data\.json states another fingerprint than its rows have",
    cut: r"train\.rows\.bin has \d+ bytes where its manifest says",
    gone: r"validation\.documents\.bin (does not hold the|is missing)",
    bad_tail: r"states a tail that is not written in hex digits",
}


def test_intact_data_have_no_fault(data: Path) -> None:
    checked = verify_data(data)
    assert checked.faults == []
    assert checked.is_whole
    assert checked.is_fingerprint_checked
    assert checked.bytes_total == sum(path.stat().st_size for path in data.iterdir() if path.name != "data.json")
    assert checked.fingerprint == PackedData.open(data).manifest.fingerprint
    assert next(verify_all(data)).startswith(f"{data}: every byte compared, ")


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_damage_is_named_by_verify_and_refused_by_a_run(
    data: Path, damage: Callable[[Path], None], tiny: Callable[..., RunConfig]
) -> None:
    damage(data)
    checked = verify_data(data)
    assert any(re.search(DAMAGE[damage], fault) for fault in checked.faults), checked.faults
    with pytest.raises(DamagedError, match=DAMAGE[damage]):
        list(verify_all(data))
    config = tiny(**{"data.path": str(data), "snapshot.every": 0})
    with pytest.raises(DamagedError):
        train(config, quiet=True)
    assert not config.layout.manifest.exists()


def test_data_that_were_altered_in_between_are_not_trained_on(
    data: Path, tiny: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that stopped is not continued, nor is a finished one evaluated, on other bytes."""
    train(tiny(**{"data.path": str(data), "train.steps": 4}), quiet=True)
    config = tiny(**{"data.path": str(data), "train.steps": 4})
    one_bit(data)
    with pytest.raises(DamagedError, match=r"validation\.rows\.bin does not have the sha256"):
        evaluate_run(config.layout.root, None, ["perplexity"])
    manifest = json.loads(config.layout.manifest.read_text())
    manifest.pop("digest", None)
    config.layout.manifest.write_text(json.dumps({**manifest, "status": "stopped"}))
    with pytest.raises(DamagedError, match=r"data verify .* names every fault"):
        train(config, quiet=True)


def test_an_id_that_is_none_is_found_when_its_row_is_taken(data: Path) -> None:
    opened = PackedData.open(data)
    rows = opened.split("train")
    large_ids(data)
    assert rows.take(np.array([0, 2])).shape == (2, 17)
    with pytest.raises(
        DamagedError, match=r"train\.rows\.bin, row 1 holds the id 60000, outside the vocabulary of 280"
    ):
        rows.take(np.array([0, 1]))


def test_data_of_earlier_versions_are_compared_by_sha256(data: Path) -> None:
    layout = DataLayout(data)
    raw: dict[str, Any] = json.loads(layout.manifest.read_text())
    raw.pop("digest", None)
    assert any(info["dropped_tokens"] for info in raw["splits"].values())
    for info in raw["splits"].values():
        del info["tail"], info["blocks"]
    layout.manifest.write_text(json.dumps(raw))
    checked = verify_data(data)
    assert (checked.faults, checked.is_whole, checked.is_fingerprint_checked) == ([], True, False)
    assert "its fingerprint cannot be computed anew" in checked.stated
    reverse(data)
    assert "does not have the sha256" in verify_data(data).faults[0]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 256 bytes, of which a run compares two to four."""
    monkeypatch.setattr(data_directory, "BLOCK_BYTES", 256)
    monkeypatch.setattr(packed, "_START_BYTES", 1024)


def with_blocks(data: Path) -> None:
    """Write the digests of small blocks into data.json."""
    layout = DataLayout(data)
    raw = json.loads(layout.manifest.read_text())
    raw.pop("digest", None)
    for split in raw["splits"]:
        digests = BlockDigests()
        content = layout.rows(split).read_bytes()
        for start in range(0, len(content), 100):
            digests.update(content[start : start + 100])
        raw["splits"][split]["blocks"] = digests.digests()
        assert len(digests.digests()) == -(-len(content) // 256)
    layout.manifest.write_text(json.dumps(raw))


@pytest.mark.parametrize("place", [0, -1])
def test_of_large_files_first_and_last_block_are_always_compared(data: Path, small_blocks: None, place: int) -> None:
    with_blocks(data)
    notice = PackedData.open(data).verify_at_start()
    assert notice is not None
    assert notice.endswith(f"were compared with data.json; `pico-train data verify {data}` compares all")
    rows = rows_of(data)
    rows[place] ^= 1
    with pytest.raises(DamagedError, match=r"train\.rows\.bin does not have the sha256 of block \d+"):
        PackedData.open(data).verify_at_start()


def test_other_blocks_are_drawn_anew_each_time(data: Path, small_blocks: None) -> None:
    with_blocks(data)
    rows = rows_of(data)
    rows[len(rows) // 2] ^= 1
    random.seed(0)  # without it, the block is missed by all draws in 1% of runs
    found = [bool(verify_data(data, 1024).faults) for _ in range(300)]
    assert True in found
    assert False in found
    assert verify_data(data).faults


def test_show_says_what_a_data_directory_is(data: Path) -> None:
    manifest = PackedData.open(data).manifest
    lines = list(describe_data(data, [], 2))
    assert manifest.fingerprint in lines[1]
    assert "280 ids, stored as uint16; special tokens: eos 0, pad 1, mask 2" in lines[2]
    assert f"{manifest.splits['train'].rows:,} rows of 17" in lines[4]
    shown = [line for line in lines if line.startswith("\nrow ")]
    assert [line.split(":")[0] for line in shown] == ["\nrow 0", "\nrow 1"]
    with pytest.raises(UserError, match=r"takes no overrides: leave out a\.b=c"):
        list(describe_data(data, ["a.b=c"], 1))
    with pytest.raises(UserError, match=r"is not a data directory \(it has no data\.json\)"):
        list(verify_all(data.parent))
