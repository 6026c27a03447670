"""Revisions of a model on the hub, by the hub's own client against a server on this machine."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from pico_analyze import measure
from pico_analyze.engine.damage import DamagedWarning
from pico_analyze.sources.hub import open_hub
from pico_analyze.sources.model_series import Series
from pico_analyze.table import read
from pico_contract import codec
from pico_contract.errors import DamagedError, UserError

from ...support.fake_hub import REPO, Replica, serving

DENSE = "gpt_neox.layers.0.attention.dense"
STEPS = (0, 1, 2, 8)
KIB = 2**10


def weight(step: int) -> torch.Tensor:
    return torch.randn(64, 64, generator=torch.Generator().manual_seed(step))  # 16 KiB


def model(tmp_path: Path, step: int) -> dict[str, bytes]:
    file = tmp_path / f"{step}.safetensors"
    codec.save_tensors(file, {f"{DENSE}.weight": weight(step), f"{DENSE}.bias": torch.ones(64)})
    return {"model.safetensors": file.read_bytes(), "config.json": b'{"hidden_size": 64}'}


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    """`main` and four steps of 17 KiB each."""
    with serving({"main": {}} | {f"step{step}": model(tmp_path, step) for step in STEPS}) as replica:
        yield replica


@pytest.fixture
def opened(replica: Replica, tmp_path: Path) -> Callable[..., Series]:
    """`opened(pattern, kib)` opens revisions with room for `kib` KiB of downloads."""

    def open_(pattern: str = "@step*", kib: float = 1000.0) -> Series:
        return open_hub(f"hub:{REPO}{pattern}", kib / 2**20, tmp_path / "cache", replica.endpoint)

    return open_


def whole(replica: Replica) -> list[str]:
    """Revisions of which the weights were downloaded, in order."""
    return [revision for revision, file in replica.downloads if file == "model.safetensors"]


def kept(tmp_path: Path) -> int:
    return sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.safetensors"))


def test_steps_and_modules_are_known_without_a_download(replica: Replica, opened: Callable[..., Series]) -> None:
    series = opened()
    assert (series.name, series.steps, series.damaged) == ("pythia-tiny", list(STEPS), {})
    assert [series.modules(step, "weights") for step in STEPS] == [[DENSE]] * 4
    assert series.model == {"hidden_size": 64}
    assert whole(replica) == []


@pytest.mark.parametrize(("pattern", "steps"), [("", list(STEPS)), ("@step[12]", [1, 2]), ("@step8", [8])])
def test_a_pattern_chooses_revisions(opened: Callable[..., Series], pattern: str, steps: list[int]) -> None:
    assert opened(pattern).steps == steps


def test_a_file_is_downloaded_once_when_it_is_first_read(replica: Replica, opened: Callable[..., Series]) -> None:
    series = opened()
    for _ in range(3):
        assert torch.equal(series.tensor(2, "weights", DENSE), weight(2))
    assert whole(replica) == ["step2"]
    assert torch.equal(opened().tensor(2, "weights", DENSE), weight(2))
    assert whole(replica) == ["step2"], "another start finds it where it was kept"


def test_the_least_recently_used_is_released(replica: Replica, opened: Callable[..., Series], tmp_path: Path) -> None:
    series = opened(kib=40)  # two of them
    for step in (0, 1, 0, 2, 0, 1):
        assert torch.equal(series.tensor(step, "weights", DENSE), weight(step))
        assert kept(tmp_path) <= 40 * KIB
    assert whole(replica) == ["step0", "step1", "step2", "step1"]


def test_what_an_earlier_start_left_counts(replica: Replica, opened: Callable[..., Series], tmp_path: Path) -> None:
    for step in STEPS:
        opened().tensor(step, "weights", DENSE)
    assert kept(tmp_path) > 60 * KIB
    opened(kib=20).tensor(8, "weights", DENSE)
    assert whole(replica) == [f"step{step}" for step in STEPS]
    replica.revisions["step9"] = replica.revisions["step8"]
    opened(kib=20).tensor(9, "weights", DENSE)
    assert kept(tmp_path) <= 20 * KIB


def test_another_process_reads_the_same_by_the_same_fingerprint(opened: Callable[..., Series]) -> None:
    series = opened()
    copy = pickle.loads(pickle.dumps(series))
    assert torch.equal(copy.tensor(2, "weights", DENSE), weight(2))
    prints = [series.fingerprint(step, "weights") for step in STEPS]
    assert [copy.fingerprint(step, "weights") for step in STEPS] == prints
    assert len(set(prints)) == 4


def test_a_file_larger_than_the_budget_is_not_fetched(replica: Replica, opened: Callable[..., Series]) -> None:
    with pytest.raises(DamagedError, match="raise disk_gib"):
        opened(kib=10).tensor(1, "weights", DENSE)
    assert whole(replica) == []


def test_the_whole_series_is_measured_within_a_budget_of_one_step(
    opened: Callable[..., Series], tmp_path: Path
) -> None:
    table = measure(opened(kib=20), ["frobenius_norm"], ["*"])
    expected = [float(weight(step).double().norm()) for step in STEPS]
    assert table.sort_values("step")["value"].tolist() == pytest.approx(expected, rel=1e-12)
    assert kept(tmp_path) <= 20 * KIB


def test_each_file_is_fetched_once_though_few_fit(
    replica: Replica, opened: Callable[..., Series], tmp_path: Path
) -> None:
    """All modules of the steps that fit are measured before those of the next, in the order of a budget."""
    replica.revisions = {}
    for step in range(7):
        held = {f"h.{layer}.dense.weight": weight(10 * step + layer) for layer in range(3)}
        codec.save_tensors(tmp_path / "three.safetensors", held)
        replica.revisions[f"step{step}"] = {"model.safetensors": (tmp_path / "three.safetensors").read_bytes()}
    series = opened(kib=160)  # three of 48 KiB and their headers
    table = measure(series, ["frobenius_norm"])
    assert series.at_once == 2
    assert whole(replica) == [f"step{step}" for step in range(7)]
    assert kept(tmp_path) <= 160 * KIB
    values = table.set_index(["step", "layer"])["value"]
    for step, layer in values.index:
        assert values[step, layer] == pytest.approx(float(weight(10 * step + layer).double().norm()), rel=1e-12)


def test_only_the_shard_that_is_needed_is_downloaded(
    replica: Replica, opened: Callable[..., Series], tmp_path: Path
) -> None:
    held = {f"m.h.{layer}.mlp.c_fc.weight": weight(layer) for layer in range(2)}
    files = {name: f"model-0000{place}-of-00002.safetensors" for place, name in enumerate(held, start=1)}
    revision: dict[str, bytes] = {"model.safetensors.index.json": json.dumps({"weight_map": files}).encode()}
    for name, file in files.items():
        codec.save_tensors(tmp_path / file, {name: held[name]})
        revision[file] = (tmp_path / file).read_bytes()
    replica.revisions = {"step5": revision}
    series = opened()
    assert series.modules(5, "weights") == ["m.h.0.mlp.c_fc", "m.h.1.mlp.c_fc"]
    assert torch.equal(series.tensor(5, "weights", "m.h.1.mlp.c_fc"), held["m.h.1.mlp.c_fc.weight"])
    assert [file for _, file in replica.downloads if file.endswith(".safetensors")] == [files["m.h.1.mlp.c_fc.weight"]]
    assert series.model == {}


def test_a_header_longer_than_the_first_request(
    replica: Replica, opened: Callable[..., Series], tmp_path: Path
) -> None:
    many = {f"h.{layer}.{'long' * 20}.weight": torch.ones(1, 1) for layer in range(900)}
    codec.save_tensors(tmp_path / "many.safetensors", many)
    replica.revisions = {"step1": {"model.safetensors": (tmp_path / "many.safetensors").read_bytes()}}
    assert len(opened().modules(1, "weights")) == 900


def test_a_busy_hub_is_asked_again(replica: Replica, opened: Callable[..., Series]) -> None:
    series = opened("@step1")
    replica.busy = 1
    assert series.modules(1, "weights") == [DENSE]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "has neither model.safetensors nor an index of shards; it has no files"),
        ({"model.safetensors": b"\x00" * 50}, "is not a safetensors file"),
        ({"model.safetensors": b"\x05" + b"\x00" * 7 + b"{{{{{" + b"\x00" * 50}, "is not a safetensors file"),
        ({"model.safetensors.index.json": b"{}"}, "has no weight_map"),
    ],
)
def test_a_revision_that_cannot_be_read_is_named_and_the_rest_measured(
    replica: Replica, opened: Callable[..., Series], files: dict[str, bytes], sentence: str
) -> None:
    replica.revisions["step1"] = files
    with pytest.warns(DamagedWarning, match=sentence):
        table = measure(opened(), ["per"], ["*"])
    assert table.set_index("step")["status"].to_dict() == {0: "ok", 1: "damaged", 2: "ok", 8: "ok"}


def test_weights_cut_short_on_the_hub_are_named(replica: Replica, opened: Callable[..., Series]) -> None:
    files = replica.revisions["step1"]
    replica.revisions["step1"] = files | {"model.safetensors": files["model.safetensors"][:-100]}
    with pytest.raises(DamagedError, match=r"model\.safetensors has \d+ bytes where its header says"):
        opened().tensor(1, "weights", DENSE)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (f"hub:{REPO}@stop*", 'has no revision "stop*"'),
        ("hub:somebody/else@step*", "there is no model somebody/else on the hub, or it is private"),
        ("hub:@step*", "names no model: write hub:NAME@step*"),
        ("hub:a/b@step*", "there is no model a/b on the hub"),
    ],
)
def test_what_is_not_on_the_hub_is_one_sentence(replica: Replica, name: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        open_hub(name, endpoint=replica.endpoint)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_two_revisions_of_one_step_are_refused(replica: Replica, opened: Callable[..., Series]) -> None:
    replica.revisions["step01"] = replica.revisions["step1"]
    with pytest.raises(UserError, match='"step1" and "step01" both give step 1'):
        opened()


def test_a_hub_out_of_reach_is_one_sentence(replica: Replica) -> None:
    with pytest.raises(UserError, match=r"cannot be had from the hub \(.*refused"):
        open_hub(f"hub:{REPO}", endpoint="http://127.0.0.1:9")


@pytest.mark.slow
def test_the_command_measures_them_where_the_hubs_own_variables_say(replica: Replica, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "pico_analyze", "run", f"hub:{REPO}@step*"]
    settings = ["metrics=[frobenius_norm]", "figures.metrics=[]", "disk_gib=1"]
    env = os.environ | {"HF_ENDPOINT": replica.endpoint, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([*command, *settings], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    table = read(tmp_path / "analysis" / "pythia-tiny" / "default" / "table.parquet").sort_values("step")
    assert table["value"].tolist() == pytest.approx([float(weight(step).double().norm()) for step in STEPS], rel=1e-12)
    kept = (tmp_path / "home" / "pico-analyze" / "somebody--pythia-tiny").glob("*/model.safetensors")
    assert len(list(kept)) == len(STEPS)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'pico-analyze\[hub\]'"):
        open_hub(f"hub:{REPO}")
