"""Streamed rows over HTTP from a stand-in for the hub: what is read, what is kept, what passes and what does not."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pico_contract.errors import UserError
from pico_contract.layout import DataLayout
from pico_train import train
from pico_train.config import to_yaml
from pico_train.data import hub_files as hub_room
from pico_train.data.packed import PackedData
from pico_train.log.metrics import read_metrics
from pico_train.run import RunConfig, build

from ...support import replica
from ...support.data_hub import DROP, OTHER_BYTES, REPO, StandIn
from ..commands.test_data import Command, command
from .test_shards import Fetched, streamed

__all__ = ["command"]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses (seconds) that were asked for; none is made."""
    asked: list[float] = []
    monkeypatch.setattr(time, "sleep", asked.append)
    return asked


def shard_files(data: PackedData) -> list[Path]:
    return sorted(DataLayout(data.path).cache.rglob("train-*.parquet"))


def until(done: Callable[[], bool]) -> None:
    """Wait for what happens in the background, a few seconds at most."""
    for _ in range(500):
        if done():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def test_fetching_reads_footers_alone(fetched: Fetched, hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_room, "_FOOTER", 400)  # less than a footer, so that a second request has to follow
    data = fetched(REPO)
    assert hub.whole == []
    assert Counter(name for name, _ in hub.parts) == dict.fromkeys(map(replica.name, range(6)), 2)
    assert data.manifest.splits["train"].rows == 107
    assert data.manifest.source == f"hub:{REPO}@{hub.commit}"
    assert data.path.stat().st_size < 10_000


def test_rows_are_those_of_all_shards_in_one_piece(fetched: Fetched, hub: StandIn) -> None:
    assert streamed(fetched(REPO)).take(np.arange(107)).tolist() == replica.ids().tolist()
    assert sorted(hub.whole) == list(map(replica.name, range(6)))


def test_a_late_row_touches_its_shard_alone(fetched: Fetched, hub: StandIn) -> None:
    rows = streamed(fetched(REPO))
    assert rows.take(np.array([90])).tolist() == replica.ids()[[90]].tolist()
    assert hub.whole == [replica.name(5)]


def test_what_is_announced_is_there_when_it_is_asked_for(fetched: Fetched, hub: StandIn) -> None:
    data = fetched(REPO)
    rows = streamed(data)
    rows.prefetch(np.array([61, 65]))
    rows.prefetch(np.array([62]))
    until(lambda: bool(shard_files(data)))
    rows.take(np.array([60]))
    assert hub.whole == [replica.name(3)]


def test_a_second_session_finds_what_the_first_has_downloaded(fetched: Fetched, hub: StandIn) -> None:
    data = fetched(REPO)
    streamed(data).take(np.arange(30))
    assert streamed(data).take(np.arange(30)).tolist() == replica.ids()[:30].tolist()
    assert hub.whole == [replica.name(0), replica.name(1)]


def test_the_cache_keeps_to_its_budget_and_releases_the_least_recently_used(fetched: Fetched, hub: StandIn) -> None:
    largest = max(len(hub.files[replica.name(i)]) for i in range(6))
    data = fetched(REPO, cache_gib=3.5 * largest / 2**30)
    rows, most = streamed(data), 0
    for start in (0, 20, 40, 0, 67):
        rows.take(np.array([start]))
        most = max(most, sum(path.stat().st_size for path in shard_files(data)))
    assert 2 * largest < most <= 3.5 * largest
    assert [path.name[6:11] for path in shard_files(data)] == ["00000", "00002", "00004"]
    assert hub.whole == [replica.name(i) for i in (0, 1, 2, 4)]
    rows.take(np.array([20]))  # released, so brought again
    assert hub.whole[4:] == [replica.name(1)]
    assert [path.name[6:11] for path in shard_files(data)] == ["00000", "00001", "00004"]


def test_a_file_that_vanished_from_the_cache_is_brought_again(fetched: Fetched, hub: StandIn) -> None:
    data = fetched(REPO)
    rows = streamed(data)
    rows.prefetch(np.array([0]))
    until(lambda: bool(shard_files(data)))
    shutil.rmtree(DataLayout(data.path).cache)
    assert rows.take(np.array([3])).tolist() == replica.ids()[[3]].tolist()
    assert hub.whole == [replica.name(0)] * 2


