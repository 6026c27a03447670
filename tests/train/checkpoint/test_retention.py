"""Keep policies: what stays is what they say, no observation goes, whenever the process is killed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pico_analyze import open_run
from pico_analyze.audit.checks import audit
from pico_contract import codec
from pico_contract.errors import UserError
from pico_contract.layout import SNAPSHOT_WEIGHTS, RunLayout
from pico_contract.lock import LockHeldError, RunLock
from pico_contract.schema import CheckpointManifest, SnapshotManifest
from pico_train import train
from pico_train.checkpoint.init_from import initial_weights
from pico_train.checkpoint.load import newest_intact
from pico_train.checkpoint.retention import KeepConfig, planned_removals
from pico_train.commands import evaluate_run, prune
from pico_train.run import RunConfig

Tiny = Callable[..., RunConfig]
COMMAND = [sys.executable, "-m", "pico_train", "prune"]


@pytest.fixture
def whole(tiny: Tiny) -> RunLayout:
    """A finished run that kept everything: checkpoints 0, 2, ..., 10 and snapshots 0, 1, 2, 4, 8, 10."""
    config = tiny(**{"checkpoint.every": 2, "snapshot.modules": ["v_proj"], "evaluate.every": 0})
    train(config, quiet=True)
    return config.layout


def copied(layout: RunLayout, name: str) -> RunLayout:
    shutil.copytree(layout.root, layout.root.parent / name / layout.root.name)
    return RunLayout(layout.root.parent / name / layout.root.name)


def kept(layout: RunLayout) -> list[str]:
    """Steps of the checkpoints, with a + where state/ is there."""
    return [f"{s}{'+' * layout.state(s).is_dir()}" for s in codec.listed_steps(layout.checkpoints)]


def observations(layout: RunLayout) -> dict[tuple[int, str, str], torch.Tensor]:
    """Every tensor of every observed step, weights included, as analysis reads them."""
    run = open_run(layout.root)
    keys = [(step, "weights", None) for step in codec.listed_steps(layout.snapshots)]
    keys += [(step, one.kind, one.split) for step in run.steps for one in run._observed(step)]
    return {
        (step, f"{split}.{kind}", module): run.tensor(step, kind, module, split)
        for step, kind, split in keys
        for module in ("model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.v_proj")
    }


def assert_nothing_lost(layout: RunLayout, before: dict[tuple[int, str, str], torch.Tensor]) -> None:
    after = observations(layout)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_policies_in_words() -> None:
    steps = [0, 10, 90, 100, 1000, 1100, 1150]
    said = {
        (): (steps, steps),
        (("last", 2),): ([0, 1100, 1150], [1100, 1150]),
        (("every", 100),): ([0, 100, 1000, 1100, 1150], [1150]),
        (("last", 2), ("every", 1000)): ([0, 1000, 1100, 1150], [1100, 1150]),
        (("state", 3),): (steps, [1000, 1100, 1150]),
        (("last", 1), ("every", 1000), ("state", 2)): ([0, 1000, 1150], [1000, 1150]),
    }
    for policy, (models, states) in said.items():
        keep = KeepConfig(**dict(policy))
        assert keep.models(steps, 5000) == models
        assert keep.states(models) == states
    assert KeepConfig(last=1).models([0, 4, 8], 4) == [0, 4, 8]


counts = st.one_of(st.none(), st.integers(1, 8))


@given(st.lists(st.integers(0, 40), min_size=1, unique=True).map(sorted), counts, counts, counts)
def test_thinning_at_every_save_leaves_what_thinning_once_leaves(
    steps: list[int], last: int | None, every: int | None, state: int | None
) -> None:
    keep = KeepConfig(last=last, every=every, state=state)
    there: list[int] = []
    for step in steps:
        there = keep.models([*there, step], steps[-1])
        assert {step, 0} & set(steps) <= set(there)
        assert keep.models(there, steps[-1]) == there
        assert keep.states(there)[-1] == step
    assert there == keep.models(steps, steps[-1])


def test_training_keeps_what_the_policy_says_and_loses_no_observation(tiny: Tiny, whole: RunLayout) -> None:
    before = observations(whole)
    config = tiny(name="thin", **{"checkpoint.keep": {"last": 1, "every": 4, "state": 2}})
    train(config, quiet=True)
    assert kept(config.layout) == ["0", "4", "8+", "10+"]
    assert_nothing_lost(config.layout, before)
    assert audit(config.layout.root).findings == []
    assert codec.read_manifest(config.layout.snapshot(2) / "manifest.json", SnapshotManifest).weights == "snapshot"
    assert torch.equal(initial_weights(f"{whole.root}@10")["lm_head.weight"], last_head(config.layout))


def last_head(layout: RunLayout) -> torch.Tensor:
    return codec.read_tensors(layout.checkpoint(10) / "model.safetensors")["lm_head.weight"]


def test_prune_says_what_it_removed_and_does_nothing_twice(whole: RunLayout) -> None:
    before, tree = observations(whole), sorted(whole.root.rglob("*"))
    size = bytes_below(whole)
    planned = list(prune(whole.root, ["keep.last=2"], dry_run=True))
    assert sorted(whole.root.rglob("*")) == tree
    said = list(prune(whole.root, ["keep.last=2"]))
    assert [line.replace("would remove", "removed") for line in planned] == said
    assert said[0].startswith("removed step 0: state/ (")
    assert said[4].startswith("removed step 2: the model, its observed weights moved into the snapshot (")
    assert kept(whole) == ["0", "8+", "10+"]
    assert_nothing_lost(whole, before)
    freed = float(said[-1].split()[1]) * {"kB": 1e3, "MB": 1e6}[said[-1].split()[2]]
    assert freed == pytest.approx(size - bytes_below(whole), rel=0.05)  # manifests say a little more than before
    assert list(prune(whole.root, ["keep.last=2"])) == ["nothing to remove"]
    assert list(prune(whole.root)) == ["nothing to remove"]  # the run's own policy


def bytes_below(layout: RunLayout) -> int:
    return sum(path.stat().st_size for path in layout.root.rglob("*") if path.is_file())


def test_prune_of_a_run_that_is_being_written_or_is_none_is_refused(whole: RunLayout) -> None:
    tree = sorted(whole.root.rglob("*"))
    with RunLock(whole.lock), pytest.raises(LockHeldError, match="is being written by process"):
        list(prune(whole.root, ["keep.last=1"]))
    assert sorted(whole.root.rglob("*")) == tree
    with pytest.raises(UserError, match=r'unknown key "checkpoint\.keep\.lst".*did you mean "last"'):
        list(prune(whole.root, ["keep.lst=1"]))
    with pytest.raises(UserError, match=r'"train\.steps=3" is not a keep policy'):
        list(prune(whole.root, ["train.steps=3"]))
    with pytest.raises(UserError, match="is not a run directory"):
        list(prune(whole.checkpoints, ["keep.last=1"]))


def test_what_the_run_would_continue_from_stays_also_where_newer_ones_are_damaged(whole: RunLayout) -> None:
    alter(whole.checkpoint(10) / "model.safetensors")
    alter(whole.state(8) / "optimizer.safetensors")
    list(prune(whole.root, ["keep.last=1"]))
    assert kept(whole) == ["0", "6+", "8+", "10+"]
    assert newest_intact(whole)[0] == 6


def test_a_model_without_state_is_no_place_to_continue_from_and_nothing_else_is_amiss(
    whole: RunLayout, tiny: Tiny
) -> None:
    list(prune(whole.root, ["keep.state=1"]))
    assert kept(whole) == ["0", "2", "4", "6", "8", "10+"]
    assert audit(whole.root).findings == []
    assert codec.intact_steps(whole.checkpoints, CheckpointManifest, hashes=True) == [0, 2, 4, 6, 8, 10]
    assert evaluate_run(whole.root, 6, None).startswith("step 6: perplexity")
    config = tiny(name="from-8", init_from=f"{whole.root}@8")
    train(config, quiet=True)
    shutil.rmtree(whole.checkpoint(10))
    assert newest_intact(whole) == (None, [])
    with pytest.raises(UserError, match="no intact checkpoint to continue from: nothing is removed"):
        list(prune(whole.root, ["keep.last=1"]))


def test_a_model_without_state_opens_with_transformers(whole: RunLayout) -> None:
    transformers = pytest.importorskip("transformers")
    list(prune(whole.root, ["keep.state=1"]))
    model = transformers.AutoModelForCausalLM.from_pretrained(whole.checkpoint(4))
    assert torch.equal(model.lm_head.weight, initial_weights(f"{whole.root}@4")["lm_head.weight"])


def test_what_is_damaged_stays_and_is_named(whole: RunLayout) -> None:
    alter(whole.checkpoint(2) / "model.safetensors")
    (whole.snapshot(4) / "val.gradients.safetensors").unlink()
    said = [line for line in prune(whole.root, ["keep.last=1"]) if "stays" in line]
    assert kept(whole) == ["0", "2", "4", "10+"]
    assert "checkpoint 2 stays" in said[0]
    assert "model.safetensors does not have the sha256" in said[0]
    assert "checkpoint 4 stays" in said[1]
    assert "val.gradients.safetensors is missing" in said[1]


def test_altered_bytes_of_a_snapshot_are_not_sealed_anew(whole: RunLayout) -> None:
    alter(whole.snapshot(4) / "val.gradients.safetensors")
    list(prune(whole.root, ["keep.last=1"]))
    assert "altered" in str(codec.verify_directory(whole.snapshot(4), SnapshotManifest, hashes=True))


def alter(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_tensors_of_a_method_stay_beside_the_weights_that_move(whole: RunLayout) -> None:
    manifest = codec.read_manifest(whole.snapshot(4) / "manifest.json", SnapshotManifest)
    codec.save_tensors(whole.snapshot(4) / SNAPSHOT_WEIGHTS, {"a.lora_A.weight": torch.ones(2)})
    codec.seal(whole.snapshot(4), manifest)
    model = codec.read_tensors(whole.checkpoint(4) / "model.safetensors")
    list(prune(whole.root, ["keep.last=1"]))
    found = codec.read_tensors(whole.snapshot(4) / SNAPSHOT_WEIGHTS)
    names = [f"model.layers.{i}.self_attn.v_proj.weight" for i in (0, 1)]
    assert found.keys() == {"a.lora_A.weight", *names}
    assert all(torch.equal(found[name], model[name]) for name in names)


def test_a_new_policy_holds_from_the_start_of_a_session(whole: RunLayout, tiny: Tiny) -> None:
    shutil.rmtree(whole.checkpoint(10))
    config = tiny(**{"checkpoint.keep": {"last": 2}, "train.max_hours": 1e-9, "train.stop_margin_minutes": 0})
    assert train(config, quiet=True).status == "stopped"
    assert kept(whole) == ["0", "6+", "8+"]
    assert planned_removals(whole, config.checkpoint.keep, 8, 10) == []


# Every stage of every write and removal, one after another: the process ends there.
KILL = """
import os, shutil, sys
from pathlib import Path
from pico_contract import codec
from pico_train.commands import prune

