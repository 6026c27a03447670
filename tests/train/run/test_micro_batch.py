"""`train.micro_batch_size: auto`: what fits is found before training, changes nothing of it, and is kept."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from pico_contract import codec
from pico_contract.errors import UserError
from pico_contract.schema import RunManifest
from pico_train import train
from pico_train.checkpoint.state import TrainState
from pico_train.config import identity, load
from pico_train.log.metrics import read_metrics
from pico_train.method.base import BatchSource
from pico_train.method.plain import Plain
from pico_train.model.cost import activation_bytes
from pico_train.model.execution import layer_forward_recomputing
from pico_train.run import Job, RunConfig, build, micro_batch
from pico_train.run.micro_batch import find_micro_batch
from pico_train.trainer import resume
from torch import nn

pytestmark = pytest.mark.slow  # half a minute and more for the whole file

Tiny = Callable[..., RunConfig]


class Cramped(Plain):
    """A device that holds two rows, and a loss that draws from torch's generator."""

    most = 2
    tried: tuple[int, ...] = ()

    def loss(self, model: nn.Module, batch: torch.Tensor, step: int) -> tuple[torch.Tensor, int, dict[str, float]]:
        type(self).tried += (len(batch),)
        if len(batch) > self.most:
            raise torch.OutOfMemoryError("out of memory")
        total, terms, scalars = super().loss(model, batch, step)
        return total * (1 + 0.1 * torch.rand(())), terms, scalars


class Nothing(Plain):
    def begin_step(self, step: int) -> BatchSource:
        return None