def test_a_budget_below_three_shards_is_refused(fetched: Fetched, hub: StandIn) -> None:
    data = fetched(REPO, cache_gib=1e-6)
    with pytest.raises(UserError, match=r"data.stream.cache_gib is 1e-06, too little for three shards \(of "):
        data.split("train")


@pytest.mark.parametrize("damage", ["cut", "altered"])
def test_a_damaged_shard_of_the_cache_is_brought_again(fetched: Fetched, hub: StandIn, damage: str) -> None:
    data = fetched(REPO)
    streamed(data).take(np.array([0]))
    (path,) = shard_files(data)
    content = path.read_bytes()
    path.write_bytes(content[:-7] if damage == "cut" else content[:40] + bytes(8) + content[48:])
    assert streamed(data).take(np.arange(20)).tolist() == replica.ids()[:20].tolist()
    assert hub.whole == [replica.name(0)] * 2
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("trouble", "retry_after", "expected"),
    [
        ([500, 503], None, [1, 2]),
        ([429], "7", [8]),  # the client adds a second
        ([503], "3", [4]),
        ([DROP, DROP, DROP], None, [1, 2, 4]),
        ([OTHER_BYTES], None, [1]),
        ([DROP, 500], None, [1, 1]),
    ],
)
def test_what_passes_is_waited_for(
    fetched: Fetched,
    hub: StandIn,
    pauses: list[float],
    trouble: list[Any],
    retry_after: str | None,
    expected: list[float],
) -> None:
    data = fetched(REPO)
    hub.trouble, hub.retry_after = [*trouble], retry_after
    assert streamed(data).take(np.arange(20)).tolist() == replica.ids()[:20].tolist()
    assert pauses == expected
    assert [path.name for path in DataLayout(data.path).cache.rglob("*.parquet")] == ["train-00000-of-00006.parquet"]


@pytest.mark.parametrize(
    ("trouble", "sentence"),
    [(DROP, r"cannot be had from the hub \("), (503, r"cannot be had from the hub \(HTTP 503\)")],
)
def test_what_does_not_pass_for_minutes_is_a_failure_and_can_be_tried_again(
    fetched: Fetched, hub: StandIn, pauses: list[float], trouble: Any, sentence: str
) -> None:
    """Exit 1 rather than 2: the run goes on with the same command once the hub is back."""
    rows = streamed(fetched(REPO))
    hub.trouble = [trouble] * 200
    with pytest.raises(ConnectionError, match=f"{REPO}: data/train-00000-of-00006.parquet {sentence}"):
        rows.take(np.array([0]))
    assert 120 < sum(pauses) < 3600
    hub.trouble = []
    assert rows.take(np.array([0])).tolist() == replica.ids()[[0]].tolist()


@pytest.mark.parametrize(
    ("status", "remedy"), [(401, "log in with `hf auth login`"), (403, "ask for access"), (404, "it is not there")]
)
def test_what_no_patience_mends_stops_at_once_with_the_file(
    fetched: Fetched, hub: StandIn, pauses: list[float], status: int, remedy: str
) -> None:
    rows = streamed(fetched(REPO))
    hub.trouble = [status]
    with pytest.raises(UserError) as caught:
        rows.take(np.array([70]))
    assert f"the hub refuses {REPO}: {replica.name(4)} (HTTP {status}): {remedy}" in str(caught.value)
    assert pauses == []


def test_a_shard_that_was_taken_off_the_hub_is_named(fetched: Fetched, hub: StandIn) -> None:
    rows = streamed(fetched(REPO))
    del hub.files[replica.name(2)]
    with pytest.raises(UserError, match=rf"refuses {REPO}: {replica.name(2)} \(HTTP 404\): it is not there"):
        rows.take(np.array([41]))


@pytest.mark.usefixtures("hub")
def test_a_data_set_that_is_not_there_is_one_sentence(fetched: Fetched) -> None:
    with pytest.raises(UserError, match=r"the hub refuses the data set no-one/nothing \(HTTP 404\): it is not there"):
        fetched("no-one/nothing")


def test_a_moved_revision_is_other_data(fetched: Fetched, hub: StandIn, tiny: Callable[..., RunConfig]) -> None:
    """What was fetched stays at its commit; what is fetched anew is refused by a run on the former."""
    config = tiny(**{"data.path": str(fetched(REPO).path), "train.steps": 2, "data.stream.cache_gib": 1e-3})
    train(config, quiet=True)
    hub.commit, hub.files[replica.name(0)] = "f" * 40, replica.parquet(replica.ids()[::-1][:20])
    moved = fetched(REPO, out="moved")
    with pytest.raises(UserError, match="fingerprint"):
        train(tiny(**{"data.path": str(moved.path), "train.steps": 2}), quiet=True)