root, count = Path(sys.argv[1]), 0
while True:
    copy = root.parent / f"killed-{count}" / root.name
    shutil.copytree(root, copy)
    child = os.fork()
    if child == 0:
        left = [count]
        def stage(name, path):
            if left[0] == 0:
                os._exit(9)
            left[0] -= 1
        codec.on_stage = stage
        list(prune(copy, ["keep.last=2"]))
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
    count += 1
print(count)
"""


@pytest.mark.slow
def test_a_kill_between_any_two_operations_loses_nothing_and_a_second_run_finishes(whole: RunLayout) -> None:
    before = observations(whole)
    out = subprocess.run([sys.executable, "-c", KILL, whole.root], capture_output=True, text=True, check=True).stdout
    assert int(out) > 15
    expected = copied(whole, "expected")
    list(prune(expected.root, ["keep.last=2"]))
    for count in range(int(out)):
        layout = RunLayout(whole.root.parent / f"killed-{count}" / whole.root.name)
        assert codec.verify_directory(layout.checkpoint(10), CheckpointManifest, hashes=True) is None
        list(prune(layout.root, ["keep.last=2"]))
        assert kept(layout) == ["0", "8+", "10+"]
        assert_nothing_lost(layout, before)
        assert names_below(layout) == names_below(expected)


def names_below(layout: RunLayout) -> list[str]:
    return sorted(str(path.relative_to(layout.root)) for path in layout.root.rglob("*"))


def test_the_command(whole: RunLayout) -> None:
    done = subprocess.run([*COMMAND, whole.root, "keep.last=3", "--dry-run"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("would remove ")
    manifest = json.loads(whole.manifest.read_text())
    assert manifest["status"] == "finished"