@pytest.fixture
def cramped(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    monkeypatch.setitem(sys.modules, "users_pieces", sys.modules[__name__])
    monkeypatch.setattr(micro_batch, "_TRIED", ("cpu",))
    monkeypatch.setattr(Cramped, "tried", ())

    def make(**changes: object) -> RunConfig:
        return tiny(**{"train.micro_batch_size": "auto", "method.name": "users_pieces:Cramped", **changes})

    return make


def found_by(config: RunConfig) -> int:
    job = build(config)
    return find_micro_batch(job, lambda: job.build_state(None))


def sessions(config: RunConfig) -> list[int]:
    return [one["micro_batch"] for one in codec.read_manifest(config.layout.manifest, RunManifest).sessions]


def losses(config: RunConfig) -> list[float]:
    return [row["loss"] for row in read_metrics(config.layout.metrics)]


def test_the_largest_divisor_that_passes_is_taken(cramped: Tiny) -> None:
    assert found_by(cramped()) == 2
    assert Cramped.tried == (8, 4, 2)
    assert found_by(cramped(**{"train.batch_size": 9})) == 1


def test_trying_leaves_no_trace(cramped: Tiny) -> None:
    """The run is that of the number itself, to the bit, also where the loss draws from torch's own generator."""
    auto, given = cramped(name="auto"), cramped(name="given", **{"train.micro_batch_size": 2})
    for config in (auto, given):
        torch.manual_seed(3)
        train(config, quiet=True)
    assert losses(auto) == losses(given)
    a, b = (codec.read_tensors(config.layout.checkpoint(10) / "model.safetensors") for config in (auto, given))
    assert all(torch.equal(a[name], b[name]) for name in b)


def test_what_was_found_is_stored_and_kept(
    cramped: Tiny, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = cramped()
    train(config, quiet=True)
    assert load(RunConfig, config.layout.config).train.micro_batch_size == 2
    assert identity(load(RunConfig, config.layout.config)) == identity(config)
    monkeypatch.setattr(Cramped, "most", 8)
    (config.layout.checkpoint(10) / "model.safetensors").unlink()
    train(config)
    assert sessions(config) == [2, 2]
    assert "micro-batch (auto): 2 rows, as before" in capfd.readouterr().out


def test_processes_take_what_fits_in_all_of_them(cramped: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stood in for: another process that has room for one row only."""
    job = build(cramped())
    answers = iter([True, True, True, False])
    monkeypatch.setattr(job.runtime, "any", lambda flag: flag or next(answers))
    monkeypatch.setattr(Cramped, "most", 8)
    assert find_micro_batch(job, lambda: job.build_state(None)) == 1
    assert Cramped.tried == (8, 4, 2, 1)


def test_no_room_for_a_row_is_said_before_anything_is_written(cramped: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cramped, "most", 0)
    config = cramped()
    with pytest.raises(UserError, match=r'train\.micro_batch_size is "auto", but not even one row fits'):
        train(config, quiet=True)
    assert not config.layout.manifest.exists()


def test_updates_without_rows_need_no_search(cramped: Tiny) -> None:
    assert found_by(cramped(**{"method.name": "users_pieces:Nothing"})) == 8


def test_a_cpu_is_reckoned_from_what_autograd_keeps(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The reckoned bytes of 8 rows, from those of 1 and 2, are what 8 rows keep, and halving the room halves them.

    A row keeps what its layers are counted to keep, and an embedding, a final norm and a loss beside it.
    """
    config = tiny(**{"train.micro_batch_size": "auto"})
    job = build(config)
    state = job.build_state(None)
    batch = job.loader.tokens(job.loader.order.rows(1))
    kept = {rows: micro_batch._kept_by_autograd(job, state, batch[:rows]) for rows in (1, 2, 8)}
    assert kept[8] == kept[1] + 7 * (kept[2] - kept[1])
    layers = activation_bytes(config.model, job.seq_len, bf16=False)
    assert layers < kept[2] - kept[1] < layers + 40 * config.model.hidden_size * job.seq_len
    assert all(parameter.grad is None for parameter in state.parameters.values())
    held = sum(4 * parameter.nbytes for parameter in state.parameters.values())
    for rows in (8, 4, 1):
        needed = held + micro_batch._PASSING * (kept[1] + (rows - 1) * (kept[2] - kept[1]))
        monkeypatch.setattr(micro_batch, "_machine_memory", lambda needed=needed: needed / micro_batch._SHARE + 1)
        assert found_by(config) == rows


def test_a_container_s_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(micro_batch, "_CGROUP_LIMIT", limit)
    whole = micro_batch._machine_memory()
    assert whole > 1 << 28
    for text, expected in (("max\n", whole), ("1000000\n", 1_000_000)):
        limit.write_text(text)
        assert micro_batch._machine_memory() == expected


def test_a_trial_compiles_nothing(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each number of rows would be a compilation of its own, and torch gives up after eight."""

    class FoundError(Exception):
        pass

    def find(job: Job, build_state: Callable[[], TrainState]) -> int:
        assert job.compiled
        runs = build_state().model.model.layer_forward
        assert isinstance(runs, partial)
        assert runs.func is layer_forward_recomputing
        raise FoundError

    monkeypatch.setattr(resume, "find_micro_batch", find)
    with pytest.raises(FoundError):
        train(tiny(**{"train.micro_batch_size": "auto", "train.compile": "on"}), quiet=True)


def test_gradients_of_micro_batches_need_a_number(tiny: Tiny) -> None:
    changes = {"train.micro_batch_size": "auto", "snapshot.kinds": ["train.microbatch_gradients"]}
    with pytest.raises(UserError, match=r'train\.microbatch_gradients, .* but train\.micro_batch_size is "auto"'):
        tiny(**changes)


@pytest.mark.parametrize(
    ("value", "words"),
    [("aut", r"""should be a valid integer or 'auto' \(it is "aut"\)"""), (0, r"greater than or equal to 1 or 'auto'")],
)
def test_what_is_no_micro_batch_is_refused(tiny: Tiny, value: object, words: str) -> None:
    with pytest.raises(UserError, match=rf"test\.yaml: train\.micro_batch_size: .*{words}"):
        tiny(**{"train.micro_batch_size": value})