def truth(config: RunConfig) -> list[dict[str, Any]]:
    return [{**row, "tokens_per_second": None, "mfu": None} for row in read_metrics(config.layout.metrics)]


@pytest.mark.parametrize("order", ["sequential", "shuffled"])
def test_a_run_that_was_killed_reads_the_same_rows(
    fetched: Fetched,
    hub: StandIn,
    directory: Path,
    tiny: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
    order: str,
) -> None:
    """Ten updates of 8 rows reach the fourth shard; the directory is read by the run that nothing stops."""
    changes = {"data.order": order, "snapshot.every": 0, "evaluate.every": 0, "data.stream.cache_gib": 1e-3}
    whole = tiny(name="whole", **{"data.path": str(fetched(directory).path), **changes})
    train(whole, quiet=True)
    data = fetched(REPO, out="hub")
    killed = tiny(name="killed", **{"data.path": str(data.path), **changes})
    with monkeypatch.context() as patch:
        patch.setattr("pico_train.trainer.loop.apply_update", at_the_seventh())
        with pytest.raises(KeyboardInterrupt):
            train(killed, quiet=True)
    shutil.rmtree(DataLayout(data.path).cache)
    hub.whole.clear()
    train(killed, quiet=True)
    assert truth(killed) == truth(whole)
    job = build(killed)
    read = np.concatenate([job.loader.order.rows(step) for step in range(5, 11)])
    needed = {replica.name(i) for i in np.searchsorted(np.cumsum(replica.ROWS), read, side="right")}
    assert needed <= set(hub.whole)
    assert len(hub.whole) == len(set(hub.whole)) <= len(needed) + 1  # once each, and what was announced besides


@pytest.mark.slow
def test_two_processes_read_what_one_reads_and_download_each_shard_once(
    fetched: Fetched, hub: StandIn, tiny: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """They share the cache; losses agree up to the order of reduction."""
    changes = {"snapshot.every": 0, "evaluate.every": 0, "data.stream.cache_gib": 1e-3}
    one = tiny(name="one", **{"data.path": str(fetched(REPO).path), **changes})
    train(one, quiet=True)
    hub.whole.clear()
    two = tiny(name="two", **{"data.path": str(fetched(REPO, out="again").path), **changes})
    (tmp_path / "two.yaml").write_text(to_yaml(two))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "pico_train"]
    done = subprocess.run([*launcher, "run", str(tmp_path / "two.yaml")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for row, other in zip(truth(one), truth(two), strict=True):
        assert (row["step"], row["tokens"], row["order_hash"]) == (other["step"], other["tokens"], other["order_hash"])
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert len(hub.whole) == len(set(hub.whole)) >= 4


def at_the_seventh() -> Callable[..., None]:
    from pico_train.trainer.update import apply_update

    def update(state: Any, update: Any, lr: float) -> None:
        if update.step == 7:
            raise KeyboardInterrupt
        apply_update(state, update, lr)

    return update


@pytest.mark.usefixtures("hub")
def test_the_command_fetches_and_shows(command: Command, tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    code, out, err = command("fetch", REPO, "out=streamed", "vocab_size=280", "licence=none")
    assert (code, err) == (0, "")
    assert out == "train: 107 rows of 17, 1,819 tokens\ndata in streamed\n"
    assert command("fetch", REPO, "out=streamed", "vocab_size=280", "licence=none")[1].startswith("streamed is fetched")
    assert command("fetch", REPO, "out=streamed")[2].startswith("pico-train: streamed was made with other settings")
    (tmp_path / "fetch.yaml").write_text(f"source: {REPO}\nout: other\nvocab_size: 280\n")
    assert command("fetch", tmp_path / "fetch.yaml")[0] == 0
    changes = {"data.path": "streamed", "data.order": "sequential", "snapshot.every": 0, "evaluate.every": 0}
    (tmp_path / "run.yaml").write_text(to_yaml(tiny(**changes)))
    code, out, err = command("show", tmp_path / "run.yaml", "--step", 9, "--rows", 1)
    assert (code, err) == (0, "")
    assert f"row 64: {' '.join(map(str, replica.ids()[64]))}" in out
