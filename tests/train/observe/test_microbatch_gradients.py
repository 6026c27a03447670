"""Gradients of single micro-batches: those of autograd on each, and taking them changes nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pico_analyze import open_run
from pico_analyze.linalg import GradientStack
from pico_analyze.linalg.decompositions import REAL
from pico_analyze.metrics.noise import gradient_noise_scale
from pico_contract import codec
from pico_contract.errors import UserError
from pico_contract.schema import SnapshotManifest
from pico_train import train
from pico_train.checkpoint.load import load_checkpoint
from pico_train.log.metrics import read_metrics
from pico_train.method.base import BatchSource
from pico_train.method.plain import Plain
from pico_train.run import Job, RunConfig, build
from pico_train.run.estimate import estimate
from torch import nn

Tiny = Callable[..., RunConfig]
KINDS = ["train.gradients", "train.microbatch_gradients", "val.gradients", "val.activations"]
STACKED = {"train.micro_batch_size": 2, "snapshot.kinds": KINDS}


class Uneven(Plain):
    """Rows have labels left out, so that micro-batches differ in their terms."""

    def loss(self, model: nn.Module, batch: torch.Tensor, step: int) -> tuple[torch.Tensor, int, dict[str, float]]:
        labels = batch[:, 1:].clone()
        labels[labels % 3 == 0] = -100
        return model(batch[:, :-1], labels=labels), int((labels != -100).sum()), {}


class Own(Plain):
    """Every other update reads two rows of the method's own: a single micro-batch."""

    def begin_step(self, step: int) -> BatchSource:
        return torch.ones(2, 17, dtype=torch.int64) if step % 2 else "language_model"


def read(config: RunConfig, step: int) -> tuple[SnapshotManifest, dict[str, dict[str, torch.Tensor]]]:
    directory = config.layout.snapshot(step)
    assert codec.verify_directory(directory, SnapshotManifest, hashes=True) is None
    manifest = codec.read_manifest(directory / "manifest.json", SnapshotManifest)
    return manifest, {path.stem: codec.read_tensors(path) for path in directory.glob("*.safetensors")}


