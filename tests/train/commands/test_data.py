"""`pico-train data prepare` and `data show`, by their arguments, exit codes and output."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pico_contract import codec
from pico_contract.layout import TRAIN_BATCH
from pico_train import train
from pico_train.cli import main
from pico_train.config import to_yaml
from pico_train.data.packed import PackedData
from pico_train.data.tokenizer import load_tokenizer
from pico_train.log.metrics import read_metrics
from pico_train.run import RunConfig, build

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """(exit code, stdout, stderr) of `pico-train data ...`, run in `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pico-train", "data", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "words.txt").write_text("\n\n".join(f"the king number {i} speaks to the queen" for i in range(50)))
    (tmp_path / "data.yaml").write_text(
        'source:\n  path: words.txt\n  separator: "\\n\\n"\nout: packed\nseq_len: 16\nlicence: public domain\n'
        "tokenizer: {vocab_size: 280}\nvalidation_fraction: 0.2\n"
    )
    return tmp_path / "data.yaml"


def test_prepare_makes_what_the_file_says_and_counts_it(command: Command, recipe: Path, tmp_path: Path) -> None:
    code, out, err = command("prepare", recipe)
    data = PackedData.open(tmp_path / "packed")
    assert (code, err) == (0, "")
    lines = [
        f"{split}: {info.documents} documents, {info.tokens:,} tokens, {info.rows:,} rows of 17"
        for split, info in data.manifest.splits.items()
    ]
    assert out.splitlines() == [*lines, "data in packed"]
    assert (data.manifest.source, data.manifest.licence) == ("words.txt", "public domain")
    assert sum(info.documents for info in data.manifest.splits.values()) == 50


def test_prepare_a_second_time_says_so(command: Command, recipe: Path) -> None:
    command("prepare", recipe)
    code, out, _ = command("prepare", recipe)
    compared = "packed is prepared already (its source has not changed since, by size and time)"
    assert (code, out) == (0, f"{compared}; delete it to prepare it again\ndata in packed\n")
    code, _, err = command("prepare", recipe, "seq_len=8")
    assert code == 2
    other = "packed was made with other settings (seq_len 16 -> 8)"
    assert err == f"pico-train: {other}: choose another `out`, or delete it\n"


def test_prepare_takes_overrides_with_and_without_a_file(command: Command, recipe: Path, tmp_path: Path) -> None:
    assert command("prepare", recipe, "seq_len=4", "out=short")[0] == 0
    assert PackedData.open(tmp_path / "short").manifest.seq_len == 4
    overrides = ["source=words.txt", "out=bare", "seq_len=8", "tokenizer.vocab_size=280", "validation_fraction=0"]
    assert command("prepare", *overrides)[0] == 0
    assert list(PackedData.open(tmp_path / "bare").manifest.splits) == ["train"]


SPLIT = 'source.separator="\\n\\n"'


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        (None, ["source=words.txt", SPLIT]),
        (None, [SPLIT, "source=words.txt"]),
        (None, ["source={path: words.txt}", SPLIT]),
        (None, ["source.path=words.txt", SPLIT]),
        ("source: words.txt\n", [SPLIT]),
        ("source: other.txt\n", [SPLIT, "source=words.txt"]),
        ("source: {path: words.txt}\n", [SPLIT]),
    ],
)
def test_a_short_source_takes_a_separator(
    command: Command, recipe: Path, tmp_path: Path, text: str | None, overrides: list[str]
) -> None:
    (tmp_path / "short.yaml").write_text(text or "")
    file = [] if text is None else ["short.yaml"]
    others = ["out=short", "seq_len=8", "tokenizer.vocab_size=280", "validation_fraction=0"]
    code, _, err = command("prepare", *file, *overrides, *others)
    assert (code, err) == (0, "")
    assert PackedData.open(tmp_path / "short").manifest.splits["train"].documents == 50


def test_verify_and_show_take_a_data_directory(command: Command, recipe: Path, tmp_path: Path) -> None:
    command("prepare", recipe)
    code, out, err = command("verify", "packed")
    assert (code, err) == (0, "")
    assert out.startswith("packed: every byte compared, ")
    code, out, _ = command("show", "packed", "--rows", 1)
    assert code == 0
    assert out.startswith("packed: data of words.txt (licence: public domain), made ")
    rows = np.memmap(tmp_path / "packed" / "train.rows.bin", "<u2", "r+")
    rows[0] ^= 1
    code, out, err = command("verify", "packed")
    assert (code, out) == (2, "")
    assert err.startswith("pico-train: packed/train.rows.bin does not have the sha256")
    assert command("verify", "nowhere")[0] == 2


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("source.seperator=x", 'unknown key "source.seperator" in section "source"; did you mean "separator"?'),
        (
            "tokenizer.vocab_sise=1",
            'unknown key "tokenizer.vocab_sise" in section "tokenizer"; did you mean "vocab_size"?',
        ),
        ("source.path=word.txt", 'there is no source word.txt; did you mean "words.txt"?'),
        ("validation_fraction=1", "validation_fraction: should be less than 1 (it is 1)"),
        ("seq_len=100000", "less than one row of 100001: lower seq_len or give it more text"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(
    command: Command, recipe: Path, tmp_path: Path, override: str, sentence: str
) -> None:
    code, out, err = command("prepare", recipe, override)
    assert (code, out) == (2, "")
    assert err.startswith("pico-train: ")
    assert err.endswith(sentence + "\n")
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.yaml", "words.txt"]


def shown(out: str) -> tuple[list[int], dict[int, tuple[list[int], str]]]:
    """(row ids of the update, row -> (token ids, text)) of what `data show` printed."""
    head, *blocks = re.split(r"\n\nrow ", out.rstrip("\n"))
    rows = {}
    for block in blocks:
        ids, _, text = block.partition("\n")
        row, _, tokens = ids.partition(": ")
        rows[int(row)] = ([int(i) for i in tokens.split()], text)
    return [int(i) for i in head.partition(": ")[2].split()], rows


@pytest.fixture
def finished(tiny: Callable[..., RunConfig]) -> RunConfig:
    """Five updates; the snapshot of step 2 holds the batch of update 3."""
    config = tiny(**{"train.steps": 5, "snapshot.every": 2})
    train(config, quiet=True)
    return config


@pytest.mark.parametrize("of", ["run", "file"])
def test_show_prints_the_rows_that_training_read(
    command: Command, finished: RunConfig, tmp_path: Path, of: str
) -> None:
    (tmp_path / "run.yaml").write_text(to_yaml(finished))
    code, out, err = command(
        "show", finished.layout.root if of == "run" else tmp_path / "run.yaml", "--step", 3, "--rows", 8
    )
    assert (code, err) == (0, "")
    batch = codec.read_tensors(finished.layout.snapshot(2) / TRAIN_BATCH)
    row_ids, rows = shown(out)
    assert row_ids == batch["rows"].tolist()
    assert {row: ids for row, (ids, _) in rows.items()} == dict(zip(row_ids, batch["tokens"].tolist(), strict=True))
    tokenizer = load_tokenizer(finished.data.path)
    for ids, text in rows.values():
        assert text == tokenizer.decode(ids, skip_special_tokens=False)


def test_the_rows_shown_for_all_steps_have_the_hash_that_training_recorded(
    command: Command, finished: RunConfig
) -> None:
    from pico_train.data.order import chain_hash

    digest = ""
    for row in read_metrics(finished.layout.metrics):
        row_ids, _ = shown(command("show", finished.layout.root, "--step", row["step"], "--rows", 1)[1])
        digest = chain_hash(digest, np.array(row_ids))
        assert row["order_hash"] == digest
    assert row["step"] == 5


def test_show_prints_as_many_rows_as_asked_for(command: Command, finished: RunConfig) -> None:
    row_ids, rows = shown(command("show", finished.layout.root, "--step", 2, "--rows", 3)[1])
    assert len(row_ids) == 8
    assert list(rows) == row_ids[:3]
    assert row_ids == build(finished).loader.order.rows(2).tolist()


def test_show_takes_overrides(command: Command, finished: RunConfig) -> None:
    seeded, _ = shown(command("show", finished.layout.root, "seed.data=9", "--step", 3)[1])
    in_file_order, _ = shown(command("show", finished.layout.root, "data.order=sequential", "--step", 2)[1])
    assert seeded != build(finished).loader.order.rows(3).tolist()
    assert in_file_order == list(range(8, 16))


def test_rows_of_a_shorter_sequence_are_shown_as_training_cuts_them(
    command: Command, tiny: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = tiny(**{"train.seq_len": 6})
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    row_ids, rows = shown(command("show", tmp_path / "run.yaml", "--rows", 8)[1])
    job = build(config)
    assert [rows[row][0] for row in row_ids] == job.loader.tokens(job.loader.order.rows(1)).tolist()
    tokenizer = load_tokenizer(config.data.path)
    assert [rows[row][1] for row in row_ids] == [
        tokenizer.decode(rows[row][0], skip_special_tokens=False) for row in row_ids
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--step", 6], "--step is 6, but the run has 5 steps"),
        (["sed.data=1"], 'unknown key "sed" at the top level; did you mean "seed"?'),
        (["data.path=elsewhere"], "elsewhere is not a data directory (it has no data.json): make one with"),
    ],
)
def test_what_cannot_be_shown_is_one_sentence(
    command: Command, finished: RunConfig, arguments: list[Any], sentence: str
) -> None:
    code, out, err = command("show", finished.layout.root, *arguments)
    assert (code, out) == (2, "")
    assert sentence in err
    assert err.count("\n") == 1
