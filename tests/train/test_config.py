"""Every mistake in a configuration is one sentence that names file, key and the nearest valid key, with exit code 2."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pico_train.cli import main

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run `pico-train run` in process on a text as tiny.yaml; the sentence of its refusal, paths shortened."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)

    def run(config: str, *arguments: str, name: str = "tiny.yaml") -> str:
        Path("tiny.yaml").write_text(config, encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["pico-train", "run", name, *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        assert caught.value.code == 2
        assert out == ""
        assert err.startswith("pico-train: ")
        assert err.count("\n") == 1
        assert not (tmp_path / "runs").exists(), "a refused run leaves nothing behind"
        return err.removeprefix("pico-train: ").rstrip("\n").replace(f"{tmp_path}/", "")

    return run


def with_changes(raw: dict[str, Any], changes: dict[str, Any]) -> str:
    """`raw` as YAML text, with dotted `changes`."""
    for dotted, value in changes.items():
        *parents, leaf = dotted.split(".")
        section = raw
        for part in parents:
            section = section.setdefault(part, {})
        section[leaf] = value
    return yaml.safe_dump(raw)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("trian", {}, 'unknown key "trian" at the top level; did you mean "train"?'),
        ("train.step", 3, 'unknown key "train.step" in section "train"; did you mean "steps"?'),
        (
            "snapshot.positions.rul",
            "last",
            'unknown key "snapshot.positions.rul" in section "snapshot.positions"; did you mean "rule"?',
        ),
        ("model.hiden_size", 32, 'unknown key "model.hiden_size" in section "model"; did you mean "hidden_size"?'),
        ("schedule.warmup", 2, 'unknown key "schedule.warmup" in section "schedule"; did you mean "warmup_steps"?'),
        ("method.options.alpha", 2, 'unknown key "method.options.alpha" in section "method.options"'),
        ("data.zzz", 2, 'unknown key "data.zzz" in section "data"; choose from: order, path, stream'),
    ],
)
def test_a_misspelt_key_is_named_with_the_nearest(
    refused: Refused, raw: dict[str, Any], key: str, value: Any, sentence: str
) -> None:
    assert refused(with_changes(raw, {key: value})) == f"tiny.yaml: {sentence}"


def test_a_misspelt_key_that_is_required_is_named_as_such(refused: Refused, raw: dict[str, Any]) -> None:
    raw["nme"] = raw.pop("name")
    assert refused(yaml.safe_dump(raw)) == 'tiny.yaml: unknown key "nme" at the top level; did you mean "name"?'


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train.steps", "ten", 'should be a valid integer (it is "ten")'),
        ("train.steps", "10", 'should be a valid integer (it is "10")'),
        ("train.steps", True, "should be a valid integer (it is true)"),
        ("train.steps", 1.5, "should be a valid integer (it is 1.5)"),
        ("train.steps", None, "should be a valid integer (it is null)"),
        ("train.steps", [1], "should be a valid integer (it is [1])"),
        ("train.steps", {"a": 1}, "should be a valid integer (it is a section)"),
        ("train.steps", 0, "should be greater than or equal to 1 (it is 0)"),
        ("train.steps", 10**12, "should be less than or equal to 100000000 (it is 1000000000000)"),
        ("train.batch_size", 10**22, "should be less than or equal to 1000000 (it is 10000000000000000000000)"),
        ("optimizer.lr", "1e-3x", 'should be a valid number (it is "1e-3x")'),
        ("optimizer.lr", None, "should be a valid number (it is null)"),
        ("optimizer.lr", False, "should be a valid number (it is false)"),
        ("optimizer.lr", -1.0, "should be greater than 0 (it is -1.0)"),
        ("optimizer.betas", 0.9, "should be a list (it is 0.9)"),
        ("model.hidden_size", "32", 'should be a valid integer (it is "32")'),
        ("model.hidden_size", True, "should be a valid integer (it is true)"),
        ("model.tie_word_embeddings", 1, "should be a valid boolean (it is 1)"),
        ("schedule.name", "cosin", "should be 'linear', 'cosine' or 'constant' (it is \"cosin\")"),
        ("schedule.warmup_steps", None, "should be a valid integer (it is null)"),
        ("snapshot.modules", "v_proj", 'should be a list (it is "v_proj")'),
        ("train", 3, "should be a section (it is 3)"),
        ("model", None, "should be a section (it is null)"),
        ("data", "somewhere", 'should be a section (it is "somewhere")'),
        ("method.options", 3, "should be a section (it is 3)"),
        ("name", 7, "should be a valid string (it is 7)"),
        ("train.device", "gpu", "should be 'auto', 'cpu', 'cuda' or 'mps' (it is \"gpu\")"),
        ("optimizer.lr", float("nan"), "should be a finite number (it is nan)"),
        ("model.rope_theta", float("inf"), "should be a finite number (it is inf)"),
        ("schedule.final_fraction", float("-inf"), "should be a finite number (it is -inf)"),
        ("method.options.scale", float("nan"), "should be a finite number (it is nan)"),
    ],
)
def test_a_wrong_value_is_named_with_what_it_is(
    refused: Refused, raw: dict[str, Any], key: str, value: Any, expected: str
) -> None:
    assert refused(with_changes(raw, {key: value})) == f"tiny.yaml: {key}: {expected}"


def test_a_wrong_entry_of_a_list_is_numbered(refused: Refused, raw: dict[str, Any]) -> None:
    kinds = "'train.gradients', 'train.microbatch_gradients', 'val.gradients' or 'val.activations'"
    expected = f'should be {kinds} (it is "weights")'
    found = refused(with_changes(raw, {"snapshot.kinds": ["val.gradients", "weights"]}))
    assert found == f"tiny.yaml: snapshot.kinds.1: {expected}"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model.hidden_size": 34}, "model: num_attention_heads (4) does not divide hidden_size (34)"),
        ({"model.num_key_value_heads": 3}, "model: num_key_value_heads (3) does not divide num_attention_heads (4)"),
        (
            {"model.hidden_size": 20},
            "model: hidden_size / num_attention_heads is 5; rotary embeddings need an even head width",
        ),
        ({"model.vocab_size": 0}, "model: vocab_size is 0; it must be positive"),
        (
            {"train.micro_batch_size": 3},
            "train.micro_batch_size (3) does not divide train.batch_size (8); the nearest that does is 2",
        ),
        ({"train.micro_batch_size": 16}, "train.micro_batch_size (16) does not divide train.batch_size (8); the"),
        ({"model.vocab_size": 100}, "model.vocab_size is 100, smaller than the 280 ids of the tokenizer in "),
        ({"train.seq_len": 17}, "train.seq_len is 17, longer than the rows of "),
        ({"train.seq_len": 33}, "train.seq_len (33) exceeds model.max_position_embeddings (32)"),
        ({"model.max_position_embeddings": 15}, "the rows of "),
        ({"schedule.warmup_steps": 11}, "schedule.warmup_steps (11) is longer than train.steps (10)"),
        ({"schedule.final_fraction": 2.0}, "schedule: final_fraction is 2.0; it must lie between 0 and 1"),
        ({"train.max_hours": 0.05}, "train.max_hours (0.05) leaves no time to train before the margin"),
        ({"method.name": "plian"}, 'method.name is "plian", which is not a method; did you mean "plain"?'),
        ({"method.name": ":Plain"}, 'method.name is ":Plain", which is not a method; did you mean "plain"?'),
        ({"method.name": "no_such:X"}, 'method.name is "no_such:X", which cannot be imported: No module named '),
        ({"method.name": "json:X"}, 'method.name is "json:X", which cannot be imported: module '),
        ({"method.name": "json:loads"}, 'method.name is "json:loads", which is not a Method'),
        ({"name": "a/b"}, 'name is "a/b"; use letters, digits, ".", "_" and "-"'),
        ({"name": ".."}, 'name is ".."; use letters, digits, ".", "_" and "-"'),
        ({"name": "x" * 201}, "name has 201 characters; use 200 at most"),
        ({"snapshot.modules": []}, "snapshot.modules is empty; to observe nothing, set snapshot.every to 0"),
        ({"snapshot.modules": ["q_prj"]}, 'snapshot.modules: the pattern "q_prj" matches no module; the nearest names'),
        ({"init_from": "none@3"}, 'init_from "none@3": none is not a run directory (it has no run.json)'),
    ],
)
def test_an_impossible_combination_is_explained(
    refused: Refused, raw: dict[str, Any], changes: dict[str, Any], sentence: str
) -> None:
    assert refused(with_changes(raw, changes)).startswith(f"tiny.yaml: {sentence}")


def test_positions_beyond_the_model_are_explained(refused: Refused, raw: dict[str, Any]) -> None:
    found = refused(with_changes(raw, {"model.max_position_embeddings": 15}))
    assert "have seq_len 16, more than model.max_position_embeddings (15); set train.seq_len or raise" in found


def test_a_users_module_with_a_syntax_error_is_named(refused: Refused, raw: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "half_written.py").write_text("class Mine(:\n    pass\n")
    found = refused(with_changes(raw, {"method.name": "half_written:Mine"}))
    assert 'method.name is "half_written:Mine", which cannot be imported: invalid syntax (half_written.py, line 1)' in (
        found
    )


def test_a_device_that_is_not_there_is_named(
    refused: Refused, raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = refused(with_changes(raw, {"train.device": "cuda"}))
    assert found == 'tiny.yaml: train.device: this machine has no "cuda" device; choose "auto" or "cpu"'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- name\n- data\n", "tiny.yaml should hold a mapping of keys to values but holds a list"),
        ("tiny\n", "tiny.yaml should hold a mapping of keys to values but holds the value 'tiny'"),
        ("train: [1\n", "tiny.yaml is not valid YAML: line 2, column 1: while parsing a flow sequence: expected ','"),
        ("\tname: x", "tiny.yaml is not valid YAML: line 1, column 1: while scanning for the next token"),
        (
            "name: x\nname: y\n",
            'tiny.yaml is not valid YAML: line 2, column 1: the key "name" is given twice (first in',
        ),
        ("train:\n  steps: 1\n  steps: 2\n", 'tiny.yaml is not valid YAML: line 3, column 3: the key "steps" is given'),
        ("steps: {{ steps }}", "tiny.yaml is not valid YAML: line 1, column 9: a key should be text; quote braces"),
        ("name: a\n---\nname: b\n", "tiny.yaml is not valid YAML: line 2, column 1: a second document begins"),
        ("name: !!python/object:os.system {}", "tiny.yaml is not valid YAML: line 1, column 7: the tag"),
        ("&a name: [*a, *b]", "tiny.yaml is not valid YAML: line 1, column 11: the alias"),
    ],
)
def test_a_file_that_holds_no_configuration_is_explained(refused: Refused, text: str, sentence: str) -> None:
    assert refused(text).startswith(sentence)


def test_a_missing_file_is_named_with_the_nearest(refused: Refused) -> None:
    assert refused("", name="tyni.yaml") == 'there is no configuration file tyni.yaml; did you mean "tiny.yaml"?'
    assert refused("", name="far/tiny.yaml") == "there is no configuration file far/tiny.yaml"


def test_a_directory_that_is_no_run_is_explained(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert refused("", name="empty") == "there is no configuration file empty/config.yaml"


def test_bytes_that_are_no_text_are_explained(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert refused("", name="binary.yaml").startswith("binary.yaml is not text in UTF-8 (byte 0xff at offset 0)")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.steps", '"train.steps" is not an override: write key=value, for example train.steps=100'),
        ("=3", '"=3" is not an override: write key=value, for example train.steps=100'),
        ("train.steps.more=3", 'the override "train.steps.more=3" goes below "steps", which is a value'),
        ("train.steps=[", 'the value of the override "train.steps=[" is not valid YAML'),
        ("train.step=3", 'the command line: unknown key "train.step" in section "train"; did you mean "steps"?'),
        ("trian.steps=3", 'the command line: unknown key "trian" at the top level; did you mean "train"?'),
        ("train.steps=", "the command line: train.steps: should be a valid integer (it is null)"),
        ("optimizer.betas=[0.9]", 'the command line: the key "optimizer.betas.1" is missing'),
        ("optimizer.lr=.nan", "the command line: optimizer.lr: should be a finite number (it is nan)"),
        (
            "train.steps=1",
            "tiny.yaml with the overrides of the command line: schedule.warmup_steps (2) is longer than train.steps",
        ),
    ],
)
def test_a_wrong_override_is_told_from_the_file(
    refused: Refused, raw: dict[str, Any], override: str, sentence: str
) -> None:
    assert refused(yaml.safe_dump(raw), "seed.init=1", override).startswith(sentence)


def test_a_mistake_in_the_file_is_not_blamed_on_the_command_line(refused: Refused, raw: dict[str, Any]) -> None:
    found = refused(with_changes(raw, {"train.step": 3}), "train.steps=5")
    assert found == 'tiny.yaml: unknown key "train.step" in section "train"; did you mean "steps"?'


def test_data_that_is_not_there_or_damaged_is_named(
    refused: Refused, raw: dict[str, Any], data_dir: Path, tmp_path: Path
) -> None:
    found = refused(with_changes(raw, {"data.path": "nowhere"}))
    assert found.startswith("tiny.yaml: data.path: nowhere is not a data directory (it has no data.json): make one")
    (tmp_path / "empty").mkdir()
    assert "empty is not a data directory" in refused(with_changes(raw, {"data.path": "empty"}))
    shutil.copytree(data_dir, tmp_path / "cut")
    rows = tmp_path / "cut" / "train.rows.bin"
    size = rows.stat().st_size
    rows.write_bytes(rows.read_bytes()[:-2])
    found = refused(with_changes(raw, {"data.path": "cut"}))
    assert found == (f"tiny.yaml: data.path: cut/train.rows.bin has {size - 2} bytes where its manifest says {size}")
    rows.unlink()
    assert refused(yaml.safe_dump(raw)) == "tiny.yaml: data.path: cut/train.rows.bin is missing"


def test_a_mistake_in_a_process_of_its_own_exits_2(raw: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(with_changes(raw, {"model.num_key_value_heads": 3}))
    done = subprocess.run(
        [sys.executable, "-m", "pico_train", "run", file, "seed.init=1"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"pico-train: {file} with the overrides of the command line: model: num_key_value_heads (3) does not divide"
        " num_attention_heads (4)\n"
    )