def by_autograd(job: Job, step: int, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients of the mean loss of `rows` at theta_step, through all logits at once; labels that `Uneven` leaves out
    are left out."""
    model = job.build_state(load_checkpoint(job.layout, step)).model
    labels = rows[:, 1:].long().clone()
    if job.config.method.name != "plain":
        labels[labels % 3 == 0] = -100
    logits = model(rows[:, :-1].long())
    nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100).backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("method", ["plain", "users_pieces:Uneven"])
def test_each_is_that_of_autograd_on_its_rows(tiny: Tiny, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """2e-6 of a tensor's largest entry: float32 sums in another order."""
    monkeypatch.setitem(sys.modules, "users_pieces", sys.modules[__name__])
    changes = {"method.name": method, "snapshot.modules": ["*"], "train.steps": 5, "evaluate.every": 0}
    config = tiny(**STACKED, **changes)
    train(config, quiet=True)
    job = build(config)
    manifest, files = read(config, 4)
    (entry,) = (one for one in manifest.observed if one.kind == "microbatch_gradients")
    assert (entry.split, entry.objective, len(entry.terms)) == ("train", Plain.objective, 4)
    assert entry.terms == [32] * 4 if method == "plain" else len(set(entry.terms)) > 1
    assert not manifest.absent
    stacks = files["train.microbatch_gradients"]
    assert {name: list(one.shape) for name, one in stacks.items()} == entry.tensors
    for i, rows in enumerate(files["train.batch"]["tokens"].split(2)):
        expected = by_autograd(job, 4, rows)
        assert stacks.keys() == expected.keys()
        for name, gradient in expected.items():
            assert (stacks[name][i] - gradient).abs().max() <= 2e-6 * gradient.abs().max(), (i, name)
    weights = torch.tensor(entry.terms) / sum(entry.terms)
    for name, whole in files["train.gradients"].items():
        mean = torch.einsum("m,m...->...", weights, stacks[name])
        assert (mean - whole).abs().max() <= 2e-6 * stacks[name].abs().max(), name


def test_taking_them_changes_nothing(tiny: Tiny) -> None:
    """Bit-identical losses, norms, train gradients and weights, tied embeddings (two uses of one tensor) included."""
    shared = {"train.micro_batch_size": 2, "snapshot.every": 1, "snapshot.modules": ["*"]}
    shared["model.tie_word_embeddings"] = True
    runs = [tiny(name="off", **shared), tiny(name="on", **shared, **{"snapshot.kinds": KINDS})]
    for config in runs:
        train(config, quiet=True)
    off, on = ([{**row, "tokens_per_second": 0, "mfu": 0} for row in read_metrics(c.layout.metrics)] for c in runs)
    assert off == on
    before, after = (codec.read_tensors(c.layout.checkpoint(10) / "model.safetensors") for c in runs)
    assert all(torch.equal(before[name], after[name]) for name in before)
    for step in (0, 5, 9):
        (_, a), (_, b) = (read(config, step) for config in runs)
        assert b.keys() - a.keys() == {"train.microbatch_gradients"}
        for file, tensors in a.items():
            assert all(torch.equal(tensors[name], b[file][name]) for name in tensors), (step, file)


def test_what_is_absent_says_why(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "users_pieces", sys.modules[__name__])
    config = tiny(**STACKED, **{"method.name": "users_pieces:Own", "train.steps": 4, "snapshot.dtype": "bfloat16"})
    train(config, quiet=True)
    absent = {step: read(config, step)[0].absent for step in (0, 1, 4)}
    assert absent == {
        0: {"train.microbatch_gradients": "single_micro_batch"},
        1: {},
        4: {"train.gradients": "final_step", "train.microbatch_gradients": "final_step"},
    }
    assert {one.dtype for one in read(config, 1)[1]["train.microbatch_gradients"].values()} == {torch.bfloat16}


@pytest.mark.parametrize("changes", [{}, {"train.micro_batch_size": 8}])
def test_a_batch_of_one_pass_is_refused_before_anything_is_done(tiny: Tiny, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"train\.micro_batch_size \(8\) is the whole batch.*below that$"):
        tiny(**{"snapshot.kinds": KINDS}, **changes)
    assert tiny(**{"snapshot.every": 0, "snapshot.kinds": KINDS}, **changes).snapshot.every == 0


def test_their_room_is_told_before_the_run(tiny: Tiny) -> None:
    def snapshots(config: RunConfig) -> float:
        (line,) = (line for line in estimate(config, "test.yaml") if line.startswith("snapshots"))
        number, unit = line.split("= ")[1].split()
        return float(number) * {"kB": 1e3, "MB": 1e6}[unit]

    one = snapshots(tiny(**{"train.micro_batch_size": 2, "snapshot.kinds": ["train.gradients"]}))
    four = snapshots(tiny(**{"train.micro_batch_size": 2, "snapshot.kinds": ["train.microbatch_gradients"]}))
    gradients_at_five_steps = 4 * sum(p.numel() for p in _projections(tiny())) * 5
    assert four - one == pytest.approx(3 * gradients_at_five_steps, abs=1e5)  # printed to a tenth of a unit


def test_analysis_reads_them_with_their_terms(tiny: Tiny) -> None:
    config = tiny(**STACKED)
    train(config, quiet=True)
    run, name = open_run(config.layout.root), "model.layers.1.self_attn.v_proj"
    assert run.splits(4, "microbatch_gradients") == ["train"]
    assert run.n_tokens(4, "train") == [32] * 4
    assert run.n_tokens(10, "train") == []
    found = run.tensor(4, "microbatch_gradients", name).to(REAL)
    assert found.shape == (4, 16, 32)
    scale = gradient_noise_scale(GradientStack(found, torch.full((4,), 32, dtype=REAL)))
    assert scale.status in ("ok", "no_signal")


def _projections(config: RunConfig) -> list[nn.Parameter]:
    model = build(config).build_state(None).model
    return [p for name, p in model.named_parameters() if "_proj" in name]
