"""The disk that a run takes: estimated to a few percent, in the end, at most, and from a step on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pico_contract import codec
from pico_train import train
from pico_train.run import RunConfig, build
from pico_train.run.disk_usage import Storage, remaining
from pico_train.run.estimate import estimate

Tiny = Callable[..., RunConfig]


def bytes_below(*parents: Path) -> int:
    files = [path for parent in parents for path in [parent, *parent.rglob("*")] if path.is_file()]
    return sum(path.stat().st_size for path in files)


CASES = {
    "all": {},
    "thinned": {"checkpoint.keep": {"last": 1, "every": 4, "state": 2}, "checkpoint.every": 2},
    "tied, bfloat16, own modules": {
        "model.tie_word_embeddings": True,
        "snapshot.dtype": "bfloat16",
        "snapshot.modules": ["embed_tokens", "lm_head", "norm", "v_proj"],
        "checkpoint.keep": {"last": 2},
        "checkpoint.every": 1,
    },
    "micro-batches, all positions": {
        "train.micro_batch": 2,
        "snapshot.kinds": ["train.microbatch_gradients", "val.activations"],
        "snapshot.positions": {"rule": "all"},
        "checkpoint.every": 0,
    },
    "no snapshots": {"snapshot.every": 0, "checkpoint.keep": {"state": 1}},
    "low-rank": {
        "method": {"name": "relora", "options": {"rank": 4, "restart_every": 7}},
        "snapshot.modules": ["q_proj", "down_proj"],
        "checkpoint.every": 2,
    },
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_the_estimate_is_what_a_run_takes_in_the_end_and_at_most(
    tiny: Tiny, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All files count, headers and manifests too. 3% is for the text of manifests, whose numbers vary in length."""
    config = tiny(**changes)
    layout, storage, last = config.layout, Storage(build(config)), config.train.steps
    saved, observed = config.checkpoint.steps(last), config.snapshot.steps(last)
    sizes = [0]

    def look(stage: str, path: Path) -> None:
        if stage in ("after_rename", "before_discard"):
            sizes.append(bytes_below(layout.checkpoints, layout.snapshots))

    needed = remaining(storage.job, None)
    monkeypatch.setattr(codec, "on_stage", look)
    train(config, quiet=True)
    end = storage.after(saved, observed)
    assert storage.checkpoints(end) == pytest.approx(bytes_below(layout.checkpoints), rel=0.03)
    assert storage.snapshots(end) == pytest.approx(bytes_below(layout.snapshots), rel=0.03)
    assert storage.metrics() == pytest.approx(bytes_below(layout.metrics), rel=0.25)
    assert storage.peak(saved, observed) == pytest.approx(max(sizes), rel=0.03)
    assert needed == storage.peak(saved, observed) + storage.metrics()
    said = {line.split()[0]: line for line in estimate(config, "test.yaml")}
    assert f"{len(end.models)} of up to " in said["checkpoints"]
    assert said["disk"].split(" free at ")[1] == str(config.runs_dir)


def test_what_remains_is_what_a_continued_run_adds(tiny: Tiny) -> None:
    config = tiny(**{"checkpoint.keep": {"last": 2}, "checkpoint.every": 2})
    train(config, quiet=True)
    layout = config.layout
    for parent in (layout.checkpoints, layout.snapshots):
        shutil.rmtree(parent / "step_00000010")
    before = bytes_below(layout.checkpoints, layout.snapshots, layout.metrics)
    needed = remaining(build(config), 8)
    assert remaining(build(config), 10) == 0
    thinned = Storage(build(config))
    train(config, quiet=True)
    added = bytes_below(layout.checkpoints, layout.snapshots, layout.metrics) - before
    # Both of the last two were there already: at most one whole checkpoint more than in the end.
    assert added <= needed <= added + 1.1 * (thinned.model + thinned.state)
